"""One step of learning, as in Algorithm 1 of Tajwar et al. (2024): look, collect, judge, pull, update."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bandit_pft.engine import collection
from bandit_pft.engine.learners import choose
from bandit_pft.engine.state import Chance, Drawn, Known, Learner, Plan, Progress, Pull, View
from bandit_pft.groups import ExactGroup, Group
from bandit_pft.kernels import total
from bandit_pft.methods import Method, batch_sizes
from bandit_pft.objectives.core import batch_loss, reads_running
from bandit_pft.problems import Problem


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

    def chance(self, step: Any) -> Chance:
        """Random numbers of the collection at a step."""
        return collection.chance(self.problem, self.method, self.learner, self.known.key, step)

    def collect(self, view: View, stats: Any, chance: Chance) -> tuple[Drawn, Any]:
        """A new collection, with running statistics of the rewards up to and including it."""
        drawn = collection.collect(self.learner, view, chance)
        if stats is None:
            return drawn, None
        return drawn, collection.remembered(self.method.memory, stats, self.judge(view.contexts, drawn, None))

    def first(self) -> tuple[Drawn, Any]:
        """The collection before the first step."""
        contexts = self.contexts(0)
        view, _ = self.learner.look(self.known.params, self.learner.near, contexts)
        return self.collect(view, self.stats(), self.chance(0))

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
    kept = progress.drawn, progress.stats, progress.ahead
    fresh = lambda: (*run.collect(whole(), progress.stats, progress.ahead), run.chance(step + plan.period))
    if plan.collects == "always":
        kept = fresh()
    elif plan.collects == "sometimes":
        kept = jax.lax.cond(step % plan.period == 0, fresh, lambda: kept)
    drawn, stats, ahead = kept
    kept = progress._replace(near=near, drawn=None if plan.collects == "always" else drawn, stats=stats, ahead=ahead)
    return view, kept, jax.tree.map(cut, drawn), stats


def study(run: Run, progress: Progress, step: Any) -> tuple[Progress, Group, Array, Pull]:
    """The batch to learn from, prepared; the learner's log-probabilities of it, and how slopes there reach it."""
    view, progress, drawn, stats = look(run, progress, step)
    groups = run.judge(view.contexts, drawn, stats)
    logp, pull = run.learner.read(view, groups.response)
    return progress, collection.prepared(groups, logp), logp, pull


def learn(run: Run, progress: Progress, step: Any) -> Progress:
    """One gradient step of one run."""
    progress, groups, logp, pull = study(run, progress, step)
    slope = jax.grad(run.loss)(logp, groups)
    # One sum over all of them: what is infinite or nan stays so.
    healthy = jnp.isfinite(total((jnp.abs(slope) + jnp.where(groups.mask, logp, 0)).sum(-1) + groups.reward).sum())
    return update(run, progress, pull(slope), first_bad(progress, healthy, step), step)


def first_bad(progress: Progress, healthy: Array, step: Any) -> Array:
    """The first step at which the run was not healthy, -1 for none."""
    return jnp.where((progress.first_bad_step < 0) & ~healthy, step, progress.first_bad_step)


def update(run: Run, progress: Progress, gradient: Any, first_bad: Array, step: Any) -> Progress:
    """Follow the gradient, unless the run is frozen: some number of it is not finite, or was not before."""
    params = progress.params
    change, optimizer = run.method.optimizer.update(gradient, progress.optimizer, params)
    rate = run.rate(step)
    keep = lambda new, old: jnp.where((first_bad < 0) | ~run.plan.freeze, new, old)
    return progress._replace(
        params=jax.tree.map(lambda p, u: keep(p + rate.astype(p.dtype) * u, p), params, change),
        optimizer=jax.tree.map(keep, optimizer, progress.optimizer),
        first_bad_step=first_bad,
    )
