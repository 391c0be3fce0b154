"""Learners that have a table of all actions: how a force reaches their parameters, and how they draw."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bandit_pft.engine.sources import Reader, Source, per_context, policy_table, rows
from bandit_pft.engine.state import Drawn, Learner, Plan, Pull, View
from bandit_pft.kernels import levels, logsumexp, on_cpu, sample_from_mass, total, uniform_at
from bandit_pft.methods import Method, batch_sizes
from bandit_pft.policies import softmax_table
from bandit_pft.problems import Problem, log_softmax

BALANCED = 2.0**-18  # Forces whose sum is below this fraction of their sizes' sum cancel, up to their rounding.
LONG = 2048  # Actions from which on a pass for the maximum costs more than the kernels that spare it.


def softmax(problem: Problem, method: Method, plan: Plan, read: Reader, reference: Source, data: Source) -> Learner:
    """A table = reference + lead, normalised here: its gradient has a closed form."""
    lead: Any = method.policy.lead
    ref = log_softmax(problem.ref_logits[:, 0])
    prompts, minibatch = batch_sizes(problem, method)
    remembers = plan.few or (problem.num_responses >= LONG and minibatch == prompts == problem.num_contexts)
    near = jnp.zeros(problem.num_contexts) if remembers and on_cpu() else None
    leads = lambda params, contexts: per_context(lambda c: lead(params, problem, c), contexts, problem)
    logits = lambda params, contexts: rows(ref, contexts) + leads(params, contexts)

    def table_of(params: PyTree, contexts: Array, norm: Array) -> Float[Array, "M A"]:
        return softmax_table(rows(ref, contexts), leads(params, contexts), norm, masked=plan.forbids)

    def table(params: PyTree, contexts: Array) -> Float[Array, "M A"]:
        return table_of(params, contexts, logsumexp(logits(params, contexts)))

    def look(params: PyTree, near: Any, contexts: Array) -> tuple[View, Any]:
        back = lambda slope: jax.vjp(lambda p: leads(p, contexts), params)[1](slope)[0]
        if near is None:
            found = table(params, contexts)
            return View(params, contexts, found, jnp.exp(found), back), None
        norm, mass = normalised(lambda p: logits(p, contexts), params, near)
        return View(params, contexts, table_of(params, contexts, norm), mass, back), norm

    def reading(view: View, response: Any) -> tuple[Array, Pull]:
        logp, spread = jax.vjp(lambda table: read(table, response), view.table)

        def pull(slope: Array) -> PyTree:
            # d loss / d logits = slope - pi sum(slope). A sum that is rounding alone would move what nobody drew, and
            # an optimiser such as Adam makes a full step of any number but 0.
            sums, sizes = total(slope[..., 0]), total(jnp.abs(slope[..., 0]))
            sums = jnp.where(jnp.abs(sums) <= BALANCED * sizes, 0, sums)
            return view.back(spread(slope)[0] - view.mass * sums[:, None])

        return logp, pull

    return Learner(near, look, reading, *table_draws(problem, method, plan, read, data), table, reference, data)


def normalised(logits: Callable[[PyTree], Array], params: PyTree, near: Array) -> tuple[Array, Array]:
    """Logarithms of the normalisers and the probabilities, found near the last normalisers without a maximum."""

    def attempt(params: PyTree, near: Array) -> tuple[Array, Array, Array, Array]:
        mass = jnp.exp(logits(params) - near[:, None])
        found = jnp.log(total(mass))
        # Further away, exponentials overflow or what is summed has lost its digits.
        return near, mass, found, jnp.abs(found) < 40

    def again(state: tuple[Array, ...]) -> tuple[Array, ...]:
        # Depends on the state, or XLA would do this at every step, ahead of the loop.
        here, safe = jax.lax.optimization_barrier((params, state[3]))
        new = attempt(here, logsumexp(logits(here)))
        keep = lambda old, new: jnp.where(safe.reshape(safe.shape + (1,) * (new.ndim - safe.ndim)), old, new)
        # After a second attempt, nothing is left to try.
        return *map(keep, state[:3], new[:3]), jnp.ones_like(safe)

    state = jax.lax.while_loop(lambda state: ~state[3].all(), again, attempt(params, near))
    near, mass, found, _ = state
    return near + found, mass * jnp.exp(-found)[:, None]


def listed(problem: Problem, method: Method, plan: Plan, read: Reader, reference: Source, data: Source) -> Learner:
    """Any policy that has a table of all actions: its gradient is JAX's."""
    table = partial(policy_table, problem, method.policy)

    def look(params: PyTree, near: Any, contexts: Array) -> tuple[View, Any]:
        found, back = jax.vjp(lambda p: table(p, contexts), params)
        return View(params, contexts, found, jnp.exp(found), lambda slope: back(slope)[0]), near

    def reading(view: View, response: Any) -> tuple[Array, Pull]:
        logp, spread = jax.vjp(lambda table: read(table, response), view.table)
        return logp, lambda slope: view.back(spread(slope)[0])

    return Learner(None, look, reading, *table_draws(problem, method, plan, read, data), table, reference, data)


def table_draws(
    problem: Problem, method: Method, plan: Plan, read: Reader, data: Source
) -> tuple[Callable[..., Any], Callable[..., Drawn], Callable[..., tuple[Array, Array, Array]]]:
    """How actions are drawn from a table: `random`, `draw` and `lay` of a `Learner`."""
    prompts, _ = batch_sizes(problem, method)
    shape = prompts, levels(problem.num_responses), method.num_responses
    weight = 1 / method.num_responses
    mix = mixed(method, plan, data)

    def draw(view: View, uniform: Array) -> Drawn:
        table, mass = mix(view)
        response = jax.vmap(sample_from_mass)(uniform, mass)[..., None]
        return Drawn(response, read(table, response), None, None)

    def lay(contexts: Array, drawn: Drawn) -> tuple[Array, Array, Array]:
        response = drawn.response
        return response, jnp.ones(response.shape, bool), jnp.full(response.shape[:2], weight)

    return lambda key, step: uniform_at(key, jnp.asarray(step), shape), draw, lay


def mixed(method: Method, plan: Plan, data: Source) -> Callable[[View], tuple[Array, Array]]:
    """view -> (log-probabilities, probabilities) of the policy that responses come from."""
    if plan.regime == "own":
        return lambda view: (view.table, view.mass)

    def mix(view: View) -> tuple[Array, Array]:
        table = data.table(view.contexts)
        if plan.regime == "mixture":
            table = mixture(view.table, table, method.on_policy)
        return table, jnp.exp(table)

    return mix


def mixture(own: Array, data: Array, fraction: Any) -> Array:
    """log(fraction * e^own + (1 - fraction) * e^data), exact at fractions 0 and 1."""
    both = jnp.logaddexp(own + jnp.log(fraction), data + jnp.log1p(-fraction))
    return jnp.where(fraction >= 1, own, jnp.where(fraction <= 0, data, both))
