"""A run from its first row to its last: what is prepared, recorded, and gone through."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from bandit_pft.engine import few
from bandit_pft.engine.state import Known, Plan, Progress
from bandit_pft.engine.steps import Run, first_bad, learn, study
from bandit_pft.errors import naming
from bandit_pft.groups import prepare
from bandit_pft.kernels import on_cpu
from bandit_pft.methods import Method, batch_sizes
from bandit_pft.probes import Probe, State
from bandit_pft.problems import Problem
from bandit_pft.proxy import fit_proxy


def batch(run: Run, progress: Progress, step: Any) -> dict[str, Any]:
    """The batch that a run is about to learn from, with its loss and forces."""
    _, groups, logp, _ = study(run, progress, step)
    loss, slope = jax.value_and_grad(run.loss)(logp, groups)
    return {"groups": groups, "logp": logp, "loss": loss, "force": -slope}


def note(run: Run, progress: Progress, step: Any, probe: Probe) -> tuple[dict[str, Array], Array]:
    """What the probe sees before a step, and whether the loss is finite, if it asks for that."""
    problem, learner, known = run.problem, run.learner, run.known
    everything = jnp.arange(problem.num_contexts)
    listed = lambda f: None if learner.table is None else f(everything)
    asked = []

    def ask(name: str) -> Any:
        asked.append(name)
        return batch(run, progress, step)[name]

    state = State(
        step=step,
        params=progress.params,
        log_probs=listed(lambda contexts: learner.table(progress.params, contexts)),
        ref_log_probs=listed(learner.reference.table),
        rewards=listed(jax.vmap(problem.reward_table)),
        **{name: partial(ask, name) for name in ("groups", "logp", "force", "loss")},
        key=jax.random.fold_in(known.key, step),
        policy=run.method.policy,
        ref_params=known.params if run.method.reference == "initial" else None,
    )
    with naming(f"probe {getattr(probe, '__name__', '')} fails"):
        seen = {name: jnp.asarray(x) for name, x in probe(problem, state).items()}
    return seen, jnp.isfinite(batch(run, progress, step)["loss"]) if "loss" in asked else jnp.asarray(True)


def begin(problem: Problem, method: Method, key: Key[Array, ""], plan: Plan, *, steps: int, probe: Probe, every: int
) -> tuple[Known, Progress]:  # fmt: skip
    """A run before its first step: its policy made, its reward model fitted, room for its record."""
    init_key, order_key, proxy_key, step_key = jax.random.split(key, 4)
    prompts, _ = batch_sizes(problem, method)
    order = jnp.arange(problem.num_contexts)
    if prompts < problem.num_contexts:
        order = jax.random.permutation(order_key, order.size)
    known = Known(method.policy.init(init_key, problem), order, step_key, None)
    if method.proxy is not None:
        known = known._replace(proxy=fitted(problem, method, plan, known, proxy_key))
    run = Run.of(problem, method, plan, known)
    drawn = None
    if plan.collects == "sometimes":  # The first step collects.
        drawn = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run.first)[0])
    progress = Progress(
        row=jnp.zeros((), jnp.int32),
        params=known.params,
        optimizer=method.optimizer.init(known.params),
        near=run.learner.near,
        ahead=None if plan.collects == "once" else run.chance(0),
        drawn=drawn,
        stats=run.stats(),
        first_bad_step=jnp.full((), -1, jnp.int32),
        record=None,
    )
    seen = jax.eval_shape(lambda: note(run, ready(run, progress), jnp.asarray(0), probe))[0]
    record = jax.tree.map(lambda x: jnp.zeros((steps // every + 1, *x.shape), x.dtype), seen)
    return known, progress._replace(record=record)


def fitted(problem: Problem, method: Method, plan: Plan, known: Known, key: Key[Array, ""]) -> Any:
    """A reward model of the data that an offline learner would see."""
    offline = Run.of(problem, method, Plan(plan.period, plan.freeze, "once", "data", plan.forbids), known)
    drawn, _ = offline.first()
    groups = offline.judge(offline.contexts(0), drawn, None)
    kind: Any = method.proxy
    return fit_proxy(kind, prepare(groups), problem.num_tokens, key)


def ready(run: Run, progress: Progress) -> Progress:
    """With the collection of a run that collects once; a function of what is known, it is in no checkpoint."""
    if run.plan.collects != "once":
        return progress
    drawn, stats = run.first()
    return progress._replace(drawn=drawn, stats=stats)


def walk(run: Run, progress: Progress, step: Any, end: Any) -> Progress:
    """Gradient steps from this one up to before `end`; on the drawn responses alone as far as that goes."""
    if run.plan.few and on_cpu():
        step, progress = few.stretches(run, progress, step, end)
    return jax.lax.fori_loop(step, end, lambda step, state: learn(run, state, step), progress)


def go(problem: Problem, method: Method, plan: Plan, known: Known, progress: Progress, until: Any, *, probe: Probe,
       every: int) -> Progress:  # fmt: skip
    """Go on until this many rows are recorded, in one call or in several: the bits are the same."""
    run = Run.of(problem, method, plan, known)
    last = jax.tree.leaves(progress.record)[0].shape[0] - 1

    def row(i: Array, state: Progress) -> Progress:
        seen, healthy = note(run, state, i * every, probe)
        record = jax.tree.map(lambda rows, x: rows.at[i].set(x), state.record, seen)
        state = state._replace(record=record, first_bad_step=first_bad(state, healthy, i * every))
        end = jnp.where(i < last, (i + 1) * every, i * every)
        return walk(run, state, i * every, end)

    done = jax.lax.fori_loop(progress.row, until, row, ready(run, progress))
    keep = {} if plan.collects != "once" else {"drawn": None, "stats": progress.stats}
    return done._replace(row=jnp.asarray(until, jnp.int32), **keep)


# The axis of many runs in each part of their progress; the row is theirs together.
SIDE_BY_SIDE: Any = Progress(None, *[0] * (len(Progress._fields) - 1))  # type: ignore[arg-type]


def begin_tile(
    problem: Problem, method: Method, keys: Key[Array, " W"], plan: Plan, *, steps: int, probe: Probe, every: int
) -> tuple[Known, Progress]:
    """`begin` of many runs of one structure: every leaf of problem and method carries them along axis 0."""
    one = partial(begin, steps=steps, probe=probe, every=every)
    return jax.vmap(one, in_axes=(0, 0, 0, None), out_axes=(0, SIDE_BY_SIDE))(problem, method, keys, plan)


def go_tile(problem: Problem, method: Method, plan: Plan, known: Known, progress: Progress, until: Any, *, probe: Probe,
            every: int) -> Progress:  # fmt: skip
    """`go` of many runs side by side, whose loops and branches they share; a lone one is not batched at all."""
    one = partial(go, probe=probe, every=every)
    if progress.first_bad_step.size == 1:
        alone = lambda tree: jax.tree.map(lambda x: x[0], tree)
        progress = alone(progress._replace(row=progress.row[None]))
        done = one(alone(problem), alone(method), plan, alone(known), progress, until)
        return jax.tree.map(lambda x: x[None], done)._replace(row=done.row)
    axes = (0, 0, None, 0, SIDE_BY_SIDE, None)
    return jax.vmap(one, in_axes=axes, out_axes=SIDE_BY_SIDE)(problem, method, plan, known, progress, until)
