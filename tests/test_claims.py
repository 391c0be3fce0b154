"""Verdicts follow from criteria and measurements; one command measures, goes on, refuses and draws."""

import json
import math
import os
import re

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import bandit_pft.experiments  # noqa: F401  registers the claims
from bandit_pft import claims, cli
from bandit_pft.claims import Criterion, Outcome, claim, experiment, figure, judge
from bandit_pft.errors import ConfigError, ShapeError
from bandit_pft.experiments import authors
from bandit_pft.experiments.drawing import lines, points
from bandit_pft.groups import Group
from bandit_pft.objectives import force
from bandit_pft.simulate import check_run

REAL = {name: dict(getattr(claims, name)) for name in ("EXPERIMENTS", "CLAIMS", "FIGURES")}


@pytest.fixture
def registry(monkeypatch):
    """Two toy experiments, a short and a long one, in the place of the real ones; what they are given when run."""
    for name in REAL:
        monkeypatch.setattr(claims, name, {})
    ran = []

    @experiment("Three seeds.", equal="gradient steps", seconds=1)
    def short(quick):
        ran.append(("short", quick))
        return Outcome(
            {"gap": [0.1, 0.2, 0.3], "exact": 0.5, "nothing": 0.0},
            {"toy": points("one", [0, 1, 2], [[0, 1, 2], [0, 2, 4]], family="preference")},
        )

    @experiment("One number.", equal="exact", seconds=1000)
    def long(quick):
        ran.append(("long", quick))
        return Outcome({"infinite": math.inf}, {})

    figure("toy", of=short)(lambda table: lines(table, "step", "reward", "toy"))
    claim("T1", "both | hold", short, [Criterion("gap", at_least=0.15), Criterion("exact", 0.4, 0.6)], why="so")
    claim("T2", "one of two holds", short, [Criterion("gap", at_least=0.15, where="here"),
          Criterion("exact", at_most=0.4, where="there")], why="so", depends_on="the place")  # fmt: skip
    claim("T3", "none holds", short, [Criterion("exact", at_most=0.4)], why="so")
    claim("T4", "holds, but so it does without a cause", short,
          [Criterion("gap", at_least=0.15), Criterion("nothing", at_least=0.1, control=True)], why="so")  # fmt: skip
    claim("T5", "is infinite", long, [Criterion("infinite", at_least=1)], why="so")
    return ran


def run(folder, *words):
    return cli.main(["reproduce", *words, "--out", str(folder / "out"), "--results", str(folder / "kept")])


def verdicts(folder):
    return {row["claim"]: row["text"] for row in json.loads((folder / "out" / "claims.json").read_text())}


# --- judging ---------------------------------------------------------------------------------------------------------
def test_a_claim_reproduces_depends_on_a_condition_or_does_not_reproduce(registry, tmp_path, capsys):
    assert run(tmp_path) == 0
    assert verdicts(tmp_path) == {
        "T1": "reproduces", "T2": "depends on the place: holds with here", "T3": "does not reproduce",
        "T4": "does not reproduce", "T5": "reproduces",
    }  # fmt: skip
    assert "5 claims: 2 reproduce, 1 depend on a condition, 2 do not reproduce." in capsys.readouterr().out


def test_intervals_are_students_and_a_bound_inside_one_is_marked(registry, tmp_path):
    run(tmp_path, "T1")
    first, second = json.loads((tmp_path / "out" / "claims.json").read_text())[0]["criteria"]
    low, high = stats.t.interval(0.95, 2, 0.2, 0.1 / math.sqrt(3))
    assert (first["mean"], first["low"], first["high"]) == pytest.approx((0.2, low, high)) and first["seeds"] == 3
    assert (second["low"], second["high"], second["seeds"]) == (0.5, 0.5, 0)
    line = next(row for row in (tmp_path / "out" / "claims.md").read_text().splitlines() if row.startswith("| T1"))
    assert "gap ≥ 0.15: ✓~ 0.200" in line and "exact ≥ 0.4 and ≤ 0.6: ✓ 0.500 (exact)" in line
    assert "both \\| hold" in line and "bandit-pft reproduce T1 --again" in line


def test_nan_satisfies_no_criterion():
    assert not Criterion("x").holds(math.nan) and Criterion("x").holds(math.inf)


def test_a_criterion_on_what_is_not_measured_names_the_nearest_measure(registry):
    claim("T6", "misspelt", claims.EXPERIMENTS["short"], [Criterion("gapp")], why="so")
    with pytest.raises(ConfigError, match=r"T6: short measures no 'gapp'.*gap"):
        judge(claims.CLAIMS["T6"], {"gap": [0.0]})


def test_a_name_is_registered_once(registry):
    with pytest.raises(ConfigError, match="'T1' is registered twice"):
        claim("T1", "again", claims.EXPERIMENTS["short"], [], why="so")


# --- running ---------------------------------------------------------------------------------------------------------
def test_what_has_been_measured_is_not_measured_again_unless_asked_for(registry, tmp_path):
    run(tmp_path)
    run(tmp_path)
    assert registry == [("short", False), ("long", False)]
    run(tmp_path, "T1", "--again")
    assert registry[2:] == [("short", False)]


def test_interrupted_it_says_how_far_it_came_and_the_same_command_goes_on(registry, tmp_path, capsys, monkeypatch):
    def stopped(quick):
        raise KeyboardInterrupt

    whole = claims.EXPERIMENTS["long"]
    broken = claims.Experiment("long", "One number.", "exact", 1000, stopped)
    monkeypatch.setitem(claims.EXPERIMENTS, "long", broken)
    assert run(tmp_path) == 130
    assert "1 of 2 experiments done: the same command goes on" in capsys.readouterr().err
    monkeypatch.setitem(claims.EXPERIMENTS, "long", whole)
    assert run(tmp_path) == 0 and registry == [("short", False), ("long", False)]


def test_a_quick_run_leaves_out_what_takes_long_and_keeps_its_results_apart(registry, tmp_path, capsys):
    run(tmp_path, "--quick")
    assert registry == [("short", True)] and "T5" not in verdicts(tmp_path)
    assert "1 other claims are not measured in a quick run" in capsys.readouterr().out
    run(tmp_path, "T5", "--quick")
    run(tmp_path, "T1")
    assert registry[1:] == [("long", True), ("short", False)]


def test_a_figure_comes_as_svg_and_png_with_its_data_beside_it(registry, tmp_path):
    run(tmp_path, "--figure", "toy")
    made = sorted(os.listdir(tmp_path / "out"))
    assert made == ["claims.json", "claims.md", "toy.csv", "toy.png", "toy.svg"]
    assert "![toy](toy.png)" in (tmp_path / "out" / "claims.md").read_text()
    table = pd.read_csv(tmp_path / "out" / "toy.csv")
    assert table["y"].tolist() == [0, 1.5, 3] and registry == [("short", False)]


def test_a_part_of_the_table_does_not_take_the_place_of_the_whole(registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, folder in (((), "figures"), (("T1",), "results/reproduce"), (("--quick",), "results/quick")):
        assert cli.main(["reproduce", *words]) == 0
        assert (tmp_path / folder / "claims.md").exists()
    assert len(json.loads((tmp_path / "figures" / "claims.json").read_text())) == 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["T11"], r"no claim is named 'T11'.*T1"),
        (["--figure", "toi"], r"no figure is named 'toi'.*toy"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(registry, tmp_path, capsys, words, says):
    assert run(tmp_path, *words) == 2
    assert re.search(says, capsys.readouterr().err) and not registry


def test_results_of_other_code_are_refused_before_anything_runs(registry, tmp_path, capsys, monkeypatch):
    run(tmp_path, "T1")
    monkeypatch.setattr(claims, "code_digest", lambda: "another")
    assert run(tmp_path) == 2
    told = capsys.readouterr().err
    assert "short.json was measured by other code" in told and "--again" in told and len(registry) == 1
    # A row that is not asked for is left out of the table, and named.
    assert run(tmp_path, "T5") == 0
    assert list(verdicts(tmp_path)) == ["T5"] and "measured by other code: short" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{", "[]", '{"code": 1}', '{"code": "", "measures": 3, "tables": {}}'])
def test_a_damaged_result_is_refused_with_its_path_and_the_way_out(registry, tmp_path, capsys, text):
    run(tmp_path, "T1")
    path = tmp_path / "kept" / "short.json"
    path.write_text(text)
    assert run(tmp_path, "T1") == 2
    told = capsys.readouterr().err
    assert str(path) in told and "--again" in told
    assert run(tmp_path, "T1", "--again") == 0


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(registry, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert run(tmp_path) == 2 and not registry
    assert str(tmp_path / "out") in capsys.readouterr().err


# --- the real ones ---------------------------------------------------------------------------------------------------
def test_every_experiment_serves_a_claim_or_a_figure_and_says_what_it_holds_equal():
    used = {made.experiment.name for made in REAL["CLAIMS"].values()}
    assert used | {made.experiment.name for made in REAL["FIGURES"].values()} == set(REAL["EXPERIMENTS"])
    assert {made.equal for made in REAL["EXPERIMENTS"].values()} <= set(claims.COMPARED)


def test_every_claim_of_the_paper_is_there_and_conditions_are_named():
    paper = {f"C{n}" for n in range(1, 26)} | {"C27", "C29"}
    literature = {f"F{n}" for n in (1, 2, 3, 7, 8, 9, 14, 15, 20, 21, 22, 23, 26, 27, 28, 29, 30, 31, 33, 35, 37, 38)}
    keys = set(REAL["CLAIMS"])
    assert {key for key in paper | literature if key not in keys and key + "a" not in keys} == set()
    for made in REAL["CLAIMS"].values():
        places = {criterion.where for criterion in made.criteria if not criterion.control}
        assert bool(made.depends_on) == (len(places) > 1), made.key
        assert ("" in places) == (len(places) == 1), made.key


def test_the_bandit_is_the_papers():
    outcome = REAL["EXPERIMENTS"]["constants"].run(True)
    assert judge(REAL["CLAIMS"]["C1"], outcome.measures).verdict == "reproduces"
    table = outcome.tables["reference_and_rewards"]
    assert np.isclose(table[table["line"] == "reference"]["y"].sum(), 1)


# --- the authors' settings -------------------------------------------------------------------------------------------
def test_the_authors_scripts_differ_in_learning_rate_and_data_between_methods_that_are_compared():
    rate = {name: float(script.method.learning_rate) for name, script in authors.SCRIPTS.items()}
    assert rate["onpolicy_ipo"] == 10 * rate["onpolicy_best_of_n"]
    assert rate["onpolicy_transformer_ipo"] > 300 * rate["onpolicy_transformer_best_of_n"]
    assert (authors.SCRIPTS["best_of_n"].contexts, authors.SCRIPTS["ipo"].contexts) == (5, 100)
    for script in authors.SCRIPTS.values():
        check_run(script.problem(), script.method, script.steps, 1)


def test_ipo_as_shipped_rests_at_a_lead_of_1_over_2_beta_squared_where_ipo_rests_at_1_over_2_beta():
    beta = 0.1
    for which, rest in ((authors.IPO_AS_SHIPPED, 1 / (2 * beta**2)), ("ipo", 1 / (2 * beta))):
        pull = lambda lead, which=which: force(
            which, jnp.array([[0.0], [-lead]]), Group.of(reward=[1.0, 0.0], ref_logp=jnp.zeros(2)), beta=beta
        )[0, 0]
        assert abs(pull(rest)) < 1e-5 and pull(rest - 1) > 0 > pull(rest + 1)


def scores_by_hand(reward, authors_count):
    """One reward after the other, as the authors' code for sequences goes through them."""
    total = squares = count = 0.0
    scores = np.full(np.shape(reward), np.nan)
    for i, collection in enumerate(reward):
        for j, r in enumerate(collection):
            total, squares, count = total + r, squares + r * r, count + 1
            try:
                scores[i, j] = (r - total / count) / (math.sqrt((squares - total * total / count) / count) + 1e-12)
            except ValueError:
                return scores
        if authors_count:
            count = 0.0
    return scores


# Quarters: sums and squares of them are exact, so that no variance is negative by rounding alone.
REWARDS = np.random.default_rng(0).integers(-4, 5, (40, 3, 8)) / 4


@pytest.mark.parametrize("authors_count", [False, True])
def test_running_scores_are_those_of_a_loop_over_the_rewards(authors_count):
    stopped = 0
    for reward in REWARDS:
        expected = scores_by_hand(reward, authors_count)
        np.testing.assert_allclose(authors.running_scores(reward, authors_count), expected, rtol=1e-12, atol=1e-12)
        stopped += np.isnan(expected).any()
    # Of rewards of both signs some get through with the authors' count; with the right one all do.
    assert 0 < stopped < 40 if authors_count else stopped == 0


def test_the_authors_count_changes_nothing_before_the_second_collection():
    first = lambda **how: authors.running_scores(REWARDS[0], **how)[0]
    np.testing.assert_array_equal(first(authors_count=True), first())


@pytest.mark.parametrize("name", ["R6", "R7"])
def test_with_the_papers_rewards_the_authors_count_stops_at_the_second_collection(name):
    problem = authors.SCRIPTS["onpolicy_transformer_ipo"].problem(name)
    drawn = np.random.default_rng(0).integers(problem.num_tokens, size=(40, problem.length))
    reward = np.asarray(problem.reward(0, jnp.asarray(drawn)), np.float64).reshape(2, 20)
    shipped, right = authors.running_scores(reward, authors_count=True), authors.running_scores(reward)
    assert np.isfinite(shipped[0]).all() and np.isnan(shipped[1]).all() and np.isfinite(right).all()
    # The right ones come to be z-scores.
    assert right[1, -1] == pytest.approx((reward[1, -1] - reward.mean()) / reward.std(), rel=1e-6)


def test_with_the_authors_count_the_running_mean_grows_with_every_collection_and_pushes_what_is_good():
    # The last of eight rewards, at the mean plus 1/2. As r - running mean, it is right once, and later pushed down.
    collection = np.array([-2.5, 3.5, -2.5, 3.5, -2.5, 3.5, 0, 1])
    reward = np.tile(collection, (4, 1))
    right, shipped = (authors.running_scores(reward, count)[:, -1] for count in (False, True))
    mean, square = collection.mean(), (collection**2).mean()
    m = np.arange(1, 5)
    np.testing.assert_allclose(right, (1 - mean) / collection.std())
    np.testing.assert_allclose(shipped, (1 - m * mean) / np.sqrt(m * square - (m * mean) ** 2))
    pull = lambda score: force("reinforce", jnp.zeros((1, 1)), Group.of(reward=[score], ref_logp=jnp.zeros(1)))[0, 0]
    assert pull(right[3]) > 0 > pull(shipped[3])


def test_running_scores_of_rewards_without_collections_are_refused():
    with pytest.raises(ShapeError, match="reward has shape"):
        authors.running_scores([1.0, 2.0])
