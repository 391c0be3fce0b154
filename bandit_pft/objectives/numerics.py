"""Shared pieces of the objectives, each finite for every finite input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bandit_pft.groups import Group
from bandit_pft.objectives.core import Hyper, safe_exp


def lead(x: Float[Array, " N"]) -> Float[Array, "N N"]:
    """x[winner] - x[loser]."""
    return x[:, None] - x[None, :]


@jax.custom_jvp
def log_sigmoid(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """log sigmoid(x). Its slope is sigmoid(-x) itself, so that a force alone takes no logarithm."""
    return jax.nn.log_sigmoid(x)


log_sigmoid.defjvps(lambda change, value, x: jax.nn.sigmoid(-x) * change)


def log1mexp(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """log(1 - exp(x)) of log-probabilities x; constant (force 0) above x = -1e-6, where the force is 1e6."""
    x = jnp.minimum(x, -1e-6)
    small = x > -0.6931472
    near = jnp.log(-jnp.expm1(jnp.where(small, x, -1.0)))
    far = jnp.log1p(-jnp.exp(jnp.where(small, -1.0, x)))
    return jnp.where(small, near, far)


def q_log(x: Float[Array, "*S"], power: Hyper) -> Float[Array, "*S"]:
    """(exp(power * x) - 1) / power, which is x at power = 0."""
    flat = jnp.abs(power) < 1e-6
    power = jnp.where(flat, 1.0, power)
    scaled = power * x
    # expm1 of a small number keeps the digits that exp - 1 loses.
    small = jnp.abs(scaled) < 1
    grown = jnp.where(small, jnp.expm1(jnp.where(small, scaled, 0)), safe_exp(scaled) - 1)
    return jnp.where(flat, x, grown / power)


def z_score(group: Group, epsilon: float = 1e-4) -> Float[Array, " N"]:
    """Group advantage over the group's standard deviation (n - 1 in the denominator) plus epsilon.

    Exactly 0 when the rewards differ by less than their rounding: an advantage made of rounding noise would be +-1.
    """
    deviation = group.standard_deviation()
    largest = jnp.where(group.real(), jnp.abs(group.reward), 0).max()
    noise = 8 * jnp.finfo(group.reward.dtype).eps * largest
    return jnp.where(deviation > noise, group.group_advantage() / (deviation + epsilon), 0)


def clipped_gain(
    log_ratio: Float[Array, "*#S"], advantage: Float[Array, "*#S"], low: Hyper, high: Hyper
) -> Float[Array, "*#S"]:
    """PPO's min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)."""
    ratio = safe_exp(log_ratio)
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - low, 1 + high) * advantage)


def others(group: Group) -> Float[Array, " N"]:
    """Distribution of a draw that is not the best: (count - best) / (n - 1), nothing for a single response."""
    rest = group.draws - 1
    return jnp.where(rest > 0, (group.count() - group.best()) / jnp.where(rest > 0, rest, 1), 0)


def frozen(x: Array) -> Array:
    """x without gradient."""
    return jax.lax.stop_gradient(x)
