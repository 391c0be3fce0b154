"""Gradient steps on the drawn responses alone, whose cost does not grow with the number of actions.

The gradient in a table's logits is sum(force) pi - force: where forces sum to zero, plain gradient descent moves the
logits of the responses in hand and no others. The learner's probabilities are then kept as a tree of sums, in which a
few leaves are replaced. Below `SPARSE` responses, and on accelerators, a pass over all of them is faster.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bandit_pft.engine.state import Drawn, Progress, View
from bandit_pft.engine.steps import Run, study
from bandit_pft.engine.tables import BALANCED
from bandit_pft.kernels import mass_tree, replace_in_tree, sample_from_tree, total
from bandit_pft.policies import softmax_table


class Masses(NamedTuple):
    """The learner's probabilities as a tree of sums (see `mass_tree`), each context's up to a factor e^near."""

    tree: tuple[Float[Array, "S ..."], ...]
    near: Float[Array, " S"]

    @property
    def norm(self) -> Float[Array, " S"]:
        """Logarithm of each context's normaliser."""
        return self.near + jnp.log(total(self.tree[-1]))


def stretches(run: Run, progress: Progress, step: Any, end: Any) -> tuple[Any, Progress]:
    """As many such steps as there are from this one up to before `end`: the next step, and what is left."""
    ref = run.learner.reference.table(run.known.order)
    by_few = run._replace(learner=on_few(run, ref))
    # Further away, masses overflow or too many of them are 0.
    near = lambda masses: (jnp.abs(masses.norm - masses.near) < 30).all()

    def take(state: tuple[Any, Progress, Any]) -> tuple[Any, Progress, Any]:
        step, progress, _ = state
        progress, taken = learn_on_few(by_few, ref, progress, step)
        return step + taken, progress, taken

    def stretch(state: tuple[Any, Progress, Any]) -> tuple[Any, Progress, Any]:
        step, progress, _ = state
        view, norm = run.learner.look(progress.params, progress.near, run.known.order)
        masses = Masses(jax.vmap(mass_tree)(view.mass), norm)
        more = lambda state: (state[0] < end) & state[2] & near(state[1].near)
        step, progress, taken = jax.lax.while_loop(more, take, take((step, progress._replace(near=masses), True)))
        return step, progress._replace(near=progress.near.norm), taken

    more = lambda state: (state[0] < end) & state[2]
    step, progress, _ = jax.lax.while_loop(more, stretch, (jnp.asarray(step), progress, jnp.asarray(True)))
    return step, progress


def on_few(run: Run, ref: Float[Array, "S A"]) -> Any:
    """The run's learner, which sees itself as `Masses`."""

    def log_prob(view: View, response: Array) -> Float[Array, "S N T"]:
        read = lambda table: jnp.take_along_axis(table, response[..., 0], -1)
        logp = softmax_table(read(ref), read(view.params), view.mass.norm, masked=run.plan.forbids)
        return logp[..., None]

    def draw(view: View, uniform: Array) -> Drawn:
        response = jax.vmap(sample_from_tree)(uniform, view.mass.tree)[..., None]
        return Drawn(response, log_prob(view, response), None, None)

    return run.learner._replace(
        look=lambda params, masses, contexts: (View(params, contexts, mass=masses), masses),
        read=lambda view, response: (log_prob(view, response), lambda slope: slope),
        draw=draw,
    )


def learn_on_few(run: Run, ref: Array, progress: Progress, step: Any) -> tuple[Progress, Array]:
    """One step, and whether it was taken: not if forces do not cancel, nor if they are not finite or the run is frozen;
    then nothing is changed."""
    kept, groups, logp, _ = study(run, progress, step)
    slope, action = jax.grad(run.loss)(logp, groups)[..., 0], groups.response[..., 0]
    cancel = (jnp.abs(total(slope)) <= BALANCED * total(jnp.abs(slope))).all()
    cancel &= jnp.isfinite(groups.reward).all() & jnp.isfinite(logp).all()
    taken = cancel & ((progress.first_bad_step < 0) | ~run.plan.freeze)
    keep = lambda new, old: jnp.where(taken, new, old)
    read = lambda table: jnp.take_along_axis(table, action, -1)
    change = keep(-run.rate(step) * slope, 0)
    params = jax.vmap(lambda p, a, x: p.at[a].add(x))(progress.params, action, change)
    masses = progress.near
    mass = jnp.exp(read(ref) + read(params) - masses.near[:, None])
    masses = masses._replace(tree=jax.vmap(replace_in_tree)(masses.tree, action, mass))
    drawn, stats, ahead = (
        jax.tree.map(keep, *pair)
        for pair in ((kept.drawn, progress.drawn), (kept.stats, progress.stats), (kept.ahead, progress.ahead))
    )
    return progress._replace(params=params, near=masses, drawn=drawn, stats=stats, ahead=ahead), taken
