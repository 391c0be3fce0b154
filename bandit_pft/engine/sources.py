"""Fixed policies: the reference that a learner is held to, and the one that offline data come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from bandit_pft.policies import Policy
from bandit_pft.problems import Problem, log_softmax

Reader = Callable[[Float[Array, "M A"], Int[Array, "M N T"]], Float[Array, "M N T"]]


class Source(NamedTuple):
    """A policy that does not learn, for many contexts at once.

    Attributes:
        table: contexts [M] -> [M, A] log-probabilities in nats; None where responses cannot be enumerated.
        log_prob: (contexts [M], response [M, N, T]) -> [M, N, T], in nats.
        sample: (one context, key, n) -> [n, T].
    """

    table: Any
    log_prob: Callable[[Array, Int[Array, "M N T"]], Float[Array, "M N T"]]
    sample: Callable[[Any, Key[Array, ""], int], Int[Array, "n T"]]


def at_chosen(table: Float[Array, "M A"], response: Int[Array, "M N T"]) -> Float[Array, "M N T"]:
    """What the table says of the responses that were drawn, each of one token."""
    return jnp.take_along_axis(table, response[..., 0], -1)[..., None]


def at_all(table: Float[Array, "M A"], response: Int[Array, "M N T"]) -> Float[Array, "M N T"]:
    """What the table says of all responses, each of one token, in their order."""
    return table[..., None]


def rows(table: Float[Array, "S A"], contexts: Int[Array, " M"]) -> Float[Array, "M A"]:
    """The rows of these contexts; as many as there are stand in order, and need no copy."""
    return table if contexts.shape[0] == table.shape[0] else table[contexts]


def per_context(f: Callable[[Any], Array], contexts: Int[Array, " M"], problem: Problem) -> Array:
    """f of each context. A lone one is a static index, which spares the copy that a gather would make."""
    return f(0)[None] if problem.num_contexts == 1 else jax.vmap(f)(contexts)


def policy_table(problem: Problem, policy: Policy, params: PyTree, contexts: Int[Array, " M"]) -> Float[Array, "M A"]:
    """Log-probabilities [nats] of all responses under a policy that lists them."""
    table: Any = policy.table
    return per_context(lambda context: table(params, problem, context), contexts, problem)


def bandit_source(problem: Problem, logits: Float[Array, "S T V"], read: Reader) -> Source:
    """The actions of a bandit, normalised once."""
    everywhere = log_softmax(logits[:, 0])
    table = lambda contexts: rows(everywhere, contexts)
    sample = lambda context, key, n: problem.sample(problem.at(logits, context), key, n)
    return Source(table, lambda contexts, response: read(table(contexts), response), sample)


def sequence_source(problem: Problem, logits: Float[Array, "S T V"]) -> Source:
    """Independent tokens with these logits."""
    own = lambda context: problem.at(logits, context)
    table = lambda contexts: per_context(lambda c: problem.table(own(c)), contexts, problem)
    return Source(
        table if problem.enumerable else None,
        jax.vmap(lambda context, response: problem.log_prob(own(context), response)),
        lambda context, key, n: problem.sample(own(context), key, n),
    )


def policy_source(problem: Problem, policy: Policy, params: PyTree, read: Reader) -> Source:
    """A policy with these parameters, such as the learner before its first step."""
    log_prob = jax.vmap(lambda context, response: policy.log_prob(params, problem, context, response))
    sample = lambda context, key, n: policy.sample(params, problem, context, key, n)
    if policy.table is None or not problem.enumerable:
        return Source(None, log_prob, sample)
    listed = lambda contexts: policy_table(problem, policy, params, contexts)
    if problem.length > 1:
        return Source(listed, log_prob, sample)
    return Source(listed, lambda contexts, response: read(listed(contexts), response), sample)
