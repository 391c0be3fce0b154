"""What a learner collects: responses, judged by the reward or by a labeller."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bandit_pft.engine.state import Chance, Drawn, Learner, Plan, View
from bandit_pft.groups import ExactGroup, Group, prepare, weighted_mean
from bandit_pft.kernels import total
from bandit_pft.methods import Method, batch_sizes
from bandit_pft.problems import Problem

Stats = Float[Array, " moments"]


def contexts_at(problem: Problem, method: Method, plan: Plan, order: Array, step: Any) -> Int[Array, " B"]:
    """The contexts of the collection that this step learns from: all, or the next B in a fixed random order."""
    prompts, _ = batch_sizes(problem, method)
    if prompts == problem.num_contexts:
        return order
    return order[((step // plan.period) * prompts + jnp.arange(prompts)) % problem.num_contexts]


def chance(problem: Problem, method: Method, learner: Learner, key: Key[Array, ""], step: Any) -> Chance:
    """Random numbers of the collection at a step: a function of the run's key and the step alone.

    They are had one collection ahead: in the loop's memory, XLA does not hash them anew for everything that reads them.
    """
    noise = None
    if method.label_noise is not None and method.data == "sampled":
        here = jax.random.fold_in(jax.random.fold_in(key, step), 1)
        noise = jax.random.gumbel(here, (batch_sizes(problem, method)[0], method.num_responses))
    return Chance(learner.random(key, step), noise)


def collect(learner: Learner, view: View, chance: Chance) -> Drawn:
    """New responses to each of the view's contexts."""
    return learner.draw(view, chance.draws)._replace(noise=chance.noise)


def judge(
    problem: Problem, method: Method, learner: Learner, proxy: Any, contexts: Int[Array, " M"], drawn: Drawn,
    stats: Stats | None,
) -> Group:  # fmt: skip
    """The batch that was collected, rewarded and scored; what `prepare` writes is neutral."""
    response, mask, weight = learner.lay(contexts, drawn)
    reward = rewards(problem, method, proxy, contexts, response, mask)
    score, temperature = reward, jnp.zeros(())
    if method.label_noise is not None:
        temperature = jnp.asarray(method.label_noise, reward.dtype)
        # An exact group averages over the noise instead of drawing it.
        score = reward if drawn.noise is None else reward + temperature * drawn.noise
    each = lambda x: jnp.broadcast_to(jnp.asarray(x, reward.dtype), contexts.shape)
    threshold = weighted_mean(weight, score) if method.threshold is None else each(method.threshold)
    baseline, scale = running(stats)
    kind = ExactGroup if method.data == "exact" else Group
    return kind(
        response=response, mask=mask, weight=weight, reward=reward, score=score,
        ref_logp=learner.reference.log_prob(contexts, response), old_logp=drawn.old,
        draws=each(method.num_responses), temperature=each(temperature), min_gap=each(method.min_gap),
        threshold=threshold, baseline=each(baseline), scale=each(scale), share=each(1), token_share=each(1),
        pair_share=each(1), kept_share=each(1), kl=each(0), mean_gain=each(0),
    )  # fmt: skip


def rewards(
    problem: Problem, method: Method, proxy: Any, contexts: Array, response: Array, mask: Array
) -> Float[Array, "M N"]:
    """What the learner is told: the proxy's reward where there is one."""
    if proxy is not None:
        return jnp.where(mask, proxy[response], 0).sum(-1)
    if method.data == "exact" and problem.length == 1:
        return jax.vmap(problem.reward_table)(contexts)
    return jax.vmap(problem.reward)(contexts, response, mask)


def prepared(groups: Group, logp: Float[Array, "M N T"]) -> Group:
    """With what couples the groups of a batch. No group of a simulation is padding, so each has the same share."""
    return prepare(groups, logp)._replace(share=jnp.full(logp.shape[:1], 1 / logp.shape[0]))


def remembered(memory: Any, stats: Stats, groups: Group) -> Stats:
    """Decayed sums of 1, the reward and its square, up to and including this batch."""
    moment = lambda x: total(groups.weight * x).mean()
    seen = jnp.stack([jnp.ones(()), moment(groups.reward), moment(groups.reward**2)])
    return memory * stats + (1 - memory) * seen


def running(stats: Stats | None) -> tuple[Any, Any]:
    """Running mean and deviation of the rewards: 0 and 1 where nobody reads them."""
    if stats is None:
        return 0.0, 1.0
    baseline, square = stats[1] / stats[0], stats[2] / stats[0]
    variance = square - baseline**2
    # Below the rounding of the squares there is no signal to scale.
    return baseline, jnp.where(variance > 1e-6 * square, jnp.sqrt(jnp.maximum(variance, 1e-30)), 1.0)
