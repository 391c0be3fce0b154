"""The paper's findings, on presets with the same learning rate and the same data for every method."""

import numpy as np
import pytest

from bandit_pft import paper

NEAR, FAR = paper.TITLES["R5"], paper.TITLES["R4"]


@pytest.fixture(scope="module")
def last():
    """Means over 5 seeds at the last step."""
    return paper.run_preset("headline", seeds=5).isel(step=-1).mean("seed")


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


def test_near_the_reference_it_makes_no_difference(last):
    assert abs(reward(last, NEAR, "ipo offline") - reward(last, NEAR, "best_of_n offline")) <= 0.02


@pytest.mark.parametrize("objective", ["best_of_n", "reinforce", "ipo"])
def test_on_policy_sampling_reaches_the_far_peak_and_offline_learning_does_not(last, objective):
    assert reward(last, FAR, f"{objective} on-policy") >= 0.95
    assert reward(last, FAR, f"{objective} offline") <= 0.8


def test_near_the_reference_on_policy_sampling_adds_little_to_imitation_and_contrast(last):
    for objective in ("best_of_n", "ipo"):
        assert reward(last, NEAR, f"{objective} on-policy") - reward(last, NEAR, f"{objective} offline") <= 0.08


def test_every_method_of_a_comparison_learns_at_the_same_rate_from_the_same_number_of_rewards():
    for make in paper.PRESETS.values():
        methods = make().methods
        assert {float(method.learning_rate) for method in methods} == {paper.LEARNING_RATE}
        for regime in ("offline", "on-policy"):
            data = {(m.prompts, m.num_responses, float(m.reuse)) for m in methods if m.name.endswith(regime)}
            assert len(data) <= 1
