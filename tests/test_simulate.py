"""The loop does what Algorithm 1 says; its exact dynamics are those of a plain NumPy loop."""

import json
import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refusals import check_refusal
from scipy import special

from bandit_pft import (
    ADAM,
    SGD,
    Method,
    bandit,
    context_network,
    contextual_bandit,
    factorised,
    kernels,
    objective,
    paper_bandit,
    paper_sequences,
    peaks,
    sequences,
    simulate,
    standard_probe,
    sweep,
    tabular_shared,
    transformer,
)
from bandit_pft.engine import few as few_steps
from bandit_pft.engine import loop, tables
from bandit_pft.engine import state as planning
from bandit_pft.engine.steps import Run
from bandit_pft.errors import ConfigError, DomainError, NumericsError, ResourceError, ShapeError
from bandit_pft.groups import best_of_n_weights
from bandit_pft.objectives import OBJECTIVES
from bandit_pft.problems import log_softmax
from bandit_pft.simulate import seed_key

R4, R5 = paper_bandit("R4"), paper_bandit("R5")


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def numpy_loop(gradient, steps: int, rate: float, problem=R4) -> np.ndarray:
    """Expected reward of plain gradient descent on logits, in float64."""
    logits = np.asarray(problem.ref_table(0), np.float64)
    ref, reward, seen = softmax(logits), np.asarray(problem.reward_table(0), np.float64), []
    for _ in range(steps + 1):
        pi = softmax(logits)
        seen.append(pi @ reward)
        logits = logits - rate * gradient(pi, ref, reward)
    return np.asarray(seen)


# d loss / d logits, written out by hand.
GRADIENTS = {
    "reinforce": (lambda pi, ref, r: -pi * (r - pi @ r), {}),
    "rloo": (lambda pi, ref, r: -pi * (r - pi @ r), {}),
    "reverse_kl": (
        lambda pi, ref, r: pi * ((g := np.log(pi / softmax(np.log(ref) + r / 0.1))) - pi @ g),
        {"hyper": {"beta": 0.1}},
    ),
    "forward_kl": (lambda pi, ref, r: pi - softmax(np.log(ref) + r / 0.1), {"hyper": {"beta": 0.1}}),
    "rwr": (
        lambda pi, ref, r: (w := ref * np.exp(r / 0.5)).sum() * pi - w,
        {"hyper": {"beta": 0.5}, "on_policy": 0.0},
    ),
    "best_of_n": (
        lambda pi, ref, r: pi - np.asarray(best_of_n_weights(jnp.asarray(ref), jnp.asarray(r), 10)),
        {"on_policy": 0.0},
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_exact_dynamics_are_those_of_a_float64_loop_in_numpy(name):
    gradient, options = GRADIENTS[name]
    rate = 0.02 if name == "reverse_kl" else 1.0
    result = simulate(R4, Method(name, data="exact", learning_rate=rate, **options, optimizer=SGD), 0, steps=60)
    np.testing.assert_allclose(result.record["expected_reward"], numpy_loop(gradient, 60, rate), atol=2e-5)


def test_exact_dpo_moves_only_by_pairs():
    beta, rate = 0.5, 5.0

    def gradient(pi, ref, r):
        gain = np.log(pi / ref)
        pairs = np.outer(ref, ref) * (r[:, None] > r[None, :])
        force = beta / (1 + np.exp(beta * (gain[:, None] - gain[None, :]))) * pairs / pairs.sum()
        return -(force.sum(1) - force.sum(0))

    method = Method("dpo", hyper={"beta": beta}, data="exact", on_policy=0.0, learning_rate=rate, optimizer=SGD)
    result = simulate(R4, method, 0, steps=60)
    np.testing.assert_allclose(result.record["expected_reward"], numpy_loop(gradient, 60, rate), atol=2e-5)


@pytest.mark.parametrize(("problem", "oracle"), [(R4, 0.3135), (R5, 0.9401)])
def test_offline_best_of_10_ends_at_its_oracle_and_no_further(problem, oracle):
    method = Method("best_of_n", data="exact", on_policy=0.0, learning_rate=0.2, optimizer=ADAM, num_responses=10)
    final = simulate(problem, method, 0, steps=300, every=300).record["expected_reward"][-1]
    assert abs(float(final) - oracle) < 2e-3


def test_the_mean_of_sampled_first_steps_is_the_exact_first_step():
    method = lambda data: Method("reinforce", data=data, learning_rate=1.0, num_responses=4, optimizer=SGD)
    step = lambda key: simulate(R5, method("sampled"), key, steps=1).params[0]
    moves = np.asarray(jax.vmap(step)(jax.random.split(jax.random.key(0), 4000)))
    exact = np.asarray(simulate(R5, method("exact"), 0, steps=1).params[0])
    error = moves.std(0) / math.sqrt(len(moves))
    assert np.abs((moves.mean(0) - exact) / error).max() < 4.5
    assert np.linalg.norm(moves.mean(0) - exact) < 0.1 * np.linalg.norm(exact)


# --- Algorithm 1 ------------------------------------------------------------------------------------------------
def batches(problem, method: Method, steps: int, seed: int = 0) -> dict[str, np.ndarray]:
    record = simulate(problem, method, seed, steps=steps, probe=watch).record
    return {name: np.asarray(x) for name, x in record.items()}


def watch(problem, state):
    groups = state.groups
    return {
        "response": groups.response[..., 0],
        "score": groups.score,
        "reward": groups.reward,
        "baseline": groups.baseline,
        "scale": groups.scale,
    }


def test_offline_data_stay_and_on_policy_data_change_at_every_step():
    offline = batches(R4, Method("dpo", on_policy=0.0, learning_rate=1.0, optimizer=SGD), 5)["response"]
    online = batches(R4, Method("dpo", learning_rate=1.0, optimizer=SGD), 5)["response"]
    assert (offline == offline[:1]).all()
    assert (online[1:] != online[:-1]).any(axis=(1, 2)).all()


def test_reuse_keeps_a_collection_for_that_many_steps():
    response = batches(R4, Method("ppo_clip", reuse=3, learning_rate=1.0, optimizer=SGD), 8)["response"]
    assert (response[0] == response[2]).all() and (response[3] == response[5]).all()
    assert (response[0] != response[3]).any()


def test_minibatches_pass_through_all_prompts_of_a_collection_in_turn():
    problem = contextual_bandit(jax.random.key(0), contexts=6, features=3, num_actions=20)
    method = Method("reinforce", prompts=4, minibatch=2, reuse=2, learning_rate=0.0)
    record = batches(problem, method, 7)
    assert record["response"].shape[1] == 2
    assert (record["response"][0] == record["response"][2]).all() and (
        record["response"][0] != record["response"][1]
    ).any()
    assert (record["response"][0] != record["response"][4]).any()


def test_prompts_are_visited_in_a_fixed_random_order_without_leaving_one_out():
    problem = contextual_bandit(jax.random.key(0), contexts=6, features=3, num_actions=4)
    which = lambda problem, state: {"moved": (state.params != 0).any(-1)}
    method = Method("sft", on_policy=0.0, reuse=2, prompts=2, learning_rate=1.0, optimizer=SGD)
    moved = np.asarray(simulate(problem, method, 0, steps=6, probe=which).record["moved"])
    np.testing.assert_array_equal(moved.sum(-1), [0, 2, 2, 4, 4, 6, 6])


def test_a_mixture_draws_from_both_policies_in_proportion():
    far = bandit(jnp.arange(2.0), probs=[0.5, 0.5])
    # After one huge step the learner gives action 1 only; three quarters of what follows come from the reference.
    method = Method("reinforce_group", on_policy=0.25, learning_rate=1e4, num_responses=64, optimizer=SGD)
    response = batches(far, method, 200)["response"][1:]
    assert abs(response.mean() - 0.625) < 4 * math.sqrt(0.625 * 0.375 / response.size)


def test_label_noise_gives_bradley_terry_preferences():
    pair = bandit([0.0, 1.0], probs=[0.5, 0.5])
    record = batches(pair, Method("dpo", label_noise=0.5, learning_rate=0.0, num_responses=64), 300)
    action, score = record["response"].reshape(-1, 64), record["score"].reshape(-1, 64)
    first, second = score[:, ::2], score[:, 1::2]
    differ = action[:, ::2] != action[:, 1::2]
    wins = ((first > second) == (action[:, ::2] > action[:, 1::2]))[differ]
    rate = 1 / (1 + math.exp(-1 / 0.5))
    assert abs(wins.mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / wins.size)


def test_exact_label_noise_is_the_mean_over_noisy_labels():
    noisy = lambda data, n: Method(
        "dpo", label_noise=0.3, data=data, learning_rate=1.0, on_policy=0.0, num_responses=n, optimizer=SGD
    )
    exact = simulate(R5, noisy("exact", 2), 0, steps=1).params[0]
    step = lambda key: simulate(R5, noisy("sampled", 256), key, steps=1).params[0]
    moves = np.asarray(jax.vmap(step)(jax.random.split(jax.random.key(0), 200)))
    error = moves.std(0) / math.sqrt(len(moves)) + 1e-7
    assert np.abs((moves.mean(0) - np.asarray(exact)) / error).max() < 4.5


def test_importance_ratios_start_at_one_on_policy():
    record = simulate(R4, Method("grpo", learning_rate=1.0, optimizer=SGD), 0, steps=3, probe=lambda p, s: {
        "ratio": jnp.exp(s.logp - s.groups.old_logp)}).record  # fmt: skip
    assert (record["ratio"] == 1).all()


def test_running_statistics_follow_the_rewards():
    record = batches(R5, Method("ppo_clip", memory=0.0, learning_rate=0.0, num_responses=50), 10)
    np.testing.assert_allclose(record["baseline"][:, 0], record["reward"].mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(record["scale"][:, 0], record["reward"].std((1, 2)), rtol=1e-4)


@pytest.mark.parametrize("kind", ["table", "network"])
def test_a_proxy_reward_ranks_as_the_true_one_and_results_report_the_true_one(kind):
    method = Method("reinforce", proxy=kind, data="sampled", num_responses=256, learning_rate=1.0, optimizer=SGD)
    watch_proxy = lambda problem, state: {"reward": state.groups.reward, "action": state.groups.response[..., 0]}
    record = simulate(R5, method, 0, steps=1, probe=watch_proxy).record
    told, true = np.asarray(record["reward"][0, 0]), np.asarray(R5.reward_table(0))[np.asarray(record["action"][0, 0])]
    far = np.abs(true[:, None] - true[None, :]) > 0.2
    assert ((told[:, None] > told[None, :]) == (true[:, None] > true[None, :]))[far].mean() > 0.97
    # The proxy has another scale; expected_reward starts at the true 0.3772.
    assert abs(simulate(R5, method, 0, steps=1).record["expected_reward"][0] - 0.3772) < 1e-4


# --- what is recorded -------------------------------------------------------------------------------------------
def test_a_seed_is_the_key_that_jax_makes_of_it():
    for seed in (0, 7, 2**32 - 1):
        wanted = jax.random.key(np.uint32(seed), impl="threefry2x32")
        np.testing.assert_array_equal(jax.random.key_data(seed_key(seed)), jax.random.key_data(wanted))


def test_recording_every_fifth_step_gives_every_fifth_row():
    method = Method("grpo", learning_rate=1.0, optimizer=SGD)
    full, sparse = (simulate(R4, method, 3, steps=20, every=m).record["kl"] for m in (1, 5))
    np.testing.assert_allclose(full[::5], sparse, rtol=1e-5, atol=1e-6)


def test_zero_steps_give_the_reference():
    result = simulate(R4, Method("dpo"), 0, steps=0)
    assert result.record["kl"].shape == (1,) and abs(result.record["kl"][0]) < 1e-6
    assert abs(result.record["expected_reward"][0] - 0.0390) < 1e-4


def test_learning_rate_schedules_and_optimisers_of_optax_take_part():
    cold = Method(
        "reinforce",
        data="exact",
        learning_rate=1.0,
        schedule=optax.piecewise_constant_schedule(1, {3: 0.0}),
        optimizer=SGD,
    )
    reward = simulate(R4, cold, 0, steps=6).record["expected_reward"]
    assert reward[2] > reward[0] and reward[4] == reward[6]
    adam = Method("forward_kl", data="exact", learning_rate=0.1, optimizer=ADAM)
    reference, state, rate = jnp.zeros(100), optax.adam(0.1).init(jnp.zeros(100)), optax.adam(0.1)
    target, ref = R4.optimum(adam.objective.hyper["beta"])[0], R4.ref_table(0)
    for _ in range(20):
        slope = jax.nn.softmax(ref + reference) - jnp.exp(target)
        update, state = rate.update(slope, state)
        reference = reference + update
    np.testing.assert_allclose(simulate(R4, adam, 0, steps=20).params[0], reference, atol=2e-3)


@pytest.mark.parametrize("name", ["best_of_n", "grpo", "dpo", "ipo", "kto"])
def test_an_objective_with_nothing_else_said_reaches_the_near_peak(name):
    """Optimiser and rate are then those of the headline; plain gradient descent would hardly move dpo and kto."""
    record = simulate(R5, Method(name), 0, steps=200, every=200).record
    assert record["expected_reward"][0] < 0.4 and record["expected_reward"][-1] > 0.9


def test_an_optimiser_of_ones_own_keeps_the_rate_it_was_built_with():
    first_step = lambda **how: float(abs(simulate(R5, Method("reinforce", **how), 0, steps=1).params).max())
    assert first_step(optimizer=optax.adam(1e-3)) == pytest.approx(1e-3, rel=1e-3)
    assert first_step(optimizer=optax.adam(1e-3), learning_rate=10.0) == pytest.approx(1e-2, rel=1e-3)
    assert first_step(optimizer=ADAM) == first_step() == pytest.approx(0.2, rel=1e-3)


def test_one_compilation_serves_all_numbers_of_a_method():
    ipo, traced = OBJECTIVES["ipo"], []

    def counted(logp, group, *, beta):
        traced.append(beta)
        return ipo.function(logp, group, beta=beta)

    made, counts = replace(ipo, function=counted), []
    for rate, beta, reuse, fraction, noise in [(0.1, 0.1, 2, 0.9, 0.0), (1.0, 0.5, 4, 0.1, 0.2), (2.0, 1, 9, 0.4, 1.0)]:
        simulate(R5, Method(made, hyper={"beta": beta}, learning_rate=rate, reuse=reuse, on_policy=fraction,
                            label_noise=noise, min_gap=noise, num_responses=3, optimizer=SGD), 0, steps=7)  # fmt: skip
        counts.append(len(traced))
    assert counts[0] > 0 and counts[1:] == counts[:1] * 2


def test_a_run_may_be_vmapped_over_keys_and_differentiated_by_nobody():
    run = lambda key: simulate(R4, Method("grpo", learning_rate=1.0, optimizer=SGD), key, steps=5).record[
        "expected_reward"
    ][-1]
    keys = jax.random.split(jax.random.key(0), 3)
    np.testing.assert_allclose(jax.vmap(run)(keys), [run(key) for key in keys], rtol=1e-5)


# --- other policies and longer responses -------------------------------------------------------------------------
def test_all_policies_learn_the_near_peak():
    shared = paper_bandit("R5", contexts=4, key=jax.random.key(0))
    cases = [
        (shared, Method("reinforce_group", policy=context_network(), optimizer=ADAM, learning_rate=3e-3)),
        (paper_sequences("R7", length=3), Method("reinforce_group", policy=factorised, optimizer=ADAM,
                                                 learning_rate=0.1)),
        (sequences(jnp.tile(jnp.asarray([0.0, 0.5, 1.0]) / 3, (1, 3, 1))), Method(
            "reinforce_group", policy=transformer(pretrain_steps=5), optimizer=ADAM, learning_rate=3e-3)),
    ]  # fmt: skip
    for problem, method in cases:
        reward = simulate(problem, method, 0, steps=60, every=60).record["expected_reward"]
        assert reward[-1] > reward[0] + 0.2 * (1 - reward[0]), (method.policy.name, reward)


def test_a_sequence_problem_gives_the_same_exact_dynamics_as_the_bandit_of_its_responses():
    """Two tokens of three values, learnt as a table: the nine responses are nine actions."""
    chain = sequences(jnp.tile(jnp.asarray([0.0, 0.3, 1.0]), (1, 2, 1)))
    flat = bandit(chain.reward_table(0), ref=chain.ref_table(0))
    method = Method("reinforce", data="exact", learning_rate=1.0, optimizer=SGD)
    record = [simulate(p, method, 0, steps=20).record["expected_reward"] for p in (chain, flat)]
    np.testing.assert_allclose(*record, atol=1e-5)


@pytest.mark.parametrize("fraction", [1.0, 0.0, 0.5])
def test_exact_sequences_know_the_probability_of_every_token_they_came_from(fraction):
    chain = sequences(jnp.tile(jnp.asarray([0.0, 0.3, 1.0]), (1, 2, 1)), end=0)

    def look(problem, state):
        groups = state.groups
        total = jnp.where(groups.mask, groups.old_logp, 0).sum(-1)
        return {
            "weight": groups.weight,
            "total": total,
            "lead": jnp.where(groups.mask, state.logp - groups.old_logp, 0),
        }

    method = Method(
        "ppo_clip", data="exact", on_policy=fraction, reuse=1, policy=factorised, learning_rate=3.0, optimizer=SGD
    )
    record = simulate(chain, method, 0, steps=3, probe=look).record
    np.testing.assert_allclose(record["weight"].sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(jnp.exp(record["total"]), record["weight"], atol=1e-6)
    if fraction == 1:
        np.testing.assert_allclose(record["lead"], 0, atol=1e-6)


def test_metrics_of_a_policy_that_cannot_be_enumerated_are_means_over_draws():
    problem = paper_sequences("R6")
    record = simulate(problem, Method("sft", policy=factorised, learning_rate=0.0), 0, steps=3).record
    # 4 x 100 contexts x 32 draws of nine tokens; the exact values are .0528 and nine times 4.1173.
    assert abs(record["expected_reward"].mean() - 0.0528) < 4 * 0.07 / math.sqrt(4 * 3200)
    assert abs(record["entropy"].mean() - 9 * 4.1173) < 0.2
    np.testing.assert_allclose(record["kl"], 0, atol=1e-4)


# --- what can go wrong --------------------------------------------------------------------------------------------
def test_a_diverging_run_is_frozen_and_says_at_which_step():
    huge = bandit(1e30 * jnp.arange(4.0))
    with pytest.warns(UserWarning, match=r"1 of 1 runs diverged \(first: run=reinforce, step 1\); they were frozen"):
        result = simulate(huge, Method("reinforce", data="exact", learning_rate=1e10, optimizer=SGD), 0, steps=50)
    assert int(result.first_bad_step) == 1
    assert np.isnan(result.record["expected_reward"][2:]).all() and np.isfinite(result.record["expected_reward"][0])
    healthy = simulate(huge, Method("reinforce", data="exact", learning_rate=1e-31, optimizer=SGD), 0, steps=50)
    assert int(healthy.first_bad_step) == -1


def test_a_run_whose_loss_is_infinite_for_a_while_is_frozen_or_kept_going_or_raised():
    @objective(family="reward")
    def passing_gap(logp, group):
        """REINFORCE with a loss that is infinite once the best action has half of the mass.

        L = -mean of r log pi, or infinity
        """
        total = group.total(logp)
        return -group.mean(group.reward * total) + jnp.where(total.max() > jnp.log(0.5), jnp.inf, 0.0)

    try:
        method, problem = (
            Method("passing_gap", data="exact", learning_rate=1.0, optimizer=SGD),
            bandit(jnp.asarray([0.0, 0.5, 1.0])),
        )
        probe = lambda problem, state: {**standard_probe(problem, state), "loss": state.loss}
        run = lambda how: simulate(problem, method, 0, steps=60, probe=probe, on_nonfinite=how)
        with pytest.warns(UserWarning, match="frozen there"):
            frozen = run("freeze")
        with pytest.warns(UserWarning, match="kept going"):
            kept = run("keep")
        step = int(frozen.first_bad_step)
        assert 0 < step == int(kept.first_bad_step) < 60
        reward = [result.record["expected_reward"] for result in (frozen, kept)]
        np.testing.assert_array_equal(reward[0][: step + 1], reward[1][: step + 1])
        assert (reward[0][step:] == reward[0][step]).all() and (jnp.diff(reward[1]) > 0).all()
        with pytest.raises(NumericsError, match=f"step {step}.: lower the learning rate"):
            run("raise")
    finally:
        del OBJECTIVES["passing_gap"]


BAD = [
    (lambda: Method("dppo"), ConfigError, "did you mean"),
    (lambda: Method("dpo", hyper={"betta": 0.1}), ConfigError, "did you mean beta"),
    (lambda: Method("dpo", hyper={"beta": 0.0}), DomainError, "greater than 0"),
    (lambda: Method("dpo", hyper={"beta": -1.0}), DomainError, "greater than 0"),
    (lambda: Method("dpo", hyper={"beta": math.nan}), DomainError, "beta"),
    (lambda: Method("dpo", hyper=[0.1]), TypeError, "dictionary"),
    (lambda: Method("dpo", num_responses=1), ConfigError, "at least 2"),
    (lambda: Method("grpo", num_responses=1), ConfigError, "at least 2"),
    (lambda: Method("dpo", num_responses=2.5), TypeError, "whole number"),
    (lambda: Method("dpo", learning_rate=-1.0, optimizer=SGD), DomainError, "at least 0"),
    (lambda: Method("dpo", learning_rate="fast", optimizer=SGD), TypeError, "number"),
    (lambda: Method("dpo", on_policy=1.5), DomainError, "at most 1"),
    (lambda: Method("dpo", reuse=0.5), DomainError, "at least 1"),
    (lambda: Method("dpo", label_noise=-1.0), DomainError, "at least 0"),
    (lambda: Method("dpo", data="exakt"), ConfigError, "exact"),
    (lambda: Method("dpo", proxy="forest"), ConfigError, "table"),
    (lambda: Method("dpo", optimizer="adam"), TypeError, "optax"),
    (lambda: Method("dpo", policy="tabular"), TypeError, "tabular"),
    (lambda: Method("reverse_kl"), ConfigError, "data='exact'"),
    (lambda: Method("best_of_n", data="exact", label_noise=0.1), ConfigError, "sampled"),
    (lambda: simulate(R4, Method("dpo"), 0, steps=-1), ConfigError, "at least 0"),
    (lambda: simulate(R4, Method("dpo"), 0, steps=10, every=3), ConfigError, "multiple"),
    (lambda: simulate(R4, Method("dpo"), 1.5, steps=1), ConfigError, "4294967295"),
    (lambda: simulate(R4, Method("dpo"), -1, steps=1), ConfigError, "seed is -1"),
    (lambda: simulate(R4, Method("dpo", prompts=7), 0, steps=1), ConfigError, "1 contexts"),
    (lambda: simulate("R4", Method("dpo"), 0, steps=1), TypeError, "paper_bandit"),
    (lambda: simulate(R4, "dpo", 0, steps=1), TypeError, "Method("),
    (lambda: simulate(paper_sequences("R6"), Method("sft", data="exact", policy=factorised), 0, steps=1), ConfigError,
     "sampled"),
    (lambda: simulate(bandit(peaks(50_000, [100], [10])), Method("dpo", data="exact"), 0, steps=1), ResourceError,
     "pairs"),
    (lambda: bandit(jnp.zeros((1, 5, 1))), ShapeError, "reward"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_is_refused_with_its_name_and_a_way_out(case, monkeypatch):
    check_refusal(*BAD[case], monkeypatch)


def test_a_record_larger_than_memory_is_refused_before_it_runs():
    whole = lambda problem, state: {"log_prob": state.log_probs}
    with pytest.raises(ResourceError, match="every="):
        simulate(bandit(peaks(100_000, [100], [10])), Method("reinforce"), 0, steps=10_000_000, probe=whole)


# --- long tables -------------------------------------------------------------------------------------------------
def long_problem(forbidden=False, actions=3000):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, actions))
    if forbidden:
        logits[:, ::7] = -np.inf
    return bandit(jnp.asarray(rng.random((2, actions))), jnp.asarray(logits))


@pytest.mark.parametrize("forbidden", [False, True])
@pytest.mark.parametrize(("prompts", "actions"), [(None, 3000), (1, 3000), (None, 100)])
@pytest.mark.parametrize(("name", "options"), [
    ("reinforce", {"data": "exact"}),
    ("forward_kl", {"data": "exact"}),
    ("grpo", {"data": "exact", "reuse": 3}),
    ("rwr", {"data": "exact", "on_policy": 0.5}),
    ("grpo", {"data": "sampled"}),
    ("dpo", {"data": "sampled", "on_policy": 0.0}),
])  # fmt: skip
def test_normalisers_found_near_the_last_ones_give_the_same_runs(
    name, options, prompts, actions, forbidden, monkeypatch
):
    """Against tables that are normalised from scratch at every step, as accelerators do."""
    method = Method(name, learning_rate=20.0 * actions / 3000, prompts=prompts, **options, optimizer=SGD)
    go = lambda: simulate(long_problem(forbidden, actions), method, 0, steps=30)
    near = go()
    jax.clear_caches()
    monkeypatch.setattr(tables, "on_cpu", lambda: False)
    plain = go()
    jax.clear_caches()
    for key, wanted in plain.record.items():
        np.testing.assert_allclose(near.record[key], wanted, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(near.params, plain.params, rtol=2e-4, atol=2e-4)
    if forbidden:
        assert not np.asarray(near.params)[:, ::7].any()


def test_a_step_so_long_that_the_last_normaliser_is_of_no_use_is_taken_right():
    """Logits rise by some thousand at once: exponentials near the old normaliser are infinite."""
    problem = bandit(jnp.asarray([np.linspace(0, 1, 3000)]), jnp.zeros((1, 3000)))
    method = Method("reinforce", data="exact", learning_rate=1e7, optimizer=SGD)
    record, _, first_bad_step = jax.jit(lambda key: simulate(problem, method, key, steps=3))(jax.random.key(0))
    assert first_bad_step == -1
    np.testing.assert_allclose(record["expected_reward"][1:], 1.0, atol=1e-3)
    assert np.isfinite(record["kl"]).all()


def test_a_run_whose_normaliser_is_found_anew_leaves_its_neighbours_alone():
    """To the last bit: two runs side by side, of which one takes steps so long that it starts over."""
    method = Method("reinforce", data="exact")
    run = lambda rates: sweep(long_problem(), method, seeds=[0], steps=4, grid={"learning_rate": rates}, tile=2)
    beside_it, beside_another = run([1.0, 1e7]), run([1.0, 2.0])
    assert beside_it.expected_reward[..., 1, 0, -1] > 0.9
    same = lambda data: data.isel(learning_rate=0).expected_reward.values
    np.testing.assert_array_equal(same(beside_it), same(beside_another))


def test_a_context_whose_normaliser_is_found_anew_leaves_the_others_alone():
    """To the last bit: two contexts of one run, of which one takes steps so long that it starts over."""
    reward = np.random.default_rng(0).random(4000)
    whole = lambda problem, state: {"log_prob": state.log_probs}

    def first(scale):
        problem = bandit(jnp.asarray([reward, scale * reward]), features=jnp.zeros((2, 1)))
        method = Method("reinforce", data="exact", learning_rate=3000.0, optimizer=SGD)
        return simulate(problem, method, 0, steps=4, probe=whole).record["log_prob"][:, 0]

    np.testing.assert_array_equal(first(1e4), first(1.0))


@pytest.mark.parametrize(("name", "on_policy"), [("dpo", 0.0), ("ipo", 0.0), ("rloo", 1.0), ("grpo", 1.0)])
def test_adam_leaves_alone_what_nobody_drew_where_forces_cancel(name, on_policy):
    """The sum of forces is then rounding, of which an optimiser that divides by its size makes full steps."""
    problem, method = paper_bandit("R4"), Method(name, on_policy=on_policy, optimizer=ADAM, num_responses=4)
    watch = lambda problem, state: {"drawn": state.groups.response, "params": state.params}
    record = simulate(problem, method, 0, steps=10, probe=watch).record
    never = np.setdiff1d(np.arange(100), np.asarray(record["drawn"]))
    assert never.size > 50 and np.abs(record["params"][-1]).max() > 0.5
    assert not np.asarray(record["params"])[..., never].any()


@pytest.mark.parametrize("name", ["dpo", "grpo", "kto"])
@pytest.mark.parametrize("data", ["exact", "sampled"])
def test_a_run_whose_reward_is_no_number_is_reported_as_one_that_diverged(name, data):
    unlucky = lambda features, response, mask: jnp.where(response[0] == 1, jnp.nan, response[0])
    problem = sequences(jnp.zeros((1, 1, 3)), reward_fn=unlucky)
    with pytest.warns(UserWarning, match="diverged"):
        assert int(simulate(problem, Method(name, data=data), 0, steps=5).first_bad_step) == 0


@pytest.mark.parametrize("name", ["reinforce", "grpo"])
@pytest.mark.parametrize("data", ["exact", "sampled"])
def test_only_a_reference_that_forbids_something_is_looked_through_for_it(name, data):
    """Where nothing is forbidden, looking changes nothing; under a trace nobody knows, and one looks."""
    method = Method(name, learning_rate=1.0, data=data, optimizer=SGD)
    free, bound = long_problem(actions=100), long_problem(forbidden=True, actions=100)
    assert [planning.plan(problem, method).forbids for problem in (free, bound)] == [False, True]
    record, params, _ = simulate(free, method, 0, steps=5)
    traced = jax.jit(lambda problem, key: simulate(problem, method, key, steps=5))
    looked, same, _ = traced(free, seed_key(0))
    np.testing.assert_allclose(params, same, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(record["kl"], looked["kl"], rtol=1e-5, atol=1e-6)
    _, params, _ = simulate(bound, method, 0, steps=5)
    assert np.isfinite(params).all() and np.asarray(params).any() and not np.asarray(params)[:, ::7].any()


def test_a_normaliser_is_that_of_its_step():
    """It is what the next step starts from; one left behind would be found anew, by way of the maximum, ever after."""
    method = Method("reinforce", data="exact", learning_rate=1e4, optimizer=SGD)
    seen = lambda problem, state: {"params": state.params}
    problem = long_problem()
    plan = planning.plan(problem, method)
    known, progress = loop.begin(problem, method, jax.random.key(0), plan, steps=5, every=1, probe=seen)
    after = jax.jit(partial(loop.go, every=1, probe=seen))(problem, method, plan, known, progress, 5)
    logits = np.asarray(log_softmax(problem.ref_logits[:, 0]), np.float64) + np.asarray(after.record["params"][4])
    assert abs(special.logsumexp(logits, axis=1)).min() > 0.1
    np.testing.assert_allclose(after.near, special.logsumexp(logits, axis=1), rtol=1e-5)


def test_what_the_next_collection_is_drawn_with_is_known_one_ahead_and_the_same_in_every_run():
    problem, method = paper_bandit("R5"), Method("dpo", label_noise=0.5, num_responses=3)
    plan, seen = planning.plan(problem, method), lambda problem, state: {"step": state.step}
    known, progress = loop.begin(problem, method, jax.random.key(3), plan, steps=4, every=1, probe=seen)
    for step in range(3):
        uniform = jax.random.uniform(jax.random.fold_in(known.key, step), (1, 1, 3))
        np.testing.assert_array_equal(progress.ahead.draws, uniform)
        noise = jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(known.key, step), 1), (1, 3))
        np.testing.assert_allclose(progress.ahead.noise, noise, rtol=1e-6)
        progress = loop.go(problem, method, plan, known, progress, step + 1, every=1, probe=seen)


# --- steps on the drawn responses alone --------------------------------------------------------------------------
WIDE = 40_000


def wide_problem(forbidden=False, actions=100):
    rng = np.random.default_rng(1)
    logits = 2 * rng.standard_normal((2, actions))
    if forbidden:
        logits[:, ::3] = -np.inf
    return bandit(jnp.asarray(rng.random((2, actions))), jnp.asarray(logits), features=jnp.zeros((2, 1)))


@pytest.fixture
def few_are_many(monkeypatch):
    """100 actions count as many, in a tree of blocks of 16.

    Among thousands, two programs that differ in their last bits draw another action once in a while.
    """
    jax.clear_caches()
    monkeypatch.setattr(planning, "SPARSE", 100)
    monkeypatch.setattr(kernels, "BLOCK", 16)
    yield
    jax.clear_caches()


def drawn_probe(problem, state):
    return {"response": state.groups.response, "log_prob": state.log_probs}


def on_few_and_on_all(problem, method, monkeypatch, **settings):
    """The same run with and without steps on few, and how many of the steps after the first one were on few."""
    plan, steps = planning.plan(problem, method), settings["steps"]
    known, progress = loop.begin(problem, method, jax.random.key(0), plan, every=steps, probe=drawn_probe, **settings)

    @jax.jit
    def taken(known, progress):
        run = Run.of(problem, method, plan, known)
        return few_steps.stretches(run, loop.ready(run, progress), jnp.asarray(0), steps)[0]

    count = int(taken(known, progress)) if plan.few else 0
    go = lambda: simulate(problem, method, 0, every=settings["steps"], probe=drawn_probe, **settings)
    few = go()
    jax.clear_caches()
    with monkeypatch.context() as dense:
        dense.setattr(planning, "SPARSE", 10**9)
        everything = go()
    jax.clear_caches()
    return few, everything, count


@pytest.mark.parametrize("forbidden", [False, True])
@pytest.mark.parametrize(("name", "options", "cancel"), [
    ("grpo", {}, True),
    ("rloo", {"learning_rate": 10.0, "schedule": optax.linear_schedule(1.0, 0.0, 30)}, True),
    ("dpo", {"learning_rate": 50.0, "label_noise": 0.1}, True),
    ("ipo", {"reuse": 4}, True),
    ("dpo", {"learning_rate": 50.0, "on_policy": 0.0}, True),
    ("reinforce", {"learning_rate": 20.0}, False),
    # An odd number: as many good responses as bad ones may balance.
    ("kto", {"learning_rate": 50.0, "num_responses": 7}, False),
])  # fmt: skip
def test_steps_on_the_drawn_responses_alone_are_those_on_the_whole_table(
    name, options, cancel, forbidden, few_are_many, monkeypatch
):
    """Where forces cancel; where they do not, no such step is taken."""
    method = Method(name, **{"learning_rate": 3.0, "num_responses": 8, "optimizer": SGD, **options})
    few, everything, count = on_few_and_on_all(wide_problem(forbidden), method, monkeypatch, steps=30)
    assert count == (30 if cancel else 0)
    np.testing.assert_array_equal(few.record["response"], everything.record["response"])
    moved = np.abs(np.asarray(everything.params)).max()
    assert moved > 1
    np.testing.assert_allclose(few.params, everything.params, rtol=1e-4, atol=1e-5 * moved)
    np.testing.assert_allclose(few.record["log_prob"], everything.record["log_prob"], rtol=1e-4, atol=1e-4)
    if forbidden:
        assert not np.asarray(few.params)[:, ::3].any()
        assert np.isneginf(few.record["log_prob"][..., ::3]).all()


def test_steps_on_few_among_forty_thousand_are_those_on_the_whole_table(monkeypatch):
    """On responses that were drawn once, so that nothing hangs on the last bit of a probability."""
    method = Method("dpo", learning_rate=200.0, num_responses=16, on_policy=0.0, optimizer=SGD)
    few, everything, count = on_few_and_on_all(wide_problem(actions=WIDE), method, monkeypatch, steps=60)
    assert count == 60
    assert 16 < (np.abs(np.asarray(few.params)) > 1e-3).sum() <= 32
    np.testing.assert_allclose(few.params, everything.params, rtol=1e-4, atol=1e-4)


def test_steps_on_few_find_their_way_where_the_normaliser_has_moved_far(few_are_many, monkeypatch):
    """A rate at which the winners' logits rise by hundreds: masses near the old normaliser are infinite."""
    method = Method("rloo", learning_rate=3000.0, num_responses=8, optimizer=SGD)
    few, everything, count = on_few_and_on_all(wide_problem(), method, monkeypatch, steps=20)
    assert count == 20
    assert np.asarray(few.params).max() > 100
    assert np.isfinite(few.params).all()
    np.testing.assert_array_equal(few.record["response"], everything.record["response"])
    np.testing.assert_allclose(few.params, everything.params, rtol=1e-4, atol=0.05)


def test_a_run_on_few_that_diverges_stops_at_the_same_step_as_one_on_all(few_are_many, monkeypatch):
    @objective(family="reward")
    def passing_gap_below_the_mean(logp, group):
        """REINFORCE on centred rewards, whose forces are infinite once a drawn action has half of the mass.

        L = -mean of (r - mean r) log pi, or infinity
        """
        total = group.total(logp)
        size = jnp.where(jax.lax.stop_gradient(total).max() > jnp.log(0.5), jnp.inf, 1.0)
        return -size * group.mean(group.group_advantage() * total)

    try:
        method = Method("passing_gap_below_the_mean", learning_rate=5.0, num_responses=8, optimizer=SGD)
        with pytest.warns(UserWarning, match="diverged"):
            few, everything, count = on_few_and_on_all(wide_problem(), method, monkeypatch, steps=60)
        assert 0 < count == int(few.first_bad_step) == int(everything.first_bad_step) < 60
        np.testing.assert_allclose(few.params, everything.params, rtol=1e-4, atol=1e-3)
    finally:
        del OBJECTIVES["passing_gap_below_the_mean"]


@pytest.mark.parametrize("change", [
    {"optimizer": ADAM}, {"policy": tabular_shared}, {"reference": "initial"}, {"on_policy": 0.5, "reuse": 1.0},
    {"on_policy": 0.0, "reuse": 1.0}, {"data": "exact"}, {"prompts": 1},
])  # fmt: skip
def test_steps_on_few_are_for_tables_under_plain_gradient_descent_alone(change, few_are_many):
    method, problem = Method("grpo", num_responses=16, optimizer=SGD), wide_problem()
    assert planning.plan(problem, method).few
    other = replace(method, **change)
    assert not planning.plan(problem, other).few


def test_a_run_on_few_in_a_sweep_is_that_of_its_own(few_are_many):
    """Its neighbours could send it over the whole table, so it has none."""
    method = Method("grpo", learning_rate=2.0, optimizer=SGD)
    options = {"steps": 20, "every": 20}
    alone = sweep(wide_problem(), method, seeds=[3], **options)
    among = sweep(wide_problem(), method, seeds=range(5), **options)
    np.testing.assert_array_equal(alone.expected_reward.sel(seed=3), among.expected_reward.sel(seed=3))
    assert json.loads(among.attrs["configuration"])["tile"] == [1]
    np.testing.assert_allclose(simulate(wide_problem(), method, 3, **options).record["expected_reward"],
                               alone.expected_reward.sel(seed=3).squeeze(), rtol=1e-5)  # fmt: skip
