"""Problems against the paper's numbers, against sums over all sequences, and against wrong input."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frequencies import p_value
from scipy import stats

from bandit_pft.errors import ConfigError, DomainError, ResourceError, ShapeError
from bandit_pft.groups import best_of_n_weights
from bandit_pft.problems import (
    MOST_RESPONSES,
    bandit,
    contextual_bandit,
    length_problem,
    paper_bandit,
    paper_reference,
    paper_sequences,
    peaks,
    sequences,
)

NAMES = ("R4", "R5", "R8", "R9")
PROBLEMS = {name: paper_bandit(name) for name in NAMES}
REF = np.exp(np.asarray(PROBLEMS["R4"].ref_table(0), np.float64))
REWARD = {name: np.asarray(problem.reward_table(0), np.float64) for name, problem in PROBLEMS.items()}


def kl(p, q):
    return float(np.sum(p * (np.log(np.maximum(p, 1e-300)) - np.log(q))))


# --- the paper's constants, to the last digit that it prints ---------------------------------------------------------
def test_reference_is_the_tanh_of_a_cauchy_in_equal_bins():
    edge = np.linspace(-1, 1, 101)[1:-1]
    below = np.concatenate([[0], stats.cauchy.cdf(np.arctanh(edge), -0.7, 0.4), [1]])
    np.testing.assert_allclose(REF, np.diff(below), rtol=3e-6)


def test_reference_has_spikes_at_both_ends_and_the_papers_masses():
    printed = {0: 0.07809, 99: 0.04223, 15: 0.0267, 20: 0.02433, 70: 0.00211, 81: 0.00189}
    for action, mass in printed.items():
        assert REF[action] == pytest.approx(mass, abs=5e-5 if action == 15 else 6e-6)
    assert REF.argmax() == 0
    assert REF.argmin() == 81
    assert -(REF * np.log(REF)).sum() == pytest.approx(4.1173, abs=1e-4)
    assert REF[10:31].sum() == pytest.approx(0.454, abs=5e-4)
    assert REF[60:81].sum() == pytest.approx(0.0457, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "reference", "uniform", "far", "gap"),
    [
        ("R4", 0.0390, 0.1772, 6.160, 0.105),
        ("R5", 0.3772, 0.1769, 3.716, 0.638),
        ("R8", 0.0955, 0.3479, 6.160, 0.232),
        ("R9", 0.1876, 0.4878, 6.160, 0.410),
    ],
)
def test_reward_under_reference_and_uniform_and_the_distance_of_its_maximum(name, reference, uniform, far, gap):
    reward = REWARD[name]
    assert REF @ reward == pytest.approx(reference, abs=1e-4)
    assert reward.mean() == pytest.approx(uniform, abs=1e-4)
    assert -np.log(REF[reward.argmax()]) == pytest.approx(far, abs=5e-4)
    differ = abs(reward[:, None] - reward) >= 0.2
    assert REF @ differ @ REF == pytest.approx(gap, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("R4", (0.0761, 0.1446, 0.3135, 0.5080, 0.7811, 0.9153)),
        ("R5", (0.5843, 0.7846, 0.9401, 0.9815, 0.9963, 0.9991)),
        ("R8", (0.1764, 0.3065, 0.5504, 0.7451, 0.9206, 0.9751)),
        ("R9", (0.3121, 0.4774, 0.7135, 0.8566, 0.9611, 0.9885)),
    ],
)
def test_best_of_n_reward(name, expected):
    sizes = jnp.asarray([2.0, 4.0, 10.0, 20.0, 50.0, 100.0])
    weights = jax.vmap(best_of_n_weights, (None, None, 0))(jnp.asarray(REF), jnp.asarray(REWARD[name]), sizes)
    np.testing.assert_allclose(weights @ REWARD[name], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "beta", "reward", "distance"),
    [
        ("R4", 0.2, 0.653, 1.951),
        ("R4", 0.1, 0.941, 3.794),
        ("R4", 0.05, 0.974, 4.237),
        ("R5", 0.2, 0.877, 0.963),
        ("R5", 0.1, 0.947, 1.441),
        ("R5", 0.05, 0.974, 1.817),
    ],
)
def test_regularised_optimum(name, beta, reward, distance):
    optimum = np.exp(np.asarray(PROBLEMS[name].optimum(beta)[0], np.float64))
    assert optimum @ REWARD[name] == pytest.approx(reward, abs=6e-4)
    assert kl(optimum, REF) == pytest.approx(distance, abs=6e-4)


@pytest.mark.parametrize(
    ("name", "rewards", "distances"),
    [("R4", (0.3135, 0.9153, 0.9987), (1.402, 3.613, 5.742)), ("R5", (0.9401, 0.9991, 1.0), (1.400, 3.400, 3.716))],
)
def test_best_of_ten_iterated_is_best_of_its_powers(name, rewards, distances):
    # These distances break the ties of a symmetric peak by the action's number; shared ties stay closer.
    order = jnp.asarray(np.argsort(np.lexsort((np.arange(100), REWARD[name]))), float)
    shared = jnp.asarray(REWARD[name])
    once, chain = best_of_n_weights, jnp.asarray(REF)
    for rounds, (reward, distance) in enumerate(zip(rewards, distances, strict=True), 1):
        chain = once(chain, order, 10.0)
        np.testing.assert_allclose(chain, once(jnp.asarray(REF), order, 10.0**rounds), atol=2e-5)
        assert float(chain @ REWARD[name]) == pytest.approx(reward, abs=1e-4)
        assert kl(np.asarray(chain, np.float64), REF) == pytest.approx(distance, abs=6e-4)
        assert kl(np.asarray(once(jnp.asarray(REF), shared, 10.0**rounds), np.float64), REF) < distance + 6e-4


@pytest.mark.parametrize(
    ("temperature", "rounds", "reward"),
    [(0.5, 1, 0.152), (0.5, 2, 0.468), (0.5, 5, 0.941), (0.1, 1, 0.941), (0.1, 2, 0.974)],
)
def test_reward_weighted_regression_iterated_is_one_optimum_at_a_lower_temperature(temperature, rounds, reward):
    policy = REF.copy()
    for _ in range(rounds):
        policy = policy * np.exp(REWARD["R4"] / temperature)
        policy /= policy.sum()
    assert policy @ REWARD["R4"] == pytest.approx(reward, abs=5e-4)
    optimum = np.exp(np.asarray(PROBLEMS["R4"].optimum(temperature / rounds)[0]))
    np.testing.assert_allclose(optimum, policy, atol=2e-6)


@pytest.mark.parametrize(("which", "start"), [("R6", 0.0528), ("R7", 0.3572)])
def test_paper_sequences_start_at_and_cannot_pass_the_papers_numbers(which, start):
    problem = paper_sequences(which)
    assert (problem.num_contexts, problem.length, problem.num_tokens) == (100, 9, 100)
    assert not problem.enumerable
    token = (np.exp(np.asarray(problem.ref_logits, np.float64)) * np.asarray(problem.token_reward)).sum((-1, -2))
    assert (token + np.asarray(problem.bonus)).mean() == pytest.approx(start, abs=1e-4)
    best = np.full((1, 9), 70 if which == "R6" else 20)
    every = jax.vmap(problem.reward, (0, None))(jnp.arange(100), jnp.asarray(best))
    assert float(every.mean()) == pytest.approx(0.9177, abs=1e-4)


# --- the list of responses -------------------------------------------------------------------------------------------
SHAPES = [(4, 1, None), (3, 1, 0), (2, 3, None), (3, 4, None), (2, 4, 1), (3, 4, 0), (3, 4, 1), (4, 3, 3)]


def all_strings(tokens, length, end):
    """Every string of tokens, with the response it stands for: what follows the first end token becomes `end`."""
    for string in itertools.product(range(tokens), repeat=length):
        stop = string.index(end) if end in string else length
        yield string, string[: stop + 1] + (end,) * (length - stop - 1)


def random_problem(tokens, length, end, contexts=2, forbid=True, **more):
    draw = np.random.default_rng(tokens + 10 * length)
    logits = draw.normal(size=(contexts, length, tokens))
    if forbid and tokens > 2:
        logits[0, 0, 1] = -np.inf
    data = draw.normal(size=logits.shape)
    return sequences(
        draw.normal(size=logits.shape), logits, end=end, data=data, bonus=draw.normal(size=contexts), **more
    )


@pytest.mark.parametrize(("tokens", "length", "end"), SHAPES)
def test_responses_list_every_merged_string_once(tokens, length, end):
    problem = random_problem(tokens, length, end)
    response, mask = problem.responses()
    rows = [tuple(row) for row in response.tolist()]
    assert len(rows) == len(set(rows)) == problem.num_responses
    assert set(rows) == {merged for _, merged in all_strings(tokens, length, end)}
    if end is None or length == 1:
        assert mask.all()
        assert rows == sorted(rows)
    else:
        expected = [row.index(end) + 1 if end in row else length for row in rows]
        assert mask.sum(-1).tolist() == expected
        assert sorted(expected[: rows.index((end,) * length) + 1])[0] == 1
    np.testing.assert_array_equal(problem.mask_of(jnp.asarray(response)), mask)
    place = jnp.arange(len(rows))
    np.testing.assert_array_equal(problem.response_at(place), response)
    np.testing.assert_array_equal(problem.index_of(jnp.asarray(response)), place)


@pytest.mark.parametrize(("tokens", "length", "end"), SHAPES)
def test_tables_are_sums_over_all_strings(tokens, length, end):
    problem = random_problem(tokens, length, end)
    rows = [tuple(row) for row in problem.responses()[0].tolist()]
    for context, logits in itertools.product(range(2), (problem.ref_logits, problem.data_logits)):
        prob = np.exp(np.asarray(logits[context], np.float64))
        prob /= prob.sum(-1, keepdims=True)
        mass = dict.fromkeys(rows, 0.0)
        for string, merged in all_strings(tokens, length, end):
            mass[merged] += np.prod(prob[np.arange(length), string])
        table = problem.ref_table(context) if logits is problem.ref_logits else problem.data_table(context)
        np.testing.assert_allclose(np.exp(table), list(mass.values()), atol=3e-7)
    reward, bonus = np.asarray(problem.token_reward, np.float64), np.asarray(problem.bonus)
    mask = problem.responses()[1]
    for context in range(2):
        expected = [
            bonus[context] + sum(reward[context, t, row[t]] for t in range(length) if mask[i, t])
            for i, row in enumerate(rows)
        ]
        np.testing.assert_allclose(problem.reward_table(context), expected, atol=2e-6)
        np.testing.assert_allclose(problem.reward(context, jnp.asarray(rows)), expected, atol=2e-6)


@pytest.mark.parametrize(("tokens", "length", "end"), SHAPES)
def test_token_log_probs_add_up_to_the_table_and_are_zero_where_masked(tokens, length, end):
    problem = random_problem(tokens, length, end)
    response, mask = (jnp.asarray(x) for x in problem.responses())
    for log_prob, table in ((problem.ref_log_prob, problem.ref_table), (problem.data_log_prob, problem.data_table)):
        each = log_prob(0, response)
        assert not np.any(np.asarray(each)[~np.asarray(mask)])
        np.testing.assert_allclose(each.sum(-1), table(0), atol=2e-6)


@pytest.mark.parametrize("end", [None, 2])
def test_drawn_sequences_follow_the_table_and_avoid_forbidden_tokens(end):
    problem = random_problem(4, 3, end)
    n = 20_000
    for sample, table in ((problem.sample_ref, problem.ref_table), (problem.sample_data, problem.data_table)):
        drawn = sample(0, jax.random.key(7), n)
        assert p_value(problem.index_of(drawn), table(0)) > 1e-3


def test_reward_function_replaces_the_table_and_sees_the_features():
    def rewarded(features, response, mask):
        return features[1] * jnp.where(mask, response, 0).sum()

    problem = random_problem(3, 4, 1, reward_fn=rewarded)
    response, mask = problem.responses()
    np.testing.assert_allclose(problem.reward_table(0), problem.bonus[0], atol=1e-6)
    np.testing.assert_allclose(problem.reward_table(1), problem.bonus[1] + (response * mask).sum(-1), atol=1e-6)


def test_a_long_list_is_refused_with_what_to_do_but_sampling_works():
    problem = sequences(np.zeros((1, 20, 2)))
    assert problem.num_responses == 2**20 > MOST_RESPONSES
    for refused in (problem.responses, lambda: problem.ref_table(0), lambda: problem.optimum(1.0)):
        with pytest.raises(ResourceError, match="Take fewer tokens"):
            refused()
    assert problem.sample_ref(0, jax.random.key(0), 5).shape == (5, 20)


def test_a_million_actions_have_tables():
    problem = bandit(np.linspace(0, 1, 1_000_000))
    table = jax.jit(problem.ref_table)(0)
    assert table.shape == (1_000_000,)
    assert float(table[-1]) == pytest.approx(-np.log(1e6), abs=1e-5)
    assert int(problem.reward_table(0).argmax()) == 999_999


# --- the optimum -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("beta", [0.05, 1.0, 30.0])
def test_optimum_turns_reward_differences_into_log_ratios(beta):
    problem = random_problem(3, 3, 2)
    for context in range(2):
        optimum, ref = problem.optimum(beta)[context], problem.ref_table(context)
        possible = np.isfinite(np.asarray(ref))
        assert np.isneginf(np.asarray(optimum)[~possible]).all()
        assert float(jnp.exp(optimum).sum()) == pytest.approx(1, abs=1e-6)
        gain = beta * np.asarray(optimum - ref)[possible]
        reward = np.asarray(problem.reward_table(context))[possible]
        np.testing.assert_allclose(gain - gain[0], reward - reward[0], atol=2e-5 * max(1, beta))


def test_optimum_of_a_vanishing_beta_is_the_best_allowed_action():
    problem = bandit([0.0, 1e30, 2.0, 1.0], [0.0, -np.inf, -50.0, 0.0])
    np.testing.assert_array_equal(np.exp(jax.jit(lambda b: problem.optimum(b)[0])(1e-8)), [0, 0, 1, 0])
    with pytest.raises(DomainError, match="beta is 0"):
        problem.optimum(0.0)


# --- probabilities, far down -----------------------------------------------------------------------------------------
def test_probabilities_below_the_smallest_float32_keep_their_logarithm():
    problem = bandit([0.0, 1.0, 2.0], probs=[1e-60, 0.25, 0.75])
    np.testing.assert_allclose(problem.ref_table(0), np.log([1e-60, 0.25, 0.75]), rtol=1e-6)


def test_zero_probability_forbids_and_logits_may_be_shifted_or_huge():
    assert np.isneginf(bandit([0.0, 1.0], probs=[0.0, 1.0]).ref_table(0)[0])
    logits = np.array([1e10, 1e10 - 1, 1e10 + 2])
    np.testing.assert_allclose(
        bandit(np.zeros(3), logits).ref_table(0), bandit(np.zeros(3), logits - 1e10).ref_table(0), atol=1e-6
    )


def test_gradient_through_a_table_with_forbidden_actions_is_finite():
    problem = bandit([[0.0, 1.0, 2.0]], [[0.0, -np.inf, 1.0]])
    slope = jax.grad(lambda x: jnp.exp(problem.table(problem.ref_logits[0] + x)).dot(jnp.arange(3.0)))(
        jnp.zeros((1, 3))
    )
    p = np.exp([0, 1]) / np.exp([0, 1]).sum()
    np.testing.assert_allclose(slope[0], [-p[0] * 2 * p[1], 0, p[1] * (2 - 2 * p[1])], atol=1e-6)


# --- constructors ----------------------------------------------------------------------------------------------------
def test_peaks_are_the_papers_formula_added_up():
    action = np.arange(50)
    expected = 2 * np.exp(-(((action - 10.5) / 3) ** 2)) - np.exp(-(((action - 40) / 3) ** 2))
    np.testing.assert_allclose(peaks(50, [10.5, 40], 3.0, [2.0, -1.0]), expected, atol=1e-6)
    np.testing.assert_allclose(REWARD["R9"], np.exp(-(((np.arange(100) - 70) / 30) ** 2)), atol=1e-6)


def test_a_peak_can_be_moved_without_recompiling_and_has_a_slope():
    traces = []

    @jax.jit
    def best(place):
        traces.append(1)
        return peaks(100, place, 10.0).argmax()

    assert [int(best(x)) for x in (20.0, 70.0, 33.4)] == [20, 70, 33]
    assert len(traces) == 1
    slope = jax.grad(lambda x: peaks(100, x, 10.0)[75])(70.0)
    assert float(slope) == pytest.approx(2 * 5 / 100 * np.exp(-0.25), rel=1e-5)


def test_empirical_reference_is_a_sample_of_the_exact_one_without_empty_bins():
    count = np.exp(np.asarray(paper_reference(key=jax.random.key(3)), np.float64)) * 10_000
    np.testing.assert_allclose(count, np.round(count), atol=2e-2)
    assert count.min() >= 1
    assert stats.chisquare(np.round(count), 10_000 * REF / REF.sum()).pvalue > 1e-3
    few = paper_reference(key=jax.random.key(3), samples=100)
    assert np.isneginf(few).any()
    assert float(jnp.exp(few).sum()) == pytest.approx(1, abs=1e-6)


def test_paper_bandit_repeats_one_bandit_over_contexts_with_uniform_features():
    problem = paper_bandit("R5", 300, key=jax.random.key(0), empirical=True)
    assert problem.features.shape == (300, 100)
    assert stats.kstest(np.asarray(problem.features).ravel(), "uniform").pvalue > 1e-3
    assert np.ptp(np.asarray(problem.token_reward), axis=0).max() == 0
    assert np.ptp(np.asarray(problem.ref_logits), axis=0).max() == 0
    assert not np.allclose(problem.ref_table(0), PROBLEMS["R5"].ref_table(0))


@pytest.mark.parametrize("rule", ["sign", "linear"])
def test_contextual_peak_follows_the_first_feature(rule):
    problem = contextual_bandit(jax.random.key(1), 40, 3, 200, shift=20.0, rule=rule)
    lean = 2 * np.asarray(problem.features)[:, 0] - 1
    place = 140 + 20 * (np.sign(lean) if rule == "sign" else lean)
    best = np.asarray(jax.vmap(problem.reward_table)(jnp.arange(40))).argmax(-1)
    assert abs(best - place).max() <= 0.5 + 1e-4
    assert len(set(best)) > 1


@pytest.mark.parametrize(("kind", "mode"), [("min", 5.0), ("skew", 5.0), ("mode", 3.0), ("mode", 3.75)])
def test_length_rewards_count_tokens(kind, mode):
    problem = length_problem(kind, 3, 6, mode=mode)
    mask = problem.responses()[1]
    size = mask.sum(-1)
    np.testing.assert_allclose(problem.reward_table(0), -abs(size - mode) if kind == "mode" else -size, atol=2e-6)
    if kind == "mode":
        assert size[int(problem.optimum(1e-6)[0].argmax())] == round(mode)


def lengths(problem, table):
    size = problem.responses()[1].sum(-1)
    return np.bincount(size, np.exp(np.asarray(table, np.float64)), problem.length + 1)[1:]


def test_reference_lengths_are_a_rounded_normal_and_a_hazard_is_the_chance_to_end():
    problem = length_problem("mode", 3, 6, mode=3.5, spread=1.2)
    edge = np.array([-np.inf, 1.5, 2.5, 3.5, 4.5, 5.5, np.inf])
    np.testing.assert_allclose(
        lengths(problem, problem.ref_table(0)), np.diff(stats.norm.cdf(edge, 3.5, 1.2)), atol=1e-6
    )
    hazard = np.array([0.1, 0.5, 0.2, 0.7])
    given = length_problem("min", 3, 4, hazard=hazard)
    alive = np.cumprod([1, *(1 - hazard)])
    expected = np.append((alive[:-1] * hazard)[:-1], alive[3])
    np.testing.assert_allclose(lengths(given, given.ref_table(0)), expected, atol=1e-6)


def test_only_the_skew_problem_has_data_shorter_than_its_reference():
    mean = {}
    for kind in ("min", "mode", "skew"):
        problem = length_problem(kind)
        place = np.arange(1, 9)
        mean[kind] = [lengths(problem, table(0)) @ place for table in (problem.ref_table, problem.data_table)]
    assert mean["min"] == mean["mode"] == pytest.approx([mean["skew"][0]] * 2, abs=1e-6)
    assert mean["skew"][1] == pytest.approx(sum(0.6**k for k in range(8)), abs=1e-4)
    assert mean["skew"][1] < mean["min"][0] - 3


# --- a Problem is a value --------------------------------------------------------------------------------------------
def test_problems_of_one_name_stack_and_map_over():
    near, far = (dataclasses.replace(PROBLEMS[name], name="") for name in ("R5", "R4"))
    both = jax.tree.map(lambda *x: jnp.stack(x), near, far)
    reward = jax.jit(jax.vmap(lambda p: jnp.exp(p.ref_table(0)) @ p.reward_table(0), in_axes=(0,)))(both)
    np.testing.assert_allclose(reward, [0.3772, 0.0390], atol=1e-4)


def test_methods_map_over_contexts_as_a_loop_does():
    problem = random_problem(3, 3, 0)
    contexts = jnp.arange(2)
    for method in (problem.ref_table, problem.data_table, problem.reward_table):
        np.testing.assert_allclose(jax.jit(jax.vmap(method))(contexts), [method(0), method(1)], atol=1e-6)


def test_features_default_to_one_per_context():
    np.testing.assert_array_equal(bandit(np.zeros((3, 2))).features, np.eye(3))


def test_one_action_is_allowed_with_a_warning():
    with pytest.warns(UserWarning, match="one action: nothing to learn"):
        problem = bandit([1.0])
    assert float(problem.ref_table(0)[0]) == 0


def test_outside_numbers_of_several_kinds_are_accepted():
    for reward in ([0, 1], (0.0, 1.0), np.array([0, 1], np.int8), jnp.array([0.0, 1.0])):
        np.testing.assert_array_equal(bandit(reward, [0, 2]).reward_table(0), [0, 1])


def test_a_bandit_can_be_made_inside_jit():
    value = jax.jit(lambda reward, ref: bandit(reward, ref).optimum(1.0)[0])(
        jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])
    )
    np.testing.assert_allclose(np.exp(value), [0.5, 0.5], atol=1e-6)


# --- refused ---------------------------------------------------------------------------------------------------------
NAN, INF = float("nan"), float("inf")
Z3 = np.zeros(3)
BAD_BANDITS = [
    # The numbers are rows of the failure catalogue: logits, rewards, probabilities.
    ({"reward": Z3, "ref": [0, NAN, 0]}, DomainError, r"ref\[1\] is nan"),
    ({"reward": np.zeros((3, 2)), "ref": [[0, 1], [0, 1], [NAN, 0]]}, DomainError, r"ref\[2, 0\] is nan"),
    ({"reward": Z3, "ref": [0, INF, 0]}, DomainError, r"ref\[1\] is inf; .*-inf to forbid"),
    ({"reward": Z3, "ref": [-INF] * 3}, DomainError, "ref allows no action: .*leave at least one"),
    ({"reward": np.zeros((2, 2)), "ref": [[0, 0], [-INF, -INF]]}, DomainError, "no action in context 1"),
    ({"reward": []}, ShapeError, "at least 1 action"),
    ({"reward": np.zeros((0, 3))}, ShapeError, "at least 1 action and 1 context"),
    ({"reward": np.zeros(3, np.float16)}, DomainError, "float16.*float32"),
    ({"reward": jnp.zeros(3, jnp.bfloat16)}, DomainError, "bfloat16.*float32"),
    ({"reward": np.zeros(3, complex)}, TypeError, "complex128"),
    ({"reward": [True, False]}, TypeError, "bool"),
    ({"reward": ["a", "b"]}, TypeError, "real numbers"),
    ({"reward": [object(), object()]}, TypeError, "object"),
    ({"reward": np.zeros(4), "ref": Z3}, ShapeError, r"ref has shape \(3,\); it must be \(4\).*never broadcast"),
    ({"reward": np.zeros((3, 1)), "ref": Z3}, ShapeError, r"ref has shape \(3,\)"),
    ({"reward": np.zeros((5, 3)), "ref": Z3}, ShapeError, "never broadcast"),
    ({"reward": 0.5}, ShapeError, r"reward has shape \(\)"),
    ({"reward": np.zeros((1, 1, 3))}, ShapeError, r"\(actions,\) or \(contexts, actions\)"),
    ({"reward": [0, NAN]}, DomainError, r"reward\[0, 0, 1\] is nan"),
    ({"reward": [-INF, 0]}, DomainError, r"reward.* is -inf"),
    ({"reward": Z3, "ref": [0.2, 0.3, 0.5]}, DomainError, "holds probabilities.*probs="),
    ({"reward": Z3, "probs": [0.2, 0.3, 0.6]}, DomainError, "sum to 1.1; .*divide"),
    ({"reward": Z3, "probs": [0.5, -0.5, 1.0]}, DomainError, r"probs\[1\] is -0.5"),
    ({"reward": Z3, "probs": [0.5, NAN, 0.5]}, DomainError, r"probs\[1\] is nan"),
    ({"reward": Z3, "probs": [0.5, 0.5]}, ShapeError, "probs has shape"),
    ({"reward": Z3, "ref": Z3, "probs": [1, 0, 0]}, ConfigError, "both given"),
    ({"reward": [[1, 2], [3]]}, ShapeError, "not a rectangular array.*mask"),
    ({"reward": Z3, "data": np.zeros(2)}, ShapeError, "data has shape"),
    ({"reward": Z3, "data": [-INF] * 3}, DomainError, "data allows no action"),
    ({"reward": Z3, "features": np.zeros((2, 4))}, ShapeError, "features has shape"),
    ({"reward": Z3, "features": [[NAN]]}, DomainError, r"features\[0, 0\] is nan"),
    ({"reward": np.zeros((10_001, 2))}, ResourceError, "pass features="),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD_BANDITS)
def test_bandit_refuses_and_says_why(given, error, message):
    with pytest.raises(error, match=message):
        bandit(**given)


@pytest.mark.torch
def test_a_torch_tensor_that_tracks_gradients_is_refused_and_its_detached_twin_accepted():
    import torch

    reward = torch.tensor([0.0, 1.0], requires_grad=True)
    with pytest.raises(TypeError, match="detach"):
        bandit(reward)
    assert float(bandit(reward.detach()).reward_table(0)[1]) == 1


def impure():
    calls = []

    def reward(features, response, mask):
        calls.append(1)
        return jnp.asarray(float(len(calls)))

    return reward


Z = np.zeros((2, 3, 4))
REFUSED = [
    (lambda: sequences(Z3), ShapeError, "reward has shape"),
    (lambda: sequences(Z, end=4), ConfigError, "end is 4; it must be one of the 4 tokens"),
    (lambda: sequences(Z, end=-1), ConfigError, "end is -1"),
    (lambda: sequences(np.zeros((1, 2, 1)), end=0), ConfigError, "only token"),
    (lambda: sequences(Z, bonus=[0.0]), ShapeError, "bonus has shape"),
    (lambda: sequences(Z, bonus=[0.0, NAN]), DomainError, r"bonus\[1\] is nan"),
    (lambda: sequences(Z, reward_fn=impure()), ConfigError, "returned 1.0, then 2.0.*pure"),
    (lambda: sequences(Z, reward_fn=lambda x, y, m: y * 1.0), ConfigError, "one number per response"),
    (lambda: sequences(Z, reward_fn=lambda x, y, m: x[99, 99]), ConfigError, "fails on"),
    (lambda: paper_bandit("R3"), ConfigError, "R3.*did you mean R"),
    (lambda: paper_bandit("R4", 2), ConfigError, "key is None"),
    (lambda: paper_bandit("R4", empirical=True), ConfigError, "key is None"),
    (lambda: paper_bandit("R4", 0), ConfigError, "contexts is 0"),
    (lambda: paper_sequences("R4"), ConfigError, "R6"),
    (lambda: paper_reference(0), ConfigError, "num_actions is 0"),
    (lambda: contextual_bandit(jax.random.key(0), 2, rule="sine"), ConfigError, "sign"),
    (lambda: length_problem("max"), ConfigError, "choose from min, mode, skew"),
    (lambda: length_problem("min", 1), ConfigError, "vocabulary is 1"),
    (lambda: length_problem("min", hazard=[0.5]), ShapeError, "hazard has shape"),
    (lambda: length_problem("min", hazard=np.ones(8)), DomainError, "hazard is 1.0"),
    (lambda: peaks(10, [1.0, 2.0], [1.0, 1.0, 1.0]), ShapeError, "places has shape"),
    (lambda: peaks(10, 1.0, 0.0), DomainError, "widths is 0"),
    (lambda: PROBLEMS["R4"].ref_table(1), DomainError, "context is 1; contexts run from 0 to 0"),
    (lambda: PROBLEMS["R4"].reward_table(-1), DomainError, "context is -1"),
    (lambda: PROBLEMS["R4"].reward(0, jnp.array([[100]])), DomainError, r"response\[0, 0\] is 100; .*0 to 99"),
    (lambda: PROBLEMS["R4"].ref_log_prob(0, jnp.array([[3], [-1]])), DomainError, r"response\[1, 0\] is -1"),
    (lambda: PROBLEMS["R4"].as_response([0.5]), TypeError, "token numbers"),
    (lambda: PROBLEMS["R4"].as_response([[1, 2]]), ShapeError, r"it must be \(any, 1\)"),
    (lambda: PROBLEMS["R4"].as_response([2**40]), DomainError, "1099511627776"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_other_wrong_input_is_refused_and_says_why(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_outside_responses_are_read_as_whole_numbers_and_padded_after_the_end():
    problem = length_problem("min", 3, 4)
    read = problem.as_response([[0.0, 2.0, 1.0, 0.0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(read, [[0, 2, 2, 2], [1, 1, 1, 1]])
    assert read.dtype == jnp.int32
    np.testing.assert_array_equal(PROBLEMS["R4"].as_response([3, 5]), [[3], [5]])
