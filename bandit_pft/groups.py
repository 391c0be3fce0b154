"""What an objective may look at: N responses to one context, everything except the learner.

A `Group` holds responses that were *drawn*; an `ExactGroup` lists *every* response with its probability as the
weight, which turns each objective into its exact expectation. Padding is weight 0. The three cases share one formula.

A batch is a `Group` whose leaves carry a leading axis. `prepare` writes into it what couples the groups of a batch
(denominators, reference points), so that the loss is a plain sum over groups: splitting the batch over micro-batches
or machines, in any way, gives the same gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bandit_pft.errors import DomainError, ShapeError, as_floats, as_numpy, check_finite, check_number, is_traced
from bandit_pft.kernels import total


def safe_divide(x: Array, y: Array) -> Array:
    """x / y, and 0 where y is 0: an empty mean is 0, with gradient 0."""
    return jnp.where(y == 0, 0.0, x / jnp.where(y == 0, 1.0, y))


def weighted_mean(weight: Float[Array, "*B N"], x: Float[Array, "*B N"]) -> Float[Array, "*B"]:
    """Mean of x under weights that sum to 1, and exactly x where all are equal: none is above or below its mean.

    A plain sum of products misses equal numbers by its rounding, and what is compared with the mean then has a sign.
    """
    counts = weight > 0
    low = jnp.where(counts, x, jnp.inf).min(-1)
    low = jnp.where(jnp.isposinf(low), 0, low)
    return low + total(weight * jnp.where(counts, x - low[..., None], 0))


class Group(NamedTuple):
    """N responses of T tokens to one context; shapes without the batch axis.

    Attributes:
        response: token ids; a bandit's action is T = 1.
        mask: the tokens that exist. A response without any is padding.
        weight: what each response counts for, summing to 1: 1/N when drawn, its probability in an `ExactGroup`, 0 for
            padding.
        reward: what the learner is told a response is worth.
        score: what the labeller saw: `reward + temperature * Gumbel` gives Bradley-Terry preferences.
        ref_logp: token log-probabilities under the reference policy, in nats.
        old_logp: the same under the policy that the responses came from.
        draws: how many responses a group holds, n. In an `ExactGroup`: in the sampled group it stands for.
        temperature: of the labels; only an `ExactGroup` reads it, elsewhere the noise is in `score`.
        min_gap: pairs whose scores differ by less are not compared.
        threshold: a response that scores above it is desirable.
        baseline: running mean of the rewards seen before this batch.
        scale: running standard deviation of those rewards.
        share: this group's part of a batch mean; `prepare` sets it, as it does all that follow.
        token_share: one over the number of tokens in the batch.
        pair_share: one over the number of compared pairs in the batch.
        kept_share: one over the number of desirable responses in the batch.
        kl: the learner's KL from the reference, estimated on the batch, at least 0, no gradient [nats].
        mean_gain: mean of `log pi - log pi_ref` over the batch, no gradient [nats].
    """

    response: Int[Array, "*B N T"]
    mask: Bool[Array, "*B N T"]
    weight: Float[Array, "*B N"]
    reward: Float[Array, "*B N"]
    score: Float[Array, "*B N"]
    ref_logp: Float[Array, "*B N T"]
    old_logp: Float[Array, "*B N T"]
    draws: Float[Array, "*B"]
    temperature: Float[Array, "*B"]
    min_gap: Float[Array, "*B"]
    threshold: Float[Array, "*B"]
    baseline: Float[Array, "*B"]
    scale: Float[Array, "*B"]
    share: Float[Array, "*B"]
    token_share: Float[Array, "*B"]
    pair_share: Float[Array, "*B"]
    kept_share: Float[Array, "*B"]
    kl: Float[Array, "*B"]
    mean_gain: Float[Array, "*B"]

    # --- responses -------------------------------------------------------------------------------------------------
    def real(self) -> Bool[Array, " N"]:
        """The responses that count: some token exists and the weight is not 0."""
        return self.mask.any(-1) & (self.weight > 0)

    def length(self) -> Float[Array, " N"]:
        """Number of tokens of each response."""
        return self.mask.sum(-1).astype(self.weight.dtype)

    def total(self, x: Float[Array, "N T"]) -> Float[Array, " N"]:
        """Sum over a response's tokens: the log-probability of the whole response from those of its tokens."""
        return jnp.where(self.mask, x, 0).sum(-1)

    def average(self, x: Float[Array, "N T"]) -> Float[Array, " N"]:
        """Mean over a response's tokens."""
        return safe_divide(self.total(x), self.length())

    def count(self) -> Float[Array, " N"]:
        """How often each response occurs in the group (expected, when exact)."""
        return self.weight * self.draws

    # --- reductions, normalised over the whole batch ---------------------------------------------------------------
    def expect(self, x: Float[Array, " N"]) -> Float[Array, ""]:
        """Mean over this group's responses alone; padding may hold anything finite."""
        return total(self.weight * x)

    def mean(self, x: Float[Array, " N"]) -> Float[Array, ""]:
        """This group's part of the batch mean over responses."""
        return self.share * self.expect(x)

    def token_mean(self, x: Float[Array, "N T"]) -> Float[Array, ""]:
        """This group's part of the mean over all tokens of the batch: long responses count more."""
        return self.token_share * total(self.count() * self.total(x))

    def kept_mean(self, x: Float[Array, " N"]) -> Float[Array, ""]:
        """This group's part of the mean over the desirable responses of the batch."""
        return self.kept_share * total(self.count() * self.desirable() * x)

    def pair_mean(self, x: Float[Array, "N N"]) -> Float[Array, ""]:
        """This group's part of the mean of x[winner, loser] over all compared pairs of the batch."""
        return self.pair_share * (self.pair_count() * x).sum()

    # --- labels ----------------------------------------------------------------------------------------------------
    def preferred(self) -> Float[Array, "N N"]:
        """[i, j]: 1 where i is compared with j and wins. Ties and gaps below `min_gap` are not compared."""
        gap = self.score[..., :, None] - self.score[..., None, :]
        return ((gap > 0) & (gap >= self.min_gap)).astype(self.weight.dtype)

    def pair_count(self) -> Float[Array, "N N"]:
        """How often i is compared with j and wins."""
        count = jnp.where(self.real(), self.count(), 0)
        return count[:, None] * count[None, :] * self.preferred()

    def desirable(self) -> Float[Array, " N"]:
        """1 for the responses that score above the threshold, 0 for the others."""
        return (self.score > self.threshold).astype(self.weight.dtype)

    def best(self) -> Float[Array, " N"]:
        """Probability of being the group's best response; ties share it in proportion to their weight."""
        return _top_share(self.weight, self.score, self.real())

    def worst(self) -> Float[Array, " N"]:
        """Probability of being the group's worst response."""
        return _top_share(self.weight, -self.score, self.real())

    # --- baselines -------------------------------------------------------------------------------------------------
    def group_advantage(self) -> Float[Array, " N"]:
        """Reward minus the mean of the group's rewards, the response's own included."""
        centred = self.reward - weighted_mean(self.weight, self.reward)
        # The mean's rounding would be a force on all alike, and a large one where a small deviation divides it.
        return centred - self.expect(centred)

    def leave_one_out_advantage(self) -> Float[Array, " N"]:
        """Reward minus the mean of the *other* rewards: n / (n - 1) times the group advantage."""
        return safe_divide(self.draws, self.draws - 1) * self.group_advantage()

    def standard_deviation(self) -> Float[Array, ""]:
        """Of the group's rewards, with n - 1 in the denominator (as the language-model libraries do)."""
        square = self.expect((self.reward - self.expect(self.reward)) ** 2)
        # The root has no gradient at 0 and no information below the rounding of the rewards.
        return jnp.sqrt(safe_divide(self.draws, self.draws - 1) * square)

    @classmethod
    def of(
        cls,
        *,
        reward: Any,
        ref_logp: Any,
        response: Any = None,
        mask: Any = None,
        weight: Any = None,
        score: Any = None,
        old_logp: Any = None,
        draws: Any = None,
        temperature: float | Array = 0.0,
        min_gap: float | Array = 0.0,
        threshold: Any = None,
        baseline: float | Array = 0.0,
        scale: float | Array = 1.0,
    ) -> Group:
        """One group from what is known, the rest filled in; prepared as a batch of its own.

        Args:
            reward: [N].
            ref_logp: [N, T], or [N] for T = 1, in nats, the default of `old_logp`; anything in masked tokens.
            weight: [N], normalised here; default the same for all responses that exist.
            score: [N]; default the reward.
            threshold: default the mean score of the group.

        Raises:
            ShapeError: shapes that do not agree. DomainError: nan or infinite numbers.
        """
        reward = as_floats("reward", reward, shape=(None,))
        n = reward.shape[0]
        if n < 1:
            raise ShapeError("reward is empty; a group needs at least 1 response")
        ref_logp = as_floats("ref_logp", ref_logp)
        ref_logp = ref_logp[:, None] if ref_logp.ndim == 1 else ref_logp
        ref_logp = as_floats("ref_logp", ref_logp, shape=(n, None))
        t = ref_logp.shape[1]
        mask = jnp.ones((n, t), bool) if mask is None else _whole("mask", mask, at_least=0, at_most=1)
        if mask.shape != (n, t):
            raise ShapeError(f"mask has shape {mask.shape}; it must be {(n, t)}, as ref_logp")
        if old_logp is not None:
            old_logp = as_floats("old_logp", old_logp)
            old_logp = old_logp[:, None] if old_logp.ndim == 1 else old_logp
            old_logp = as_floats("old_logp", old_logp, shape=(n, t))
        if response is None:
            response = jnp.zeros((n, t), jnp.int32).at[:, 0].set(jnp.arange(n, dtype=jnp.int32))
        token = np.iinfo(np.int32)
        response = _whole("response", response, at_least=token.min, at_most=token.max).astype(jnp.int32)
        if response.shape not in ((n, t), (n,)) or response.size != n * t:
            raise ShapeError(f"response has shape {response.shape}; it must be {(n, t)}, as ref_logp")
        mask, response = mask.astype(bool), response.reshape(n, t)
        if not is_traced(mask, response) and bool((mask & (response < 0)).any()):
            raise DomainError(f"response holds {response[mask].min()}; tokens are at least 0: mask the padding")
        real = mask.any(-1)
        if weight is None:
            weight = safe_divide(real.astype(reward.dtype), real.sum().astype(reward.dtype))
        weight = jnp.where(real, as_floats("weight", weight, shape=(n,)), 0)
        score = reward if score is None else as_floats("score", score, shape=(n,))
        check_finite("reward", reward)
        check_finite("score", score)
        check_logp("ref_logp", ref_logp, mask)
        if old_logp is not None:
            check_logp("old_logp", old_logp, mask)
        if not is_traced(weight) and bool((weight < 0).any() | ~jnp.isfinite(weight).all()):
            raise DomainError(f"weight is {weight}; every entry must be finite and at least 0")
        weight = safe_divide(weight, weight.sum())
        check_number("draws", 1 if draws is None else draws, at_least=1)
        check_number("temperature", temperature, at_least=0)
        check_number("min_gap", min_gap, at_least=0)
        check_number("threshold", 0 if threshold is None else threshold)
        check_number("baseline", baseline)
        check_number("scale", scale, above=0)
        number = lambda x: jnp.asarray(x, reward.dtype)
        group = cls(
            response=response,
            mask=mask,
            weight=weight,
            reward=reward,
            score=score,
            ref_logp=ref_logp,
            old_logp=ref_logp if old_logp is None else old_logp,
            draws=number((real & (weight > 0)).sum() if draws is None else draws),
            temperature=number(temperature),
            min_gap=number(min_gap),
            threshold=number(weighted_mean(weight, score) if threshold is None else threshold),
            baseline=number(baseline),
            scale=number(scale),
            share=number(1),
            token_share=number(1),
            pair_share=number(1),
            kept_share=number(1),
            kl=number(0),
            mean_gain=number(0),
        )
        return jax.tree.map(lambda x: x[0], prepare(jax.tree.map(lambda x: x[None], group)))


def _whole(argument: str, value: Any, *, at_least: int, at_most: int) -> Array:
    """Whole numbers of any number type. Traced values pass."""
    if is_traced(value):
        return value
    array = as_numpy(argument, value)
    if array.dtype.kind not in "biuf" or (array != np.round(array)).any():
        raise TypeError(f"{argument} holds {array.dtype}; it must hold whole numbers")
    bad = (array < at_least) | (array > at_most)
    if bad.any():
        raise DomainError(f"{argument} holds {array[bad].flat[0]}; every entry must be from {at_least} to {at_most}")
    return jnp.asarray(array)


def check_logp(argument: str, logp: Array, mask: Array) -> None:
    """Refuse infinities and probabilities in the place of log-probabilities of tokens. Traced values pass."""
    if is_traced(logp, mask):
        return
    logp = jnp.where(mask, logp, 0)
    check_finite(argument, logp, advice="mask what cannot occur")
    # One number may round to a little above 0, all of them do not.
    if bool((logp >= 0).all() & (logp > 1e-3).any()):
        raise DomainError(
            f"{argument} holds probabilities (none negative, up to {logp.max():g}); log-probabilities are at most 0: "
            "take their logarithm"
        )


class ExactGroup(Group):
    """Every response to one context, its probability as the weight: statistics become their expectations.

    `draws` is the size n of the sampled group that is being averaged over.
    """

    __slots__ = ()

    def preferred(self) -> Float[Array, "N N"]:
        """[i, j]: probability that i beats j by `min_gap`, sigmoid((score_i - score_j - min_gap) / temperature)."""
        gap = self.score[..., :, None] - self.score[..., None, :]
        hard = ((gap > 0) & (gap >= self.min_gap)).astype(self.weight.dtype)
        temperature = jnp.where(self.temperature > 0, self.temperature, 1)
        return jnp.where(self.temperature > 0, jax.nn.sigmoid((gap - self.min_gap) / temperature), hard)

    def best(self) -> Float[Array, " N"]:
        """Distribution of the best of n draws, F^n - F_^n, where F (F_) is the mass that scores no (strictly) more."""
        return best_of_n_weights(self.weight, self.score, self.draws)

    def worst(self) -> Float[Array, " N"]:
        """Distribution of the worst of n draws."""
        return best_of_n_weights(self.weight, -self.score, self.draws)

    def group_advantage(self) -> Float[Array, " N"]:
        """Expectation of the sampled one: the response's own share of the mean leaves (n - 1) / n of r - E r."""
        return safe_divide(self.draws - 1, self.draws) * self.leave_one_out_advantage()

    def leave_one_out_advantage(self) -> Float[Array, " N"]:
        """Expectation of the sampled one, r - E r."""
        return self.reward - self.expect(self.reward)

    def standard_deviation(self) -> Float[Array, ""]:
        """Of the reward under the weights: the limit of large groups."""
        return jnp.sqrt(self.expect((self.reward - self.expect(self.reward)) ** 2))


def _top_share(weight: Array, score: Array, real: Array) -> Array:
    top = real & (score >= jnp.where(real, score, -jnp.inf).max(-1, keepdims=True))
    mass = jnp.where(top, weight, 0)
    return safe_divide(mass, mass.sum(-1, keepdims=True))


def best_of_n_weights(weight: Float[Array, " A"], score: Float[Array, " A"], n: Any) -> Float[Array, " A"]:
    r"""Probability of each response to be the best of n draws: F(s)^n - F(s-)^n, shared among ties by weight.

    Args:
        weight: probabilities that sum to 1. score: higher is better. n: at least 1, traced, need not be whole.

    Exact for large n and for masses of any size: with p the mass of a score and F the mass up to it, the difference
    is `F^n * -expm1(n * log1p(-p / F))`.
    """
    check_number("n", n, at_least=1)
    weight = safe_divide(weight, weight.sum(-1, keepdims=True))
    order = jnp.argsort(score)
    mass = weight[order]
    ranked = score[order]
    # A tie shares one F: the one at its last member.
    last = jnp.searchsorted(ranked, ranked, side="right") - 1
    tie = jax.ops.segment_sum(mass, last, num_segments=mass.size, indices_are_sorted=True)[last]
    upto = jnp.cumsum(mass)[last]
    # Near F = 1 a rounding of F is multiplied by n: take F from what lies above it, which is small there.
    above = jnp.append(jnp.cumsum(mass[::-1])[::-1], 0)[last + 1]
    log_upto = jnp.where(above < 0.5, jnp.log1p(-jnp.minimum(above, 0.5)), jnp.log(jnp.where(upto > 0, upto, 1)))
    fraction = jnp.clip(safe_divide(tie, upto), 0, 1)
    won = jnp.exp(n * log_upto) * -jnp.expm1(n * jnp.log1p(-fraction))
    return jnp.zeros_like(weight).at[order].set(won * safe_divide(mass, tie))


@jax.jit
def prepare(groups: Group, logp: Float[Array, "B N T"] | None = None) -> Group:
    """Write into a batch what couples its groups: denominators, and the learner's distance from the reference.

    Args:
        groups: leaves with a leading batch axis. Splitting the *result* along that axis leaves every loss unchanged.
        logp: the learner's token log-probabilities; without it `kl` and `mean_gain` are 0 (the learner is the
            reference). No gradient flows through it.
    """
    if not isinstance(groups, Group) or groups.mask.ndim != 3:
        raise TypeError("groups must be one Group with a batch axis: jax.tree.map(lambda *x: jnp.stack(x), *groups)")
    if logp is not None and logp.shape != groups.mask.shape:
        raise ShapeError(f"logp has shape {logp.shape}; the groups hold responses of shape {groups.mask.shape}")
    number = groups.draws.shape[0]
    each = lambda value: jnp.broadcast_to(value, (number,))
    per_group = lambda f: jax.vmap(f)(groups)
    alive = per_group(lambda g: g.real().any().astype(g.weight.dtype))
    one_over = lambda total: each(safe_divide(jnp.ones_like(total), total))
    prepared = groups._replace(
        share=alive * one_over(alive.sum()),
        token_share=one_over(per_group(lambda g: total(g.count() * g.length())).sum()),
        pair_share=one_over(per_group(lambda g: g.pair_count().sum()).sum()),
        kept_share=one_over(per_group(lambda g: total(g.count() * g.desirable())).sum()),
    )
    if logp is None:
        return prepared
    logp = jax.lax.stop_gradient(jnp.where(groups.mask, logp, 0))
    kl, gain = jax.vmap(_distance)(prepared, logp)
    return prepared._replace(
        kl=each(jnp.maximum((prepared.share * kl).sum(), 0)), mean_gain=each((prepared.share * gain).sum())
    )


def _distance(group: Group, logp: Array) -> tuple[Array, Array]:
    gain = group.total(logp - group.ref_logp)
    # Responses came from an older policy: self-normalised importance weights bring the mean back to the learner's.
    lead = jnp.where(group.real(), group.total(logp - group.old_logp), -jnp.inf)
    weight = group.weight * jnp.exp(lead - jnp.max(lead, initial=-1e30))
    return safe_divide(total(weight * gain), total(weight)), group.expect(gain)
