"""`simulate`: one method on one problem, checked at the door, run as one compiled program.

Everything numeric in a method is traced, so that a slider or an axis of a sweep does not recompile. Static are shapes,
the objective, the policy, the optimiser, and the `Plan`'s pattern.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_args
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from bandit_pft.engine.loop import begin, go
from bandit_pft.engine.state import OnNonfinite, Plan, plan
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
    shown,
)
from bandit_pft.kernels import Compiled
from bandit_pft.methods import Method, batch_sizes
from bandit_pft.probes import Probe, standard_probe
from bandit_pft.problems import Problem


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
        on_nonfinite: a run whose log-probabilities, rewards or forces are not finite, or whose loss is not where the
            probe asks for it, stays as it is ("freeze"), goes on ("keep"), or raises when it ends. Frozen and kept
            ones warn. Under jit and vmap nothing is told: look at `first_bad_step`.

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


def run(
    problem: Problem, method: Method, key: Array, plan: Plan, *, steps: int, probe: Probe, every: int
) -> Result:  # fmt: skip
    """The unchecked body of `simulate`, to be transformed by jit and vmap."""
    known, progress = begin(problem, method, key, plan, steps=steps, probe=probe, every=every)
    done = go(problem, method, plan, known, progress, steps // every + 1, probe=probe, every=every)
    return Result(done.record, done.params, done.first_bad_step)


run_jit = Compiled(run, static_argnames=("steps", "probe", "every"))
