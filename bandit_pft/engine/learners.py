"""Learners: what a policy sees of itself, how a force reaches its parameters, and how it draws.

A `Learner` is chosen once for a run, by `choose`. What only some policies, problems or data need lives inside the maker
that needs it; the loop asks no questions.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from bandit_pft.engine.sources import (
    Source,
    at_all,
    at_chosen,
    bandit_source,
    policy_source,
    policy_table,
    sequence_source,
)
from bandit_pft.engine.state import Drawn, Known, Learner, Plan, Pull, View
from bandit_pft.engine.tables import listed, mixed, softmax
from bandit_pft.methods import Method, batch_sizes
from bandit_pft.problems import Problem


def choose(problem: Problem, method: Method, plan: Plan, known: Known) -> Learner:
    """The learner of a run: how its policy looks at itself, and how its responses are drawn or enumerated."""
    policy, exact = method.policy, method.data == "exact"
    read = at_all if exact else at_chosen
    if method.reference == "initial":
        reference = data = policy_source(problem, policy, known.params, read)
    elif problem.length == 1:
        reference, data = (bandit_source(problem, x, read) for x in (problem.ref_logits, problem.data_logits))
    else:
        reference, data = (sequence_source(problem, x) for x in (problem.ref_logits, problem.data_logits))
    listable = problem.enumerable and policy.table is not None
    if problem.length > 1 or not listable:
        learner = sequences(problem, method, plan, reference, data)
    elif policy.lead is not None:
        learner = softmax(problem, method, plan, read, reference, data)
    else:
        learner = listed(problem, method, plan, read, reference, data)
    return enumerated(learner, problem, method, plan) if exact else learner


# --- sequences -------------------------------------------------------------------------------------------------------
def sequences(problem: Problem, method: Method, plan: Plan, reference: Source, data: Source) -> Learner:
    """A policy that scores and samples responses of several tokens."""
    policy, n = method.policy, method.num_responses
    prompts, _ = batch_sizes(problem, method)

    def log_prob(params: PyTree, contexts: Array, response: Array) -> Float[Array, "M N T"]:
        return jax.vmap(lambda c, r: policy.log_prob(params, problem, c, r))(contexts, response)

    def read(view: View, response: Array) -> tuple[Array, Pull]:
        logp, back = jax.vjp(lambda params: log_prob(params, view.contexts, response), view.params)
        return logp, lambda slope: back(slope)[0]

    def words(key: Key[Array, ""], step: Any) -> Array:
        # Not as keys: a checkpoint holds plain numbers.
        return jax.random.key_data(jax.random.split(jax.random.fold_in(key, step), prompts))

    def draw(view: View, words: Array) -> Drawn:
        keys = jax.random.wrap_key_data(words, impl="threefry2x32")
        own_key, data_key, mix_key = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
        responses = []
        if plan.regime != "data":
            sample = lambda context, key: policy.sample(view.params, problem, context, key, n)
            responses.append(jax.vmap(sample)(view.contexts, own_key))
        if plan.regime != "own":
            responses.append(jax.vmap(lambda context, key: data.sample(context, key, n))(view.contexts, data_key))
        if plan.regime == "mixture":
            mine = jax.vmap(lambda key: jax.random.uniform(key, (n, 1)))(mix_key) < method.on_policy
            response = jnp.where(mine, *responses)
            scores = [log_prob(view.params, view.contexts, response), data.log_prob(view.contexts, response)]
            return Drawn(response, jnp.where(mine, *scores), None, None)
        response = responses[0]
        of = (lambda c, r: log_prob(view.params, c, r)) if plan.regime == "own" else data.log_prob
        return Drawn(response, of(view.contexts, response), None, None)

    def lay(contexts: Array, drawn: Drawn) -> tuple[Array, Array, Array]:
        mask = problem.mask_of(drawn.response)
        return drawn.response, mask, jnp.full(mask.shape[:2], 1 / n)

    look = lambda params, near, contexts: (View(params, contexts), near)
    table = partial(policy_table, problem, policy) if policy.table is not None and problem.enumerable else None
    return Learner(None, look, read, words, draw, lay, table, reference, data)


# --- all responses ---------------------------------------------------------------------------------------------------
def enumerated(learner: Learner, problem: Problem, method: Method, plan: Plan) -> Learner:
    """The same learner with every response in its batch, weighted by its probability, instead of some drawn."""
    mix = mixed(method, plan, learner.data)
    single = problem.length == 1
    masked = plan.forbids or method.policy.lead is None
    # As operations: a million constants would take long to compile.
    everything = jnp.arange(problem.num_responses, dtype=jnp.int32)[:, None]
    response, mask = (everything, jnp.ones(everything.shape, bool)) if single else map(jnp.asarray, problem.responses())
    of_each = lambda contexts, x: jnp.broadcast_to(x, (*contexts.shape, *x.shape))

    def possible(contexts: Array, table: Array) -> Bool[Array, "M A"]:
        # nan is possible, or a diverged run would look like an empty one.
        return ~(jnp.isneginf(table) | jnp.isneginf(learner.reference.table(contexts)))

    def draw(view: View, random: None) -> Drawn:
        if view.table is None:
            table = learner.table(view.params, view.contexts)
            view = view._replace(table=table, mass=jnp.exp(table))
        table, weight = mix(view)
        if masked:
            weight = jnp.where(possible(view.contexts, table), weight, 0)
        return Drawn(None, table[..., None] if single else in_tokens(view, table), weight, None)

    def in_tokens(view: View, table: Array) -> Float[Array, "M A T"]:
        # A mixture of two policies over whole responses has no tokens of its own: the learner's stand in, and what the
        # total differs by is at the first token.
        responses = of_each(view.contexts, response)
        offline = plan.regime == "data"
        own = learner.data.log_prob(view.contexts, responses) if offline else learner.read(view, responses)[0]
        tokens = jnp.where(mask, own, 0)
        missing = table - tokens.sum(-1)
        return tokens.at[..., 0].add(jnp.where(jnp.isfinite(missing), missing, 0))

    def lay(contexts: Array, drawn: Drawn) -> tuple[Array, Array, Array]:
        exists = of_each(contexts, mask)
        if masked:
            exists &= possible(contexts, jnp.where(mask, drawn.old, 0).sum(-1))[..., None]
        return of_each(contexts, response), exists, drawn.weight

    return learner._replace(random=lambda key, step: None, draw=draw, lay=lay)
