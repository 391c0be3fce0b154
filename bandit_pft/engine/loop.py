"""The loop of learning, as in Algorithm 1 of Tajwar et al. (2024): look, collect, judge, pull, update."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from bandit_pft.engine import collection
from bandit_pft.engine.learners import Learner, View, choose
from bandit_pft.engine.state import Drawn, Known, Plan, Progress
from bandit_pft.errors import naming
from bandit_pft.groups import ExactGroup, Group, prepare
from bandit_pft.kernels import total
from bandit_pft.methods import Method, batch_sizes
from bandit_pft.objectives.core import batch_loss, reads_running
from bandit_pft.probes import Probe, State
from bandit_pft.problems import Problem
from bandit_pft.proxy import fit_proxy


class Run(NamedTuple):
    """One run: what it is, and the learner that was chosen for it."""

    problem: Problem
    method: Method
    plan: Plan
    known: Known
    learner: Learner

    @classmethod
    def of(cls, problem: Problem, method: Method, plan: Plan, known: Known) -> Run:
        return cls(problem, method, plan, known, choose(problem, method, plan, known))

    def contexts(self, step: Any) -> Int[Array, " B"]:
        """Of the collection that this step learns from."""
        return collection.contexts_at(self.problem, self.method, self.plan, self.known.order, step)

    def judge(self, contexts: Array, drawn: Drawn, stats: Any) -> Group:
        """See `collection.judge`."""
        return collection.judge(self.problem, self.method, self.learner, self.known.proxy, contexts, drawn, stats)

    def collect(self, view: View, stats: Any, step: Any) -> tuple[Drawn, Any]:
        """A new collection, with running statistics of the rewards up to and including it."""
        drawn = collection.collect(self.method, self.learner, view, self.known.key, step)
        if stats is None:
            return drawn, None
        return drawn, collection.remembered(self.method.memory, stats, self.judge(view.contexts, drawn, None))

    def first(self) -> tuple[Drawn, Any]:
        """The collection before the first step."""
        contexts = self.contexts(0)
        view, _ = self.learner.look(self.known.params, self.learner.near, contexts)
        return self.collect(view, self.stats(), 0)

    def stats(self) -> Any:
        """No statistics yet; None for an objective that reads none."""
        exact = self.method.data == "exact"
        n = self.problem.num_responses if exact else self.method.num_responses
        kind = ExactGroup if exact else Group
        return jnp.zeros(3) if reads_running(self.method.objective, kind, n, self.problem.length) else None

    def loss(self, logp: Array, groups: Group) -> Array:
        """Of a prepared batch."""
        return batch_loss(self.method.objective, logp, groups, **self.method.hyper)

    def rate(self, step: Any) -> Array:
        """The learning rate of a step."""
        rate = jnp.asarray(self.method.learning_rate, self.problem.bonus.dtype)
        return rate if self.method.schedule is None else rate * self.method.schedule(step)


def look(run: Run, progress: Progress, step: Any) -> tuple[View, Any, Drawn, Any]:
    """What the learner sees of itself, and the batch that it is about to learn from: new where it is time to."""
    plan, learner = run.plan, run.learner
    prompts, minibatch = batch_sizes(run.problem, run.method)
    everyone = run.contexts(step)
    cut = lambda x: x
    if minibatch < prompts:
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, (step % (prompts // minibatch)) * minibatch, minibatch)
    view, near = learner.look(progress.params, progress.near, cut(everyone))
    whole = lambda: view if minibatch == prompts else learner.look(progress.params, progress.near, everyone)[0]
    fresh = lambda: run.collect(whole(), progress.stats, step)
    if plan.collects == "always":
        drawn, stats = fresh()
    elif plan.collects == "once":
        drawn, stats = progress.drawn, progress.stats
    else:
        drawn, stats = jax.lax.cond(step % plan.period == 0, fresh, lambda: (progress.drawn, progress.stats))
    kept = progress._replace(near=near, drawn=None if plan.collects == "always" else drawn, stats=stats)
    return view, kept, jax.tree.map(cut, drawn), stats


def learn(run: Run, progress: Progress, step: Any) -> Progress:
    """One gradient step of one run."""
    view, progress, drawn, stats = look(run, progress, step)
    groups = run.judge(view.contexts, drawn, stats)
    logp, pull = run.learner.read(view, groups.response)
    slope = jax.grad(run.loss)(logp, collection.prepared(groups, logp))
    return update(run, progress, pull(slope), slope, groups.reward, step)


def update(run: Run, progress: Progress, gradient: Any, slope: Array, rewards: Array, step: Any) -> Progress:
    """Follow the gradient, unless the run is frozen: its slopes, or the rewards that it sees, are not finite."""
    params = progress.params
    change, optimizer = run.method.optimizer.update(gradient, progress.optimizer, params)
    rate, size = run.rate(step), total(jnp.abs(slope).sum(-1)).sum()
    healthy = jnp.isfinite(size + total(rewards).sum())
    first_bad = jnp.where((progress.first_bad_step < 0) & ~healthy, step, progress.first_bad_step)
    keep = lambda new, old: jnp.where((first_bad < 0) | ~run.plan.freeze, new, old)
    return progress._replace(
        params=jax.tree.map(lambda p, u: keep(p + rate.astype(p.dtype) * u, p), params, change),
        optimizer=jax.tree.map(keep, optimizer, progress.optimizer),
        first_bad_step=first_bad,
        moved=progress.moved | (size > 0),
    )


def note(run: Run, progress: Progress, step: Any, probe: Probe) -> dict[str, Array]:
    """What the probe sees before a step; what it does not ask for is not computed."""
    problem, learner, known = run.problem, run.learner, run.known
    everything = jnp.arange(problem.num_contexts)
    listed = lambda f: (lambda: f(everything)) if learner.table is not None else None
    asked: dict[str, Any] = {}

    def batch(name: str) -> Any:
        if not asked:
            view, _, drawn, stats = look(run, progress, step)
            groups = run.judge(view.contexts, drawn, stats)
            logp, _ = learner.read(view, groups.response)
            groups = collection.prepared(groups, logp)
            loss, slope = jax.value_and_grad(run.loss)(logp, groups)
            asked.update(groups=groups, logp=logp, loss=loss, force=-slope)
        return asked[name]

    state = State(
        step=step,
        params=progress.params,
        log_probs=listed(lambda contexts: learner.table(progress.params, contexts)),
        ref_log_probs=listed(lambda contexts: learner.reference.table(contexts)),
        rewards=listed(lambda contexts: jax.vmap(problem.reward_table)(contexts)),
        **{name: partial(batch, name) for name in ("groups", "logp", "force", "loss")},
        key=lambda: jax.random.fold_in(known.key, step),
        policy=run.method.policy,
        ref_params=known.params if run.method.reference == "initial" else None,
    )
    with naming(f"probe {getattr(probe, '__name__', '')} fails"):
        return {name: jnp.asarray(x) for name, x in probe(problem, state).items()}


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
    drawn = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run.first)[0])
    progress = Progress(
        row=jnp.asarray(0), params=known.params, optimizer=method.optimizer.init(known.params), near=run.learner.near,
        drawn=drawn if plan.collects == "sometimes" else None, stats=run.stats(), first_bad_step=jnp.asarray(-1),
        moved=jnp.asarray(False), record=None,
    )  # fmt: skip
    seen = jax.eval_shape(lambda: note(run, ready(run, progress), jnp.asarray(0), probe))
    record = jax.tree.map(lambda x: jnp.zeros((steps // every + 1, *x.shape), x.dtype), seen)
    return known, progress._replace(record=record)


def fitted(problem: Problem, method: Method, plan: Plan, known: Known, key: Key[Array, ""]) -> Array:
    """A reward model of the data that an offline learner would see."""
    offline = Run.of(problem, method, Plan(plan.period, plan.freeze, "once", "data", plan.forbids), known)
    drawn, _ = offline.first()
    groups = offline.judge(offline.contexts(0), drawn, None)
    return fit_proxy(method.proxy, prepare(groups), problem.num_tokens, key)


def ready(run: Run, progress: Progress) -> Progress:
    """With the collection of a run that collects once; a function of what is known, it is in no checkpoint."""
    if run.plan.collects != "once":
        return progress
    drawn, stats = run.first()
    return progress._replace(drawn=drawn, stats=stats)


def go(problem: Problem, method: Method, plan: Plan, known: Known, progress: Progress, until: Any, *, probe: Probe,
       every: int) -> Progress:  # fmt: skip
    """Go on until this many rows are recorded, in one call or in several: the bits are the same."""
    run = Run.of(problem, method, plan, known)
    last = jax.tree.leaves(progress.record)[0].shape[0] - 1

    def row(i: Array, state: Progress) -> Progress:
        seen = note(run, state, i * every, probe)
        record = jax.tree.map(lambda rows, x: rows.at[i].set(x), state.record, seen)
        state = state._replace(record=record)
        end = jnp.where(i < last, (i + 1) * every, i * every)
        return jax.lax.fori_loop(i * every, end, lambda step, state: learn(run, state, step), state)

    done = jax.lax.fori_loop(progress.row, until, row, ready(run, progress))
    keep = {} if plan.collects != "once" else {"drawn": None, "stats": progress.stats}
    return done._replace(row=jnp.asarray(until), **keep)
