"""Learners: what a policy sees of itself, how a force reaches its parameters, and how it draws.

A `Learner` is chosen once for a run, by `choose`. What only some policies, problems or data need lives inside the maker
that needs it; the loop asks no questions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from bandit_pft.engine.sources import (
    Reader,
    Source,
    at_all,
    at_chosen,
    bandit_source,
    per_context,
    policy_source,
    rows,
    sequence_source,
)
from bandit_pft.engine.state import Drawn, Known, Plan
from bandit_pft.kernels import levels, logsumexp, on_cpu, sample_from_mass, total, uniform_at
from bandit_pft.methods import Method, batch_sizes
from bandit_pft.policies import softmax_table
from bandit_pft.problems import Problem, log_softmax

BALANCED = 2.0**-18  # Forces whose sum is below this fraction of their sizes' sum cancel, up to their rounding.
LONG = 2048  # Actions from which on a pass for the maximum costs more than the kernels that spare it.

Pull = Callable[[Array], PyTree]


class View(NamedTuple):
    """What a learner sees of itself in some contexts; where it has no table, its parameters alone.

    Attributes:
        table: log-probabilities [nats] of all responses. mass: their probabilities.
        back: a slope in the table -> the gradient in the parameters.
    """

    params: PyTree
    contexts: Int[Array, " M"]
    table: Any = None
    mass: Any = None
    back: Any = None


class Learner(NamedTuple):
    """How one policy learns on one problem, in many contexts at once.

    Attributes:
        near: what is kept from one look to the next, at first; None for most.
        look: (params, near, contexts [M]) -> (view, near).
        read: (view, response [M, N, T]) -> (logp [M, N, T], pull), and pull takes a slope there to the parameters.
        random: (key, step) -> what the collection of this step is drawn with.
        draw: (view, random) -> a collection of N responses, or of all, to each of the view's contexts.
        lay: (contexts, drawn) -> responses [M, N, T], their mask and their weights [M, N].
        table: (params, contexts) -> [M, A], or None where responses cannot be enumerated.
        reference, data: what it is held to, and where offline responses come from.
    """

    near: Any
    look: Callable[[PyTree, Any, Int[Array, " M"]], tuple[View, Any]]
    read: Callable[[View, Any], tuple[Float[Array, "M N T"], Pull]]
    random: Callable[[Key[Array, ""], Any], Any]
    draw: Callable[[View, Any], Drawn]
    lay: Callable[[Int[Array, " M"], Drawn], tuple[Array, Array, Array]]
    table: Any
    reference: Source
    data: Source


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


# --- tables of all actions -------------------------------------------------------------------------------------------
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
    own: Any = method.policy.table

    def table(params: PyTree, contexts: Array) -> Float[Array, "M A"]:
        return per_context(lambda c: own(params, problem, c), contexts, problem)

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
        scores, responses = [], []
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
    own: Any = policy.table
    table = lambda params, contexts: per_context(lambda c: own(params, problem, c), contexts, problem)
    table = table if own is not None and problem.enumerable else None
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
