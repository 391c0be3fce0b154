"""Facts that wrong formulas were found to pass by; most of those formulas are in `mutants.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from bandit_pft import SGD, Method, bandit, context_network, factorised, prepare, sequences, simulate, tabular_shared
from bandit_pft.groups import Group
from bandit_pft.probes import SAMPLES, State, distribution_probe, standard_probe
from bandit_pft.proxy import fit_proxy


# --- what a run records ----------------------------------------------------------------------------------------------
def seen(**known):
    return State(**dict.fromkeys(("log_probs", "ref_log_probs", "rewards", "ref_params")) | known)


def test_exact_metrics_are_means_over_contexts_of_what_numpy_sums():
    draw = np.random.default_rng(1)
    logp, ref = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in draw.normal(size=(2, 3, 5)))
    reward, pi = draw.normal(size=(3, 5)), np.exp(logp)
    half_way = (reward.max(-1, keepdims=True) + reward.min(-1, keepdims=True)) / 2
    as_jax = lambda x: jnp.asarray(x, jnp.float32)
    state = seen(log_probs=as_jax(logp), ref_log_probs=as_jax(ref), rewards=as_jax(reward))
    found = distribution_probe(bandit(reward), state)
    wanted = {
        "expected_reward": (pi * reward).sum(-1).mean(),
        "kl": (pi * (logp - ref)).sum(-1).mean(),
        "kl_reverse": (np.exp(ref) * (ref - logp)).sum(-1).mean(),
        "entropy": -(pi * logp).sum(-1).mean(),
        "mass_near_peak": (pi * (reward >= half_way)).sum(-1).mean(),
        "log_prob": np.log(pi.mean(0)),
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_sampled_metrics_are_the_exact_ones_within_5_standard_errors():
    draw = np.random.default_rng(2)
    copies = 400
    same = lambda *shape: np.tile(draw.normal(size=shape), (copies, *(1 for _ in shape)))
    problem = sequences(same(2, 4) + 1, same(2, 4), bonus=same())
    params = jnp.asarray(same(2, 4), jnp.float32)
    logp, ref, reward = (
        np.asarray(x, np.float64)
        for x in (factorised.table(params, problem, 0), problem.ref_table(0), problem.reward_table(0))
    )
    state = seen(params=params, policy=factorised, key=jax.random.key(0))
    found = jax.jit(lambda key: standard_probe(problem, state.replace(key=key)))(state.key)
    half_way = (reward.max() + reward.min()) / 2
    draws = {
        "expected_reward": (logp, reward),
        "kl": (logp, logp - ref),
        "kl_reverse": (ref, ref - logp),
        "entropy": (logp, -logp),
        "mass_near_peak": (logp, reward >= half_way),
    }
    assert found.keys() == draws.keys()
    for name, (source, value) in draws.items():
        mean = (np.exp(source) * value).sum()
        error = np.sqrt((np.exp(source) * (value - mean) ** 2).sum() / (copies * SAMPLES))
        assert abs(float(found[name]) - mean) < 5 * error, name
        assert abs(mean) > 15 * error, name  # so that a sign or a factor of 2 would show


def test_a_probe_sees_forces_that_point_up_where_a_response_is_pulled():
    method = Method("sft", num_responses=4, learning_rate=0.0)
    force = simulate(bandit([0.0, 1.0]), method, 0, steps=0, probe=lambda problem, state: {"force": state.force}).record
    np.testing.assert_allclose(force["force"], 1 / 4, rtol=1e-6)


# --- the loop --------------------------------------------------------------------------------------------------------
def watch(problem, state):
    groups = state.groups
    return {
        "response": groups.response,
        "reward": groups.reward,
        "score": groups.score,
        "old_logp": groups.old_logp,
        "baseline": groups.baseline,
        "threshold": groups.threshold,
    }


def watched(problem, method, steps):
    return {name: np.asarray(x) for name, x in simulate(problem, method, 0, steps=steps, probe=watch).record.items()}


def test_the_running_baseline_keeps_its_share_and_corrects_for_its_start():
    method = Method("reinforce_running", memory=0.8, learning_rate=0.0, num_responses=4)
    record = watched(bandit([0.0, 1.0, 5.0]), method, 6)
    kept, count = 0.0, 0.0
    for reward, baseline in zip(record["reward"], record["baseline"], strict=True):
        kept, count = 0.8 * kept + 0.2 * reward.mean(), 0.8 * count + 0.2
        np.testing.assert_allclose(baseline, kept / count, rtol=1e-5)


def test_minibatches_are_the_parts_of_a_collection():
    contexts = 6
    reward = 10 * np.arange(contexts)[:, None] + np.arange(3)  # The tens tell the context, the ones the action.
    record = watched(bandit(reward), Method("sft", prompts=4, minibatch=2, reuse=2, learning_rate=0.0), 7)["reward"]
    first, again, second = record[:2], record[2:4], record[4:6]
    np.testing.assert_array_equal(first, again)
    for passed in (first, second):
        assert np.unique(passed // 10).size == 4
    assert np.unique(record // 10).size == contexts


def test_two_contexts_that_are_one_twice_teach_a_shared_table_what_one_does():
    method = Method("reinforce", data="exact", policy=tabular_shared, learning_rate=1.0, optimizer=SGD)
    reward = np.array([[0.0, 0.5, 1.0]])
    one, two = (simulate(bandit(np.tile(reward, (n, 1))), method, 0, steps=1).params for n in (1, 2))
    assert np.abs(one).max() > 0.05
    np.testing.assert_allclose(two, one, atol=1e-7)


def test_the_threshold_of_exact_data_is_the_expected_score():
    problem = bandit([0.0, 1.0, 5.0], probs=[0.7, 0.2, 0.1])
    record = watched(problem, Method("kto", data="exact"), 0)
    np.testing.assert_allclose(record["threshold"], 0.7, rtol=1e-6)


@pytest.mark.parametrize("settings", [{"num_responses": 6}, {"data": "exact"}])
def test_a_run_on_equal_rewards_finds_no_response_desirable(settings):
    def desirable(problem, state):
        good = state.groups.score > state.groups.threshold[..., None]
        return {"good": jnp.where(state.groups.mask.any(-1), good, False)}

    rng = np.random.default_rng(0)
    problem = bandit(np.repeat(rng.uniform(size=(200, 1)), 9, 1), rng.normal(size=(200, 9)))
    assert not simulate(problem, Method("kto", **settings), 0, steps=3, probe=desirable).record["good"].any()


def test_mixed_sequences_come_from_either_source_and_know_its_probability():
    token = lambda *probs: np.tile(np.log(probs), (1, 2, 1))
    problem = sequences(np.zeros((1, 2, 2)), token(0.9, 0.1), data=token(0.2, 0.8))
    n, fraction = 2000, 0.25
    method = Method("sft", policy=factorised, on_policy=fraction, num_responses=n, learning_rate=0.0)
    record = watched(problem, method, 0)
    response, old = record["response"].reshape(n, 2), record["old_logp"].reshape(n, 2)
    ours, theirs = np.log([0.9, 0.1])[response], np.log([0.2, 0.8])[response]
    own = np.isclose(old, ours, atol=1e-5).all(-1)
    assert (own | np.isclose(old, theirs, atol=1e-5).all(-1)).all()
    within = lambda seen, wanted: abs(seen.mean() - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / seen.size)
    assert within(own, fraction)
    assert within(response[own], 0.1)
    assert within(response[~own], 0.8)


def test_label_noise_does_not_depend_on_the_action_that_was_drawn():
    method = Method("dpo", label_noise=1.0, num_responses=2000, learning_rate=0.0)
    record = watched(bandit(np.zeros(50)), method, 0)
    action, noise = record["response"].ravel(), record["score"].ravel()
    assert abs(np.corrcoef(action, noise)[0, 1]) < 5 / np.sqrt(action.size)


# --- reward models ---------------------------------------------------------------------------------------------------
def fitted(scores, steps=500):
    """The rewards of tokens 0 and 1 after pairs with these scores."""
    make = jax.vmap(lambda score: Group.of(reward=score, score=score, ref_logp=jnp.zeros(2)))
    table = fit_proxy("table", prepare(make(jnp.asarray(scores, jnp.float32))), 2, jax.random.key(0), steps)
    return np.asarray(table, np.float64)


def test_a_reward_model_turns_wins_into_log_odds():
    first, second = fitted([[1, 0], [1, 0], [0, 1], [1, 0]])
    assert first - second == pytest.approx(np.log(3), abs=5e-3)


def test_a_reward_model_of_labels_that_never_differ_stays_finite_by_its_penalty():
    # Where the penalty's slope is the loss's: 2e-4 r = 2 / (1 + exp(2 r)), at rewards r and -r.
    wanted = optimize.brentq(lambda r: 1e-4 * r - 1 / (1 + np.exp(2 * r)), 0, 20)
    np.testing.assert_allclose(fitted([[1, 0]], 5000), [wanted, -wanted], rtol=1e-3)


# --- a network's first fit -------------------------------------------------------------------------------------------
def test_a_network_that_cannot_tell_contexts_apart_starts_at_the_geometric_mean_of_their_references():
    probs = np.array([[0.9, 0.05, 0.05], [0.2, 0.1, 0.7]])
    problem = bandit(np.zeros((2, 3)), np.log(probs), features=np.ones((2, 1)))
    policy = context_network((8,), 300, 0.02)
    params = jax.jit(policy.init)(jax.random.key(0), problem)
    # KL(pi, ref) is least there; KL(ref, pi) is least at the arithmetic mean.
    wanted = np.sqrt(probs.prod(0)) / np.sqrt(probs.prod(0)).sum()
    np.testing.assert_allclose(np.exp(policy.table(params, problem, 0)), wanted, atol=5e-3)
