"""The theory's formulas against autodiff, enumeration and integration; and that a wrong formula turns its row red."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import integrate, optimize

from bandit_pft import claims
from bandit_pft.experiments import theory
from bandit_pft.experiments.theory import FORWARD, FOUR, NAMES, PRINTED, REVERSE
from bandit_pft.objectives import OBJECTIVES

VERDICTS = {
    "C23": "reproduces",
    "C23a": "reproduces",
    "C23b": "reproduces",
    "C23c": "reproduces",
    "C23d": "depends on",
    "C24": "depends on",
    "C25": "reproduces",
    "C25b": "depends on",
    "C25a": "does not reproduce",
    "C25c": "reproduces",
}


@functools.cache
def measured(name):
    return claims.EXPERIMENTS[name].run(False)


def row(key):
    claim = claims.CLAIMS[key]
    return claims.judge(claim, measured(claim.experiment.name).measures)


def again(key):
    claim = claims.CLAIMS[key]
    return claims.judge(claim, claim.experiment.run(False).measures)


def random_pairs(count=50, size=5, seed=0):
    rng = np.random.default_rng(seed)
    return theory.flat(rng, count, size), theory.flat(rng, count, size)


def kl(log_p, log_q):
    return (jnp.exp(log_p) * (log_p - log_q)).sum()


LOSSES = {FORWARD: lambda x, log_q: kl(log_q, x), REVERSE: kl}


# --- verdicts --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("key", "verdict"), VERDICTS.items())
def test_a_statement_of_the_theory_gets_the_verdict_that_algebra_gives_it(key, verdict):
    found = row(key)
    assert found.verdict == verdict
    assert all(j.holds for j in found.judged if j.criterion.control)


def test_every_claim_of_the_theory_has_a_verdict_here():
    own = {key for key, claim in claims.CLAIMS.items() if claim.experiment.run.__module__ == theory.__name__}
    assert own == set(VERDICTS)


def test_the_theorem_holds_under_its_sharp_conditions_and_in_part_two_only():
    assert row("C24").holds_where == (
        "(1) if and only if p > log-mean(q1, q2)", "(2) as stated", "(3) with q < p2 exp(-KL(p, q))",
    )  # fmt: skip


def test_all_measures_and_tables_are_finite_and_every_figure_draws_one():
    for name, made in claims.EXPERIMENTS.items():
        if made.run.__module__ != theory.__name__:
            continue
        outcome = measured(name)
        assert all(np.isfinite(values).all() for values in outcome.measures.values())
        for shown, table in outcome.tables.items():
            assert not table.isna().any(axis=None)
            assert isinstance(claims.FIGURES[shown].draw(table), Figure)


# --- steps -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("which", NAMES)
def test_a_step_of_either_kl_is_the_gradient_of_the_kl(which):
    log_p, log_q = random_pairs()
    with jax.enable_x64(True):
        loss = lambda logits, log_q: LOSSES[which](jax.nn.log_softmax(logits), log_q)
        gradient = jax.vmap(jax.grad(loss))(jnp.asarray(log_p), jnp.asarray(log_q))
    np.testing.assert_allclose(theory.toward(which, log_p, log_q), -np.asarray(gradient), atol=1e-14)


@pytest.mark.parametrize(("which", "formula"), [(FORWARD, theory.forward_step), (REVERSE, theory.reverse_step)])
def test_the_formulas_say_what_a_finite_step_on_the_gradient_does_to_every_bin(which, formula):
    log_p, log_q = random_pairs(seed=1)
    rate = 3.0
    with jax.enable_x64(True):
        loss = lambda logits, log_q: LOSSES[which](jax.nn.log_softmax(logits), log_q)
        moved = log_p - rate * jax.vmap(jax.grad(loss))(jnp.asarray(log_p), jnp.asarray(log_q))
        change = np.asarray(jax.nn.log_softmax(moved)) - log_p
    rest = change - rate * formula(log_p, log_q)
    np.testing.assert_allclose(rest, rest[:, :1].repeat(5, 1), atol=1e-12)


def test_the_first_order_change_is_the_derivative_of_log_softmax():
    log_p, direction = random_pairs(seed=2)
    with jax.enable_x64(True):
        slope = jax.jvp(jax.nn.log_softmax, (jnp.asarray(log_p),), (jnp.asarray(direction),))[1]
    np.testing.assert_allclose(theory.spread_of(log_p, direction), slope, atol=1e-14)


@pytest.mark.parametrize("which", NAMES)
def test_descent_repeats_the_step(which):
    log_p, log_q = random_pairs(3)
    path, logits = theory.descent(which, log_p, log_q, 20, 0.5), log_p
    for now in path:
        np.testing.assert_allclose(now, np.exp(theory.normalised(logits)), atol=1e-12)
        logits = logits + 0.5 * theory.toward(which, theory.normalised(logits), log_q)


# --- pairs -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shared", [False, True])
def test_the_effect_of_forces_is_that_of_a_gradient_step_in_the_parameters(shared):
    rng = np.random.default_rng(3)
    log_p, forces = theory.flat(rng, 3, 6), rng.standard_normal((3, 2))
    features = rng.standard_normal((3, 6, 3)) if shared else None
    with jax.enable_x64(True):
        for i in range(3):
            basis = np.eye(6) if features is None else features[i]
            policy = lambda theta, i=i, basis=basis: jax.nn.log_softmax(log_p[i] + basis @ theta)
            start = jnp.zeros(basis.shape[1])
            step = jax.grad(lambda theta, i=i, policy=policy: forces[i] @ policy(theta)[:2])(start)
            change = jax.jvp(policy, (start,), (step,))[1]
            mine = theory.effect(log_p[i : i + 1], forces[i : i + 1], features if features is None else features[[i]])
            np.testing.assert_allclose(mine[0], change, atol=1e-12)


def test_the_inner_product_is_that_of_the_gradients():
    log_p, _ = random_pairs(20)
    with jax.enable_x64(True):
        slope = np.asarray(jax.vmap(jax.jacobian(jax.nn.log_softmax))(jnp.asarray(log_p)))
    np.testing.assert_allclose(theory.product(log_p), (slope[:, 0] * slope[:, 1]).sum(-1), atol=1e-14)


def test_a_negative_term_costs_the_winner_where_a_third_action_dominates():
    log_p = np.log([[0.05, 0.05, 0.9], [0.45, 0.45, 0.1]])
    push = theory.effect(log_p, np.array([[0.0, -1.0]] * 2))
    assert push[0, 0] < 0 < push[1, 0]
    assert (push[:, 1] < push[:, 0]).all() and (push[:, 1] < 0).all()


def test_a_dpo_step_lowers_the_chosen_with_shared_features_only():
    # The loser's feature is the smaller one, the third action's the largest: raising the slope feeds the third.
    log_p, features = np.log([[0.1, 0.1, 0.8]]), np.array([[[1.0], [0.0], [3.0]]])
    forces = theory.pair_forces("dpo", log_p[:, :2])
    assert theory.effect(log_p, forces)[0, 0] > 0 > theory.effect(log_p, forces, features)[0, 0]


# --- weighted likelihood ---------------------------------------------------------------------------------------------
def test_the_best_of_n_is_what_enumerating_all_draws_gives():
    rng = np.random.default_rng(4)
    log_p, reward = theory.flat(rng, 3, 4), rng.standard_normal((3, 4))
    for p, r, found in zip(np.exp(log_p), reward, theory.best_of(log_p, reward, 5), strict=True):
        counted = np.zeros(4)
        for drawn in itertools.product(range(4), repeat=5):
            counted[max(drawn, key=lambda a, r=r: r[a])] += p[list(drawn)].prod()
        np.testing.assert_allclose(found, counted, atol=1e-14)


@pytest.mark.parametrize(("objective", "hyper"), [("rwr", {"beta": np.array([0.7])}), ("best_of_n", {})])
def test_no_policy_has_a_smaller_weighted_likelihood_loss_than_the_fitted_one(objective, hyper):
    rng = np.random.default_rng(5)
    log_p, reward = theory.flat(rng, 1, 4), rng.standard_normal((1, 4))
    draws = np.array([3.0])
    fitted = theory.fitted(objective, log_p, hyper, reward=reward, draws=draws)
    known = {"reward": reward, "ref_logp": log_p, "weight": np.exp(log_p), "draws": draws}
    root = optimize.root(lambda logits: theory.step(objective, logits[None], hyper, **known)[0], np.zeros(4), tol=1e-12)
    np.testing.assert_allclose(np.exp(theory.normalised(root.x)), fitted[0], atol=1e-8)


# --- the theorem -----------------------------------------------------------------------------------------------------
def test_between_equal_bins_the_reverse_kl_leads_by_p_log_q_ratio_less_the_difference_of_q():
    log_p, log_q = random_pairs(seed=6)
    log_p = np.log(theory._tied(np.exp(log_p)))
    p, q = np.exp(log_p), np.exp(log_q)
    told = p[:, 0] * np.log(q[:, 0] / q[:, 1]) - (q[:, 0] - q[:, 1])
    np.testing.assert_allclose(theory.gap(log_p, log_q), told, atol=1e-13)


@pytest.mark.parametrize(("part", "sign", "stated"), [("(1)", 1, theory._stated_1), ("(3)", -1, theory._stated_3)])
def test_the_counter_examples_meet_the_condition_as_stated_and_contradict_it(part, sign, stated):
    table = measured("theorem").tables["theorem_counter_examples"]
    here = table[table["panel"] == f"{part} counter-example"]
    p, q = (here[here["line"] == name]["y"].to_numpy()[None] for name in ("p", "target q"))
    np.testing.assert_allclose([p.sum(), q.sum()], 1)
    assert stated(p, q).all()
    change = {}
    for which, formula in ((FORWARD, theory.forward_step), (REVERSE, theory.reverse_step)):
        told = formula(np.log(p), np.log(q))[0]
        change[which] = told[0] - told[1]
    assert sign * (change[REVERSE] - change[FORWARD]) < -0.1


def test_random_pairs_meet_the_condition_that_they_were_drawn_for():
    for keep in (theory._stated_1, theory._stated_2, theory._stated_3, theory._tight_3):
        p, q = theory._draw(np.random.default_rng(7), keep, 200)
        assert keep(p, q).all() and len(p) == 200
        np.testing.assert_allclose([p.sum(-1), q.sum(-1)], 1)


# --- case studies ----------------------------------------------------------------------------------------------------
def test_an_integrator_of_the_flow_finds_the_same_nearest_bars():
    start, target = FOUR
    for which, formula in ((FORWARD, theory.forward_step), (REVERSE, theory.reverse_step)):
        flow = lambda _, x, formula=formula: formula(theory.normalised(x), np.log(target))
        times = np.linspace(0, theory.TIME, 4001)
        path = integrate.solve_ivp(flow, (0, theory.TIME), np.log(start), t_eval=times, rtol=1e-10, atol=1e-12).y.T
        p = np.exp(theory.normalised(path))
        mine = measured("four_bins").measures
        for bars in NAMES:
            name = f"{NAMES[which]} against {'its printed' if bars == which else 'the other’s'} bars".replace("’", "'")
            assert np.abs(p - PRINTED[bars]).max(-1).min() == pytest.approx(mine[name], abs=1e-3)


def test_the_forward_kl_never_raises_a_bin_that_must_fall_on_the_papers_four_bins():
    assert measured("four_bins").measures["forward KL: most mass gained by bin 0"] == 0
    assert measured("four_bins").measures["reverse KL: most mass gained by bin 0"] > 0.02


def test_the_best_single_bump_is_the_best_on_a_grid_of_plain_numbers():
    q = 0.4 * theory.bump(10, 2) + 0.6 * theory.bump(30, 2)
    for which, other in ((FORWARD, (30, 2)), (REVERSE, (24.75, 14.5))):
        loss = lambda at, which=which: float(LOSSES[which](np.log(theory.bump(*at)), np.log(q)))
        best = theory.best_bump(which, q)
        assert loss(best) < min(loss(other), loss((best[0] + 0.25, best[1])), loss((best[0], best[1] + 0.5)))


# --- a wrong formula turns the row red -------------------------------------------------------------------------------
def negative(objective):
    made = OBJECTIVES[objective]
    return dataclasses.replace(made, function=lambda logp, group, **hyper: -made.function(logp, group, **hyper))


def failing(found):
    return {j.criterion.measure for j in found.judged if not j.holds}


def test_the_reverse_kl_with_the_wrong_sign_is_no_reinforcement_learning(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, REVERSE, negative(REVERSE))
    found = again("C23")
    assert found.verdict == "does not reproduce"
    assert "reverse KL: error of the gradient" in failing(found) and "identity: error" not in failing(found)


@pytest.mark.parametrize("which", NAMES)
def test_a_formula_of_a_step_with_the_wrong_sign_is_seen(monkeypatch, which):
    right = theory.FORMULAS[which]
    monkeypatch.setitem(theory.FORMULAS, which, lambda p, q: -right(p, q))
    found = again("C23c")
    assert found.verdict == "does not reproduce" and failing(found) == {f"{NAMES[which]}: error of the formula"}


def test_the_condition_of_the_winner_with_the_wrong_sign_is_seen(monkeypatch):
    right = theory.product
    monkeypatch.setattr(theory, "product", lambda log_p: -right(log_p))
    found = again("C23a")
    assert found.verdict == "does not reproduce" and "winner rises less, product <= 0" in failing(found)


def test_a_dpo_that_pushes_the_winner_is_seen_in_both_of_its_claims(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "dpo", negative("dpo"))
    assert "pairs without a pull and a push" in failing(again("C23a"))
    found = again("C23d")
    assert found.verdict == "does not reproduce" and "DPO: lead falls" in failing(found)


def test_a_best_of_n_that_takes_the_worst_is_seen(monkeypatch):
    right = theory.best_of
    monkeypatch.setattr(theory, "best_of", lambda log_p, reward, n: right(log_p, -reward, n))
    found = again("C23b")
    assert found.verdict == "does not reproduce" and "Best-of-N: error of the target" in failing(found)


def test_an_rwr_that_ignores_the_reward_is_seen(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "rwr", dataclasses.replace(OBJECTIVES["sft"], hyper=OBJECTIVES["rwr"].hyper,
                        function=lambda logp, group, **hyper: OBJECTIVES["sft"].function(logp, group)))  # fmt: skip
    assert {"RWR: error of the target", "RWR: error of the gradient"} <= failing(again("C23b"))
    assert again("C25c").verdict == "does not reproduce"


def test_the_arithmetic_mean_in_the_place_of_the_log_mean_breaks_the_equivalence(monkeypatch):
    monkeypatch.setattr(theory, "log_mean", lambda a, b: (a + b) / 2)
    assert "(1): pairs that break the equivalence" in failing(again("C24"))


def test_the_two_kls_swapped_turn_the_four_bins_round(monkeypatch):
    swapped = {FORWARD: OBJECTIVES[REVERSE], REVERSE: OBJECTIVES[FORWARD]}
    for name, made in swapped.items():
        monkeypatch.setitem(OBJECTIVES, name, made)
    found = again("C25a")
    assert {j.holds for j in found.judged if not j.criterion.control} == {True}
    assert {j.holds for j in found.judged if j.criterion.control} == {False}
