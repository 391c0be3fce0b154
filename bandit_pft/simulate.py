"""One learner on one problem: a single `lax.scan` over gradient steps.

Problem, method, what to record and result are separate values. Everything numeric in a method is traced, so that a
slider or an axis of a sweep does not recompile. Static are shapes, the objective, the policy, the optimiser, and the
`Plan`'s pattern: whether responses come from the learner, the data or both, and at every step, once or every so often.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from bandit_pft.errors import (
    ConfigError,
    NumericsError,
    ResourceError,
    check_choice,
    check_integer,
    check_key,
    check_memory,
    default_device,
    is_traced,
    naming,
    shown,
)
from bandit_pft.groups import ExactGroup, Group, prepare, weighted_mean
from bandit_pft.kernels import (
    SPARSE,
    Compiled,
    levels,
    logsumexp,
    mass_tree,
    on_cpu,
    replace_in_tree,
    sample_from_mass,
    sample_from_tree,
    total,
)
from bandit_pft.methods import SGD, Method, batch_sizes
from bandit_pft.objectives.core import batch_loss, reads_running
from bandit_pft.policies import softmax_table, tabular
from bandit_pft.probes import Probe, State, standard_probe
from bandit_pft.problems import Problem
from bandit_pft.proxy import fit_proxy

OnNonfinite = Literal["freeze", "raise", "keep"]

BALANCED = 2.0**-18  # Forces whose sum is below this fraction of their sizes' sum cancel, up to their rounding.
PREDRAW = 1 << 22  # Uniforms per run drawn before the loop, at most: one large hash beats many small ones.
PIECE = 1 << 10  # So many of them at a time: the words that they are hashed from then stay in the caches.


class Result(NamedTuple):
    """What `simulate` gives back.

    Attributes:
        record: the probe's values with a leading axis: before step 0, `every`, 2 `every`, ..., and after the last.
        params: final parameters.
        first_bad_step: the step at which the run turned non-finite, -1 for a healthy run.
    """

    record: PyTree
    params: PyTree
    first_bad_step: Array


def simulate(
    problem: Problem,
    method: Method,
    key: Key[Array, ""] | int,
    *,
    steps: int,
    probe: Probe = standard_probe,
    every: int = 1,
    on_nonfinite: OnNonfinite = "freeze",
) -> Result:
    """Run one method on one problem.

    Args:
        key: a JAX key, or a seed from 0 to 2^32 - 1.
        steps: gradient steps; must be a multiple of `every`.
        probe: decides what is recorded; see `State`. Make it once: it is compared by identity.
        every: record every so many steps.
        on_nonfinite: a run whose force is not finite, or whose loss is not where it is recorded, stays as it is
            ("freeze"), goes on ("keep"), or raises when it ends. Frozen and kept ones warn. Under jit and vmap nothing
            is told: look at `first_bad_step`.

    Returns:
        A `Result`; `record` holds steps / every + 1 rows.

    Raises:
        ConfigError, TypeError: an option that does not fit. DomainError: a value out of range.
        ResourceError: the run would not fit into memory (refused before it starts). NumericsError: as asked for.
    """
    check_run(problem, method, steps, every, on_nonfinite)
    if not isinstance(key, jax.Array):
        key = seed_key(key)
    check_key("key", key)
    check_probe(probe)
    arguments = problem, method, key, plan(problem, method, on_nonfinite)
    settings = {"steps": steps, "probe": probe, "every": every}
    guard(run_jit.eval_shape(*arguments, **settings), 1, problem, method)
    if is_traced(arguments):
        return run_jit(*arguments, **settings)
    guard_program(run_jit.trace(*arguments, **settings), 1, method.name)
    with explained(method.name):
        result = run_jit(*arguments, **settings)
        report(np.asarray([result.first_bad_step]), ["run"], [[method.name]], on_nonfinite)
    return result


def keep_programs() -> None:
    """Keep compiled programs in the user's cache folder, so that only the first start is slow.

    For programs and notebooks; the variable JAX_COMPILATION_CACHE_DIR says another folder, or with "" none.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "bandit_pft" / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def seed_key(seed: Any) -> Key[Array, ""]:
    """The key of a seed; the generator is named, so that a changed default does not change results."""
    return seed_keys([seed])[0]


def seed_keys(seeds: Sequence[Any]) -> Key[Array, " W"]:
    """The keys of seeds, without a compiled program for each."""
    for seed in seeds:
        check_seed(seed)
    words = np.asarray([(0, seed) for seed in seeds], np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")


def check_seed(seed: Any) -> None:
    """Refuse what is not a whole number of 32 bits."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed!r}; it must be a whole number from 0 to 4294967295")


def check_probe(probe: Any) -> None:
    """Refuse what cannot be called."""
    if not callable(probe):
        raise TypeError(f"probe is {shown(probe)}; it must be a function of (problem, state), such as standard_probe")


def check_run(problem: Problem, method: Method, steps: int, every: int, on_nonfinite: str = "freeze") -> None:
    """Refuse what does not fit together, before anything is compiled."""
    check_choice("on_nonfinite", on_nonfinite, get_args(OnNonfinite))
    if not isinstance(problem, Problem):
        raise TypeError(f"problem is {shown(problem)}; make one with bandit(...) or paper_bandit('R4')")
    if not isinstance(method, Method):
        raise TypeError(f"method is {shown(method)}; make one with Method('dpo')")
    check_integer("steps", steps, at_least=0)
    check_integer("every", every, at_least=1)
    if steps % every:
        raise ConfigError(f"steps is {steps}; it must be a multiple of every = {every}")
    if steps >= 2**30:
        raise ConfigError(f"steps is {steps}; it must be below {2**30}")
    prompts, minibatch = batch_sizes(problem, method)
    if prompts > problem.num_contexts:
        raise ConfigError(f"prompts is {prompts}, the problem has {problem.num_contexts} contexts: use at most those")
    if prompts % minibatch:
        raise ConfigError(f"minibatch is {minibatch}; it must divide prompts = {prompts}")
    if method.data == "exact" and not (problem.enumerable and method.policy.table is not None):
        raise ConfigError(
            f"data='exact' enumerates all responses, which {problem.name or 'this problem'} under policy "
            f"{method.policy.name} does not allow: use data='sampled'"
        )


def guard(result: Any, rows: int, problem: Problem, method: Method) -> None:
    """Refuse a run whose record or pairs exceed the memory that is free (see `check_memory`).

    Raises:
        ResourceError: with the bytes and what to change.
    """
    record = rows * sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(result))
    _, minibatch = batch_sizes(problem, method)
    responses = problem.num_responses if method.data == "exact" else method.num_responses
    pairs = 3 * 4 * minibatch * responses**2 if method.objective.family == "preference" else 0
    lighter = "record less often (every=...), use fewer seeds, or a probe that keeps less, such as top_probe(10)"
    check_memory("the record", record, lighter)
    table = f"{method.name}: the table of all pairs of {responses} responses"
    check_memory(table, pairs, "use data='sampled' with fewer num_responses", default_device())


_needs: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def guard_program(traced: Any, at_once: int, name: str) -> None:
    """Compile a program, and refuse one that needs more memory than its device has, by the compiler's own figures.

    Args:
        traced: what `jax.jit(f).trace` gives.
        at_once: how many of it run side by side on the default device.

    Raises:
        ResourceError: with the bytes and what to change.
    """
    if traced.jaxpr not in _needs:  # To ask the compiler takes longer than a short run.
        figures = traced.lower().compile().memory_analysis()
        its = figures and figures.temp_size_in_bytes + figures.output_size_in_bytes - figures.alias_size_in_bytes
        _needs[traced.jaxpr] = its or 0  # Not every platform tells.
    lighter = "use fewer num_responses, prompts or contexts, a smaller tile, or record less often (every=...)"
    check_memory(f"{name}: the compiled program", at_once * _needs[traced.jaxpr], lighter, default_device())


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn the device's own report of full memory into one that says what to do."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ResourceError(
            f"{name}: the device ran out of memory: use fewer num_responses, prompts or contexts, a smaller "
            f"tile, or record less often (every=...). The device says: {str(error).splitlines()[0]}"
        ) from error


def report(first_bad_step: np.ndarray, dims: Sequence[str], labels: Sequence[Sequence[Any]], on_nonfinite: str) -> None:
    """One line about the runs that turned non-finite, if there are any: a warning, or an error where asked for."""
    places = np.argwhere(first_bad_step >= 0)
    if not places.size:
        return
    place = tuple(min(places, key=lambda place: first_bad_step[tuple(place)]))
    where = ", ".join(f"{dim}={names[i]}" for dim, names, i in zip(dims, labels, place, strict=True))
    line = f"{len(places)} of {first_bad_step.size} runs diverged (first: {where}, step {first_bad_step[place]})"
    if on_nonfinite == "raise":
        raise NumericsError(f"{line}: lower the learning rate, or the scale of the rewards")
    what = "frozen there" if on_nonfinite == "freeze" else "kept going"
    warnings.warn(f"{line}; they were {what}", stacklevel=3)


class Draw(NamedTuple):
    """Randomness of one collection: uniforms of the actions, a key for label noise if any, one key per context."""

    uniform: Float[Array, "B levels N"] | None
    noise: Key[Array, ""] | None
    contexts: Key[Array, " B"] | None


class Collected(NamedTuple):
    """What has to be kept of a collection until the next one; the rest of a batch follows from it.

    `response` and `noise` are None for exact data; `old` then holds the policy that they come from, for all responses,
    and `weight` its probabilities where a softmax learner at its last step has them.
    """

    response: Int[Array, "B N T"] | None
    old: Float[Array, "B N T"] | Float[Array, "B A"] | Float[Array, "B A T"]
    noise: Float[Array, "B N"] | None
    baseline: Float[Array, ""]
    scale: Float[Array, ""]
    weight: Float[Array, "B A"] | None = None


class Masses(NamedTuple):
    """The learner's probabilities as a tree of sums (see `mass_tree`), each context's up to a factor e^near."""

    tree: tuple[Float[Array, "S ..."], ...]
    near: Float[Array, " S"]

    @property
    def norm(self) -> Float[Array, " S"]:
        """Logarithm of each context's normaliser."""
        return self.near + jnp.log(total(self.tree[-1]))


class Carry(NamedTuple):
    """What a gradient step changes.

    `collected` is None where every step collects anew. `stats` are decayed sums of 1, the reward and its square, None
    for an objective that does not read them. `norm` is the logarithm of each table's normaliser at the last step, near
    which the next one is found without a pass for the maximum; None where each is found by itself.
    """

    params: PyTree
    optimizer: PyTree
    collected: Collected | None
    stats: Float[Array, " moments"] | None
    first_bad_step: Array
    norm: Float[Array, " S"] | None


class Loop(NamedTuple):
    """One run before its first step: everything that gradient steps read and do not change.

    `params` are the initial ones, `proxy` the fitted reward per token or None, `draws` the randomness of all steps
    where that is small enough to be drawn at once, `ref` [S, A] the problem's reference where the policy is a softmax,
    `allowed` [S, A] what it does not forbid, None where that is everything.
    """

    problem: Problem
    method: Method
    params: PyTree
    order: Array
    proxy: Array | None
    draws: Draw | None
    step_key: Array
    ref: Array | None
    allowed: Array | None

    @classmethod
    def make(cls, problem: Problem, method: Method, key: Key[Array, ""], steps: int, forbids: bool) -> Loop:
        """Initialise the policy, fit the proxy to the data an offline learner would see, draw what can be drawn."""
        init_key, order_key, proxy_key, step_key = jax.random.split(key, 4)
        contexts = jnp.arange(problem.num_contexts)
        prompts, _ = batch_sizes(problem, method)
        order = contexts if prompts == contexts.size else jax.random.permutation(order_key, contexts.size)
        ref = None if method.policy.lead is None else jax.vmap(problem.ref_table)(contexts)
        allowed = None if ref is None or not forbids else ~jnp.isneginf(ref)
        loop = cls(problem, method, method.policy.init(init_key, problem), order, None, None, step_key, ref, allowed)
        if method.proxy is not None:
            chosen = order[:prompts]
            table = loop.data_table(chosen) if loop.enumerable else None
            data = loop.collect(loop.params, table, None, chosen, jnp.zeros(()), loop.draw(jnp.asarray(0)))
            model = fit_proxy(method.proxy, prepare(loop.groups(data, chosen)), problem.num_tokens, proxy_key)
            loop = loop._replace(proxy=model)
        each = prompts * levels(problem.num_responses) * method.num_responses
        if loop.by_table and (steps + 1) * each <= PREDRAW:
            at_once = min(max(1, PIECE // each), steps + 1)
            pieces = jnp.arange(-(-(steps + 1) // at_once) * at_once).reshape(-1, at_once)
            draws = jax.lax.map(jax.vmap(loop.draw), pieces)
            loop = loop._replace(draws=jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), draws))
        return loop

    # --- tables and log-probabilities ------------------------------------------------------------------------------
    @property
    def exact(self) -> bool:
        """Whether every response is enumerated instead of drawn."""
        return self.method.data == "exact"

    @property
    def kind(self) -> type[Group]:
        """What a collection becomes."""
        return ExactGroup if self.exact else Group

    @property
    def enumerable(self) -> bool:
        """Whether the policy's probability of every response can be had."""
        return self.problem.enumerable and self.method.policy.table is not None

    @property
    def by_table(self) -> bool:
        """Whether responses are drawn from a table of all of them."""
        return not self.exact and self.problem.length == 1 and self.enumerable

    def per_context(self, f: Any, contexts: Array) -> Array:
        # A lone context is a static index, which spares the copy that a gather would make.
        return f(0)[None] if self.problem.num_contexts == 1 else jax.vmap(f)(contexts)

    @property
    def lagged(self) -> bool:
        """Whether normalisers are found near those of the last step."""
        prompts, minibatch = batch_sizes(self.problem, self.method)
        return self.ref is not None and self.problem.length == 1 and minibatch == prompts and on_cpu()

    @property
    def masked(self) -> bool:
        """Whether some response may be forbidden."""
        return self.ref is None or self.allowed is not None

    def lead(self, params: PyTree, contexts: Array) -> Float[Array, "M A"]:
        lead = self.method.policy.lead
        assert lead is not None
        return self.per_context(lambda c: lead(params, self.problem, c), contexts)

    def own_ref(self, contexts: Array) -> Float[Array, "M A"]:
        assert self.ref is not None
        return self.rows(self.ref, contexts)

    def rows(self, table: Float[Array, "S A"] | Bool[Array, "S A"], contexts: Array) -> Array:
        # All contexts stand in order.
        return table if contexts.shape[0] == table.shape[0] else table[contexts]

    def logits(self, params: PyTree, contexts: Array) -> Float[Array, "M A"]:
        return self.own_ref(contexts) + self.lead(params, contexts)

    def learner_table(self, params: PyTree, contexts: Array, norm: Array | None = None) -> Float[Array, "M A"]:
        if self.ref is not None:
            norm = logsumexp(self.logits(params, contexts)) if norm is None else norm
            return softmax_table(self.own_ref(contexts), self.lead(params, contexts), norm, masked=self.masked)
        table = self.method.policy.table
        assert table is not None
        return self.per_context(lambda c: table(params, self.problem, c), contexts)

    def table_gradient(
        self, params: PyTree, contexts: Array, table: Array, weight: Array | None, slope: Float[Array, "M A"]
    ) -> PyTree:
        """Gradient in the parameters from the slope of the loss in the table; `weight` is exp(table) if it is known."""
        if self.ref is None:
            return jax.vjp(lambda p: self.learner_table(p, contexts), params)[1](slope)[0]
        # One form for all objectives: d loss / d logits = slope - pi sum(slope).
        weight = jnp.exp(table) if weight is None else weight
        slope = slope - weight * total(slope)[..., None]
        return jax.vjp(lambda p: self.lead(p, contexts), params)[1](slope)[0]

    def reference_table(self, contexts: Array) -> Float[Array, "M A"]:
        if self.method.reference == "initial":
            return self.learner_table(self.params, contexts)
        return self.per_context(self.problem.ref_table, contexts) if self.ref is None else self.own_ref(contexts)

    def data_table(self, contexts: Array) -> Float[Array, "M A"]:
        if self.method.reference == "initial":
            return self.learner_table(self.params, contexts)
        return self.per_context(self.problem.data_table, contexts)

    def log_prob(self, params: PyTree, contexts: Array, response: Array) -> Float[Array, "M N T"]:
        return jax.vmap(lambda c, r: self.method.policy.log_prob(params, self.problem, c, r))(contexts, response)

    def reference_log_prob(self, contexts: Array, response: Array) -> Float[Array, "M N T"]:
        if self.method.reference == "initial":
            return self.log_prob(self.params, contexts, response)
        if self.ref is not None and self.problem.length == 1:
            return self.ref[contexts[:, None], response[..., 0]][..., None]
        if self.by_table:
            return jnp.take_along_axis(self.reference_table(contexts), response[..., 0], -1)[..., None]
        return jax.vmap(self.problem.ref_log_prob)(contexts, response)

    def data_log_prob(self, contexts: Array, response: Array) -> Float[Array, "M N T"]:
        if self.method.reference == "initial":
            return self.log_prob(self.params, contexts, response)
        return jax.vmap(self.problem.data_log_prob)(contexts, response)

    def listed_log_prob(self, params: Array, masses: Masses, action: Int[Array, "S N"]) -> Float[Array, "S N"]:
        """Log-probability of some actions in every context, of a policy that is one number per action."""
        assert self.ref is not None
        read = lambda table: jnp.take_along_axis(table, action, -1)
        return softmax_table(read(self.ref), read(params), masses.norm, masked=self.masked)

    # --- collection ------------------------------------------------------------------------------------------------
    def draw(self, step: Array) -> Draw:
        """The randomness of the collection at this step: a function of the run's key and the step alone."""
        here = jax.random.fold_in(self.step_key, step)
        noise = None if self.method.label_noise is None else jax.random.fold_in(here, 1)
        prompts, _ = batch_sizes(self.problem, self.method)
        if self.by_table:
            shape = (prompts, levels(self.problem.num_responses), self.method.num_responses)
            return Draw(jax.random.uniform(here, shape), noise, None)
        return Draw(None, noise, jax.random.split(here, prompts))

    def contexts(self, step: Array, period: Array) -> Array:
        """The contexts of the collection that this step learns from: all, or the next B in a fixed random order."""
        prompts, _ = batch_sizes(self.problem, self.method)
        if prompts == self.problem.num_contexts:
            return self.order
        return self.order[((step // period) * prompts + jnp.arange(prompts)) % self.problem.num_contexts]

    def collect(
        self, params: PyTree, table: Array | None, weight: Array | None, contexts: Array, on_policy: Array, draw: Draw,
        masses: Masses | None = None,
    ) -> Collected:  # fmt: skip
        """N responses to each context, from the table of the mixed policy, or from learner and data in turn.

        Args:
            weight: probabilities of the table, if they are known already.
            masses: the learner's, instead of a table.
        """
        zero, one = jnp.zeros(()), jnp.ones(())
        if self.exact:
            assert table is not None
            if weight is None and self.problem.length == 1 and self.masked:
                # What the reference forbids is left out; a softmax learner, whose weights are known, cannot give it.
                table = jnp.where(jnp.isneginf(self.reference_table(contexts)), -jnp.inf, table)
            old = table if self.problem.length == 1 else self.token_table(params, table, contexts, on_policy)
            return Collected(None, old, None, zero, one, weight)
        if masses is not None:
            assert draw.uniform is not None
            action = jax.vmap(sample_from_tree)(draw.uniform, masses.tree)
            response, old = action[..., None], self.listed_log_prob(params, masses, action)[..., None]
        elif self.by_table:
            assert table is not None
            assert draw.uniform is not None
            action = jax.vmap(sample_from_mass)(draw.uniform, jnp.exp(table) if weight is None else weight)
            response, old = action[..., None], jnp.take_along_axis(table, action, -1)[..., None]
        else:
            assert draw.contexts is not None
            own, data, mine = jax.vmap(partial(self.draw_sequences, params, on_policy))(contexts, draw.contexts)
            response = jnp.where(mine, own, data)
            old = jnp.where(mine, self.log_prob(params, contexts, response), self.data_log_prob(contexts, response))
        noise = None if draw.noise is None else jax.random.gumbel(draw.noise, response.shape[:2])
        return Collected(response, old, noise, zero, one)

    def token_table(self, params: PyTree, table: Array, contexts: Array, on_policy: Array) -> Float[Array, "B A T"]:
        """Token log-probabilities of every response, whose totals are the table's.

        A mixture of two policies over whole responses has no tokens of its own: the learner's stand in, and what the
        total differs by is at the first token.
        """
        listed, mask = self.problem.responses()
        response = jnp.broadcast_to(listed, (*contexts.shape, *listed.shape))
        own, data = self.log_prob(params, contexts, response), self.data_log_prob(contexts, response)
        tokens = jnp.where(mask, jnp.where(on_policy > 0, own, data), 0)
        missing = table - tokens.sum(-1)
        return tokens.at[..., 0].add(jnp.where(jnp.isfinite(missing), missing, 0))

    def draw_sequences(
        self, params: PyTree, on_policy: Array, context: Array, key: Array
    ) -> tuple[Array, Array, Array]:
        """N responses from the learner, N from the data, and which of the two to take."""
        problem, policy, n = self.problem, self.method.policy, self.method.num_responses
        own_key, data_key, mix_key = jax.random.split(key, 3)
        own = policy.sample(params, problem, context, own_key, n)
        if self.method.reference == "initial":
            data = policy.sample(self.params, problem, context, data_key, n)
        else:
            data = problem.sample_data(context, data_key, n)
        return own, data, jax.random.uniform(mix_key, (n, 1)) < on_policy

    def groups(self, collected: Collected, contexts: Array) -> Group:
        """The batch that was collected, rewarded and scored; what `prepare` writes is neutral."""
        problem, method = self.problem, self.method
        if self.exact:
            reference, single = self.reference_table(contexts), problem.length == 1
            # As operations: a million constants would take long to compile.
            everything = jnp.arange(problem.num_responses, dtype=jnp.int32)[:, None]
            listed, mask = (everything, jnp.ones(everything.shape, bool)) if single else problem.responses()
            mixed = collected.old if single else jnp.where(mask, collected.old, 0).sum(-1)
            # Forbidden responses are masked; nan is not, or a diverged run would look like an empty one.
            if collected.weight is not None:
                all_of_them = jnp.ones(reference.shape, bool)
                possible = all_of_them if self.allowed is None else self.rows(self.allowed, contexts)
                weight = collected.weight
            elif single and not self.masked:
                possible, weight = jnp.ones(mixed.shape, bool), jnp.exp(mixed)
            elif single:
                possible, weight = ~jnp.isneginf(mixed), jnp.exp(mixed)
            else:
                possible = ~(jnp.isneginf(mixed) | jnp.isneginf(reference))
                weight = jnp.where(jnp.isneginf(reference), 0, jnp.exp(mixed))
            response = jnp.broadcast_to(listed, (*contexts.shape, *listed.shape))
            mask = jnp.asarray(mask) & possible[..., None]
            if single:
                reference, old = reference[..., None], mixed[..., None]
            else:
                reference, old = self.reference_log_prob(contexts, response), collected.old
        else:
            assert collected.response is not None
            response, old = collected.response, collected.old
            mask = jnp.ones(response.shape, bool) if problem.length == 1 else problem.mask_of(response)
            weight = jnp.full(response.shape[:2], 1 / method.num_responses)
            reference = self.reference_log_prob(contexts, response)
        reward = self.reward(contexts, response, mask)
        score, temperature = reward, jnp.zeros(())
        if method.label_noise is not None:
            temperature = jnp.asarray(method.label_noise, reward.dtype)
            # An exact group averages over the noise instead of drawing it.
            score = reward if collected.noise is None else reward + temperature * collected.noise
        each = lambda x: jnp.broadcast_to(jnp.asarray(x, reward.dtype), contexts.shape)
        threshold = weighted_mean(weight, score) if method.threshold is None else each(method.threshold)
        return self.kind(
            response=response, mask=mask, weight=weight, reward=reward, score=score, ref_logp=reference, old_logp=old,
            draws=each(method.num_responses), temperature=each(temperature), min_gap=each(method.min_gap),
            threshold=threshold, baseline=each(collected.baseline), scale=each(collected.scale), share=each(1),
            token_share=each(1), pair_share=each(1), kept_share=each(1), kl=each(0), mean_gain=each(0),
        )  # fmt: skip

    def reward(self, contexts: Array, response: Array, mask: Array) -> Float[Array, "M N"]:
        """What the learner is told: the proxy's reward where there is one."""
        if self.proxy is not None:
            return jnp.where(mask, self.proxy[response], 0).sum(-1)
        if self.problem.length > 1 or not self.enumerable or (self.lagged and not self.exact):
            return jax.vmap(self.problem.reward)(contexts, response, mask)
        table = self.per_context(self.problem.reward_table, contexts)
        return table if self.exact else jnp.take_along_axis(table, response[..., 0], -1)

    # --- the loop --------------------------------------------------------------------------------------------------
    def start(self) -> Carry:
        """Before the first step, and before anything is collected."""
        norm = jnp.zeros(self.problem.num_contexts) if self.lagged else None
        optimizer = self.method.optimizer.init(self.params)
        n = self.problem.num_responses if self.exact else self.method.num_responses
        reads = reads_running(self.method.objective, self.kind, n, self.problem.length)
        stats = jnp.zeros(3) if reads else None
        return Carry(self.params, optimizer, None, stats, jnp.asarray(-1), norm)

    def refresh(
        self, params: PyTree, stats: Array | None, table: Array | None, weight: Array | None, contexts: Array,
        step: Array, masses: Masses | None = None,
    ) -> tuple[Collected, Array | None]:  # fmt: skip
        """A new collection, with running statistics of the rewards up to and including it."""
        draw = self.draw(step) if self.draws is None else jax.tree.map(lambda x: x[step], self.draws)
        on_policy = jnp.asarray(self.method.on_policy, jnp.float32)
        collected = self.collect(params, table, weight, contexts, on_policy, draw, masses)
        if stats is None:
            return collected, None
        groups = self.groups(collected, contexts)
        moment = lambda x: total(groups.weight * x).mean()
        seen = jnp.stack([jnp.ones(()), moment(groups.reward), moment(groups.reward**2)])
        decayed = self.method.memory * stats + (1 - self.method.memory) * seen
        baseline, square = decayed[1] / decayed[0], decayed[2] / decayed[0]
        variance = square - baseline**2
        # Below the rounding of the squares there is no signal to scale.
        scale = jnp.where(variance > 1e-6 * square, jnp.sqrt(jnp.maximum(variance, 1e-30)), 1.0)
        return collected._replace(baseline=baseline, scale=scale), decayed

    def judged(self, batch: Group, logp: Array) -> tuple[Group, Array, Array]:
        """The batch with what couples its groups, its loss, and the loss's slope in each token's log-probability."""
        # No group of a simulation is padding, so each has the same share.
        batch = prepare(batch, logp)._replace(share=jnp.full(logp.shape[:1], 1 / logp.shape[0]))
        objective, hyper = self.method.objective, self.method.hyper
        return batch, *jax.value_and_grad(lambda x: batch_loss(objective, x, batch, **hyper))(logp)

    def rate(self, step: Array) -> Float[Array, ""]:
        """The learning rate of a step."""
        rate = jnp.asarray(self.method.learning_rate, self.problem.bonus.dtype)
        return rate if self.method.schedule is None else rate * self.method.schedule(step)

    def learn_on_few(self, plan: Plan, carry: Carry, masses: Masses, step: Array) -> tuple[Carry, Masses, Array]:
        """`learn`, with a new collection if it is time to, where only the responses in hand move.

        Returns:
            Everything after the step, and whether it was taken: not if forces do not cancel, nor if they are not
            finite or the run is frozen, and then nothing is changed.
        """
        contexts = self.order
        fresh = lambda: self.refresh(carry.params, carry.stats, None, None, contexts, step, masses)
        kept = carry.collected, carry.stats
        if plan.collects == "sometimes":
            collected, stats = jax.lax.cond(step % plan.period == 0, fresh, lambda: kept)
        else:
            collected, stats = fresh() if plan.collects == "always" else kept
        assert collected is not None
        batch = self.groups(collected, contexts)
        action = batch.response[..., 0]
        logp = self.listed_log_prob(carry.params, masses, action)
        _, _, slope = self.judged(batch, logp[..., None])
        slope = slope[..., 0]
        cancel = (jnp.abs(total(slope)) <= BALANCED * total(jnp.abs(slope))).all()
        taken = cancel & ((carry.first_bad_step < 0) | ~plan.freeze)
        keep = lambda new, old: jnp.where(taken, new, old)
        read = lambda table: jnp.take_along_axis(table, action, -1)
        params = jax.vmap(lambda p, a, x: p.at[a].add(x))(carry.params, action, keep(-self.rate(step) * slope, 0))
        assert self.ref is not None
        mass = jnp.exp(read(self.ref) + read(params) - masses.near[:, None])
        masses = masses._replace(tree=jax.vmap(replace_in_tree)(masses.tree, action, mass))
        collected = None if plan.collects == "always" else jax.tree.map(keep, collected, carry.collected)
        stats = jax.tree.map(keep, stats, carry.stats)
        return carry._replace(params=params, stats=stats, collected=collected), masses, taken

    def learn(
        self, carry: Carry, collected: Collected, table: Array | None, weight: Array | None, contexts: Array,
        step: Array, live: Array, freeze: Array, seen: bool,
    ) -> tuple[Carry, State]:  # fmt: skip
        """One gradient step on the collection in hand, taken when live; and what a probe sees before it.

        Args:
            table, weight: [M, A] of the learner and its probabilities, if they are known already.
            seen: whether a probe looks.
        """
        method, params = self.method, carry.params
        prompts, minibatch = batch_sizes(self.problem, method)
        if minibatch < prompts:
            cut = lambda x: jax.lax.dynamic_slice_in_dim(x, (step % (prompts // minibatch)) * minibatch, minibatch)
            contexts = cut(contexts)
            collected = jax.tree.map(lambda x: cut(x) if x.ndim else x, collected)
        batch = self.groups(collected, contexts)
        if table is None and self.enumerable and self.problem.length == 1:
            table = self.learner_table(params, contexts)
        if table is None:
            logp, pull = jax.vjp(lambda p: self.log_prob(p, contexts, batch.response), params)
        else:
            read = lambda x: (x if self.exact else jnp.take_along_axis(x, batch.response[..., 0], -1))[..., None]
            logp, spread = jax.vjp(read, table)
            pull = lambda slope: (self.table_gradient(params, contexts, table, weight, spread(slope)[0]),)
        batch, loss, slope = self.judged(batch, logp)
        update, optimizer = method.optimizer.update(pull(slope)[0], carry.optimizer, params)
        rate = self.rate(step)
        # The loss takes more time than the force: it is looked at where a probe may ask for it.
        healthy = jnp.isfinite(total(slope.sum(-1)).sum() + (loss if seen else 0))
        first_bad = jnp.where((carry.first_bad_step < 0) & ~healthy, step, carry.first_bad_step)
        keep = lambda new, old: jnp.where(live & ((first_bad < 0) | ~freeze), new, old)
        moved = jax.tree.map(lambda p, u: keep(p + rate.astype(p.dtype) * u, p), params, update)
        everything = jnp.arange(self.problem.num_contexts)
        listed = lambda f: f() if self.enumerable else None
        whole = table is not None and minibatch == everything.size
        state = State(
            step=step,
            params=params,
            log_probs=listed(lambda: table if whole else self.learner_table(params, everything)),
            ref_log_probs=listed(lambda: self.reference_table(everything)),
            rewards=listed(lambda: self.per_context(self.problem.reward_table, everything)),
            groups=batch,
            logp=logp,
            force=-slope,
            loss=loss,
            key=jax.random.fold_in(self.step_key, step),
            policy=method.policy,
            ref_params=self.params if method.reference == "initial" else None,
        )
        optimizer = jax.tree.map(keep, optimizer, carry.optimizer)
        return carry._replace(params=moved, optimizer=optimizer, first_bad_step=first_bad), state


def mixture(own: Array, data: Array, fraction: Array) -> Array:
    """log(fraction * e^own + (1 - fraction) * e^data), exact at fractions 0 and 1."""
    both = jnp.logaddexp(own + jnp.log(fraction), data + jnp.log1p(-fraction))
    return jnp.where(fraction >= 1, own, jnp.where(fraction <= 0, data, both))


@partial(
    jax.tree_util.register_dataclass, data_fields=("period", "freeze"), meta_fields=("collects", "regime", "forbids")
)
@dataclass(frozen=True)
class Plan:
    """What the runs of one program share; `collects` and `regime` decide what is in it.

    Attributes:
        period: gradient steps from one collection to the next, reuse * B / M, at most 2^30.
        freeze: whether a run that turned non-finite stays as it was.
        collects: at every step, before the first one only, or every `period` steps.
        regime: where responses come from.
        forbids: whether some response may be forbidden.
    """

    period: Any
    freeze: Any
    collects: Literal["always", "once", "sometimes"]
    regime: Literal["own", "data", "mixture"]
    forbids: bool


def collection_period(problem: Problem, method: Method) -> int:
    """Gradient steps from one collection to the next, 2^30 where there is but one."""
    prompts, minibatch = batch_sizes(problem, method)
    return int(min(float(method.reuse) * (prompts // minibatch), 2.0**30))


def plan(problem: Problem, method: Method, on_nonfinite: OnNonfinite = "freeze") -> Plan:
    """The plan of one run, in plain numbers."""
    fraction, ref, period = float(method.on_policy), problem.ref_logits, collection_period(problem, method)
    # Also of a problem that is known while a caller's program is traced, or that lies on other processes in part.
    with jax.ensure_compile_time_eval():
        minus_inf = np.isneginf if isinstance(ref, np.ndarray) else jnp.isneginf
        forbids = is_traced(ref) or bool(minus_inf(ref).any())
    return Plan(
        np.int32(period),
        np.bool_(on_nonfinite != "keep"),
        "always" if period == 1 else "once" if period == 2**30 else "sometimes",
        "own" if fraction >= 1 else "data" if fraction <= 0 else "mixture",
        forbids,
    )


def steps_on_few(problem: Problem, method: Method, plan: Plan) -> bool:
    """Whether gradient steps whose forces cancel are taken on the drawn responses alone.

    The gradient in a table's logits is sum(force) pi - force: where forces sum to zero, plain gradient descent moves
    the logits of the responses in hand and no others. Below `SPARSE` responses, and on accelerators, a pass over all of
    them is faster.
    """
    prompts, minibatch = batch_sizes(problem, method)
    return (
        method.data == "sampled" and method.policy is tabular and method.optimizer is SGD
        and method.reference == "problem" and problem.length == 1 and problem.num_responses >= SPARSE
        and minibatch == prompts == problem.num_contexts and (plan.regime == "own" or plan.collects == "once")
        and on_cpu()
    )  # fmt: skip


class Progress(NamedTuple):
    """A run, or a batch of them, on its way: rows recorded so far, and all that the next step needs."""

    row: Array
    carry: Carry
    record: PyTree


@partial(
    jax.tree_util.register_dataclass, data_fields=("loop", "plan"), meta_fields=("steps", "probe", "every", "batched")
)
@dataclass(frozen=True)
class Course:
    """One run, or many of one structure side by side: what `begin` prepares and `proceed` follows.

    Many: every leaf of `loop` carries them along axis 0, and the plan is theirs together. The loop over steps and its
    branches are outside and the runs inside, so that a branch stays a branch.
    """

    loop: Loop
    plan: Plan
    steps: int
    probe: Probe
    every: int
    batched: bool

    def over(self, f: Any, *shared: int) -> Any:
        """f over all runs; `shared` are the positions of arguments that all have in common."""
        if not self.batched:
            return f
        return lambda *args: jax.vmap(f, in_axes=tuple(None if i in shared else 0 for i in range(len(args))))(*args)

    def table(self, carry: Carry, contexts: Array) -> tuple[Array, Array | None, Array | None]:
        """[M, A] of the learner, its probabilities where normalisers are carried along, and those of all contexts."""
        over, loop, params = self.over, self.loop, carry.params
        if carry.norm is None:
            return over(Loop.learner_table)(loop, params, contexts), None, None
        logits = lambda params: over(Loop.logits)(loop, params, contexts)

        def attempt(params: PyTree, near: Array) -> tuple[Array, Array, Array, Array]:
            mass = jnp.exp(logits(params) - near[..., None])
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

        # Kept in memory by the loop: sums and products of the masses take less time than a second exponential.
        all_of_them = contexts.shape[-1] == carry.norm.shape[-1]
        pick = over(lambda norm, contexts: norm[contexts])
        first = attempt(params, carry.norm if all_of_them else pick(carry.norm, contexts))
        near, mass, found, _ = jax.lax.while_loop(lambda state: ~state[3].all(), again, first)
        norm, weight = near + found, mass * jnp.exp(-found)[..., None]
        put = over(lambda old, contexts, new: old.at[contexts].set(new))
        everywhere = norm if all_of_them else put(carry.norm, contexts, norm)
        return over(Loop.learner_table)(loop, params, contexts, norm), weight, everywhere

    def collect(
        self, carry: Carry, table: Array | None, weight: Array | None, contexts: Array, step: Array
    ) -> tuple[Collected, Array | None]:
        """A new collection; table and weight are the learner's, if they are known already."""
        loop, over = self.loop, self.over
        one = jax.tree.map(lambda x: x[0], loop) if self.batched else loop
        source = None
        if one.exact or one.by_table:
            own = lambda: over(Loop.learner_table)(loop, carry.params, contexts) if table is None else table
            data = lambda: over(Loop.data_table)(loop, contexts)
            mix = lambda loop, own, data: mixture(own, data, loop.method.on_policy)
            mixed = lambda: over(mix)(loop, own(), data())
            source = {"own": own, "data": data, "mixture": mixed}[self.plan.regime]()
        if self.plan.regime != "own" or (one.exact and self.plan.collects != "always"):
            weight = None
        return over(Loop.refresh, 6)(loop, carry.params, carry.stats, source, weight, contexts, step)

    def onwards(self, carry: Carry, step: Array, end: Any) -> Carry:
        """Steps that are not recorded, from this one up to before `end`."""
        alone = carry.first_bad_step.size == 1
        one = jax.tree.map(lambda x: x[0], self.loop) if self.batched else self.loop
        if alone and steps_on_few(one.problem, one.method, self.plan):
            unpack, pack = (lambda x: x[0], lambda x: x[None]) if self.batched else (lambda x: x, lambda x: x)
            single = Course(one, self.plan, self.steps, self.probe, self.every, batched=False)
            step, carry = single.stretches(jax.tree.map(unpack, carry), step, end)
            carry = jax.tree.map(pack, carry)
        return jax.lax.fori_loop(step, end, lambda j, carry: self.advance(carry, j, seen=False)[0], carry)

    def stretches(self, carry: Carry, step: Array, end: Any) -> tuple[Array, Carry]:
        """Steps on the drawn responses alone, as far as they go: the next step, and what is left."""
        loop = self.loop

        def near(masses: Masses) -> Array:
            # Further away, masses overflow or too many of them are 0.
            return (jnp.abs(masses.norm - masses.near) < 30).all()

        def take(state: tuple[Array, Carry, Masses, Array]) -> tuple[Array, Carry, Masses, Array]:
            step, carry, masses, _ = state
            carry, masses, taken = loop.learn_on_few(self.plan, carry, masses, step)
            return step + taken, carry, masses, taken

        def stretch(state: tuple[Array, Carry, Array]) -> tuple[Array, Carry, Array]:
            step, carry, _ = state
            _, weight, norm = self.table(carry, loop.order)
            assert weight is not None
            assert norm is not None
            masses = Masses(jax.vmap(mass_tree)(weight), norm)
            more = lambda state: (state[0] < end) & state[3] & near(state[2])
            step, carry, masses, taken = jax.lax.while_loop(more, take, take((step, carry, masses, jnp.asarray(True))))
            return step, carry._replace(norm=masses.norm), taken

        more = lambda state: (state[0] < end) & state[2]
        step, carry, _ = jax.lax.while_loop(more, stretch, (jnp.asarray(step), carry, jnp.asarray(True)))
        return step, carry

    def advance(self, carry: Carry, step: Array, seen: bool = True) -> tuple[Carry, dict[str, Array]]:
        """Collect if it is time to, note what the probe sees, and take one gradient step."""
        loop, plan, over = self.loop, self.plan, self.over
        one = jax.tree.map(lambda x: x[0], loop) if self.batched else loop
        prompts, minibatch = batch_sizes(one.problem, one.method)
        contexts = over(Loop.contexts, 1, 2)(loop, step, plan.period)
        table = weight = None
        # Where gradient and collection need the same table, it is made once, outside the branch.
        if one.enumerable and one.problem.length == 1 and minibatch == prompts:
            table, weight, norm = self.table(carry, contexts)
            carry = carry._replace(norm=norm)
        kept, collect = (carry.collected, carry.stats), lambda: self.collect(carry, table, weight, contexts, step)
        if plan.collects == "always":
            collected, stats = collect()
        elif plan.collects == "once":
            collected, stats = kept
        else:
            collected, stats = jax.lax.cond(step % plan.period == 0, collect, lambda: kept)

        def observe(
            loop: Loop, carry: Carry, collected: Collected, table: Array | None, weight: Array | None, contexts: Array
        ) -> tuple[Carry, dict[str, Array]]:
            live = step < self.steps
            new, state = loop.learn(carry, collected, table, weight, contexts, step, live, plan.freeze, seen)
            with naming(f"probe {getattr(self.probe, '__name__', '')} fails"):
                noted = {name: jnp.asarray(x) for name, x in self.probe(loop.problem, state).items()}
            return new, noted

        carry = carry._replace(collected=None if plan.collects == "always" else collected, stats=stats)
        return over(observe)(loop, carry, collected, table, weight, contexts)


def begin(
    problem: Problem, method: Method, key: Array, plan: Plan, *, steps: int, probe: Probe, every: int,
    batched: bool = False,
) -> tuple[Course, Progress]:  # fmt: skip
    """A run before its first step, with room for the record; many, where problem, method and key are stacked."""
    make = partial(Loop.make, steps=steps, forbids=plan.forbids)
    loop = jax.vmap(make)(problem, method, key) if batched else make(problem, method, key)
    course = Course(loop, plan, steps, probe, every, batched)
    carry = course.over(Loop.start)(loop)
    if plan.collects != "always":
        start = jnp.asarray(0)
        contexts = course.over(Loop.contexts, 1, 2)(loop, start, plan.period)
        first = lambda: course.collect(carry, None, None, contexts, start)
        if plan.collects == "once":
            collected, stats = first()
        else:
            # The first step collects.
            blank = jax.eval_shape(first)[0]
            collected, stats = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blank), carry.stats
        carry = carry._replace(collected=collected, stats=stats)
    _, seen = jax.eval_shape(course.advance, carry, jnp.asarray(0))
    blank = jax.tree.map(lambda x: jnp.zeros((steps // every + 1, *x.shape), x.dtype), seen)
    return course, Progress(jnp.asarray(0), carry, blank)


def proceed(course: Course, progress: Progress, until: Any) -> Progress:
    """Go on until this many rows are recorded, in one call or in several: the bits are the same."""

    def row(i: Array, progress: Progress) -> Progress:
        step = i * course.every
        carry, seen = course.advance(progress.carry, step)
        if course.every > 1:
            end = jnp.minimum(step + course.every, course.steps)
            carry = course.onwards(carry, step + 1, end)
        record = jax.tree.map(lambda rows, x: rows.at[i].set(x), progress.record, seen)
        return Progress(i + 1, carry, record)

    # A run ends one step after the last: it is recorded and not taken, which spares a second copy of the program.
    return jax.lax.fori_loop(progress.row, until, row, progress)


def run(
    problem: Problem, method: Method, key: Array, plan: Plan, *, steps: int, probe: Probe, every: int
) -> Result:  # fmt: skip
    """The unchecked body of `simulate`, to be transformed by jit and vmap."""
    course, progress = begin(problem, method, key, plan, steps=steps, probe=probe, every=every)
    done = proceed(course, progress, steps // every + 1)
    return Result(done.record, done.carry.params, done.carry.first_bad_step)


begin_jit = Compiled(begin, static_argnames=("steps", "probe", "every", "batched"))
proceed_jit = Compiled(proceed)
run_jit = Compiled(run, static_argnames=("steps", "probe", "every"))
