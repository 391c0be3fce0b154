"""The paper's findings, on presets with the same learning rate and the same data for every method."""

import re
from pathlib import Path

import numpy as np
import pytest

from bandit_pft import measure, paper, style, sweep
from bandit_pft.methods import LEARNING_RATE

NEAR, FAR = paper.TITLES["R5"], paper.TITLES["R4"]


RATES = (0.05, 0.2, 1.0)


@pytest.fixture(scope="module")
def runs():
    """The headline comparison, also at a quarter and at five times its learning rate; means over 5 seeds."""
    return paper.run_preset("headline", seeds=5, grid={"learning_rate": RATES}).drop_vars("log_prob").mean("seed")


@pytest.fixture(scope="module")
def last(runs):
    return runs.sel(learning_rate=LEARNING_RATE).isel(step=-1)


def reward(ds, problem: str, method: str) -> float:
    return float(ds["expected_reward"].sel(problem=problem, algorithm=method))


def best_of_ten(name: str) -> float:
    """Expected reward of the best of 10 draws from the reference, by its distribution function."""
    problem = paper.problem_named(name, contexts=1)
    reward, probability = np.asarray(problem.reward_table(0), np.float64), np.exp(np.asarray(problem.ref_table(0)))
    order = np.argsort(reward)
    upto = np.append(0, np.cumsum(probability[order]))
    return float((reward[order] * np.diff((upto / upto[-1]) ** 10)).sum())


@pytest.mark.parametrize("name", ["R4", "R5"])
def test_offline_best_of_n_stops_at_the_best_of_ten_draws_from_the_reference(last, name):
    assert reward(last, paper.TITLES[name], "best_of_n offline") == pytest.approx(best_of_ten(name), abs=0.03)


def test_far_from_the_reference_a_contrastive_loss_gets_further_on_the_same_offline_data(last):
    assert reward(last, FAR, "ipo offline") - reward(last, FAR, "best_of_n offline") >= 0.3
    kl = last["kl"].sel(problem=FAR)
    assert kl.sel(algorithm="ipo offline") - kl.sel(algorithm="best_of_n offline") >= 0.8


def test_sizes_of_rewards_get_a_supervised_loss_far_offline_where_their_order_does_not(last):
    rwr = paper.offline("rwr", hyper={"beta": 0.1})
    problem = paper.headline().problems[1]
    runs = sweep(problem, rwr, seeds=range(5), steps=200, every=200)["expected_reward"].isel(step=-1).mean("seed")
    assert float(runs.squeeze()) == pytest.approx(0.94, abs=0.02)
    # The population's optimum of exponentiated rewards is ref exp(r / beta) / Z.
    logp, table = np.asarray(problem.optimum(0.1)[0], np.float64), np.asarray(problem.reward_table(0), np.float64)
    assert float(runs.squeeze()) == pytest.approx(np.exp(logp) @ table, abs=0.02)
    assert not measure("rwr", beta=0.1).pushes


def test_near_the_reference_it_makes_no_difference(last):
    assert abs(reward(last, NEAR, "ipo offline") - reward(last, NEAR, "best_of_n offline")) <= 0.02


@pytest.mark.parametrize("objective", ["best_of_n", "reinforce", "ipo"])
def test_on_policy_sampling_reaches_the_far_peak_and_offline_learning_does_not(last, objective):
    assert reward(last, FAR, f"{objective} on-policy") >= 0.95
    assert reward(last, FAR, f"{objective} offline") <= 0.8


def test_near_the_reference_on_policy_sampling_adds_little_to_imitation_and_contrast(last):
    for objective in ("best_of_n", "ipo"):
        assert reward(last, NEAR, f"{objective} on-policy") - reward(last, NEAR, f"{objective} offline") <= 0.08


@pytest.mark.parametrize("rate", RATES)
def test_where_offline_learning_ends_and_that_on_policy_learning_wins_do_not_depend_on_the_learning_rate(runs, rate):
    ds = runs.sel(learning_rate=rate).isel(step=-1)
    assert reward(ds, FAR, "best_of_n offline") == pytest.approx(best_of_ten("R4"), abs=0.03)
    assert reward(ds, FAR, "ipo offline") == pytest.approx(0.7, abs=0.05)
    assert min(reward(ds, FAR, f"{name} on-policy") for name in ("best_of_n", "reinforce", "ipo")) > 0.85


def test_who_is_ahead_after_1000_rewards_depends_on_the_learning_rate(runs):
    # On-policy learning has asked for 1,000 rewards after 10 steps, offline learning before its first.
    early, final = runs.sel(step=10), runs.isel(step=-1)
    best = {rate: max(reward(early.sel(learning_rate=rate), FAR, f"{name} on-policy")
                      for name in ("best_of_n", "reinforce", "ipo")) for rate in RATES}  # fmt: skip
    assert best[0.2] < reward(final.sel(learning_rate=0.2), FAR, "ipo offline") - 0.3
    assert best[1.0] > reward(final.sel(learning_rate=1.0), FAR, "ipo offline") + 0.15


def test_what_the_readme_says_of_five_passes_and_of_close_pairs_is_what_runs_give():
    readme = " ".join((Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").split())
    far = paper.problem_named("R4")
    five = [paper.on_policy(name, reuse=5) for name in ("best_of_n", "reinforce_normalized")]
    ends = lambda methods, steps: (
        sweep(far, methods, seeds=range(5), steps=steps, every=steps)
        .isel(step=-1, problem=0)
        .mean("seed")[["expected_reward", "reward_queries"]]
    )
    reused = ends([*five, paper.on_policy("ipo", reuse=5, **paper.IPO)], 50)
    assert (reused["reward_queries"] == 1000).all()
    for label, value in zip(
        ("Best-of-N is at", "REINFORCE at", "IPO at"), reused["expected_reward"].values, strict=True
    ):
        assert float(re.search(rf"with as many rewards, .*?{label} (0\.\d\d)", readme)[1]) == pytest.approx(
            value, abs=0.02
        )
    (all_pairs,) = ends([paper.offline("ipo", **paper.IPO)], 200)["expected_reward"].values
    assert float(re.search(r"On all pairs .*? gets to (0\.\d\d)\.", readme)[1]) == pytest.approx(all_pairs, abs=0.02)


def test_the_table_that_the_repository_shows_is_what_the_comparison_gives(last):
    text = (Path(__file__).parents[1] / "figures" / "headline.txt").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 120
    _, *blocks = text.strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [NEAR, FAR]
    for problem, block in zip((NEAR, FAR), blocks, strict=True):
        for name in last["algorithm"].values:
            row = next(line for line in block.splitlines() if line.startswith(style.label(name)))
            shown = row.removeprefix(style.label(name)).split()
            assert float(shown[0]) == pytest.approx(reward(last, problem, name), abs=0.02)
            queries = int(last["reward_queries"].sel(problem=problem, algorithm=name))
            assert shown[-2:] == ["200", f"{queries:,}"]


def test_every_method_of_a_comparison_learns_at_the_same_rate_from_the_same_number_of_rewards():
    for make in paper.PRESETS.values():
        methods = make().methods
        assert {float(method.learning_rate) for method in methods} == {LEARNING_RATE}
        for regime in ("offline", "on-policy"):
            data = {(m.prompts, m.num_responses, float(m.reuse)) for m in methods if m.name.endswith(regime)}
            assert len(data) <= 1
