"""What a run records: functions of the learner's state, evaluated inside the compiled loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bandit_pft import metrics
from bandit_pft.errors import ConfigError, check_integer, nearest
from bandit_pft.kernels import logsumexp
from bandit_pft.problems import Problem

SAMPLES = 32  # Draws per context where responses cannot be enumerated.


class State:
    """What a probe may look at: the learner before a step, and the batch it is about to learn from.

    The batch, its force and its loss are computed where they are asked for: what a probe leaves alone costs nothing.

    Attributes:
        step: gradient steps taken so far.
        params: of the policy.
        log_probs: [S, A], nats; None where responses cannot be enumerated.
        ref_log_probs: [S, A], of the reference that the learner is held to; None likewise.
        rewards: [S, A], the true ones; None likewise.
        groups: the minibatch, leaves [M, ...]; `baseline` and `scale` are 0 and 1 where the objective does not read
            them. force, logp: [M, N, T]. loss: its loss.
        key: for probes that sample.
        policy, ref_params: the policy, and the parameters of the reference where `reference="initial"`.
    """

    def __init__(self, **values: Any) -> None:
        """Values, or functions of nothing that compute them: not kept, since a branch may not use another's."""
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"a probe's state has no {name!r}: {nearest(name, self.__dict__.get('_values', ()))}")
        value = self._values[name]
        return value() if isinstance(value, partial) else value

    def replace(self, **values: Any) -> State:
        """The same state with other values."""
        return State(**{**self._values, **values})


Probe = Callable[[Problem, State], Mapping[str, Array]]


def standard_probe(problem: Problem, state: State) -> dict[str, Array]:
    """Expected reward, KL to the reference both ways [nats], entropy [nats] and mass near the peak: context means.

    Exact where responses can be enumerated, otherwise means over `SAMPLES` draws per context. Mass near the peak is
    then left out unless the reward is a sum over a fixed number of tokens, whose extremes are known.
    """
    if state.log_probs is None or state.ref_log_probs is None or state.rewards is None:
        return _sampled_metrics(problem, state)
    near = metrics.near_peak(state.rewards)
    values = {
        "expected_reward": metrics.expected_reward(state.log_probs, state.rewards),
        "kl": metrics.kl(state.log_probs, state.ref_log_probs),
        "kl_reverse": metrics.kl(state.ref_log_probs, state.log_probs),
        "entropy": metrics.entropy(state.log_probs),
        "mass_near_peak": metrics.mass(state.log_probs, near),
    }
    return {name: value.mean() for name, value in values.items()}


def distribution_probe(problem: Problem, state: State) -> dict[str, Array]:
    """The standard numbers, and the whole policy as `log_prob` [A], the mean over contexts of pi, in nats."""
    return {**standard_probe(problem, state), "log_prob": _mean_policy(state, "distribution_probe")}


def top_probe(k: int) -> Probe:
    """A probe that keeps the k likeliest actions instead of whole policies: 8 k bytes per recorded step.

    The standard numbers; `top_action` [k] and `top_log_prob` [k] of the mean over contexts of pi, in nats, from the
    likeliest on, of equal ones the lower action first; `tail_log_prob`, the logarithm of the mass of all others, also
    where that is 1e-30. The same k gives the same probe, so that it compiles once.

    Raises:
        TypeError, ConfigError: k is no whole number of at least 1; when it runs, k is above the number of responses.
    """
    check_integer("k", k, at_least=1)
    return _top_probe(int(k))


@cache
def _top_probe(k: int) -> Probe:
    def probe(problem: Problem, state: State) -> dict[str, Array]:
        log_prob = _mean_policy(state, name)
        if k > log_prob.size:
            raise ConfigError(f"{name}: the problem has {log_prob.size} responses: take k of at most that")
        top, action = jax.lax.top_k(log_prob, k)
        # One minus the mass of the top has lost a tail below 1e-7.
        tail = logsumexp(log_prob.at[action].set(-jnp.inf))
        return {
            **standard_probe(problem, state), "top_action": action, "top_log_prob": top, "tail_log_prob": tail,
        }  # fmt: skip

    # What a store and a message know a probe by.
    name = probe.__name__ = probe.__qualname__ = f"top_probe({k})"
    return probe


def _mean_policy(state: State, name: str) -> Float[Array, " A"]:
    """Logarithm of the mean over contexts of pi, in nats."""
    if state.log_probs is None:
        raise ConfigError(f"{name} needs responses that can be enumerated: use standard_probe")
    return jax.nn.logsumexp(state.log_probs, axis=0) - math.log(state.log_probs.shape[0])


def _sampled_metrics(problem: Problem, state: State) -> dict[str, Array]:
    additive = problem.reward_fn is None and problem.end is None

    def one(context: Array, key: Array) -> dict[str, Array]:
        ours, theirs = jax.random.split(key)
        own = state.policy.sample(state.params, problem, context, ours, SAMPLES)
        other = _sample_reference(state, problem, context, theirs)
        reward = problem.reward(context, own, problem.mask_of(own))
        own_gap, own_logp = _log_ratio(state, problem, context, own)
        other_gap, _ = _log_ratio(state, problem, context, other)
        values = {
            "expected_reward": reward.mean(),
            "kl": own_gap.mean(),
            "kl_reverse": -other_gap.mean(),
            "entropy": -own_logp.mean(),
        }
        if not additive:
            return values
        tokens = problem.at(problem.token_reward, context)
        half_way = (tokens.min(-1) + tokens.max(-1)).sum() / 2 + problem.at(problem.bonus, context)
        return {**values, "mass_near_peak": (reward >= half_way).mean()}

    contexts = jnp.arange(problem.num_contexts)
    each = jax.vmap(one)(contexts, jax.random.split(state.key, problem.num_contexts))
    return {name: value.mean() for name, value in each.items()}


def _sample_reference(state: State, problem: Problem, context: Array, key: Array) -> Array:
    if state.ref_params is None:
        return problem.sample_ref(context, key, SAMPLES)
    return state.policy.sample(state.ref_params, problem, context, key, SAMPLES)


def _log_ratio(state: State, problem: Problem, context: Array, response: Array) -> tuple[Array, Array]:
    mask = problem.mask_of(response)
    total = lambda x: jnp.where(mask, x, 0).sum(-1)
    logp = total(state.policy.log_prob(state.params, problem, context, response))
    if state.ref_params is None:
        return logp - total(problem.ref_log_prob(context, response)), logp
    return logp - total(state.policy.log_prob(state.ref_params, problem, context, response)), logp
