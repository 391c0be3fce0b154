"""Reward models: what a learner optimises when the true reward is known only through preferences."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from bandit_pft.groups import Group
from bandit_pft.methods import Proxy


def fit_proxy(kind: Proxy, groups: Group, num_tokens: int, key: Key[Array, ""], steps: int = 500) -> Float[Array, " V"]:
    """A Bradley-Terry reward per token, fitted to the pairs of a prepared batch by maximum likelihood.

    "table" has one free number per token (0 for tokens never seen); "network" is a two-layer network of the token's
    place on the line, so that it generalises to unseen neighbours. A response's reward is the sum over its tokens.
    A small quadratic penalty keeps separable data finite.
    """
    place = jnp.linspace(-1, 1, num_tokens)
    if kind == "table":
        params: Any = jnp.zeros(num_tokens)
        reward = lambda p: p
    else:
        first, second, third = jax.random.split(key, 3)
        params = {
            "in": jax.random.normal(first, (2, 64)) * jnp.asarray([[4.0], [2.0]]),
            "mid": jax.random.normal(second, (64, 64)) / 8,
            "out": jax.random.normal(third, (64,)) / 8,
        }

        def reward(p: Any) -> Array:
            hidden = jnp.tanh(jnp.stack([place, jnp.ones_like(place)], -1) @ p["in"])
            return jnp.tanh(hidden @ p["mid"]) @ p["out"]

    def loss(p: Any) -> Array:
        table = reward(p)

        def one(group: Group) -> Array:
            value = group.total(table[group.response])
            return -group.pair_mean(jax.nn.log_sigmoid(value[:, None] - value[None, :]))

        return jax.vmap(one)(groups).sum() + 1e-4 * (table**2).mean()

    adam = optax.adam(0.05 if kind == "table" else 0.005)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        p, state = carry
        update, state = adam.update(jax.grad(loss)(p), state)
        return (optax.apply_updates(p, update), state), None

    (params, _), _ = jax.lax.scan(step, (params, adam.init(params)), None, length=steps)
    table = reward(params)
    return table - table.mean()
