"""The length problems: texts, labels, the objectives of the paper's code, and verdicts that follow from numbers."""

import dataclasses
import json
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models  # noqa: F401  one thread, and libraries read fast

from bandit_pft import Group, force
from bandit_pft.errors import ConfigError
from bandit_pft.hf import length_problems as lengths
from bandit_pft.objectives import get_objective
from bandit_pft.objectives.core import as_objective

TOKEN_DPO = as_objective(lengths.dpo_per_token, family="preference")
TOKEN_IPO = as_objective(lengths.ipo_per_token, family="preference")
TINY = lengths.Scale(
    seeds=(0,), steps=2, every=1, prompts=4, rows=48, held_out=16, sft_rows=128, sft_steps=4, rm_steps=4, samples=8,
    final=16,
)  # fmt: skip
OWN = [name for name, recipe in lengths.RECIPES.items() if recipe.data == "own"]


# --- texts -----------------------------------------------------------------------------------------------------------
def test_the_lengths_of_the_texts_have_their_mode_and_mean_at_sixteen_and_a_deviation_of_four():
    found = lengths.text_lengths(np.random.default_rng(0), 1_000_000)
    assert Counter(found.tolist()).most_common(1)[0][0] == lengths.MODE == 16
    written = [len(row["completion"]) for row in lengths.texts(np.random.default_rng(1), 4000)]
    for some in (found, np.array(written)):
        assert some.mean() == pytest.approx(16, abs=0.2) and some.std() == pytest.approx(4, abs=0.2)
        assert some.min() >= lengths.SHORTEST and some.max() <= lengths.LONGEST


def test_a_text_tells_its_topic():
    rows = lengths.texts(np.random.default_rng(1), 4000)
    letters = {topic: Counter() for topic in lengths.TOPICS}
    for row in rows:
        letters[row["prompt"][0]].update(row["completion"])
    tables = np.array([[letters[topic][letter] for letter in lengths.LETTERS] for topic in lengths.TOPICS], float)
    tables /= tables.sum(1, keepdims=True)
    distance = np.abs(tables[:, None] - tables[None]).sum(-1) / 2
    assert distance[~np.eye(len(tables), dtype=bool)].min() > 0.3
    # Every letter is one that its topic has.
    assert (tables > 0).sum(1).max() <= 12


def test_the_tokenizer_gives_one_token_a_character_and_the_text_back():
    tokenizer = lengths.make_tokenizer()
    text = lengths.TOPICS + lengths.LETTERS
    ids = tokenizer(text=text)["input_ids"]
    assert len(set(ids)) == len(text) == len(tokenizer) - 3
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


# --- problems --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def said():
    rng = np.random.default_rng(2)
    words = lambda n: "".join(rng.choice(list(lengths.LETTERS), n))
    return [f"{i % 8}abc" for i in range(200)], [[words(n) for n in rng.integers(0, 33, 4)] for _ in range(200)]


# How far a length is from the best, counted with a ruler and not by the reward's formula.
RULER = {"min": list(range(40)), "skew": list(range(40)), "mode": [*range(16, 0, -1), *range(24)]}


@pytest.mark.parametrize("problem", lengths.PROBLEMS)
def test_the_chosen_response_is_nearer_to_the_best_length(problem, said):
    rows = lengths.pairs(lengths.several(problem, *said, seed=0))
    assert len(rows) > 150
    far = lambda text: RULER[problem][len(text)]
    assert all(far(row["chosen"]) < far(row["rejected"]) for row in rows)


def test_only_the_skewed_responses_are_cut_and_most_of_them_are_short(said):
    plain, skewed = ([row["completions"] for row in lengths.several(name, *said, seed=0)] for name in ("min", "skew"))
    assert plain == said[1]
    both = [(a, b) for one, two in zip(plain, skewed, strict=True) for a, b in zip(one, two, strict=True)]
    assert all(a.startswith(b) for a, b in both)
    found = np.array([len(b) for a, b in both if len(a) > 20])
    # As an exponential of mean 4 rounded up: mean 1 / (1 - exp(-1/4)), most often the least.
    assert found.mean() == pytest.approx(1 / (1 - np.exp(-0.25)), rel=0.15)
    assert Counter(found.tolist()).most_common(1)[0][0] == 1


def test_responses_of_equal_reward_make_no_pair():
    rows = [{"prompt": "0abc", "completions": ["abc", "def"], "rewards": [-1.0, -1.0]}]
    assert lengths.pairs(rows) == []


def test_a_distinct_pair_rejects_a_response_to_another_topic(said):
    prompts, texts = said
    topic = {text: prompt[0] for prompt, row in zip(prompts, texts, strict=True) for text in row if len(text) > 3}
    rows = [
        row for row in lengths.distinct_pairs(prompts, texts, 0) if min(len(row["chosen"]), len(row["rejected"])) > 3
    ]
    assert len(rows) > 100
    assert all(topic[row["chosen"]] == row["prompt"][0] != topic[row["rejected"]] for row in rows)


def test_an_unknown_problem_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="min"):
        lengths.gold("max", 3)


# --- per token -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("token", "whole"), [(TOKEN_DPO, "dpo"), (TOKEN_IPO, "ipo")])
def test_per_token_and_whole_responses_are_the_same_for_one_token(token, whole):
    logp, ref = -jnp.asarray(np.random.default_rng(0).uniform(0.1, 3, (2, 4, 1)), jnp.float32)
    group = Group.of(reward=[0.3, 1.0, -1.0, 0.5], ref_logp=ref)
    np.testing.assert_allclose(token(logp, group), get_objective(whole)(logp, group), rtol=1e-6)
    np.testing.assert_allclose(force(token, logp, group), force(whole, logp, group), rtol=1e-5)


@pytest.mark.parametrize("token", [TOKEN_DPO, TOKEN_IPO])
def test_per_token_a_token_whose_place_the_other_response_has_not_feels_nothing(token):
    logp, ref = -jnp.asarray(np.random.default_rng(1).uniform(0.1, 3, (2, 2, 5)), jnp.float32)
    mask = np.arange(5) < np.array([[3], [5]])
    group = Group.of(reward=[1.0, 0.0], ref_logp=ref, mask=mask)
    pull = np.asarray(force(token, logp, group))
    assert (pull[0, :3] != 0).all() and (pull[1, :3] != 0).all()
    assert (pull[:, 3:] == 0).all()
    # By hand: places are compared one by one, and their mean is taken.
    gain = np.asarray(logp - ref, np.float64)
    lead = (gain[0] - gain[1])[:3]
    wanted = np.log1p(np.exp(-0.1 * lead)).mean() if token is TOKEN_DPO else ((lead - 5) ** 2).mean()
    assert float(token(logp, group)) == pytest.approx(wanted, rel=1e-5)


# --- verdicts --------------------------------------------------------------------------------------------------------
def record(problem, method, reward, seed, end, *, labels="true", sides=(0.0, 0.0), rate=None):
    """A history that goes in a straight line from the reference to `end`."""
    line = lambda a, b: np.linspace(a, b, 4).tolist()
    start = 0.0 if problem == "mode" else 16.0
    history = {"step": [0, 2, 4, 6], "length": line(16.0, end), "shown": line(start, end), "gold": line(-1, 0),
               "proxy": line(-1, 0)}  # fmt: skip
    for side, value in zip(("chosen", "rejected"), sides, strict=True):
        history[side] = line(0, value + 1e-3 * seed)
    return {"problem": problem, "method": method, "reward": reward, "seed": seed, "labels": labels, "history": history,
            "rate": rate or lengths.RATES[lengths.RECIPES[method].kind]}  # fmt: skip


ENDS = {"dpo on-policy": 0.0, "dpo offline": 1.0, "ppo_clip on-policy": 2.0, "rwr on-policy": 5.0,
        "dpo_per_token offline": 1.1, "pref_ft offline": 12.0}  # fmt: skip


def made_up(ends=None, sides=None):
    ends, sides = {**ENDS, **(ends or {})}, sides or {}
    found = []
    for seed in (0, 1, 2):
        for (problem, method), reward in (((p, m), r) for p in lengths.PROBLEMS for m in ENDS for r in lengths.REGIMES):
            if method in OWN or reward == lengths.GOLD:
                side = sides.get((problem, method), (1.0, 0.5) if method == "pref_ft offline" else (-1.0, -3.0))
                end = 3.0 + 0.1 * ends[method] if problem == "mode" else ends[method]
                found.append(record(problem, method, reward, seed, end, sides=side))
            if problem == "min" and (method in OWN or reward == lengths.GOLD):
                found.append(record(problem, method, reward, seed, 6.0 + ENDS[method], rate=lengths.SLOW))
        found.append(record("distinct", "dpo offline", lengths.GOLD, seed, 16.0,
                            sides=sides.get("distinct", (1.0, -3.0))))  # fmt: skip
        found.append(record("min", "dpo offline", lengths.GOLD, seed, 15.0, labels="shuffled"))
    return found


def verdicts(records):
    return {row["claim"]: row for row in lengths.judge(lengths.measures(records))}


def test_every_claim_reproduces_on_numbers_in_the_order_of_the_paper():
    assert {key: row["verdict"] for key, row in verdicts(made_up()).items()} == dict.fromkeys(
        lengths.SAYS, "reproduces"
    )


@pytest.mark.parametrize(
    ("ends", "sides", "fallen"),
    [
        ({"ppo_clip on-policy": 6.0}, {}, {"C26a", "C26b", "C26d"}),
        # A tie of the two DPOs is allowed, RWR and PPO have to differ.
        ({"dpo on-policy": 1.05}, {}, set()),
        ({"dpo on-policy": 1.5}, {}, {"C26a", "C26b", "C26d"}),
        ({"rwr on-policy": 2.1}, {}, {"C26a", "C26b", "C26d"}),
        ({"rwr on-policy": 50.0}, {}, {"C26c"}),
        # On all three problems, though mode moves by a tenth.
        ({"dpo_per_token offline": -2.0}, {}, {"B1"}),
        ({"dpo_per_token offline": 4.0}, {}, {"B1"}),
        ({}, {"distinct": (-1.0, -3.0)}, {"C29c"}),
    ],
)
def test_a_verdict_falls_with_its_numbers(ends, sides, fallen):
    found = verdicts(made_up(ends, sides))
    assert {key for key, row in found.items() if row["verdict"] != "reproduces"} == fallen
    assert all(found[key]["verdict"] == "does not reproduce" for key in fallen)


def test_a_claim_that_holds_on_some_problems_depends_on_them_and_says_on_which():
    row = verdicts(made_up(sides={("mode", "dpo offline"): (1.0, -3.0)}))["C29b"]
    assert row["verdict"] == "depends on"
    assert lengths.verdict_text(row) == "depends on the condition: holds with min pairs; skew pairs"


@pytest.mark.parametrize("end", [2.0, 22.0])
def test_no_claim_reproduces_where_labels_that_say_nothing_change_the_length(end):
    records = [{**r, "history": {**r["history"], "length": [end] * 4}} if r["labels"] == "shuffled" else r
               for r in made_up()]  # fmt: skip
    assert verdicts(records)["C26a"]["verdict"] == "does not reproduce"


def test_the_interval_of_a_mean_is_students():
    row = verdicts(made_up(sides={("min", "dpo offline"): (-1.0, -3.0)}))["C29b"]
    one = next(c for c in row["criteria"] if "chosen on min" in c["criterion"])
    assert one["mean"] == pytest.approx(-1 + 1e-3)
    # 4.303 is the 97.5 % point of Student's t with 2 degrees of freedom.
    assert one["high"] - one["mean"] == pytest.approx(4.3027 * 1e-3 / np.sqrt(3), rel=1e-3)


# --- from texts to files ---------------------------------------------------------------------------------------------
def test_one_command_trains_and_writes_the_picture_the_table_and_the_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lengths, "QUICK", TINY)
    monkeypatch.setattr(lengths, "ROOM", 18)
    asked = ["--quick", "--workers", "1", "--out", str(tmp_path), "--methods", "dpo offline", "ppo_clip on-policy"]
    assert lengths.main(asked) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        f"length_problems.{end}" for end in ("png", "svg", "md", "json")
    }
    assert (tmp_path / "length_problems.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((tmp_path / "length_problems.json").read_text(encoding="utf-8"))
    name = lambda r: (r["problem"], r["method"], r["reward"], r["seed"], r["labels"])
    runs = {name(r): r["history"] for r in kept["runs"] if r["rate"] != lengths.SLOW}
    # Offline: three problems, distinct pairs and shuffled labels. On-policy: three problems with either reward.
    assert len(runs) == 5 + 6
    assert all(history["step"] == [0, 1, 2] for history in runs.values())
    # Before the first step all are the reference.
    assert len({history["length"][0] for history in runs.values()}) == 1
    for (problem, *_), history in runs.items():
        if "chosen" in history:
            assert history["chosen"][0] == pytest.approx(0, abs=1e-4) != history["chosen"][-1]
        if problem in ("min", "skew"):
            np.testing.assert_allclose(history["gold"], -np.array(history["length"]) / 16, atol=1e-4)
    true = runs["min", "ppo_clip on-policy", lengths.GOLD, 0, "true"]
    assert true == runs["skew", "ppo_clip on-policy", lengths.GOLD, 0, "true"]
    assert true != runs["min", "ppo_clip on-policy", lengths.PROXY, 0, "true"]
    found = {row["claim"]: row for row in kept["claims"]}
    assert found["C29a"]["verdict"] == "not measured" != found["C29b"]["verdict"]
    one = next(c for c in found["C29b"]["criteria"] if "chosen on min" in c["criterion"])
    end = runs["min", "dpo offline", lengths.GOLD, 0, "true"]["chosen"][-1]
    assert one["mean"] == pytest.approx(end) and one["holds"] == (end < 0)
    table = (tmp_path / "length_problems.md").read_text(encoding="utf-8")
    assert all(f"| {key} |" in table for key in lengths.SAYS)
    assert "C29a  not measured" in capsys.readouterr().out


def test_the_reward_model_learns_which_of_two_is_shorter():
    tokenizer = lengths.make_tokenizer()
    rows = lengths.texts(np.random.default_rng(3), 600)
    asked, texts = [row["prompt"] for row in rows], [row["completion"] for row in rows]
    groups = [[a, b] for a, b in zip(texts, reversed(texts), strict=True)]
    data = lengths.pairs(lengths.several("min", asked, groups, 0))
    fitted = lengths.fit_reward(lengths._new_model(tokenizer, 0), tokenizer, data[:400], 60, 0)
    judge = lengths.classifier(fitted, tokenizer)
    chosen, rejected = (
        np.array(judge(prompts=[row["prompt"] for row in data[400:]], completions=[row[name] for row in data[400:]]))
        for name in ("chosen", "rejected")
    )
    assert (chosen > rejected).mean() > 0.8


def test_all_methods_are_run_on_all_problems_and_seeds():
    scale = dataclasses.replace(TINY, seeds=(0, 1, 2))
    done = Counter((job.problem, job.method, job.reward) for job in lengths.jobs(scale, list(lengths.RECIPES))
                   if job.labels == "true" and job.problem != "distinct" and job.rate != lengths.SLOW)  # fmt: skip
    on_gold = lambda problem, method: method not in OWN or (problem != "skew" and method in lengths.COMPARED)
    wanted = {(p, m, lengths.GOLD) for p in lengths.PROBLEMS for m in lengths.RECIPES if on_gold(p, m)}
    wanted |= {(p, m, lengths.PROXY) for p in lengths.PROBLEMS for m in OWN}
    assert set(done) == wanted and set(done.values()) == {3}
    assert len(lengths.RECIPES) == 12 and set(lengths.RATES) == {one.kind for one in lengths.RECIPES.values()}
