"""Divergences and masses against float64, and at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from bandit_pft import metrics


def pair(seed: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    logits = scale * np.random.default_rng(seed).standard_normal((2, 50))
    logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return logp[0], logp[1]


def test_kl_and_entropy_are_scipys():
    p, q = pair(0)
    assert np.isclose(metrics.kl(jnp.asarray(p), jnp.asarray(q)), stats.entropy(np.exp(p), np.exp(q)), atol=1e-6)
    assert np.isclose(metrics.entropy(jnp.asarray(p)), stats.entropy(np.exp(p)), atol=1e-6)


def test_kl_of_a_policy_from_itself_is_zero_with_zero_gradient():
    p, _ = pair(1)
    loss = lambda theta: metrics.kl(jax.nn.log_softmax(theta), jnp.asarray(p, jnp.float32))
    value, slope = jax.value_and_grad(loss)(jnp.asarray(p, jnp.float32))
    assert abs(value) < 1e-6 and np.abs(slope).max() < 1e-6


def test_probabilities_of_1e_minus_30_count_with_their_logarithm():
    p = jnp.log(jnp.asarray([0.5, 0.5]))
    q = jnp.asarray([0.0, -30 * np.log(10)], jnp.float32)
    assert np.isclose(metrics.kl(p, q), np.log(0.5) + 0.5 * 30 * np.log(10), rtol=1e-6)


def test_a_forbidden_action_adds_nothing_and_an_impossible_reference_gives_infinity():
    p = jnp.asarray([0.0, -jnp.inf])
    assert metrics.kl(p, p) == 0 and metrics.entropy(p) == 0 and metrics.expected_reward(p, jnp.asarray([2.0, 9])) == 2
    assert metrics.kl(jnp.log(jnp.asarray([0.5, 0.5])), p) == jnp.inf


def test_mass_near_the_peak_counts_the_upper_half_of_the_rewards():
    reward = jnp.asarray([-4.0, -1.9, -2.0, 0.0])
    np.testing.assert_array_equal(metrics.near_peak(reward), [False, True, True, True])
    assert np.isclose(metrics.mass(jnp.log(jnp.full(4, 0.25)), metrics.near_peak(reward)), 0.75)
