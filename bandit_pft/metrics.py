"""Exact numbers about a categorical policy, from log-probabilities over all its responses (last axis).

Everything stays in log space, so that probabilities of 1e-30 and below count with what they are. A response that is
forbidden (-inf) under both policies contributes 0; one that the learner can give and the reference cannot makes the
divergence +inf.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bandit_pft.kernels import total


def _weighted(logp: Array, x: Array) -> Array:
    return total(jnp.exp(logp) * jnp.where(jnp.isneginf(logp), 0, x))


def expected_reward(logp: Float[Array, "*S A"], reward: Float[Array, "*S A"]) -> Float[Array, "*S"]:
    """sum pi r, in the reward's own unit."""
    return _weighted(logp, reward)


def kl(logp: Float[Array, "*S A"], logq: Float[Array, "*S A"]) -> Float[Array, "*S"]:
    """KL(p || q) = sum p (log p - log q), in nats."""
    return _weighted(logp, logp - logq)


def entropy(logp: Float[Array, "*S A"]) -> Float[Array, "*S"]:
    """-sum p log p, in nats."""
    return _weighted(logp, -logp)


def mass(logp: Float[Array, "*S A"], region: Bool[Array, "*S A"]) -> Float[Array, "*S"]:
    """Probability of a set of responses."""
    return total(jnp.where(region, jnp.exp(logp), 0))


def near_peak(reward: Float[Array, "*S A"]) -> Bool[Array, "*S A"]:
    """The responses at least half-way from the worst reward to the best."""
    low, high = reward.min(-1, keepdims=True), reward.max(-1, keepdims=True)
    return reward >= (low + high) / 2


UNITS = {
    "expected_reward": "reward",
    "kl": "nats",
    "kl_reverse": "nats",
    "entropy": "nats",
    "mass_near_peak": "probability",
    "reward_queries": "rewards asked for",
    "loss": "loss",
    "log_prob": "nats",
    "top_action": "action",
    "top_log_prob": "nats",
    "tail_log_prob": "nats",
}
