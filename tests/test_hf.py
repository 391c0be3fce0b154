"""What passes between torch and the objectives: log-probabilities, groups, data sets and rewards."""

from __future__ import annotations

import copy
import functools
from typing import Any

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
import tiny_models as tiny
import torch
from transformers import GenerationConfig

from bandit_pft.errors import ConfigError, DataError, DomainError, ShapeError
from bandit_pft.groups import Group, prepare
from bandit_pft.hf import bridge, data, ppo, rollout, scoring
from bandit_pft.objectives import OBJECTIVES, get_objective
from bandit_pft.objectives.core import batch_force

PROMPTS = [[5], [6, 7, 8], [9, 9]]
DONE = [[10, 11, 12, 1], [13], [14, 15, 1]]


def left(rows: scoring.Rows) -> scoring.Rows:
    """The same sequences with their padding on the left."""
    shift = [int(x) for x in (1 - rows.attention_mask).sum(1)]
    return scoring.Rows(*(torch.stack([r.roll(k) for r, k in zip(x, shift, strict=True)]) for x in rows))


def scorable(kind: str) -> Any:
    model = tiny.model(kind)
    scoring.make_scorable(model)
    return model


@functools.cache
def by_hand(kind: str, temperature: float) -> list[np.ndarray]:
    """One sequence at a time, all logits, in float64."""
    model = tiny.model(kind)
    found = []
    for prompt, done in zip(PROMPTS, DONE, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + done])).logits[0].double() / temperature
        logp = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        found.append(logp.gather(1, torch.tensor(done)[:, None])[:, 0].numpy())
    return found


@pytest.mark.parametrize("kind", list(tiny.CONFIGS))
@pytest.mark.parametrize("side", [left, lambda rows: rows], ids=["left", "right"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_log_probabilities_are_those_of_each_sequence_alone(kind: str, side: Any, temperature: float) -> None:
    rows = side(scoring.pack(PROMPTS, DONE))
    with torch.no_grad():
        got = scoring.token_logps(scorable(kind), rows, temperature).numpy()
    assert got.shape == (3, 4)
    for row, want in zip(got, by_hand(kind, temperature), strict=True):
        np.testing.assert_allclose(row[: len(want)], want, atol=2e-5)
        assert (row[len(want) :] == 0).all()


def test_what_stands_in_the_padding_changes_nothing() -> None:
    rows = scoring.pack(PROMPTS, DONE)
    other = rows._replace(input_ids=torch.where(rows.attention_mask == 1, rows.input_ids, 17))
    model = scorable("gpt2")
    torch.testing.assert_close(scoring.token_logps(model, rows), scoring.token_logps(model, other), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_the_gradient_of_the_chunked_head_is_that_of_all_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 3 * tiny.VOCABULARY)
    rows = scoring.pack(PROMPTS, DONE)
    model = scorable(kind)
    assert model._head_alone == (kind == "gpt2")  # Gemma 2 caps its logits after the head.
    weight = torch.tensor([1.0, -2.0, 3.0])[:, None]
    (weight * scoring.token_logps(model, rows)).sum().backward()
    plain = tiny.model(kind)
    total = torch.zeros(())
    for w, prompt, done in zip(weight, PROMPTS, DONE, strict=True):
        logp = torch.log_softmax(plain(torch.tensor([prompt + done])).logits[0], -1)[len(prompt) - 1 : -1]
        total = total + (w * logp.gather(1, torch.tensor(done)[:, None])).sum()
    total.backward()
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_a_scorable_model_still_gives_logits_and_copies_of_it_are_independent() -> None:
    model, rows = scorable("gpt2"), scoring.pack(PROMPTS, DONE)
    torch.testing.assert_close(model(rows.input_ids).logits, tiny.model("gpt2")(rows.input_ids).logits)
    other = copy.deepcopy(model)
    before = scoring.token_logps(other, rows)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.5 * torch.randn_like(weight))
    torch.testing.assert_close(scoring.token_logps(other, rows), before, rtol=0, atol=0)
    assert not torch.allclose(scoring.token_logps(model, rows), before)


def test_a_completion_needs_a_token_before_it() -> None:
    with pytest.raises(ShapeError, match="at least one token"):
        scoring.token_logps(scorable("gpt2"), scoring.pack([[]], [[5, 6]]))


def test_a_model_without_a_language_model_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="AutoModelForCausalLM"):
        scoring.make_scorable(tiny.model("gpt2").transformer)


# --- forces --------------------------------------------------------------------------------------------------------
def random_batch(seed: int = 0, b: int = 3, n: int = 4, t: int = 5) -> tuple[bridge.Batch, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.arange(t) < rng.integers(1, t + 1, (b, n))[..., None]
    logp, ref, old = (-rng.uniform(0.1, 2, (3, b, n, t))).astype(np.float32)
    reward = rng.normal(size=(b, n)).astype(np.float32)
    return bridge.Batch(mask, reward, reward, ref, old), logp


# One for every way of reducing: pairs, tokens, responses, groups, desirable ones, the batch's distance.
KINDS = ["dpo", "ipo_mean", "dapo", "grpo", "ppo_clip", "rwr", "best_of_n", "filtered", "kto", "bco"]


@pytest.mark.parametrize("name", KINDS)
def test_torch_gets_the_loss_and_minus_the_force(name: str) -> None:
    batch, logp = random_batch()
    made = OBJECTIVES[name]
    groups = bridge.prepared(batch, {"threshold": 0.0}, logp)
    leaf = torch.tensor(logp, requires_grad=True)
    loss = bridge.objective_loss(made, leaf, groups)
    (3 * loss).backward()
    alone = [
        Group.of(reward=r, ref_logp=f, old_logp=o, mask=m, threshold=0.0) for m, r, _, f, o in zip(*batch, strict=True)
    ]
    want = prepare(jax.tree.map(lambda *x: jnp.stack(x), *alone), jnp.asarray(logp))
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad, -3 * batch_force(made, jnp.asarray(logp), want), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["dpo", "grpo", "dapo", "kto", "orpo", "pref_ft"])
def test_padding_groups_and_nan_in_masked_places_change_no_force(name: str) -> None:
    batch, logp = random_batch()
    made = get_objective(name)
    slope = lambda b, x: np.asarray(bridge._program(made)(x, bridge.prepared(b, {}, x), {})[1])
    want = slope(batch, logp)
    padded = bridge.stack([batch], 5)
    wide = np.full(padded.mask.shape, np.nan, np.float32)
    wide[:3, :, :5] = np.where(batch.mask, logp, np.nan)
    dirty = padded._replace(
        ref_logp=np.where(padded.mask, padded.ref_logp, np.nan), old_logp=np.where(padded.mask, padded.old_logp, np.nan)
    )
    got = slope(dirty, wide)
    np.testing.assert_allclose(got[:3, :, :5], np.where(batch.mask, want, 0), rtol=1e-4, atol=1e-7)
    assert (got[3:] == 0).all()
    assert np.isfinite(got).all()


@pytest.mark.parametrize("name", ["dpo", "grpo", "rloo", "ipo", "best_of_n_negative", "dapo"])
def test_equal_rewards_give_no_force_and_no_nan(name: str) -> None:
    batch, logp = random_batch()
    flat = np.ones_like(batch.reward)
    batch = batch._replace(reward=flat, score=flat, old_logp=logp)
    loss, slope = bridge._program(get_objective(name))(logp, bridge.prepared(batch, {}), {})
    assert np.isfinite(loss)
    if name != "best_of_n_negative":  # Everybody is the best.
        np.testing.assert_allclose(slope, 0, atol=1e-7)


def test_what_an_objective_needs_is_measured_with_its_hyper_parameters() -> None:
    need = lambda name, **hyper: bridge.needs(OBJECTIVES[name], hyper)
    assert need("dpo").reference
    assert need("dpo").score
    assert not need("simpo").reference
    assert not need("grpo").reference
    assert need("grpo", kl_coef=0.1).reference
    assert need("kto").distance
    assert not need("dpo").distance
    assert need("grpo").old
    assert not need("reinforce").old


def test_what_is_logged_is_the_mean_over_pairs() -> None:
    batch, logp = random_batch()
    found = bridge.described(logp, bridge.prepared(batch, {}), 0.5)
    sums = lambda x: np.where(batch.mask, x, 0).sum(-1)
    gain, pairs = 0.5 * (sums(logp) - sums(batch.ref_logp)), batch.reward[:, :, None] > batch.reward[:, None, :]
    mean = {name: total / count for name, (total, count) in found.items()}
    lead = (gain[:, :, None] - gain[:, None, :])[pairs]
    assert mean["rewards/margins"] == pytest.approx(lead.mean(), rel=1e-4)
    assert mean["rewards/accuracies"] == pytest.approx((lead > 0).mean())
    group, winner, loser = pairs.nonzero()
    assert mean["rewards/chosen"] == pytest.approx(gain[group, winner].mean(), rel=1e-4)
    assert mean["logps/rejected"] == pytest.approx(sums(logp)[group, loser].mean(), rel=1e-4)


def test_without_pairs_the_desirable_are_the_chosen() -> None:
    batch, logp = random_batch(b=6, n=1)
    found = bridge.described(logp, bridge.prepared(batch, {"threshold": 0.0}), 1.0)
    good = batch.reward[:, 0] > 0
    total = np.where(batch.mask, logp, 0).sum(-1)[:, 0]
    assert found["logps/chosen"][0] / found["logps/chosen"][1] == pytest.approx(total[good].mean(), rel=1e-4)
    assert found["rewards/margins"][1] == 0


# --- data sets -----------------------------------------------------------------------------------------------------
TOKENS = tiny.tokenizer()
ALL = data.Limits(None, "nothing")


def ready(
    rows: list[dict[str, Any]], kind: str, limits: data.Limits = ALL, tokens: Any = TOKENS
) -> list[dict[str, Any]]:
    return list(data.prepare_dataset(rows, tokens, kind, data.end_tokens(tokens), limits))


def ids(text: str) -> list[int]:
    return TOKENS(text)["input_ids"]


def test_a_pair_is_tokenized_with_its_prompt_and_gets_an_end() -> None:
    (row,) = ready([{"prompt": "a b", "chosen": " c", "rejected": " d e"}], "pairs")
    assert row["prompt_ids"] == ids("a b")
    assert row["completion_ids"] == [[*ids("c"), 1], [*ids("d e"), 1]]
    assert row["scores"] == [1.0, 0.0]


def test_the_end_is_not_doubled_and_a_shared_beginning_is_the_prompt() -> None:
    (row,) = ready([{"chosen": "a b c <eos>", "rejected": "a b d"}], "pairs")
    assert row["prompt_ids"] == ids("a b")
    assert row["completion_ids"] == [[*ids("c"), 1], [*ids("d"), 1]]


def test_a_conversation_goes_through_the_chat_template() -> None:
    user, bot = ([{"role": role, "content": text}] for role, text in (("user", "a b"), ("assistant", "c")))
    (row,) = ready([{"prompt": user, "completion": bot, "label": True}], "labels")
    assert row["prompt_ids"] == ids("<user> a b <bot>")
    assert row["completion_ids"] == [[*ids("c"), 1]]
    plain = tiny.tokenizer()
    plain.chat_template = None
    with pytest.raises(DataError, match="chat_template"):
        ready([{"prompt": user, "completion": bot, "label": True}], "labels", tokens=plain)


def says(*texts: str) -> list[dict[str, str]]:
    """A conversation that the user begins."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


SYSTEM = [{"role": "system", "content": "d"}]
ASKED, ANSWERS = says("a b"), {"chosen": says("a b", "c")[1:], "rejected": says("a b", "d e")[1:]}
WHOLE = {"chosen": says("a b", "c"), "rejected": says("a b", "d e")}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, **ANSWERS},
        {"prompt": ASKED, **WHOLE},
        {"prompt": ASKED, **ANSWERS, "chosen": WHOLE["chosen"]},
        {"prompt": "a b", **WHOLE},
        {"prompt": " a b\n", **WHOLE},
        {"prompt": None, **WHOLE},
        WHOLE,
    ],
    ids=["beside", "repeated", "once repeated", "as text", "as text with spaces", "none", "left out"],
)
def test_a_prompt_of_conversations_is_the_same_however_it_is_given(row: dict[str, Any]) -> None:
    (found,) = ready([row], "pairs")
    assert found["prompt_ids"] == ids("<user> a b <bot>")
    assert found["completion_ids"] == [[*ids("c"), 1], [*ids("d e"), 1]]


def test_a_prompt_as_text_ends_with_the_users_first_message_and_one_left_out_before_the_last_that_is_shared() -> None:
    talk = {side: [*SYSTEM, *says("a", "b", "c", text)] for side, text in (("chosen", "e"), ("rejected", "f"))}
    (said,), (shared,) = ready([{"prompt": "a", **talk}], "pairs"), ready([talk], "pairs")
    assert said["prompt_ids"] == [*ids("<bot> d"), 1, *ids("<user> a <bot>")]
    assert said["completion_ids"] == [[*ids("b"), 1, *ids(f"<user> c <bot> {text}"), 1] for text in "ef"]
    assert shared["prompt_ids"] == [*said["prompt_ids"], *ids("b"), 1, *ids("<user> c <bot>")]
    assert shared["completion_ids"] == [[*ids(text), 1] for text in "ef"]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"completion": WHOLE["chosen"], "label": True}, "labels"),
        ({"completion": WHOLE["chosen"]}, "single"),
        ({"completions": [*WHOLE.values()]}, "several"),
    ],
)
@pytest.mark.parametrize("prompt", ["a b", ASKED])
def test_responses_of_every_format_may_begin_with_their_prompt(row: dict[str, Any], kind: str, prompt: Any) -> None:
    (found,) = ready([{"prompt": prompt, **row}], kind)
    assert found["prompt_ids"] == ids("<user> a b <bot>")
    assert found["completion_ids"][0] == [*ids("c"), 1]


def test_a_conversation_that_is_both_chosen_and_rejected_counts_as_the_same_and_not_as_empty() -> None:
    for prompt in ("a b", None):
        with pytest.raises(DataError, match="1 of 1 rows have the same chosen and rejected"):
            ready([{"prompt": prompt, "chosen": WHOLE["chosen"], "rejected": WHOLE["chosen"]}], "pairs")


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        ({"prompt": "a c", **WHOLE}, "pairs",
         "row 0: the conversations in chosen and rejected do not begin with prompt, 'a c'"),
        ({"prompt": "a b", **ANSWERS}, "pairs", "do not begin with prompt, 'a b'"),
        ({"prompt": "a b", "completion": ASKED}, "single", "in completion do not begin with prompt"),
        ({"prompt": "d", "chosen": SYSTEM + ASKED, "rejected": SYSTEM + ASKED}, "pairs", "do not begin with prompt"),
        (ANSWERS, "pairs", "chosen and rejected have no first message in common"),
        ({"prompt": ASKED, "chosen": " c", "rejected": " d"}, "pairs",
         "row 0: prompt is a conversation, chosen is text, rejected is text; they must be all text or all"),
        ({"prompt": "a b", "chosen": " c", "rejected": WHOLE["rejected"]}, "pairs", "is text, rejected is a conv"),
        ({"chosen": "a c", "rejected": WHOLE["rejected"]}, "pairs", "chosen is text, rejected is a conversation"),
        ({"prompt": ASKED, "completion": " c"}, "single", "prompt is a conversation, completion is text"),
        ({"prompt": ASKED, "completions": [" c", " d"]}, "several", "a conversation, completions is text; they"),
        ({"prompt": "a", "completions": []}, "several", "row 0: completions is \\[\\]; it must be a list of responses"),
        ({"prompt": "a", "completions": "b"}, "several", "completions is 'b'; it must be a list"),
        ({"prompt": [], **WHOLE}, "pairs", "row 0: prompt is \\[\\]; it must be text, or a conversation"),
        ({"prompt": 3, **WHOLE}, "pairs", "prompt is 3; it must be text"),
        ({"prompt": ["a"]}, "prompts", "prompt is \\['a'\\]; it must be text"),
        ({"prompt": None, "completion": " a"}, "single", "row 0: prompt is None"),
    ],
)  # fmt: skip
def test_prompts_and_responses_that_do_not_fit_are_refused_by_row_and_column(
    row: dict[str, Any], kind: str, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        ready([row], kind)


def test_rows_that_are_not_alike_are_refused() -> None:
    with pytest.raises(DataError, match="rows differ in the types of their columns"):
        ready([WHOLE, {"chosen": "a b", "rejected": "a c"}], "pairs")


def test_long_completions_are_cut_and_prompts_that_fill_the_space_are_refused() -> None:
    rows = [{"prompt": "a", "completion": " b c d e f"}, {"prompt": "a b c d", "completion": " e"}]
    assert ready(rows[:1], "single", data.Limits(3, "max_length"))[0]["completion_ids"] == [ids("b c")]
    with pytest.raises(DataError, match=r"1 of 2 rows .* 4 tokens of max_length \(first: row 1\)"):
        ready(rows, "single", data.Limits(4, "max_length"))


@pytest.mark.parametrize(
    ("rows", "kind", "words"),
    [
        ([{"prompt": "a", "chosen": None, "rejected": "b"}, {"prompt": "a", "chosen": "c", "rejected": "b"}], "pairs",
         "row 0: chosen is None"),
        ([{"prompt": "a", "chosen": " b", "rejected": " b"}], "pairs", "1 of 1 rows have the same"),
        ([{"prompt": "a", "completion": " b", "label": 2}], "labels", "label is 2"),
        ([{"prompt": "a", "completion": " b", "reward": float("nan")}], "single", "finite"),
        ([{"prompt": "a", "completions": [" b", " c"], "rewards": [1.0]}], "several", "2 completions and 1 rewards"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_learnt_from_are_refused_by_number(rows: Any, kind: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        ready(rows, kind)


@pytest.mark.parametrize(
    ("objective", "columns", "on_policy", "words"),
    [
        ("dpo", ["question", "answer"], False, "rename_column"),
        ("dpo", ["prompt", "completion", "label"], False, "chosen and rejected"),
        ("grpo", ["prompt", "chosen", "rejected"], False, "score_chosen and score_rejected"),
        ("rwr", ["prompt", "completion"], False, "reward as well"),
        ("dpo", ["prompt"], False, "reward_funcs"),
        ("dpo", ["text"], True, "rename_column"),
        ("dpo", ["prompts", "completion"], True, "rename_column"),
    ],
)
def test_the_error_names_the_columns_that_an_objective_needs(
    objective: str, columns: list[str], on_policy: bool, words: str
) -> None:
    made = OBJECTIVES[objective]
    with pytest.raises(DataError, match=words):
        data.check_columns(made, bridge.needs(made, {}), columns, on_policy)


def test_pairs_serve_every_kind_of_objective_that_compares() -> None:
    for name in ("dpo", "pref_ft", "best_of_n", "kto", "sft"):
        made = OBJECTIVES[name]
        assert data.check_columns(made, bridge.needs(made, {}), ["prompt", "chosen", "rejected"], False) == "pairs"


def test_a_streamed_data_set_is_refused() -> None:
    stream = datasets.Dataset.from_list([{"prompt": "a", "completion": " b"}]).to_iterable_dataset()
    with pytest.raises(DataError, match="streamed"):
        data.prepare_dataset(stream, TOKENS, "single", [1], ALL)


def test_a_response_that_nobody_could_judge_leaves_its_group() -> None:
    part = data.as_part([[5]], [[[6], [7, 1], [8]]], [[1.0, None, 3.0]], [[1.0, None, 3.0]])
    assert part.batch.mask.any(-1).tolist() == [[True, False, True]]
    groups = bridge.prepared(part.batch, {})
    assert groups.draws.tolist() == [2]
    np.testing.assert_allclose(groups.weight, [[0.5, 0, 0.5]])


# --- responses of the learner's own ----------------------------------------------------------------------------------
def test_a_response_ends_with_its_first_end_token() -> None:
    assert rollout.cut([5, 2, 6, 1, 1], [1, 2]) == [5, 2]
    assert rollout.cut([5, 6], [1, 2]) == [5, 6]


def test_draws_depend_on_the_seed_and_not_on_torchs_random_state() -> None:
    model = scorable("gpt2")
    config = GenerationConfig(
        max_new_tokens=8, do_sample=True, pad_token_id=1, eos_token_id=[1], num_return_sequences=3
    )
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = rollout.draw(model, PROMPTS, 3, config, [0, 1])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert rollout.draw(model, PROMPTS, 3, config, [0, 1]) == first
    assert rollout.draw(model, PROMPTS, 3, config, [0, 2]) != first
    assert [len(group) for group in first] == [3, 3, 3]


def test_draws_follow_the_scored_probabilities() -> None:
    model, n = scorable("gpt2"), 4000
    config = GenerationConfig(
        max_new_tokens=1, do_sample=True, pad_token_id=0, top_k=0, num_return_sequences=n, temperature=2.0
    )
    (drawn,) = rollout.draw(model, [[5, 6]], n, config, [3])
    with torch.no_grad():
        rows = scoring.pack([[5, 6]] * tiny.VOCABULARY, [[i] for i in range(tiny.VOCABULARY)])
        p = scoring.token_logps(model, rows, 2.0)[:, 0].exp().numpy()
    count = np.bincount([one[0] for one in drawn], minlength=tiny.VOCABULARY)
    assert p.sum() == pytest.approx(1, abs=1e-5)
    keep = p * n > 5
    chi2 = ((count - n * p) ** 2 / (n * p))[keep].sum()
    assert chi2 < keep.sum() + 4 * np.sqrt(2 * keep.sum())


def test_every_prompt_of_a_collection_comes_once_per_pass() -> None:
    sampler = rollout.CollectionSampler(10, 4, 2, seed=0)
    order = list(sampler)
    assert len(order) == len(sampler) == 16
    assert order[:4] == order[4:8]
    assert len(set(order)) == 8
    sampler.set_epoch(1)
    assert list(sampler) != order
    sampler.set_epoch(0)
    assert list(sampler) == order
    with pytest.raises(DataError, match="10 prompts; one collection takes 16"):
        rollout.CollectionSampler(10, 16, 1, seed=0)


def test_rewards_are_summed_with_weights_and_none_means_unscorable() -> None:
    judge = rollout.Judge(
        [lambda completions, **_: [1.0, None, None], lambda prompts, **_: [2, 3, None]], None, [1.0, 10.0]
    )
    rewards, said = judge(["a"] * 3, ["b"] * 3, [[1]] * 3, {}, None)
    assert rewards == [21.0, 30.0, None]
    assert next(iter(said.values())) == [1.0, None, None]


@pytest.mark.parametrize(
    ("given", "words"),
    [([1.0], "1 numbers for 2 completions"), ([1.0, float("nan")], "finite"), ([1.0, "good"], "'good'")],
)
def test_a_reward_that_is_no_number_is_refused(given: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        rollout.Judge(lambda **_: given, None, None)(["a"] * 2, ["b"] * 2, [[1]] * 2, {}, None)


def test_reward_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="give one each"):
        rollout.Judge([len], None, [1.0, 2.0])
    with pytest.raises(ConfigError, match="holds 3"):
        rollout.Judge(3, None, None)


def test_advantages_are_those_of_an_independent_library() -> None:
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 7)), rng.normal(size=(2, 7))
    mask = np.arange(7) < np.array([[7], [4]])
    got = ppo.advantages(reward, value, mask, 0.9, 0.8)
    for row, length in enumerate((7, 4)):
        values = jnp.append(jnp.asarray(value[row, :length]), 0.0)
        discounts = jnp.full(length, 0.9)
        want = rlax.truncated_generalized_advantage_estimation(
            jnp.asarray(reward[row, :length]), discounts, 0.8, values
        )
        np.testing.assert_allclose(got[row, :length], want, rtol=1e-5, atol=1e-6)
        assert (got[row, length:] == 0).all()


def test_with_decay_1_and_no_value_the_advantage_is_the_return_from_here() -> None:
    reward = np.array([[1.0, 2.0, 4.0]])
    got = ppo.advantages(reward, np.zeros_like(reward), np.ones((1, 3), bool), 1.0, 1.0)
    np.testing.assert_allclose(got, [[7.0, 6.0, 4.0]])


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"min_gap": -1.0}, {"learning_rate": float("nan")}])
def test_options_out_of_range_are_refused(options: Any, tmp_path: Any) -> None:
    from bandit_pft.hf import PFTConfig

    with pytest.raises(DomainError, match=next(iter(options))):
        PFTConfig(str(tmp_path), **options)
