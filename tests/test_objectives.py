"""Values against plain-Python formulas on a ragged batch, numerical helpers against exact ones, and the registry."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from decimal import Decimal, getcontext
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandit_pft.errors import ConfigError, ShapeError
from bandit_pft.groups import ExactGroup, Group, prepare
from bandit_pft.objectives import OBJECTIVES, as_objective, batch_loss, force, get_objective, objective, with_kl
from bandit_pft.objectives.core import reads_running, safe_exp
from bandit_pft.objectives.numerics import log1mexp, log_sigmoid, q_log, z_score

B, N, T = 3, 4, 3
BASELINE, SCALE, THRESHOLD = 0.2, 1.5, 0.1
log, exp = math.log, math.exp


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def softplus(x: float) -> float:
    return log(1 + exp(x))


# --- one batch, as arrays for the package and as plain numbers for the formulas --------------------------------------
@functools.cache
def batch() -> tuple[np.ndarray, Group, list[list[SimpleNamespace]]]:
    """Log-probabilities, a prepared batch, and its responses; ragged, with a tie and a missing response."""
    rng = np.random.default_rng(12)
    length = rng.integers(1, T + 1, (B, N))
    length[1, 3] = 0
    mask = np.arange(T) < length[..., None]
    ref = np.where(mask, -rng.exponential(size=(B, N, T)), 0)
    logp = np.where(mask, ref + 0.4 * rng.standard_normal((B, N, T)), 0)
    logp = np.minimum(logp, -0.01 * mask)
    old = np.where(mask, logp + 0.2 * rng.standard_normal((B, N, T)), 0)
    reward = rng.standard_normal((B, N))
    reward[2, 1] = reward[2, 0]
    made = [
        Group.of(
            reward=reward[b],
            ref_logp=ref[b],
            old_logp=old[b],
            mask=mask[b],
            baseline=BASELINE,
            scale=SCALE,
            threshold=THRESHOLD,
        )
        for b in range(B)
    ]
    groups = prepare(jax.tree.map(lambda *x: jnp.stack(x), *made), jnp.asarray(logp))
    responses = []
    for b in range(B):
        alive = [i for i in range(N) if length[b, i]]
        rewards = reward[b, alive]
        row = []
        for i in alive:
            token = slice(0, length[b, i])
            y = SimpleNamespace(logp=logp[b, i, token], ref=ref[b, i, token], old=old[b, i, token], r=reward[b, i])
            y.length, y.total, y.average = length[b, i], y.logp.sum(), y.logp.mean()
            y.gain, y.mean_gain = (y.logp - y.ref).sum(), (y.logp - y.ref).mean()
            y.ratio, y.token_ratio = exp((y.logp - y.old).sum()), np.exp(y.logp - y.old)
            y.n = len(alive)
            y.group = y.r - rewards.mean()
            y.others = y.r - (rewards.sum() - y.r) / (len(alive) - 1)
            y.z = y.group / (rewards.std(ddof=1) + 1e-4)
            y.best = (y.r == rewards.max()) / (rewards == rewards.max()).sum()
            y.worst = (y.r == rewards.min()) / (rewards == rewards.min()).sum()
            y.share = exp(y.r / 0.7) / np.exp(rewards / 0.7).sum()
            row.append(y)
        responses.append(row)
    return logp, groups, responses


def value(name: str, **hyper: float) -> float:
    logp, groups, _ = batch()
    return float(batch_loss(OBJECTIVES[name], jnp.asarray(logp, jnp.float32), groups, **hyper))


# --- pairs -----------------------------------------------------------------------------------------------------------
PAIRS: dict[str, tuple[dict[str, float], Callable[[Any, Any], float]]] = {
    "dpo": ({"beta": 0.7}, lambda w, z: softplus(-0.7 * (w.gain - z.gain))),
    "dpo_mean": ({"beta": 0.7}, lambda w, z: softplus(-0.7 * (w.mean_gain - z.mean_gain))),
    "cdpo": (
        {"beta": 0.7, "label_smoothing": 0.2},
        lambda w, z: 0.8 * softplus(-0.7 * (w.gain - z.gain)) + 0.2 * softplus(0.7 * (w.gain - z.gain)),
    ),
    "robust_dpo": (
        {"beta": 0.7, "label_smoothing": 0.2},
        lambda w, z: (0.8 * softplus(-0.7 * (w.gain - z.gain)) - 0.2 * softplus(0.7 * (w.gain - z.gain))) / 0.6,
    ),
    "dpop": (
        {"beta": 0.7, "penalty_coef": 3.0},
        lambda w, z: softplus(-0.7 * (w.gain - z.gain - 3 * max(0, w.ref.sum() - w.total))),
    ),
    "chi2_po": (
        {"beta": 0.7, "reward_range": 0.3},
        lambda w, z: softplus(-max(-0.6, min(0.6, 0.7 * (exp(w.gain) + w.gain - exp(z.gain) - z.gain)))),
    ),
    "fdpo_forward": ({"beta": 0.7}, lambda w, z: softplus(-0.7 * (exp(-z.gain) - exp(-w.gain)))),
    "fdpo_js": (
        {"beta": 0.7},
        lambda w, z: softplus(-0.7 * (log(exp(w.gain) / (1 + exp(w.gain))) - log(exp(z.gain) / (1 + exp(z.gain))))),
    ),
    "fdpo_alpha": (
        {"beta": 0.7, "alpha": 0.3},
        lambda w, z: softplus(-0.7 * (exp(w.gain) ** -0.7 - exp(z.gain) ** -0.7) / -0.7),
    ),
    "discopop": (
        {"beta": 0.7, "mix_temperature": 0.5},
        lambda w, z: (lambda x: (1 - sigmoid(x / 0.5)) * softplus(-x) + sigmoid(x / 0.5) * exp(-x))(
            0.7 * (w.gain - z.gain)
        ),
    ),
    "ipo": ({"beta": 0.7}, lambda w, z: (w.gain - z.gain - 1 / 1.4) ** 2),
    "ipo_mean": ({"beta": 0.7}, lambda w, z: (w.mean_gain - z.mean_gain - 1 / 1.4) ** 2),
    "hinge": ({"beta": 2.0}, lambda w, z: max(0.0, 1 - 2 * (w.gain - z.gain))),
    "exo": (
        {"beta": 0.7, "label_smoothing": 0.2},
        lambda w, z: (lambda q: q * log(q / 0.8) + (1 - q) * log((1 - q) / 0.2))(sigmoid(0.7 * (w.gain - z.gain))),
    ),
    "nca": (
        {"beta": 0.7},
        lambda w, z: softplus(-0.7 * w.gain) + softplus(0.7 * w.gain) / 2 + softplus(0.7 * z.gain) / 2,
    ),
    "bco_pair": ({"beta": 0.7}, lambda w, z: softplus(-0.7 * w.gain) + softplus(0.7 * z.gain)),
    "sppo": ({"beta": 0.7}, lambda w, z: (w.gain - 1 / 1.4) ** 2 + (z.gain + 1 / 1.4) ** 2),
    "apo_zero": ({"beta": 0.7}, lambda w, z: 1 - sigmoid(0.7 * w.gain) + sigmoid(0.7 * z.gain)),
    "apo_down": ({"beta": 0.7}, lambda w, z: sigmoid(0.7 * w.gain) + 1 - sigmoid(0.7 * (w.gain - z.gain))),
    "slic": (
        {"margin": 0.5, "sft_coef": 0.3},
        lambda w, z: max(0.0, 0.5 - w.total + z.total) - 0.3 * w.total,
    ),
    "simpo": ({"beta": 0.7, "margin": 0.5}, lambda w, z: softplus(0.5 - 0.7 * (w.average - z.average))),
    "cpo": (
        {"beta": 0.7, "sft_coef": 0.3},
        lambda w, z: softplus(-0.7 * (w.total - z.total)) - 0.3 * w.average,
    ),
    "orpo": (
        {"odds_coef": 0.3},
        lambda w, z: (lambda odds: -w.average + 0.3 * softplus(-log(odds(w) / odds(z))))(
            lambda y: exp(y.average) / (1 - exp(y.average))
        ),
    ),
    "pref_ft": ({}, lambda w, z: -w.total),
}


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_a_pair_objective_is_the_mean_of_its_formula_over_the_pairs_of_the_batch(name: str) -> None:
    hyper, formula = PAIRS[name]
    pairs = [formula(w, z) for row in batch()[2] for w in row for z in row if w.r > z.r]
    assert len(pairs) == 6 + 3 + 5
    np.testing.assert_allclose(value(name, **hyper), np.mean(pairs), rtol=2e-5)


# --- responses -------------------------------------------------------------------------------------------------------
def clipped(ratio: Any, advantage: float, low: float, high: float) -> Any:
    return np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)


def k3(y: Any) -> Any:
    return np.exp(y.ref - y.logp) - (y.ref - y.logp) - 1


# Mean over each group's responses, then over groups.
RESPONSES: dict[str, tuple[dict[str, float], Callable[[Any], float]]] = {
    "sft": ({}, lambda y: -y.total),
    "rwr": ({"beta": 0.7}, lambda y: -exp(y.r / 0.7) * y.total),
    "rwr_normalized": ({"beta": 0.7}, lambda y: -y.n * y.share * y.total),
    "awr": ({"beta": 0.7}, lambda y: -exp(y.z / 0.7) * y.total),
    "best_of_n": ({}, lambda y: -y.n * y.best * y.total),
    "best_of_n_negative": (
        {"negative": 0.3},
        lambda y: -y.n * (y.best - 0.3 * (1 - y.best) / (y.n - 1)) * y.total,
    ),
    "best_of_n_worst": ({"negative": 0.3}, lambda y: -y.n * (y.best - 0.3 * y.worst) * y.total),
    "best_of_n_complement": (
        {"negative": 0.3},
        lambda y: -y.n * (y.best * y.total + 0.3 * (1 - y.best) / (y.n - 1) * log(1 - exp(y.total))),
    ),
    "reinforce": ({}, lambda y: -y.r * y.total),
    "reinforce_running": ({}, lambda y: -(y.r - BASELINE) * y.total),
    "reinforce_group": ({}, lambda y: -y.group * y.total),
    "reinforce_normalized": ({}, lambda y: -y.z * y.total),
    "asymre": ({"delta": -0.3}, lambda y: -(y.group + 0.3) * y.total),
    "rloo": ({"clip": 0.1}, lambda y: -clipped(y.ratio, y.others, 0.1, 0.1)),
    "grpo": (
        {"clip": 0.1, "kl_coef": 0.3},
        lambda y: -(clipped(y.token_ratio, y.z, 0.1, 0.1) - 0.3 * k3(y)).mean(),
    ),
    "dr_grpo": ({"clip": 0.1}, lambda y: -clipped(y.token_ratio, y.group, 0.1, 0.1).sum() / T),
    "gspo": (
        {"clip_low": 0.05, "clip_high": 0.1},
        lambda y: -clipped(y.ratio ** (1 / y.length), y.z, 0.05, 0.1),
    ),
    "gspo_token": (
        {"clip_low": 0.05, "clip_high": 0.1},
        lambda y: -clipped(y.ratio ** (1 / y.length), y.z, 0.05, 0.1),
    ),
    "kl_k1": ({}, lambda y: y.gain),
    "kl_k2": ({}, lambda y: y.gain**2 / 2),
    "kl_k3": ({}, lambda y: exp(-y.gain) - 1 + y.gain),
}
# Mean over all tokens of the batch.
TOKENS: dict[str, tuple[dict[str, float], Callable[[Any], Any]]] = {
    "ppo_clip": ({"clip": 0.1}, lambda y: -clipped(y.token_ratio, (y.r - BASELINE) / SCALE, 0.1, 0.1)),
    "dapo": ({"clip_low": 0.05, "clip_high": 0.1}, lambda y: -clipped(y.token_ratio, y.z, 0.05, 0.1)),
    "cispo": ({"max_ratio": 1.1}, lambda y: -np.minimum(y.token_ratio, 1.1) * y.z * y.logp),
}


@pytest.mark.parametrize("name", sorted(RESPONSES))
def test_a_response_objective_is_the_mean_of_its_formula_over_each_groups_responses(name: str) -> None:
    hyper, formula = RESPONSES[name]
    wanted = np.mean([np.mean([formula(y) for y in row]) for row in batch()[2]])
    np.testing.assert_allclose(value(name, **hyper), wanted, rtol=2e-5)


@pytest.mark.parametrize("name", sorted(TOKENS))
def test_a_token_objective_is_the_mean_of_its_formula_over_all_tokens_of_the_batch(name: str) -> None:
    hyper, formula = TOKENS[name]
    wanted = np.concatenate([formula(y) for row in batch()[2] for y in row]).mean()
    np.testing.assert_allclose(value(name, **hyper), wanted, rtol=2e-5)


def test_filtered_is_the_mean_over_the_desirable_responses_of_the_batch() -> None:
    wanted = -np.mean([y.total for row in batch()[2] for y in row if y.r > THRESHOLD])
    np.testing.assert_allclose(value("filtered"), wanted, rtol=2e-5)


def test_dr_grpo_divides_by_max_length_where_one_is_given() -> None:
    np.testing.assert_allclose(value("dr_grpo", max_length=7.0), value("dr_grpo") * T / 7, rtol=1e-6)


def test_kto_and_bco_measure_gains_from_the_batchs_reference_point() -> None:
    rows = batch()[2]
    # Importance weights bring the old policy's responses back to the learner.
    kl = np.mean([sum(y.ratio * y.gain for y in row) / sum(y.ratio for y in row) for row in rows])
    mean_gain = np.mean([np.mean([y.gain for y in row]) for row in rows])
    assert kl > 0

    def kto(y: Any) -> float:
        good = y.r > THRESHOLD
        return 1.5 * (1 - sigmoid(0.7 * (y.gain - kl))) if good else 0.5 * (1 - sigmoid(0.7 * (kl - y.gain)))

    def bco(y: Any) -> float:
        return softplus((-1 if y.r > THRESHOLD else 1) * 0.7 * (y.gain - mean_gain))

    over = lambda f: np.mean([np.mean([f(y) for y in row]) for row in rows])
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    np.testing.assert_allclose(value("kto", beta=0.7, **weights), over(kto), rtol=2e-5)
    np.testing.assert_allclose(value("bco", beta=0.7), over(bco), rtol=2e-5)


def test_xpo_and_nash_md_weight_each_groups_own_responses_by_self_normalised_density_ratios() -> None:
    pairs, bonus, advantage = [], [], []
    for row in batch()[2]:
        ratio = np.exp([y.ref.sum() - y.old.sum() for y in row])
        ratio /= ratio.mean()
        wins = [(i, j) for i, w in enumerate(row) for j, z in enumerate(row) if w.r > z.r]
        weight = np.array([ratio[i] + ratio[j] for i, j in wins])
        loss = np.array([softplus(-0.7 * (row[i].gain - row[j].gain)) for i, j in wins])
        pairs.extend(weight / weight.mean() * loss)
        bonus.append(np.mean([share * y.total for share, y in zip(ratio, row, strict=True)]))
        opponent = np.exp([0.7 * y.total + 0.3 * y.ref.sum() - y.old.sum() for y in row])
        opponent /= opponent.sum()
        rate = [sum(o * ((y.r > z.r) + 0.5 * (y.r == z.r)) for o, z in zip(opponent, row, strict=True)) for y in row]
        advantage.append(np.mean([(p - 0.5 - 0.7 * y.gain) * y.total for p, y in zip(rate, row, strict=True)]))
    wanted = np.mean(pairs) + 0.3 * np.mean(bonus)
    np.testing.assert_allclose(value("xpo", beta=0.7, optimism=0.3), wanted, rtol=2e-5)
    np.testing.assert_allclose(value("nash_md", beta=0.7, mixture=0.3), -np.mean(advantage), rtol=2e-5)


def test_every_sampled_objective_has_its_formula_checked() -> None:
    ours = {name for name, made in OBJECTIVES.items() if made.function.__module__.startswith("bandit_pft.")}
    tables = {name for name in ours if OBJECTIVES[name].family == "distribution"}  # these and the games: test_exact.py
    assert set(PAIRS) | set(RESPONSES) | set(TOKENS) | {"filtered", "kto", "bco", "xpo", "nash_md"} == ours - tables


# --- relations that the papers state ---------------------------------------------------------------------------------
def test_robust_dpo_under_flipped_labels_is_dpo_under_clean_ones_on_average() -> None:
    won = Group.of(reward=[1.0, 0.0], ref_logp=[-3.0, -1.0])
    lost = Group.of(reward=[0.0, 1.0], ref_logp=[-3.0, -1.0])
    logp = jnp.array([[-2.0], [-1.5]])
    robust = lambda group: float(OBJECTIVES["robust_dpo"](logp, group, label_smoothing=0.3))
    np.testing.assert_allclose(0.7 * robust(won) + 0.3 * robust(lost), OBJECTIVES["dpo"](logp, won), rtol=1e-5)


@pytest.mark.parametrize(
    ("general", "special", "hyper"),
    [
        ("cdpo", "dpo", {"label_smoothing": 0.0}),
        ("robust_dpo", "dpo", {"label_smoothing": 0.0}),
        ("dpop", "dpo", {"penalty_coef": 0.0}),
        ("fdpo_alpha", "dpo", {"alpha": 1.0}),
        ("best_of_n_negative", "best_of_n", {"negative": 0.0}),
        ("best_of_n_worst", "best_of_n", {"negative": 0.0}),
        ("best_of_n_complement", "best_of_n", {"negative": 0.0}),
        ("asymre", "reinforce_group", {"delta": 0.0}),
    ],
)
def test_a_generalisation_contains_its_special_case(general: str, special: str, hyper: dict[str, float]) -> None:
    np.testing.assert_allclose(value(general, **hyper), value(special), rtol=1e-6)


def test_the_alpha_form_of_f_dpo_approaches_the_forward_kl_at_0_and_passes_smoothly_through_dpo_at_1() -> None:
    np.testing.assert_allclose(value("fdpo_alpha", alpha=1e-6), value("fdpo_forward"), rtol=1e-4)
    for alpha in (1 - 1e-4, 1 + 1e-4):
        np.testing.assert_allclose(value("fdpo_alpha", alpha=alpha), value("dpo"), rtol=1e-4)


def test_discopop_pushes_the_winner_at_the_reference_as_its_docstring_warns() -> None:
    group = Group.of(reward=[1.0, 0.0], ref_logp=[-1.0, -1.0])
    pull = lambda x: float(force("discopop", jnp.array([[-1.0 + x], [-1.0]]), group, beta=1.0)[0, 0])
    assert [pull(x) > 0 for x in (-0.15, -0.09, 0.0, 0.05, 0.1)] == [True, False, False, False, True]


# --- numbers that are hard to keep -----------------------------------------------------------------------------------
def test_the_slope_of_log_sigmoid_keeps_its_digits_far_from_0() -> None:
    """1 / (1 + e^x), where e^x may be 1e-40 or 1e40, and the value next to it; the slope's slope as well."""
    x = np.concatenate([np.linspace(-100, 100, 41), [-1e4, 1e4]])
    with np.errstate(over="ignore"):
        slope = 1 / (1 + np.exp(x))
    given = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(jax.vmap(log_sigmoid)(given), -np.logaddexp(0, -x), rtol=1e-6, atol=1e-38)
    np.testing.assert_allclose(jax.vmap(jax.grad(log_sigmoid))(given), slope, rtol=2e-6, atol=1e-37)
    np.testing.assert_allclose(jax.vmap(jax.hessian(log_sigmoid))(given), slope * (slope - 1), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_objective_reads_the_running_statistics_if_and_only_if_they_move_its_loss(name: str) -> None:
    logp, groups, _ = batch()
    if OBJECTIVES[name].family == "distribution":
        groups = ExactGroup(*groups)
    other = groups._replace(baseline=groups.baseline + 0.7, scale=1.3 * groups.scale)
    here, there = (float(batch_loss(OBJECTIVES[name], jnp.asarray(logp), which)) for which in (groups, other))
    assert reads_running(OBJECTIVES[name], type(groups), N, T) == (here != there)


def test_log1mexp_keeps_its_digits_near_certainty_and_far_from_it() -> None:
    getcontext().prec = 50
    for x in (-2e-6, -1e-3, -0.5, -0.7, -3.0, -20.0, -80.0):
        exact = (1 - Decimal(float(np.float32(x))).exp()).ln()
        np.testing.assert_allclose(float(log1mexp(jnp.float32(x))), float(exact), rtol=3e-7)
    slope = jax.grad(log1mexp)
    np.testing.assert_allclose(slope(jnp.float32(-0.01)), -exp(-0.01) / (1 - exp(-0.01)), rtol=1e-5)
    assert slope(jnp.float32(0.0)) == 0
    assert slope(jnp.float32(-1e4)) == 0


def test_q_log_is_exact_from_tiny_to_huge_arguments_and_passes_through_power_0() -> None:
    getcontext().prec = 50
    for power in (-1.0, -0.5, 1e-5, 0.5):
        for x in (-60.0, -1e-4, 1e-6, 0.3, 25.0):
            p, y = Decimal(float(np.float32(power))), Decimal(float(np.float32(x)))
            exact = ((p * y).exp() - 1) / p
            if p * y < 40:
                np.testing.assert_allclose(float(q_log(jnp.float32(x), jnp.float32(power))), float(exact), rtol=1e-5)
    np.testing.assert_array_equal(q_log(jnp.float32(3.7), 0.0), np.float32(3.7))
    assert np.isfinite(jax.grad(q_log)(jnp.float32(1e4), -1.0))


def test_safe_exp_is_exp_up_to_its_bound_and_survives_products_with_rewards_beyond_it() -> None:
    x = jnp.linspace(-80, 40, 25)
    np.testing.assert_allclose(safe_exp(x), np.exp(np.asarray(x, np.float64)), rtol=1e-5)
    top = safe_exp(jnp.float32(1e4))
    assert np.isfinite(top * top * 1e3)
    assert jax.grad(safe_exp)(jnp.float32(1e4)) == 0


def test_the_z_score_of_equal_rewards_is_exactly_0_although_their_mean_is_rounded() -> None:
    for n in (7, 10):
        for reward in (0.1, 0.3, 1e7 / 3, 1e-8):
            for kind in (Group, ExactGroup):
                group = kind.of(reward=np.full(n, reward), ref_logp=np.zeros(n))
                assert not np.asarray(z_score(group)).any()
    mixed = Group.of(reward=[1e-3, 0.0, 0.0], ref_logp=np.zeros(3))
    assert np.abs(z_score(mixed)).max() > 0.5


def test_huge_rewards_and_log_ratios_reach_no_force_as_nan() -> None:
    group = Group.of(reward=[1e6, -1e6, 0.0], ref_logp=[-1e4, 0.0, -1.0], old_logp=[-1e4, -1e4, 0.0])
    table = ExactGroup.of(reward=[1e6, -1e6, 0.0], ref_logp=[-1e4, -0.1, -3.0], weight=[0.0, 0.9, 0.1])
    logp = jnp.array([[0.0], [-1e4], [-0.5]])
    for name, made in OBJECTIVES.items():
        pull = force(name, logp, table if made.family == "distribution" else group)
        assert np.isfinite(pull).all(), name


# --- with_kl ---------------------------------------------------------------------------------------------------------
def test_with_kl_adds_one_traced_hyper_parameter_whose_0_is_the_objective_itself() -> None:
    logp, groups, _ = batch()
    logp = jnp.asarray(logp, jnp.float32)
    for place in ("loss", "reward"):
        made, traces = with_kl("rloo", kl="k3", place=place), []
        assert made.hyper == {"clip": 0.2, "kl_coef": 0.1}

        @jax.jit
        def run(coefficient: Any, made: Any = made, traces: Any = traces) -> Any:
            traces.append(coefficient)
            return batch_loss(made, logp, groups, kl_coef=coefficient)

        np.testing.assert_allclose(run(0.0), value("rloo"), atol=1e-6)
        assert abs(float(run(0.5)) - value("rloo")) > 1e-3
        assert len(traces) == 1
        assert made.name not in OBJECTIVES
        assert made.summary == OBJECTIVES["rloo"].summary


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_a_penalty_in_the_reward_is_taken_off_every_response_before_the_baseline(kl: Any) -> None:
    estimate = {"k1": lambda g: g, "k2": lambda g: g**2 / 2, "k3": lambda g: exp(-g) - 1 + g}[kl]
    logp, groups, rows = batch()
    made = with_kl("reinforce_group", kl=kl, place="reward")
    losses = []
    for row in rows:
        reward = np.array([y.r - 0.3 * estimate(y.gain) for y in row])
        losses.append(-np.mean([(r - reward.mean()) * y.total for r, y in zip(reward, row, strict=True)]))
    found = batch_loss(made, jnp.asarray(logp, jnp.float32), groups, kl_coef=0.3)
    np.testing.assert_allclose(found, np.mean(losses), rtol=2e-5)


def test_a_penalty_in_the_reward_has_no_gradient_of_its_own() -> None:
    group = Group.of(reward=[0.0, 0.0], ref_logp=[-2.0, -1.0])
    at = lambda name: force(with_kl(name, kl="k1", place="reward"), jnp.array([[-1.0], [-1.5]]), group, kl_coef=1.0)
    np.testing.assert_allclose(at("reinforce")[:, 0], [-1.0 / 2, 0.5 / 2], rtol=1e-6)
    # A weight that the objective itself does not freeze.
    np.testing.assert_allclose(at("rwr")[:, 0], [exp(-1.0 / 0.5) / 2, exp(0.5 / 0.5) / 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("which", "kl", "place", "message"),
    [
        ("rloo", "k4", "loss", "did you mean k3 or k2 or k1"),
        ("rloo", "k1", "rewards", "did you mean reward"),
        ("grpo", "k1", "loss", "kl_coef"),
        ("dpo", "k1", "reward", "does not look at rewards"),
        ("rlo", "k1", "loss", "did you mean rloo"),
    ],
)
def test_a_penalty_that_would_do_nothing_or_does_not_exist_is_refused(
    which: str, kl: Any, place: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        with_kl(which, kl=kl, place=place)


# --- adding an objective ---------------------------------------------------------------------------------------------
def test_a_new_objective_is_one_function_and_running_its_cell_again_replaces_it() -> None:
    def half(logp, group, *, beta: float = 2.0):
        """Half of everything.

        L = -mean log pi / beta
        """
        return -group.mean(group.total(logp)) / beta

    try:
        made = objective(family="supervised")(half)
        again = objective(family="supervised")(half)
        assert OBJECTIVES["half"] is again
        assert (made.hyper, made.formula, made.summary) == (
            {"beta": 2.0},
            "L = -mean log pi / beta",
            "Half of everything.",
        )
        group = Group.of(reward=[1.0, 2.0], ref_logp=[-1.0, -1.0])
        np.testing.assert_allclose(force("half", jnp.zeros((2, 1)), group), 0.25, rtol=1e-6)
        other = functools.wraps(half)(lambda logp, group, **hyper: half(logp, group, **hyper))
        other.__module__ = "elsewhere"
        with pytest.raises(ConfigError, match="exists already"):
            objective(family="supervised")(other)
    finally:
        OBJECTIVES.pop("half", None)


def test_what_stands_in_masked_tokens_never_reaches_the_function_of_an_objective() -> None:
    def careless(logp, group):
        """Sums over padding.

        L = sum of all that it is given
        """
        return (logp + group.ref_logp + group.old_logp).sum()

    given = np.array([[-1.0, np.nan], [-1.0, -3.0]])
    group = Group.of(reward=[1.0, 0.0], ref_logp=given, old_logp=given, mask=np.isfinite(given))
    assert float(as_objective(careless)(jnp.asarray(given), group)) == -15


def test_functions_that_cannot_be_objectives_are_refused_with_the_reason() -> None:
    def positional(logp, group, beta=0.1) -> Any:
        """No.

        L = 0
        """

    def undocumented(logp, group) -> Any:
        return 0.0

    def fine(logp, group):
        """Nothing."""
        return 0.0 * logp.sum()

    with pytest.raises(ConfigError, match="keyword-only"):
        as_objective(positional)
    with pytest.raises(ConfigError, match="docstring"):
        as_objective(undocumented)
    with pytest.raises(ConfigError, match="did you mean supervised"):
        as_objective(fine, family="superwised")
    with pytest.raises(TypeError, match="function"):
        as_objective(3)  # type: ignore[arg-type]
    assert as_objective(fine).formula == ""


def test_an_objective_is_found_by_name_by_module_path_and_by_itself() -> None:
    dpo = get_objective("dpo")
    assert get_objective(dpo) is dpo
    assert get_objective("bandit_pft.objectives.preference:dpo") is dpo
    with pytest.raises(ConfigError, match="did you mean"):
        get_objective("dpoo")
    for missing in ("no_such_module:dpo", "bandit_pft.objectives.preference:nothing"):
        with pytest.raises(ConfigError, match="cannot be loaded"):
            get_objective(missing)


def test_log_probabilities_of_another_shape_are_refused() -> None:
    group = Group.of(reward=[1.0, 2.0], ref_logp=[-1.0, -1.0])
    with pytest.raises(ShapeError, match=r"\(2, 1\)"):
        OBJECTIVES["dpo"](jnp.zeros((2, 2)), group)
