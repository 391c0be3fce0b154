"""What policy gradients do on small bandits, as computed, and that a broken formula turns its row red."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bandit_pft.claims import CLAIMS, EXPERIMENTS, Outcome, Row, judge
from bandit_pft.experiments import literature_online
from bandit_pft.objectives import OBJECTIVES, core

MINE = sorted(key for key, claim in CLAIMS.items() if claim.experiment.run.__module__ == literature_online.__name__)
NAMES = sorted({CLAIMS[key].experiment.name for key in MINE})


@functools.cache
def outcome(name: str) -> Outcome:
    return EXPERIMENTS[name].run(True)


def row(key: str) -> Row:
    return judge(CLAIMS[key], outcome(CLAIMS[key].experiment.name).measures)


def verdict(key: str) -> tuple[str, ...]:
    """The verdict, and where it depends on something, the conditions under which the claim holds."""
    found = row(key)
    return (found.verdict, *(found.holds_where if found.verdict == "depends on" else ()))


def false_criteria(key: str, name: str) -> set[str]:
    """What no longer holds when the experiment runs again."""
    judged = judge(CLAIMS[key], EXPERIMENTS[name].run(True).measures).judged
    return {j.criterion.measure for j in judged if not j.holds}


@pytest.fixture
def objective(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    """Put another formula in the place of an objective's."""

    def put(name: str, function: Any) -> None:
        monkeypatch.setitem(OBJECTIVES, name, replace(OBJECTIVES[name], function=function))

    return put


# --- where the KL penalty stands -------------------------------------------------------------------------------------
def test_k1_in_the_loss_does_not_hold_the_policy() -> None:
    assert verdict("F33a") == ("reproduces",)


def test_k1_in_the_reward_and_k2_in_the_loss_end_at_the_regularised_optimum() -> None:
    assert verdict("F33b") == ("reproduces",)


def test_k3_in_the_loss_is_the_forward_kl_and_ends_elsewhere() -> None:
    assert verdict("F33c") == ("reproduces",)


def test_a_penalty_of_the_wrong_sign_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(core.KL_ESTIMATES, "k2", lambda gain: -(gain**2) / 2)
    assert "k2 in loss: error to reverse KL" in false_criteria("F33b", "kl_placement")


# --- groups, lengths, baselines --------------------------------------------------------------------------------------
def test_a_question_counts_by_its_deviation_only_in_large_groups() -> None:
    assert verdict("F27") == ("depends on", "large groups")


def test_without_the_deviation_a_question_counts_by_its_variance_whatever_the_group() -> None:
    errors = {j.criterion.measure: j.mean for j in row("F28a").judged if "largest error" in j.criterion.measure}
    assert len(errors) == 3 and max(errors.values()) < 1e-4


def test_small_groups_hardly_favour_hard_questions() -> None:
    assert verdict("F28a") == ("depends on", "large groups", "groups of 64")


def test_a_z_score_without_its_division_is_seen(objective: Callable[[str, Any], None]) -> None:
    plain = OBJECTIVES["dr_grpo"].function
    objective("grpo", lambda logp, group, *, clip, kl_coef: plain(logp, group, clip=clip, max_length=0.0))
    assert "GRPO, large groups: largest error of the law" in false_criteria("F27", "question_weight")


def test_dividing_by_the_length_makes_wrong_answers_longer_and_right_ones_shorter() -> None:
    assert verdict("F28b") == ("reproduces",)


def test_leaving_ones_own_reward_out_is_unbiased() -> None:
    assert verdict("F26a") == ("reproduces",)


def test_a_baseline_saves_variance_unless_rewards_are_centred() -> None:
    assert verdict("F26b") == ("depends on", "rewards 0 to 1", "rewards 5 to 6")


def test_a_baseline_that_contains_its_own_reward_is_seen(objective: Callable[[str, Any], None]) -> None:
    biased = OBJECTIVES["reinforce_group"].function
    objective("rloo", lambda logp, group, *, clip: biased(logp, group))
    assert "RLOO: error of the mean step" in false_criteria("F26a", "baseline_variance")


# --- collapse, forgetting, over-optimisation -------------------------------------------------------------------------
def test_equal_rewards_keep_the_references_odds() -> None:
    assert verdict("F37a") == ("reproduces",)


def test_without_a_penalty_the_likelier_of_two_equals_takes_all() -> None:
    assert outcome("designed_collapse").measures["trained without KL: change of the log-odds"] < -5


def test_modes_cross_where_the_rewards_lead_matches_the_references() -> None:
    assert verdict("F37b") == ("reproduces",)


def test_anchored_rewards_make_all_good_modes_equally_likely() -> None:
    assert verdict("F37c") == ("reproduces",)


def test_natural_gradient_and_weighted_regression_end_closest_to_the_start() -> None:
    assert verdict("F38a") == ("reproduces",)


def test_the_plain_gradient_of_a_softmax_does_not() -> None:
    assert verdict("F38b") == ("does not reproduce",)
    assert row("F38b").judged[0].mean > 1.5


def test_supervised_learning_is_farther_only_with_labels_far_from_the_start() -> None:
    names = ("NPG", "RWR", "softmax PG")
    assert verdict("F38c") == ("depends on", *(f"{name} against one label" for name in names))


def test_imitating_ones_own_successes_is_as_close_as_rl() -> None:
    assert verdict("F38d") == ("reproduces",)


def test_a_proxy_is_over_optimised_only_with_heavy_tails_and_something_to_lose() -> None:
    assert verdict("F35a") == ("depends on", "near peak, heavy tails")


def test_gaos_forms_fit_all_curves_that_do_not_fall() -> None:
    good = ("near peak, light tails", "far peak, light tails", "far peak, heavy tails")
    assert verdict("F35b") == ("depends on", *good)
    assert verdict("F35c") == ("depends on", *good)


# --- off-policy ------------------------------------------------------------------------------------------------------
def test_the_support_collapses_at_the_mean_reward_only_among_many_actions() -> None:
    assert verdict("F31a") == ("depends on", "100 actions")


def test_asymre_ends_at_a_cut_off_advantage() -> None:
    probs, reward = np.array([0.4, 0.3, 0.2, 0.08, 0.02]), np.array([0, 0.3, 0.6, 0.8, 1.0])
    for delta in literature_online.DELTAS[literature_online.DELTAS < 0]:
        pull = probs * (reward - probs @ reward - delta)
        cut = max(np.sort(pull)[-k:].sum() / k + delta / k for k in range(1, 6))
        table = outcome("low_baseline").tables["low_baseline"]
        found = table.loc[(table["line"] == "5 actions, once") & (table["x"] == delta), "y"].item()
        np.testing.assert_allclose(found, np.maximum(pull - cut, 0) / -delta @ reward, atol=1e-3)


def test_a_collapse_harms_over_rounds() -> None:
    assert verdict("F31b") == ("depends on", "5 actions, 20 rounds")


def test_a_baseline_of_the_wrong_sign_is_seen(objective: Callable[[str, Any], None]) -> None:
    plain = OBJECTIVES["asymre"].function
    objective("asymre", lambda logp, group, *, delta: plain(logp, group, delta=-delta))
    assert "100 actions: left, 0.02 below" in false_criteria("F31a", "low_baseline")


def test_more_room_upwards_speeds_up_a_rare_action_only_with_steps_smaller_than_the_clip() -> None:
    assert verdict("F29a") == ("depends on", "rare reward, fine steps")


def test_more_room_upwards_does_not_keep_entropy() -> None:
    assert verdict("F29b") == ("does not reproduce",)
    assert all(j.mean < 0 for j in row("F29b").judged if not j.criterion.control)


def test_one_ratio_per_response_varies_less_than_one_per_token() -> None:
    assert verdict("F30a") == ("reproduces",)


def test_the_step_varies_a_little_less_with_long_responses() -> None:
    assert verdict("F30b") == ("depends on", "16 tokens", "64 tokens")


def test_a_ratio_left_out_is_seen(objective: Callable[[str, Any], None]) -> None:
    plain = OBJECTIVES["reinforce_normalized"].function
    objective("gspo", lambda logp, group, *, clip_low, clip_high: plain(logp, group))
    assert "64 tokens: variance of the sequence ratio" in false_criteria("F30a", "sequence_ratio")


# --- all of them -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_everything_measured_and_drawn_is_finite(name: str) -> None:
    measures, tables = outcome(name)
    assert all(np.isfinite(np.asarray(values, np.float64)).all() for values in measures.values())
    for table in tables.values():
        assert {"panel", "line", "family", "x", "y", "low", "high"} <= set(table)
        assert np.isfinite(table[["x", "y", "low", "high"]].to_numpy()).all()
