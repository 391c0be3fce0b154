"""What holds for any numbers: hypothesis looks for the ones for which it does not.

3,000 examples with fixed seeds on every push; HYPOTHESIS_PROFILE=nightly looks at 100,000 new ones.
"""

import itertools
import math

import jax
import numpy as np
import pytest
from conftest import EXAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import log_softmax, rel_entr, softmax

from bandit_pft import metrics
from bandit_pft.groups import Group, best_of_n_weights
from bandit_pft.kernels import sample_from_uniform
from bandit_pft.objectives import OBJECTIVES, force
from bandit_pft.problems import bandit

SIZES = (2, 3, 17)  # A fixed list, so that nothing is compiled twice.
EPS = float(np.finfo(np.float32).eps)
SAMPLED = sorted(
    name
    for name, made in OBJECTIVES.items()
    if made.family != "distribution" and made.function.__module__.startswith("bandit_pft.")
)
N, T = 4, 2


def examples(share):
    """This test's part of all examples."""
    return settings(max_examples=math.ceil(EXAMPLES * share))


def floats(size, low=-1e4, high=1e4):
    """Float32 numbers, subnormal ones left out: the processor rounds them to 0."""
    elements = st.floats(low, high, width=32, allow_subnormal=False)
    return arrays.arrays(np.float32, size, elements=elements)


def rows(number, low=-1e4, high=1e4):
    """Some rows of one size."""
    return st.sampled_from(SIZES).flatmap(lambda k: st.tuples(*[floats(k, low, high)] * number))


def float64(x):
    return np.asarray(x, np.float64)


# --- policies --------------------------------------------------------------------------------------------------------
@jax.jit
def optimum(ref, reward, beta):
    return bandit(reward, ref).optimum(beta)[0]


@examples(0.15)
@given(rows(2), st.floats(1e-6, 1e6), st.floats(-1e4, 1e4, allow_subnormal=False))
def test_the_optimum_is_the_softmax_of_float64_at_any_temperature_and_no_shift_moves_it(given, beta, shift):
    ref, reward = given
    found = float64(optimum(ref, reward, np.float32(beta)))
    beta = float64(np.float32(beta))
    scale = np.ptp(ref) + np.ptp(reward) / beta + 1
    wanted = log_softmax(float64(ref) + float64(reward) / beta)
    assert np.exp(found).sum() == pytest.approx(1, abs=8 * EPS)
    # Far below the largest, float32 keeps its relative precision in the logarithm.
    assert np.abs(found - wanted).max() <= 64 * EPS * scale
    moved = float64(optimum(ref + np.float32(shift), reward, np.float32(beta)))
    assert np.abs(moved - found).max() <= 64 * EPS * (scale + abs(shift) + np.abs(ref).max())


@jax.jit
def distances(p, q):
    p, q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
    return p, q, metrics.kl(p, q), metrics.entropy(p), metrics.kl(p, p)


@examples(0.15)
@given(rows(2))
def test_kl_and_entropy_are_those_of_float64_whatever_the_logits(given):
    logp, logq, kl, entropy, zero = map(float64, distances(*given))
    scale = 1 + np.abs(logq).max()
    p, q = np.exp(logp), np.exp(logq)
    exact = (p * (logp - logq)).sum()
    if (q > 0).all():
        assert exact == pytest.approx(rel_entr(p, q).sum() + 0, abs=64 * EPS * scale)
    assert kl == pytest.approx(exact, abs=16 * EPS * scale) and kl >= -16 * EPS * scale and zero == 0
    assert -16 * EPS * scale <= entropy <= math.log(len(p)) + 16 * EPS * scale


# --- drawing ---------------------------------------------------------------------------------------------------------
draw = jax.jit(sample_from_uniform)


@examples(0.15)
@given(rows(1, -60, 60), floats(5, 0, 1 - 2**-20), st.integers(0, 2**17 - 1))
def test_a_draw_is_the_quantile_of_float64_and_never_a_forbidden_action(given, uniform, forbidden):
    (logits,) = given
    masked = (forbidden >> np.arange(len(logits))) % 2 == 1
    masked[np.argmax(logits)] = False
    logp = np.where(masked, -np.inf, logits).astype(np.float32)
    action = np.asarray(draw(uniform[None], logp))
    assert not masked[action].any()
    above = softmax(float64(logp)).cumsum()
    below = np.concatenate([[0], above[:-1]])
    slack = len(logits) * EPS
    assert (below[action] <= uniform + slack).all() and (uniform <= above[action] + slack).all()


# --- Best-of-N -------------------------------------------------------------------------------------------------------
best = jax.jit(best_of_n_weights)


@examples(0.15)
@given(floats(3, -5, 5), st.lists(st.integers(0, 2), min_size=3, max_size=3), st.integers(1, 5))
def test_the_best_of_n_is_that_of_all_draws_ties_shared_in_proportion(logits, score, n):
    weight, score = softmax(float64(logits)), np.asarray(score, np.float64)
    wanted = np.zeros(3)
    for drawn in itertools.product(range(3), repeat=n):
        drawn = np.asarray(drawn)
        top = drawn[score[drawn] == score[drawn].max()]
        np.add.at(wanted, top, weight[drawn].prod() / len(top))
    found = float64(best(weight.astype(np.float32), score.astype(np.float32), np.float32(n)))
    assert np.abs(found - wanted).max() <= 64 * EPS


# --- objectives ------------------------------------------------------------------------------------------------------
def example_of(reward, gap):
    """Rewards, and log-probabilities of the tokens under the learner, the reference and the old policy."""
    return reward, *(-np.abs(x.reshape(N, T)) for x in gap)


@jax.jit
def forces(example, mask):
    """Of every objective."""
    reward, logp, ref_logp, old_logp = example
    group = Group.of(reward=reward, ref_logp=ref_logp, old_logp=old_logp, mask=mask)
    return {name: force(name, logp, group) for name in SAMPLED}


@examples(0.2)
@given(floats(N, -1e3, 1e3), st.tuples(*[floats(N * T, -1e4, 1e4)] * 3))
def test_no_numbers_make_a_force_nan_or_infinite(reward, gap):
    for name, pull in forces(example_of(reward, gap), np.ones((N, T), bool)).items():
        assert np.isfinite(pull).all(), name


@examples(0.2)
@given(floats(N, -3, 3), st.tuples(*[floats(N * T, -3, 3)] * 3), st.permutations(range(N)))
def test_forces_follow_their_responses_into_any_order_and_ignore_padding(reward, gap, order):
    example, order = example_of(reward, gap), np.asarray(order)
    moved = forces(tuple(x[order] for x in example), np.ones((N, T), bool))
    # Two rows of rubbish that are no responses.
    longer = tuple(np.concatenate([x, np.full_like(x[:2], 9.0)]) for x in example)
    padded = forces(longer, np.concatenate([np.ones((N, T), bool), np.zeros((2, T), bool)]))
    for name, pull in forces(example, np.ones((N, T), bool)).items():
        pull = np.asarray(pull)
        # The largest number that a force is made of; some loss divides by the spread of the rewards.
        scale = 1 + np.abs(pull).max() + np.abs(reward).max() / max(np.ptp(reward), 1e-3)
        np.testing.assert_allclose(moved[name], pull[order], rtol=0, atol=512 * EPS * scale, err_msg=name)
        np.testing.assert_allclose(padded[name][:N], pull, rtol=0, atol=512 * EPS * scale, err_msg=name)
        assert (np.asarray(padded[name][N:]) == 0).all(), name
