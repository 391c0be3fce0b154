"""Sampled objectives against the enumeration of every group, closed forms, and gradients of exact expectations."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandit_pft.errors import ConfigError
from bandit_pft.groups import ExactGroup, Group, prepare
from bandit_pft.objectives import OBJECTIVES, Objective, force, with_kl

K, N = 4, 3
SLOTS = 256
REWARD = np.array([0.3, -1.0, 1.2, 0.3])
THRESHOLD, BASELINE, SCALE = 0.1, 0.2, 1.5
SETTINGS: dict[str, Any] = {"threshold": THRESHOLD, "baseline": BASELINE, "scale": SCALE}

OURS = {name: made for name, made in OBJECTIVES.items() if made.function.__module__.startswith("bandit_pft.")}
SAMPLED = sorted(name for name, made in OURS.items() if made.family != "distribution")
TABLES = sorted(set(OURS) - set(SAMPLED))
# Ratios of two expectations: only the limit of large groups is known in closed form.
SELF_NORMALISED = {
    *("reinforce_normalized", "grpo", "dapo", "gspo", "gspo_token", "cispo", "awr", "rwr_normalized", "xpo", "nash_md")
}
EXACT = sorted(set(SAMPLED) - SELF_NORMALISED)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def log_softmax(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x - x.max()).sum()) - x.max()


REF = np.log([0.3, 0.25, 0.2, 0.25])
OLD = np.log([0.4, 0.2, 0.1, 0.3])
# Within the clip range of every objective but GSPO, whose range is 3e-4 wide.
PI = log_softmax(OLD + np.array([0.05, -0.1, 0.08, -0.04]))


def table(logp: np.ndarray, weight: np.ndarray, **changed: Any) -> Group:
    """The exact group of responses drawn from `weight` (probabilities)."""
    known = {"reward": REWARD, "ref_logp": REF, "old_logp": np.log(weight), "weight": weight, "draws": N}
    return ExactGroup.of(**{**known, **SETTINGS, **changed})


def logit_gradient(pull: Any, logp: np.ndarray) -> np.ndarray:
    """From forces on every action's log-probability to the gradient of the loss in the logits."""
    pull = np.asarray(pull)[:, 0]
    return pull.sum() * np.exp(logp) - pull


@functools.cache
def compiled(made: Objective) -> Any:
    return jax.jit(jax.vmap(lambda logp, group: force(made, logp, group)))


@functools.cache
def gather(seed: int | None) -> tuple[np.ndarray, np.ndarray, Group]:
    """(probability, actions, groups): all K^N groups padded to SLOTS, or SLOTS groups drawn from the old policy."""
    if seed is None:
        actions = np.zeros((SLOTS, N), int)
        actions[: K**N] = list(itertools.product(range(K), repeat=N))
        probability = np.exp(OLD)[actions].prod(1) * (np.arange(SLOTS) < K**N)
    else:
        actions = np.random.default_rng(seed).choice(K, p=np.exp(OLD), size=(SLOTS, N))
        probability = np.full(SLOTS, 1 / SLOTS)
    make = jax.vmap(lambda reward, ref, old: Group.of(reward=reward, ref_logp=ref, old_logp=old, **SETTINGS))
    return probability, actions, prepare(make(REWARD[actions], REF[actions], OLD[actions]))


def by_action(actions: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """[groups, K]: the sum of the forces on the responses that chose each action."""
    return (pull[:, :, 0, None] * (actions[:, :, None] == np.arange(K))).sum(1)


@functools.cache
def enumerated(name: str) -> np.ndarray:
    """Expected force on each action: the mean over all K^N groups, normalised as an infinitely large batch is."""
    probability, actions, groups = gather(None)
    count = lambda f: (probability * np.asarray(jax.vmap(f)(groups))).sum()
    one = np.ones(SLOTS)
    groups = groups._replace(
        share=jnp.asarray(one),
        token_share=jnp.asarray(one / N),
        pair_share=jnp.asarray(one / count(lambda g: g.pair_count().sum())),
        kept_share=jnp.asarray(one / count(lambda g: (g.count() * g.desirable()).sum())),
    )
    pull = np.asarray(compiled(OURS[name])(jnp.asarray(PI[actions][..., None]), groups))
    return probability @ by_action(actions, pull)


# --- enumeration = sampling = the exact group ------------------------------------------------------------------------
@pytest.mark.parametrize("name", SAMPLED)
def test_the_mean_force_of_sampled_batches_is_the_enumerated_one_within_5_standard_errors(name: str) -> None:
    repeats = []
    for seed in range(24):
        _, actions, groups = gather(seed)
        pull = np.asarray(compiled(OURS[name])(jnp.asarray(PI[actions][..., None]), groups))
        repeats.append(by_action(actions, pull).sum(0))
    mean, error = np.mean(repeats, 0), np.std(repeats, 0, ddof=1) / np.sqrt(len(repeats))
    expected = enumerated(name)
    assert (np.abs(mean - expected) < 5 * error + 1e-12).all()
    # An error of 15 % in the largest force could not hide in that.
    assert 5 * error.min() < 0.15 * np.abs(expected).max() + 1e-12


@pytest.mark.parametrize("name", EXACT)
def test_the_force_of_the_exact_group_is_the_enumerated_one(name: str) -> None:
    exact = np.asarray(force(name, jnp.asarray(PI[:, None]), table(PI, np.exp(OLD))))[:, 0]
    np.testing.assert_allclose(exact, enumerated(name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["rwr_normalized", "awr", "grpo", "nash_md"])
def test_self_normalised_objectives_reach_the_exact_group_as_groups_grow(name: str) -> None:
    share = np.array([0.1, 0.2, 0.3, 0.4])
    logp, drawn = np.log(share), np.repeat(np.arange(K), np.round(2000 * share).astype(int))
    large = Group.of(reward=REWARD[drawn], ref_logp=REF[drawn], old_logp=logp[drawn])
    pull = by_action(drawn[None], np.asarray(force(name, jnp.asarray(logp[drawn, None]), large))[None])[0]
    exact = np.asarray(force(name, jnp.asarray(logp[:, None]), table(logp, share, draws=2000)))[:, 0]
    np.testing.assert_allclose(pull, exact, rtol=0, atol=1e-3 * np.abs(exact).max())


def test_pairs_with_bradley_terry_noise_on_the_scores_average_to_the_exact_groups_temperature() -> None:
    rng = np.random.default_rng(0)
    groups, temperature = 60_000, 0.7
    actions = rng.choice(K, p=np.exp(OLD), size=(groups, 2))
    noisy = REWARD[actions] + temperature * rng.gumbel(size=actions.shape)
    weight = np.exp(OLD)
    exact = np.asarray(force("dpo", jnp.asarray(PI[:, None]), table(PI, weight, temperature=temperature)))[:, 0]
    winner = np.where(noisy[:, 0] > noisy[:, 1], 0, 1)
    won, lost = actions[np.arange(groups), winner], actions[np.arange(groups), 1 - winner]
    gain = PI - REF
    slope = 0.1 / (1 + np.exp(0.1 * (gain[won] - gain[lost])))
    each = slope[:, None] * ((won[:, None] == np.arange(K)) * 1.0 - (lost[:, None] == np.arange(K)))
    assert (np.abs(each.mean(0) - exact) < 5 * each.std(0) / np.sqrt(groups)).all()


# --- policy gradients ------------------------------------------------------------------------------------------------
def expected_reward(logits: Any) -> Any:
    return (jax.nn.softmax(logits) * REWARD).sum()


def reverse(logits: Any) -> Any:
    log_pi = jax.nn.log_softmax(logits)
    return (jnp.exp(log_pi) * (log_pi - REF)).sum()


def forward(logits: Any) -> Any:
    return (np.exp(REF) * (REF - jax.nn.log_softmax(logits))).sum()


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("reinforce", 1),
        ("reinforce_running", 1),
        ("rloo", 1),
        ("reinforce_group", (N - 1) / N),
        ("dr_grpo", (N - 1) / N),
        ("asymre", (N - 1) / N),
        ("ppo_clip", 1 / SCALE),
    ],
)
def test_on_policy_the_force_is_the_gradient_of_the_expected_reward(name: str, factor: float) -> None:
    pull = force(name, jnp.asarray(PI[:, None]), table(PI, np.exp(PI)))
    wanted = -factor * np.asarray(jax.grad(expected_reward)(jnp.asarray(PI)))
    np.testing.assert_allclose(logit_gradient(pull, PI), wanted, rtol=0, atol=1e-10)


def test_rloo_enumerated_over_every_group_is_the_gradient_of_the_expected_reward() -> None:
    probability, actions, groups = gather(None)
    probability = probability * np.exp(PI - OLD)[actions].prod(1)
    groups = groups._replace(old_logp=jnp.asarray(PI[actions][..., None]), share=jnp.ones(SLOTS))
    pull = np.asarray(compiled(OURS["rloo"])(groups.old_logp, groups))
    mean = (probability @ by_action(actions, pull))[:, None]
    wanted = -np.asarray(jax.grad(expected_reward)(jnp.asarray(PI)))
    np.testing.assert_allclose(logit_gradient(mean, PI), wanted, rtol=0, atol=1e-10)


def test_the_clipped_gradient_at_ratio_1_is_reinforce_with_the_same_advantages() -> None:
    group = table(PI, np.exp(PI), scale=1.0)
    logp = jnp.asarray(PI[:, None])
    np.testing.assert_allclose(force("ppo_clip", logp, group), force("reinforce_running", logp, group), rtol=1e-12)
    np.testing.assert_allclose(force("dr_grpo", logp, group), force("reinforce_group", logp, group), rtol=1e-12)
    np.testing.assert_allclose(force("grpo", logp, group), force("reinforce_normalized", logp, group), rtol=1e-12)


def test_a_ratio_outside_the_clip_range_feels_force_only_back_into_it() -> None:
    ratio = np.array([0.5, 1.5, 0.5, 1.5])
    advantage = np.array([1.0, 1.0, -1.0, -1.0])
    group = Group.of(reward=advantage, ref_logp=REF, old_logp=OLD)
    pull = np.asarray(force("ppo_clip", jnp.asarray((OLD + np.log(ratio))[:, None]), group))[:, 0]
    np.testing.assert_allclose(pull, [0.5 / 4, 0, 0, -1.5 / 4], rtol=1e-12)
    logp = jnp.asarray((OLD + np.log([6.0, 1.5, 0.5, 1.5]))[:, None])
    z = advantage / (advantage.std(ddof=1) + 1e-4)
    cispo = np.asarray(force("cispo", logp, group))[:, 0]
    np.testing.assert_allclose(cispo, z * [5.0, 1.5, 0.5, 1.5] / 4, rtol=1e-12)


def test_gspo_and_its_token_form_have_the_same_force() -> None:
    rng = np.random.default_rng(1)
    mask = np.arange(4) < np.array([4, 2, 3, 1])[:, None]
    old = -rng.exponential(size=(4, 4))
    group = Group.of(reward=REWARD, ref_logp=old, old_logp=old, mask=mask)
    logp = jnp.asarray(old + 2e-3 * rng.standard_normal((4, 4)))
    sequence = np.asarray(force("gspo", logp, group))
    assert (sequence != 0).any(1).sum() not in (0, 4)  # some ratios are clipped, some are not
    np.testing.assert_allclose(force("gspo_token", logp, group), sequence, rtol=1e-9)


# --- the regularised optimum -----------------------------------------------------------------------------------------
BETA = 0.4
OPTIMUM = log_softmax(REF + REWARD / BETA)
REGULARISED = [("k2", "loss"), ("k1", "reward")]


@pytest.mark.parametrize("base", ["reinforce", "rloo"])
@pytest.mark.parametrize(("kl", "place"), REGULARISED)
def test_reinforce_with_the_reverse_kl_stands_still_at_the_optimum_and_only_there(
    base: str, kl: str, place: str
) -> None:
    made = with_kl(base, kl=kl, place=place)
    at = lambda logp: logit_gradient(
        force(made, jnp.asarray(logp[:, None]), table(logp, np.exp(logp)), kl_coef=BETA), logp
    )
    np.testing.assert_allclose(at(OPTIMUM), 0, atol=1e-12)
    wanted = jax.grad(lambda x: BETA * reverse(x) - expected_reward(x))(jnp.asarray(PI))
    np.testing.assert_allclose(at(PI), wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("kl", "divergence"), [("k1", lambda x: 0 * x.sum()), ("k2", reverse), ("k3", forward)], ids=["k1", "k2", "k3"]
)
def test_in_the_loss_k1_has_no_expected_gradient_k2_the_reverse_and_k3_the_forward_one(
    kl: str, divergence: Callable[[Any], Any]
) -> None:
    wanted = jax.grad(divergence)(jnp.asarray(PI))
    logp, group = jnp.asarray(PI[:, None]), table(PI, np.exp(PI))
    np.testing.assert_allclose(logit_gradient(force(f"kl_{kl}", logp, group), PI), wanted, atol=1e-12)
    added = with_kl("reinforce", kl=kl, place="loss")
    both = force(added, logp, group, kl_coef=0.7) - force("reinforce", logp, group)
    np.testing.assert_allclose(logit_gradient(both, PI), 0.7 * np.asarray(wanted), atol=1e-12)


def test_the_penalties_k1_and_k3_have_the_reverse_kl_as_their_mean() -> None:
    group = table(PI, np.exp(PI))
    for name in ("kl_k1", "kl_k3"):
        np.testing.assert_allclose(OURS[name](jnp.asarray(PI[:, None]), group), reverse(jnp.asarray(PI)), rtol=1e-12)


LINKS: dict[str, tuple[Callable[[Any], Any], dict[str, float]]] = {
    "dpo": (lambda h: h, {}),
    "dpo_mean": (lambda h: h, {}),
    "fdpo_forward": (lambda h: -np.exp(-h), {}),
    "fdpo_js": (lambda h: np.log(2 * np.exp(h) / (np.exp(h) + 1)), {}),
    "fdpo_alpha": (lambda h: (np.exp(h) ** -0.7 - 1) / -0.7, {"alpha": 0.3}),
    "chi2_po": (lambda h: np.exp(h) + h, {"reward_range": 10.0}),
}


@pytest.mark.parametrize("name", sorted(LINKS))
def test_with_bradley_terry_labels_the_population_loss_is_flat_where_the_implicit_reward_is_the_reward(
    name: str,
) -> None:
    link, hyper = LINKS[name]
    gain = PI - REF
    group = table(PI, np.exp(OLD), reward=BETA * link(gain) + 3.0, temperature=1.0)
    pull = force(name, jnp.asarray(PI[:, None]), group, beta=BETA, **hyper)
    np.testing.assert_allclose(pull, 0, atol=1e-13)
    moved = force(name, jnp.asarray(REF[:, None]), group, beta=BETA, **hyper)
    assert np.abs(moved).max() > 1e-4


def test_dpo_stands_still_at_the_regularised_optimum() -> None:
    group = table(OPTIMUM, np.exp(OLD), temperature=1.0)
    np.testing.assert_allclose(force("dpo", jnp.asarray(OPTIMUM[:, None]), group, beta=BETA), 0, atol=1e-13)


def test_ipo_stands_still_where_the_gain_is_the_win_rate_over_tau() -> None:
    weight = np.exp(OLD)
    wins = 1 / (1 + np.exp(REWARD[None, :] - REWARD[:, None]))
    best = log_softmax(REF + wins @ weight / BETA)
    group = table(best, weight, temperature=1.0)
    np.testing.assert_allclose(force("ipo", jnp.asarray(best[:, None]), group, beta=BETA), 0, atol=1e-12)


@pytest.mark.parametrize("name", ["cdpo", "exo"])
def test_a_smoothed_label_stops_at_the_lead_whose_win_rate_it_believes(name: str) -> None:
    lead = np.log(0.8 / 0.2) / BETA
    group = Group.of(reward=[1.0, 0.0], ref_logp=[-3.0, -1.0])
    at = lambda x: force(name, jnp.array([[-3.0 + x], [-1.0]]), group, beta=BETA, label_smoothing=0.2)[:, 0]
    np.testing.assert_allclose(at(lead), 0, atol=1e-12)
    assert at(lead - 0.1)[0] > 1e-4
    assert at(lead + 0.1)[0] < -1e-4


# --- weighted likelihood ---------------------------------------------------------------------------------------------
def test_the_gradient_of_rwr_is_the_total_weight_times_policy_minus_target() -> None:
    weight = np.exp(OLD) * np.exp(REWARD / 0.5)
    target = weight / weight.sum()
    logp, group = jnp.asarray(PI[:, None]), table(PI, np.exp(OLD))
    wanted = weight.sum() * (np.exp(PI) - target)
    np.testing.assert_allclose(logit_gradient(force("rwr", logp, group), PI), wanted, atol=1e-12)
    normalised = force("rwr_normalized", logp, group)
    cross = jax.grad(lambda x: -(target * jax.nn.log_softmax(x)).sum())(jnp.asarray(PI))
    np.testing.assert_allclose(logit_gradient(normalised, PI), cross, atol=1e-12)


@pytest.mark.parametrize("name", ["best_of_n", "best_of_n_worst"])
def test_the_best_and_the_worst_of_n_are_those_of_all_k_to_the_n_draws_ties_included(name: str) -> None:
    best, worst = np.zeros(K), np.zeros(K)
    for draws in itertools.product(range(K), repeat=N):
        probability, scores = np.exp(OLD)[list(draws)].prod(), REWARD[list(draws)]
        top, low = scores == scores.max(), scores == scores.min()
        np.add.at(best, list(draws), probability * top / top.sum())
        np.add.at(worst, list(draws), probability * low / low.sum())
    wanted = best if name == "best_of_n" else best - 0.1 * worst
    pull = np.asarray(force(name, jnp.asarray(PI[:, None]), table(PI, np.exp(OLD))))[:, 0]
    np.testing.assert_allclose(pull, wanted, rtol=1e-12)


# --- games -----------------------------------------------------------------------------------------------------------
def test_xpo_is_dpo_between_policy_and_reference_plus_the_references_mean_log_probability() -> None:
    temperature, old, ref = 0.5, np.exp(OLD), np.exp(REF)
    wins = 1 / (1 + np.exp((REWARD[None, :] - REWARD[:, None]) / temperature))

    def wanted(logp: Any) -> Any:
        gain = logp - REF
        loss = -jax.nn.log_sigmoid(0.1 * (gain[:, None] - gain[None, :]))
        # i ~ pi_old, j ~ pi_ref: i wins with probability wins[i, j], else j.
        pairs = old[:, None] * ref[None, :] * (wins * loss + wins.T * loss.T)
        return pairs.sum() + 0.01 * (ref * logp).sum()

    group = table(PI, old, temperature=temperature)
    logp = jnp.asarray(PI)
    np.testing.assert_allclose(OURS["xpo"](logp[:, None], group), wanted(logp), rtol=1e-12)
    np.testing.assert_allclose(force("xpo", logp[:, None], group)[:, 0], -jax.grad(wanted)(logp), atol=1e-14)


def test_nash_md_pulls_by_the_win_rate_against_the_geometric_mixture() -> None:
    pi = np.exp(PI)
    wins = (REWARD[:, None] > REWARD[None, :]) + 0.5 * (REWARD[:, None] == REWARD[None, :])
    mixture = np.exp(log_softmax(0.7 * PI + 0.3 * REF))
    pull = force("nash_md", jnp.asarray(PI[:, None]), table(PI, pi), beta=BETA, mixture=0.3)[:, 0]
    np.testing.assert_allclose(pull, pi * (wins @ mixture - 0.5 - BETA * (PI - REF)), rtol=1e-12)


# --- divergences -----------------------------------------------------------------------------------------------------
def target(name: str) -> np.ndarray:
    if not name.startswith("bond"):
        return log_softmax(REF + REWARD / 0.1)
    best = np.zeros(K)
    for draws in itertools.product(range(K), repeat=N):
        top = REWARD[list(draws)] == REWARD[list(draws)].max()
        np.add.at(best, list(draws), np.exp(REF)[list(draws)].prod() * top / top.sum())
    return np.log(best)


def kl(p: Any, q: Any) -> Any:
    return (jnp.exp(p) * (p - q)).sum()


DIVERGENCES: dict[str, Callable[[Any, Any], Any]] = {
    "forward_kl": lambda p, q: kl(q, p),
    "reverse_kl": kl,
    "jensen_shannon": lambda p, q: (
        kl(p, jnp.log((jnp.exp(p) + jnp.exp(q)) / 2)) / 2 + kl(q, jnp.log((jnp.exp(p) + jnp.exp(q)) / 2)) / 2
    ),
    "alpha_divergence": lambda p, q: (1 - (jnp.exp(p) ** 0.5 * jnp.exp(q) ** 0.5).sum()) / 0.25,
    "bond_forward": lambda p, q: kl(q, p),
    "bond_backward": kl,
    "bond_jeffreys": lambda p, q: (kl(p, q) + kl(q, p)) / 2,
}


@pytest.mark.parametrize("name", TABLES)
def test_a_divergence_and_its_gradient_in_the_logits_are_those_of_the_formula_and_vanish_at_the_target(
    name: str,
) -> None:
    q = target(name)
    formula = lambda x: DIVERGENCES[name](jax.nn.log_softmax(x), q)
    group = table(PI, np.exp(OLD))
    np.testing.assert_allclose(OURS[name](jnp.asarray(PI[:, None]), group), formula(jnp.asarray(PI)), rtol=1e-10)
    pull = force(name, jnp.asarray(PI[:, None]), group)
    np.testing.assert_allclose(logit_gradient(pull, PI), jax.grad(formula)(jnp.asarray(PI)), atol=1e-11)
    np.testing.assert_allclose(OURS[name](jnp.asarray(q[:, None]), group), 0, atol=1e-12)
    np.testing.assert_allclose(logit_gradient(force(name, jnp.asarray(q[:, None]), group), q), 0, atol=1e-11)


def test_the_alpha_divergence_runs_from_the_forward_to_the_reverse_kl() -> None:
    group, logp = table(PI, np.exp(OLD)), jnp.asarray(PI[:, None])
    at = lambda alpha: logit_gradient(force("alpha_divergence", logp, group, alpha=alpha), PI)
    for name, alphas in (("reverse_kl", (1.0, 1 - 1e-5, 1 + 1e-5)), ("forward_kl", (1e-6,))):
        wanted = logit_gradient(force(name, logp, group), PI)
        for alpha in alphas:
            np.testing.assert_allclose(at(alpha), wanted, rtol=1e-3, atol=1e-4)


def test_jeffreys_divergence_runs_from_the_forward_to_the_backward_kl() -> None:
    group, logp = table(PI, np.exp(OLD)), jnp.asarray(PI[:, None])
    at = lambda name, **hyper: float(OURS[name](logp, group, **hyper))
    forward, backward = at("bond_forward"), at("bond_backward")
    assert abs(forward - backward) > 0.01
    for weight in (0.0, 0.3, 1.0):
        wanted = (1 - weight) * forward + weight * backward
        np.testing.assert_allclose(at("bond_jeffreys", jeffreys_weight=weight), wanted, rtol=1e-12)


@pytest.mark.parametrize("name", TABLES)
def test_a_divergence_refuses_a_sample_and_says_what_to_do(name: str) -> None:
    with pytest.raises(ConfigError, match="ExactGroup"):
        force(name, jnp.asarray(PI[:, None]), Group.of(reward=REWARD, ref_logp=REF))


# --- far below what a probability can be in float32 ------------------------------------------------------------------
TINY = log_softmax([0.0, -69.0, -1.0, -80.0])
TINY_REF = log_softmax([-75.0, -2.0, 0.0, -69.0])
HARD = sorted({*TABLES, "dpo", "ipo", "kto", "nca", "sppo", "simpo", "orpo", "slic", "rloo"})


@functools.cache
def tiny_forces(dtype: Any) -> dict[str, np.ndarray]:
    """Of all of them, from one program."""

    @jax.jit
    def every(reward: Any, ref_logp: Any, logp: Any) -> dict[str, Any]:
        of = lambda name: (ExactGroup if name in TABLES else Group).of(reward=reward, ref_logp=ref_logp)
        return {name: force(name, logp[:, None], of(name))[:, 0] for name in HARD}

    with jax.enable_x64(dtype == np.float64):
        return jax.tree.map(np.asarray, every(*(x.astype(dtype) for x in (REWARD, TINY_REF, TINY))))


@pytest.mark.parametrize("name", HARD)
def test_probabilities_of_1e_minus_30_give_the_float64_force_in_float32(name: str) -> None:
    wanted = tiny_forces(np.float64)[name]
    assert wanted.dtype == np.float64
    assert np.abs(wanted).max() > 0
    np.testing.assert_allclose(tiny_forces(np.float32)[name], wanted, rtol=2e-4, atol=1e-37)
