"""Identities of the field, in float32 and float64, compiled and not, from 2 to 1,000 actions.

One side of each identity is a function of this package, the other a closed form, an enumeration, or the package by
another way. An entry yields differences (or how far an inequality is violated) with their scale, the size of what was
subtracted: rewards, log-ratios, beta. Never the gradient: at a peaked policy it is as small as the rounding of its
parts. `tolerance` is in units of the type's epsilon. The numbers are those of a list of the field's identities; its
numbers without an entry were never given out.

Statistics of draws stand at the end, with fixed seeds and enough draws to see a bias of 1 %.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frequencies import p_value
from scipy import stats

from bandit_pft import metrics
from bandit_pft.groups import ExactGroup, Group, best_of_n_weights, prepare
from bandit_pft.kernels import sample_categorical, total
from bandit_pft.objectives import OBJECTIVES, batch_loss, core, force, numerics, with_kl
from bandit_pft.problems import bandit, log_softmax

SIZES = (2, 3, 17, 100, 1000)
SEEDS, LOGIT_SCALES = range(3), (0.1, 1.0, 5.0)
EPS64 = float(np.finfo(np.float64).eps)


class Case(NamedTuple):
    """A problem and where its learner stands, [K] each. The logits of all three policies have one scale."""

    theta: Any  # logits of the learner
    ref: Any  # logits of the reference
    old: Any  # logits of the policy that the responses came from
    reward: Any  # standard normal


class Identity(NamedTuple):
    number: str
    statement: str
    differences: Callable[[Case], Iterator[tuple[Any, Any]]]
    tolerance: float
    sizes: tuple[int, ...]
    bits: tuple[int, ...]


IDENTITIES: list[Identity] = []


def identity(
    number: str,
    statement: str,
    *,
    tolerance: float = 64,
    sizes: tuple[int, ...] = SIZES,
    bits: tuple[int, ...] = (32, 64),
) -> Callable[[Any], Any]:
    """Adds the decorated function to the table: it takes a `Case` and yields pairs (difference, scale)."""

    def add(function: Any) -> Any:
        IDENTITIES.append(Identity(number, statement, function, tolerance, sizes, bits))
        return function

    return add


@functools.cache
def cases(actions: int, bits: int) -> Case:
    """[lanes, K] for every seed and scale."""
    lanes = [
        Case(*(factor * np.random.default_rng((actions, seed)).standard_normal((4, actions))))
        for seed in SEEDS
        for factor in (np.array([scale, scale, scale, 1.0])[:, None] for scale in LOGIT_SCALES)
    ]
    return jax.tree.map(lambda *x: np.stack(x).astype(f"float{bits}"), *lanes)


def error(entry: Identity, case: Case) -> Any:
    """The largest difference of one case in units of epsilon and scale."""
    parts = [jnp.max(jnp.abs(difference) / scale) for difference, scale in entry.differences(case)]
    return jnp.stack(parts).max() / np.finfo(case.theta.dtype).eps


def sizes(entry: Identity, bits: int) -> tuple[int, ...]:
    # What the number of actions does to rounding, float32 shows; a program for each takes seconds to compile.
    return entry.sizes if bits == 32 else tuple(actions for actions in entry.sizes if actions not in (2, 100))


@functools.cache
def compiled(actions: int, bits: int) -> dict[str, np.ndarray]:
    """[lanes] of every identity, in one program: it compiles in half the time of one for each."""
    entries = [entry for entry in IDENTITIES if bits in entry.bits and actions in sizes(entry, bits)]
    every = lambda case: {entry.number: error(entry, case) for entry in entries}
    with jax.enable_x64(bits == 64):
        # Three lanes at a time: a pair of a thousand actions each takes megabytes.
        found = jax.jit(lambda batch: jax.lax.map(every, batch, batch_size=3))(cases(actions, bits))
        return jax.tree.map(np.asarray, found)


def eager(entry: Identity, actions: int, bits: int) -> np.ndarray:
    """[seeds], operation by operation on concrete numbers; another scale with each seed.

    Each operation compiles alone for each size, so that one size must do.
    """
    with jax.enable_x64(bits == 64):
        lanes = list(zip(*cases(actions, bits), strict=True))[:: len(LOGIT_SCALES) + 1]
        return np.array([error(entry, Case(*map(jnp.asarray, lane))) for lane in lanes])


def digits(case: Case) -> float:
    """Levels of a sum over K terms."""
    return math.log2(2 * case.theta.size)


def size(*arrays: Any) -> Any:
    """The largest number in them, at least 1: every scale contains an addition of order 1."""
    return jnp.maximum(1, jnp.max(jnp.stack([jnp.abs(x).max() for x in arrays])))


def exact(case: Case, weight: Any, **known: Any) -> ExactGroup:
    """All K responses, drawn from `weight` (log-probabilities)."""
    given = {"reward": case.reward, "ref_logp": log_softmax(case.ref), "old_logp": log_softmax(case.old), "draws": 4}
    return ExactGroup.of(**{**given, "weight": jnp.exp(weight), **known})


def pull(objective: Any, logp: Any, group: Group, **hyper: Any) -> Any:
    return force(objective, logp[:, None], group, **hyper)[:, 0]


def slope(objective: Any, theta: Any, group: Group, **hyper: Any) -> Any:
    """Gradient of the loss in the logits."""
    logp, back = jax.vjp(log_softmax, theta)
    return -back(pull(objective, logp, group, **hyper))[0]


def over(values: tuple[float, ...], f: Callable[..., Any], *rows: Any) -> Any:
    """f of every value (and row), stacked: one program for all of them."""
    return jax.vmap(f)(jnp.asarray(values), *rows)


BETAS = (0.05, 0.5, 5.0)


def optimum(case: Case, beta: Any) -> Any:
    return bandit(case.reward, case.ref).optimum(beta)[0]


def optima(case: Case) -> Any:
    """[betas, K]."""
    problem = bandit(case.reward, case.ref)
    return over(BETAS, lambda beta: problem.optimum(beta)[0])


def regularised(logp: Any, case: Case, beta: float) -> Any:
    """E r - beta KL(pi, ref)."""
    return metrics.expected_reward(logp, case.reward) - beta * metrics.kl(logp, log_softmax(case.ref))


def bradley_terry(reward: Any) -> Any:
    """[i, j]: how often i beats j."""
    return 1 / (1 + jnp.exp(reward[None, :] - reward[:, None]))


# --- softmax and divergences -----------------------------------------------------------------------------------------
@identity("I01", "probabilities sum to 1", tolerance=4)
def _(case):
    logp = log_softmax(case.theta)
    yield metrics.mass(logp, jnp.ones_like(logp, bool)) - 1, digits(case)
    yield jnp.exp(bandit(case.reward, case.ref).ref_table(0)).sum() - 1, digits(case)


@identity("I02", "a shift of all logits changes no log-probability")
def _(case):
    yield log_softmax(case.theta + 7) - log_softmax(case.theta), size(case.theta + 7)


@identity("I03", "gradients in the logits sum to 0", tolerance=32)
def _(case):
    logp, ref, scale = log_softmax(case.theta), log_softmax(case.ref), digits(case)
    in_logits = lambda f: jax.grad(lambda theta: f(log_softmax(theta)))(case.theta).sum()
    gap = size(logp, ref)
    yield in_logits(lambda x: metrics.expected_reward(x, case.reward)), scale * size(case.reward)
    yield in_logits(lambda x: metrics.kl(x, ref)), scale * gap
    yield in_logits(lambda x: metrics.kl(ref, x)), scale
    yield in_logits(metrics.entropy), scale * size(logp)
    group = exact(case, log_softmax(case.old))
    yield slope("sft", case.theta, group).sum(), scale
    yield slope("rwr", case.theta, group).sum(), scale * jnp.exp(2 * case.reward.max())
    yield slope("dpo", case.theta, group, beta=0.5).sum(), scale
    yield slope("ipo", case.theta, group, beta=0.5).sum(), scale * 4 * gap


@identity("I08", "KL(pi, pi) is 0 with gradient 0, and no KL is negative")
def _(case):
    logp, ref = log_softmax(case.theta), log_softmax(case.ref)
    yield metrics.kl(logp, logp), 1
    yield jax.grad(lambda theta: metrics.kl(log_softmax(theta), logp))(case.theta), size(logp)
    for other in (ref, log_softmax(case.theta + 1e-3 * case.ref)):
        yield 4 * jnp.minimum(metrics.kl(logp, other), 0), size(logp - other)


@identity("I31", "entropy is log K minus the KL from uniform")
def _(case):
    logp, uniform = log_softmax(case.theta), log_softmax(jnp.zeros_like(case.theta))
    yield metrics.entropy(logp) + metrics.kl(logp, uniform) - math.log(logp.size), size(logp)


@identity("I32", "half the squared total variation distance bounds the KL (Pinsker)")
def _(case):
    logp, ref = log_softmax(case.theta), log_softmax(case.ref)
    apart = metrics.mass(logp, logp > ref) - metrics.mass(ref, logp > ref)
    yield jnp.minimum(metrics.kl(logp, ref) - 2 * apart**2, 0), size(logp - ref)


@identity("I33", "both KLs add up to the sum of (p - q) (log p - log q)")
def _(case):
    p, q = log_softmax(case.theta), log_softmax(case.ref)
    yield metrics.kl(p, q) + metrics.kl(q, p) - ((jnp.exp(p) - jnp.exp(q)) * (p - q)).sum(), size(p - q)


@identity("I45", "a temperature towards 0 leaves the best action alone, without overflow", tolerance=8)
def _(case):
    problem, best = bandit(case.reward), jnp.arange(case.reward.size) == case.reward.argmax()
    # Where the second best is far enough away for its share to vanish.
    near = case.reward.max() - jnp.where(best, -jnp.inf, case.reward).max() < 60e-3
    yield over((1e-3,), lambda t: jnp.where(near, 0, jnp.exp(problem.optimum(t)[0]) - best)), 1
    yield over((1e-10, 1e-30), lambda t: jnp.exp(problem.optimum(t)[0]) - best), 1


@identity("I38", "a forbidden action leaves the problem without it, and feels no gradient")
def _(case):
    pad = lambda x, value: jnp.concatenate([jnp.full(1, value, x.dtype), x, jnp.full(2, value, x.dtype)])
    hidden = lambda x: jnp.concatenate([x[:1], x[-2:]])
    wide = Case(*(pad(x, -jnp.inf) for x in case[:3]), pad(case.reward, 100.0))

    def numbers(here: Case) -> dict[str, Any]:
        value = lambda theta: regularised(log_softmax(theta), here, 0.5) + metrics.entropy(log_softmax(theta))
        level, gradient = jax.value_and_grad(value)(here.theta)
        logp = log_softmax(here.theta)
        best = best_of_n_weights(jnp.exp(logp), here.reward, 5.0)
        return {"level": level, "gradient": gradient, "best": best, "optimum": jnp.exp(optimum(here, 0.5))}

    narrow, padded = numbers(case), numbers(wide)
    scale = size(case.theta, case.ref, case.reward)
    yield padded["level"] - narrow["level"], scale
    for name in ("gradient", "best", "optimum"):
        yield padded[name][1:-2] - narrow[name], scale
        yield hidden(padded[name]), 1e-30


@identity("I39", "renaming the actions renames the results")
def _(case):
    order = np.random.default_rng(0).permutation(case.theta.size)

    def numbers(here: Case) -> Any:
        logp = log_softmax(here.theta)
        group = exact(here, log_softmax(here.old))
        forces = [pull(name, logp, group) for name in ("dpo", "kto", "reverse_kl")]
        return jnp.stack([logp, optimum(here, 1.0), best_of_n_weights(jnp.exp(logp), here.reward, 5.0), *forces])

    plain, renamed = jax.vmap(numbers)(jax.tree.map(lambda x: jnp.stack([x, x[order]]), case))
    yield renamed - plain[:, order], 2 * size(case.theta, case.ref, case.reward * 10)


# --- policy gradients ------------------------------------------------------------------------------------------------
@identity("I04", "the gradient of the expected reward is pi (r - J)")
def _(case):
    logp = log_softmax(case.theta)
    wanted = jnp.exp(logp) * (case.reward - metrics.expected_reward(logp, case.reward))
    found = jax.grad(lambda theta: metrics.expected_reward(log_softmax(theta), case.reward))(case.theta)
    yield found - wanted, size(case.reward)
    yield slope("reinforce", case.theta, exact(case, logp)) + wanted, size(case.reward)


@identity("I05", "a baseline does not change the policy gradient")
def _(case):
    logp = log_softmax(case.theta)
    plain = slope("reinforce", case.theta, exact(case, logp))
    yield slope("reinforce", case.theta, exact(case, logp, reward=case.reward + 2)) - plain, size(case.reward + 2)
    yield slope("reinforce_running", case.theta, exact(case, logp, baseline=3.0)) - plain, size(case.reward - 3)
    for name in ("rloo", "reinforce_group"):
        factor = 3 / 4 if name == "reinforce_group" else 1
        found = slope(name, case.theta, exact(case, logp, old_logp=logp))
        yield found - factor * plain, size(case.reward)


@identity("I46", "enumerated over single draws, (r - b) grad log pi averages to the policy gradient for any b")
def _(case):
    logp = log_softmax(case.theta)
    wanted = slope("reinforce", case.theta, exact(case, logp))

    def single(baseline: Any, reward: Any, own: Any) -> Any:
        return pull(
            "reinforce_running", own[None], Group.of(reward=reward[None], ref_logp=own[None], baseline=baseline)
        )

    for baseline in (0.0, 3.0):
        mean = jnp.exp(logp) * jax.vmap(functools.partial(single, baseline))(case.reward, logp)[:, 0]
        yield mean.sum() * jnp.exp(logp) - mean - wanted, size(case.reward - baseline)


@identity("I19", "no step of the exact natural policy gradient, theta + eta r, lowers the reward", tolerance=16)
def _(case):
    step = lambda eta: metrics.expected_reward(log_softmax(case.theta + eta * case.reward), case.reward)
    reached = over((0.0, 1e-3, 0.1, 1.0, 30.0), step)
    yield jnp.minimum(reached[1:] - reached[0], 0), size(case.reward)


@identity("I20", "the Fisher matrix times r - J is the policy gradient")
def _(case):
    logp, turn = jax.linearize(log_softmax, case.theta)
    back = jax.linear_transpose(turn, case.theta)
    advantage = case.reward - metrics.expected_reward(logp, case.reward)
    wanted = -slope("reinforce", case.theta, exact(case, logp))
    yield back(jnp.exp(logp) * turn(advantage))[0] - wanted, size(case.reward)


@identity("I22", "at ratio 1 the clipped gradient is REINFORCE's with the same advantages")
def _(case):
    logp = log_softmax(case.theta)
    group = exact(case, logp, old_logp=logp, baseline=0.3)
    clipped = {"ppo_clip": "reinforce_running", "dr_grpo": "reinforce_group", "grpo": "reinforce_normalized"}
    for name, plain in clipped.items():
        yield pull(name, logp, group) - pull(plain, logp, group), size(case.reward)


@identity("I23", "elsewhere the clipped gradient is the unclipped one of the samples outside the dead zone")
def _(case):
    logp, old = log_softmax(case.theta), log_softmax(case.old)
    advantage, ratio = case.reward - 0.3, jnp.exp(logp - old)
    dead = jnp.where(advantage > 0, ratio > 1.2, ratio < 0.8)
    wanted = jnp.where(dead, 0, jnp.exp(old) * ratio * advantage)
    group = exact(case, old, old_logp=old, baseline=0.3)
    yield pull("ppo_clip", logp, group, clip=0.2) - wanted, size(case.reward) * size(logp - old)


@identity("I24", "group z-scores have mean 0 and deviation 1, whatever the rewards' unit and zero", tolerance=512)
def _(case):
    score = lambda reward: numerics.z_score(Group.of(reward=reward, ref_logp=case.ref), epsilon=0.0)
    plain = score(case.reward)
    condition = size(case.reward) / case.reward.std(ddof=1)
    yield plain.mean(), condition
    yield jnp.std(plain, ddof=1) - 1, condition
    yield score(3 * case.reward + 5) - plain, size(plain) * size(3 * case.reward + 5) / (3 * case.reward.std(ddof=1))


@identity("I25", "the leave-one-out advantage is G / (G - 1) times reward minus group mean")
def _(case):
    group = Group.of(reward=case.reward, ref_logp=case.ref)
    number = case.reward.size
    others = (case.reward.sum() - case.reward) / (number - 1)
    yield group.leave_one_out_advantage() - (case.reward - others), size(case.reward)
    yield group.leave_one_out_advantage() - number / (number - 1) * group.group_advantage(), size(case.reward)


@identity("M16", "a group's deviation has G - 1 in the denominator, a policy's has none")
def _(case):
    deviation = Group.of(reward=case.reward, ref_logp=case.ref).standard_deviation()
    yield deviation - jnp.std(case.reward, ddof=1), size(case.reward)
    even = jnp.full_like(case.reward, -math.log(case.reward.size))
    yield exact(case, even).standard_deviation() - jnp.std(case.reward), size(case.reward)


def nearby(case: Case) -> tuple[Any, Any]:
    """(learner, old policy): half-way to each other, since ratios count as at most exp(40) in this package."""
    return log_softmax((case.theta + case.old) / 2), log_softmax(case.old)


@identity("M11", "under the old policy the mean probability ratio is 1")
def _(case):
    logp, old = nearby(case)
    group = exact(case, old, old_logp=old, reward=jnp.ones_like(case.reward))
    yield made_loss("ppo_clip", logp, group, clip=1e9) + 1, size(logp - old)


@identity("M12", "the gradient of the unclipped surrogate is the policy gradient at any policy")
def _(case):
    logp, old = nearby(case)
    group = exact(case, old, old_logp=old)
    found = jax.grad(lambda x: made_loss("ppo_clip", log_softmax(x), group, clip=1e9))(logp)
    yield found - slope("reinforce", logp, exact(case, logp)), size(case.reward) * size(logp - old)


def made_loss(name: str, logp: Any, group: Group, **hyper: Any) -> Any:
    """Also for hyper-parameters that `force` would refuse."""
    return batch_loss(OBJECTIVES[name], logp[None, :, None], jax.tree.map(lambda x: x[None], group), **hyper)


@identity("M14", "RLOO averages to the policy gradient over all K^3 groups", sizes=(2, 3))
def _(case):
    logp = log_softmax(case.theta)
    draws = np.array(list(itertools.product(range(case.theta.size), repeat=3)))
    of = lambda reward, ref, old: Group.of(reward=reward, ref_logp=ref, old_logp=old)
    groups = jax.vmap(of)(case.reward[draws], log_softmax(case.ref)[draws], logp[draws])
    each = jax.vmap(lambda x, group: pull("rloo", x, group))(logp[draws], groups)
    chance = jnp.exp(logp[draws].sum(-1))
    by_action = jnp.zeros_like(logp).at[draws].add(chance[:, None] * each)
    found = by_action.sum() * jnp.exp(logp) - by_action
    yield found - slope("reinforce", case.theta, exact(case, logp)), size(case.reward)


# --- weighted likelihood ---------------------------------------------------------------------------------------------
@identity("I06", "exact SFT is the forward KL: both have the gradient pi - q")
def _(case):
    pi, q = jnp.exp(log_softmax(case.theta)), log_softmax(case.old)
    yield slope("sft", case.theta, exact(case, q)) - (pi - jnp.exp(q)), 1
    yield jax.grad(lambda theta: metrics.kl(q, log_softmax(theta)))(case.theta) - (pi - jnp.exp(q)), 1
    best = jnp.exp(optimum(case, 0.5))
    yield slope("forward_kl", case.theta, exact(case, q), beta=0.5) - (pi - best), size(case.reward)


@identity("I17", "exact RWR has the gradient (sum of weights) (pi - q), and rests at q ~ pi_old exp(r / beta)")
def _(case):
    old = log_softmax(case.old)
    q = bandit(case.reward, case.old).optimum(0.5)[0]
    weight = total(jnp.exp(old + 2 * case.reward))
    group, scale = exact(case, old), weight * size(case.reward)
    wanted = weight * (jnp.exp(log_softmax(case.theta)) - jnp.exp(q))
    yield slope("rwr", case.theta, group, beta=0.5) - wanted, scale
    yield slope("rwr", q, group, beta=0.5), scale


@identity("I18", "n optima at beta, each the next one's reference, are one at beta / n; equal rewards move nothing")
def _(case):
    logp = case.ref
    for _ in range(3):
        logp = bandit(case.reward, logp).optimum(1.5)[0]
    yield logp - optimum(case, 0.5), size(logp, case.reward * 2)
    flat = bandit(jnp.full_like(case.reward, 3), case.ref).optimum(0.5)[0]
    yield flat - log_softmax(case.ref), size(case.ref, logp)


BEST_OF = (1.0, 2.0, 3.0, 8.0, 64.0, 1e6)


def best_of(case: Case, draws: tuple[float, ...] = BEST_OF) -> tuple[Any, Any, Any]:
    """(draws [n, 1], log-probabilities [K], distribution of the best of so many [n, K]); some scores tie."""
    logp = log_softmax(case.theta)
    best = over(draws, lambda n: best_of_n_weights(jnp.exp(logp), jnp.round(4 * case.reward), n))
    return jnp.asarray(draws)[:, None], logp, best


@identity("I26", "the distribution of the best of n sums to 1")
def _(case):
    yield best_of(case)[2].sum(1) - 1, 1


@identity("I27", "the best of one draw is a draw")
def _(case):
    _, logp, best = best_of(case, (1.0,))
    yield best - jnp.exp(logp), 1


@identity("I28", "the best of n lies at most log n - (n - 1) / n nats away", tolerance=256)
def _(case):
    n, logp, best = best_of(case)
    bound = jnp.log(n) - (n - 1) / n
    away = metrics.kl(jnp.log(best), jnp.broadcast_to(logp, best.shape))
    yield jnp.maximum(away[:, None] - bound, 0), jnp.log(n) + 1


# XLA's float64 log1p is wrong by up to 120 epsilon.
@identity("I29", "the best of n draws is no action more than n times as often as one draw", tolerance=256)
def _(case):
    n, logp, best = best_of(case)
    yield jnp.maximum(best / (n * jnp.exp(logp)) - 1, 0), 1


@identity("I30", "the reward of the best of n grows with n")
def _(case):
    score = jnp.round(4 * case.reward)
    reached = metrics.expected_reward(jnp.log(best_of(case)[2]), jnp.tile(score, (len(BEST_OF), 1)))
    yield jnp.minimum(jnp.diff(reached), 0), size(score)


@identity("M17", "the best of 4 is what all K^4 draws give, ties shared by probability", sizes=(2, 3))
def _(case):
    _, logp, (best,) = best_of(case, (4.0,))
    score = jnp.round(4 * case.reward)
    draws = np.array(list(itertools.product(range(case.theta.size), repeat=4)))
    top = score[draws] == score[draws].max(-1, keepdims=True)
    chance = jnp.exp(logp[draws].sum(-1))
    enumerated = jnp.zeros_like(best).at[draws].add(chance[:, None] * top / top.sum(-1, keepdims=True))
    yield best - enumerated, 1
    yield pull("best_of_n", logp, exact(case, logp, score=score)) - enumerated, 1


# --- the KL penalty and its optimum ----------------------------------------------------------------------------------
@identity("I07", "the gradient of KL(pi, ref) is pi (log-ratio - KL)")
def _(case):
    logp, ref = log_softmax(case.theta), log_softmax(case.ref)
    found = jax.grad(lambda theta: metrics.kl(log_softmax(theta), ref))(case.theta)
    yield found - jnp.exp(logp) * (logp - ref - metrics.kl(logp, ref)), size(logp - ref)


PENALISED = with_kl("reinforce")


@identity("I09", "the KL-regularised reward is flat at ref exp(r / beta) / Z")
def _(case):

    def slopes(beta: Any, best: Any) -> Any:
        group = exact(case, best)
        found = [
            jax.grad(lambda x: regularised(log_softmax(x), case, beta))(best),
            beta * slope("reverse_kl", best, group, beta=beta),
            slope(PENALISED, best, group, kl_coef=beta),
        ]
        return jnp.stack(found) / size(case.reward, beta * case.ref)

    yield over(BETAS, slopes, optima(case)), 1


@identity("I10", "its largest value is beta log Z")
def _(case):

    def gap(beta: Any, best: Any) -> Any:
        level = beta * jax.nn.logsumexp(log_softmax(case.ref) + case.reward / beta)
        return (regularised(best, case, beta) - level) / size(case.reward, beta * case.ref)

    yield over(BETAS, gap, optima(case)), 1


@identity("I11", "every policy lies beta KL(pi, pi*) below it", tolerance=128)
def _(case):
    logp = log_softmax(case.theta)
    group = exact(case, logp)

    def beyond(beta: Any, best: Any) -> Any:
        gap = regularised(best, case, beta) - regularised(logp, case, beta)
        away = jnp.stack([metrics.kl(logp, best), OBJECTIVES["reverse_kl"](logp[:, None], group, beta=beta)])
        return (gap - beta * away) / size(case.reward, beta * case.ref, beta * case.theta)

    yield over(BETAS, beyond, optima(case)), 1


@identity("I12", "at the optimum beta log-ratio differences are reward differences")
def _(case):
    beta = jnp.asarray(BETAS)[:, None]
    implicit = beta * (optima(case) - log_softmax(case.ref))
    off = implicit - implicit[:, :1] - (case.reward - case.reward[0])
    yield off, 2 * jnp.maximum(size(case.reward), beta * size(case.ref))


@identity("I34", "the mean of k1 and of k3 is the KL, and k3 is never negative")
def _(case):
    logp, ref = log_softmax(case.theta), log_softmax(case.ref)
    wanted, scale = metrics.kl(logp, ref), size(logp - ref)
    for name in ("kl_k1", "kl_k3"):
        yield OBJECTIVES[name](logp[:, None], exact(case, logp)) - wanted, scale
    yield jnp.minimum(core.KL_ESTIMATES["k3"](logp - ref), 0), scale


@identity("I35", "the on-policy gradient of k3 is that of the other KL, pi - ref", tolerance=512)
def _(case):
    found = slope("kl_k3", case.theta, exact(case, log_softmax(case.theta)))
    yield found - (jnp.exp(log_softmax(case.theta)) - jnp.exp(log_softmax(case.ref))), 1


@identity("I36", "the on-policy gradient of k2 is that of KL(pi, ref)")
def _(case):
    logp, ref = log_softmax(case.theta), log_softmax(case.ref)
    wanted = jax.grad(lambda theta: metrics.kl(log_softmax(theta), ref))(case.theta)
    yield slope("kl_k2", case.theta, exact(case, logp)) - wanted, size(logp - ref)


@identity("I37", "the on-policy gradient of k1 is 0")
def _(case):
    yield slope("kl_k1", case.theta, exact(case, log_softmax(case.theta))), 1


# --- preferences -----------------------------------------------------------------------------------------------------
@identity("I13", "with Bradley-Terry labels DPO rests at ref exp(r / beta) / Z")
def _(case):
    group = exact(case, log_softmax(case.old), temperature=1.0)
    rest = lambda beta, best: pull("dpo", best, group, beta=beta) / beta / size(case.reward, beta * case.ref)
    yield over(BETAS, rest, optima(case)), 1


def margins(case: Case) -> tuple[Any, Any, Any, ExactGroup]:
    """(log-ratios, how often each pair is drawn and won [winner, loser], summing to 1, the group)."""
    old = jnp.exp(log_softmax(case.old))
    won = old[:, None] * old[None, :] * bradley_terry(case.reward)
    log_ratio = log_softmax(case.theta) - log_softmax(case.ref)
    return log_ratio, won / won.sum(), exact(case, log_softmax(case.old), temperature=1.0)


@identity("I14", "for a small beta DPO's force over beta is half the wins of a response less half its losses")
def _(case):
    log_ratio, won, group = margins(case)
    spread = log_ratio.max() - log_ratio.min()
    wanted = (won.sum(1) - won.sum(0)) / 2
    off = lambda beta: jnp.abs(pull("dpo", log_softmax(case.theta), group, beta=beta) / beta - wanted)
    yield over((1e-3, 1e-6), lambda beta: jnp.maximum(off(beta) - beta * spread / 4, 0)), 1


@identity("I15", "DPO's gradient is -beta times row less column sums of W sigmoid(-margin), without a softmax term")
def _(case):
    log_ratio, won, group = margins(case)

    def off(beta: Any) -> Any:
        weight = won / (1 + jnp.exp(beta * (log_ratio[:, None] - log_ratio[None, :])))
        wanted = -beta * (weight.sum(1) - weight.sum(0))
        found = [slope("dpo", case.theta, group, beta=beta), -pull("dpo", log_softmax(case.theta), group, beta=beta)]
        return (jnp.stack(found) - wanted) / (beta * size(beta * log_ratio))

    yield over((0.1, 2.0), off), 1


@identity("I43", "turning all labels round and the sign of beta gives the same DPO loss")
def _(case):
    log_ratio, _, group = margins(case)
    turned = group._replace(score=-group.score)
    loss = lambda beta, group: made_loss("dpo", log_softmax(case.theta), group, beta=beta)
    yield over((0.1, 2.0), lambda beta: loss(beta, group) - loss(-beta, turned)), size(2 * log_ratio)


@identity("I44", "at the reference DPO's loss is log 2 and IPO's 1 / (4 tau^2)")
def _(case):
    group = margins(case)[2]
    ref = log_softmax(case.ref)
    yield made_loss("dpo", ref, group, beta=0.3) - math.log(2), 1
    yield made_loss("ipo", ref, group, beta=0.3) - 1 / (4 * 0.3**2), 1 / (4 * 0.3**2)


@identity("I16", "IPO rests at ref exp(win rate / tau) / Z", tolerance=128)
def _(case):
    mu = log_softmax(case.old)
    rate = bradley_terry(case.reward) @ jnp.exp(mu)
    problem, group = bandit(rate, case.ref), exact(case, mu, temperature=1.0)
    rest = lambda tau: tau * pull("ipo", problem.optimum(tau)[0], group, beta=tau) / size(tau * case.ref)
    yield over((0.05, 0.5), rest), 1


@identity("I42", "KTO's gradient is c - pi sum c with c of each response alone")
def _(case):
    logp, ref, old = (log_softmax(x) for x in (case.theta, case.ref, case.old))
    batch = jax.tree.map(lambda x: x[None], exact(case, old, old_logp=old))
    group = jax.tree.map(lambda x: x[0], prepare(batch, logp[None, :, None]))
    sign = jnp.where(case.reward > total(jnp.exp(old) * case.reward), 1.0, -1.0)
    value = 1 / (1 + jnp.exp(-sign * 0.3 * (logp - ref - metrics.kl(logp, ref))))
    c = -jnp.exp(old) * jnp.where(sign > 0, 1.5, 0.5) * 0.3 * sign * value * (1 - value)
    hyper = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    yield slope("kto", case.theta, group, **hyper) - (c - jnp.exp(logp) * c.sum()), size(logp, ref)


def newton(gradient: Callable[[Any], Any], start: Any, steps: int) -> Any:
    """Newton's method in the logits, whose constant direction is flat."""

    def step(_: Any, x: Any) -> Any:
        hessian = jax.jacfwd(gradient)(x) + jnp.ones((x.size, x.size)) / x.size
        return x - jnp.linalg.solve(hessian, gradient(x))

    return log_softmax(jax.lax.fori_loop(0, steps, step, start))


@identity("C01", "Newton's method on DPO goes from the reference to ref exp(r / beta) / Z",
          tolerance=1e-10 / EPS64, sizes=(3, 17), bits=(64,))  # fmt: skip
def _(case):
    even = exact(case, log_softmax(jnp.zeros_like(case.old)), temperature=1.0)
    found = newton(lambda theta: slope("dpo", theta, even, beta=0.5), log_softmax(case.ref), 20)
    yield found - optimum(case, 0.5), size(case.ref)


@identity("C02", "IPO is quadratic in the log-ratios: Newton's method is there after one step",
          tolerance=1e-10 / EPS64, sizes=(3, 17), bits=(64,))  # fmt: skip
def _(case):
    even = log_softmax(jnp.zeros_like(case.old))
    group = exact(case, even, temperature=1.0)
    found = newton(lambda theta: slope("ipo", theta, group, beta=0.5), log_softmax(case.theta), 1)
    rate = bradley_terry(case.reward) @ jnp.exp(even)
    yield found - bandit(rate, case.ref).optimum(0.5)[0], size(case.ref, case.theta)


# A thousand operations each, and nothing new without jit.
ITERATED = {"C01", "C02", "I40"}


# --- differentiation and batching ------------------------------------------------------------------------------------
# Their loss is not what they differentiate: parts of it are data.
FROZEN = {"cispo", "gspo_token", "nash_md"}
DIFFERENTIABLE = sorted(
    name
    for name, made in OBJECTIVES.items()
    if made.function.__module__.startswith("bandit_pft.") and name not in FROZEN
)


@identity("I40", "forces are central differences of the loss", tolerance=1e-7 / EPS64, sizes=(3,), bits=(64,))
def _(case):
    # Not too close to certainty, where some third derivatives are beyond 1e4.
    logp, old = log_softmax(jnp.tanh(case.theta)), log_softmax(case.old)
    group, direction, h = exact(case, old), case.reward - 0.4, 1e-5
    for name in DIFFERENTIABLE:
        both = jax.value_and_grad(functools.partial(made_loss, name, group=group))
        loss, gradient = jax.vmap(lambda step: both(logp + step * direction))(jnp.array([-h, 0, h]))  # noqa: B023
        found = (gradient[1] * direction).sum()
        yield found - (loss[2] - loss[0]) / (2 * h), size(found)


@identity("I41", "a batch and its members one by one agree")
def _(case):
    def numbers(theta: Any) -> Any:
        logp = log_softmax(theta)
        group = exact(case, logp)
        away = metrics.kl(logp, log_softmax(case.ref))
        best = best_of_n_weights(jnp.exp(logp), case.reward, 3.0)
        return jnp.stack([away + best, pull("dpo", logp, group), pull("kto", logp, group)])

    thetas = jnp.stack([case.theta, case.ref])
    alone = jnp.stack([numbers(theta) for theta in thetas])
    yield jax.vmap(numbers)(thetas) - alone, size(case.theta, case.ref)


# --- far beyond what probabilities can hold --------------------------------------------------------------------------
@identity("E01", "logits 100 and 10,000 apart stay so far apart", sizes=(3,))
def _(case):
    far = jnp.array([0.0, -100.0, -1e4])
    yield (
        log_softmax(far + case.theta) - (far + case.theta) - (log_softmax(far + case.theta) - far - case.theta)[0],
        1e4,
    )


@identity("E02", "a KL counts what float32 cannot hold as a probability", sizes=(3,))
def _(case):
    half = log_softmax(jnp.zeros(2))
    yield metrics.kl(half, jnp.array([0.0, -1e4])) - (5e3 - math.log(2)), 1e4
    yield metrics.kl(jnp.array([0.0, -1e4]), half) - math.log(2), 1


@identity("E03", "what both policies forbid adds nothing", sizes=(3,))
def _(case):
    logp = log_softmax(jnp.append(case.theta, -jnp.inf))
    yield metrics.kl(logp, logp), 1
    yield metrics.entropy(logp) - metrics.entropy(logp[:-1]), 1
    yield (
        metrics.expected_reward(logp, jnp.append(case.reward, 1e30)) - metrics.expected_reward(logp[:-1], case.reward),
        1,
    )


@identity("E04", "an action that only the learner takes makes the KL infinite", sizes=(3,))
def _(case):
    logp, ref = log_softmax(jnp.append(case.theta, 0)), log_softmax(jnp.append(case.ref, -jnp.inf))
    yield jnp.where(metrics.kl(logp, ref) == jnp.inf, 0, 1), 1


@identity("E05", "gradients pass by a forbidden action", sizes=(3,))
def _(case):
    away = lambda theta, ref: metrics.kl(log_softmax(theta), log_softmax(ref))
    found = jax.grad(away)(jnp.append(case.theta, -jnp.inf), jnp.append(case.ref, -jnp.inf))
    yield found - jnp.append(jax.grad(away)(case.theta, case.ref), 0), size(case.theta, case.ref)


def pair(lead: float) -> tuple[Any, Group]:
    """Log-probabilities and a pair whose winner leads by this much."""
    low = jnp.array([-abs(lead), 0.0])
    return (low[::-1], Group.of(reward=[1.0, 0.0], ref_logp=jnp.zeros(2))) if lead > 0 else (
        low, Group.of(reward=[1.0, 0.0], ref_logp=jnp.zeros(2)))  # fmt: skip


@identity("E06", "DPO's loss and force end at 0 where the winner leads by 1e4", sizes=(3,))
def _(case):
    logp, group = pair(1e4)
    yield made_loss("dpo", logp, group, beta=1.0), 1e-30
    yield pull("dpo", logp, group, beta=1.0), 1e-30


@identity("E07", "they are the distance and 1 where it trails by 1e4", sizes=(3,))
def _(case):
    logp, group = pair(-1e4)
    yield made_loss("dpo", logp, group, beta=1.0) - 1e4, 1e4
    yield pull("dpo", logp, group, beta=1.0) - jnp.array([1.0, -1.0]), 1


@identity("E09", "equal rewards give GRPO exactly no force, however their mean is rounded", sizes=(3,))
def _(case):
    group = exact(case, log_softmax(case.old), reward=jnp.full_like(case.reward, 0.1))
    yield pull("grpo", log_softmax(case.theta), group), 1e-30


@identity("E10", "a beta of 1e-8 overflows nothing", sizes=(3,))
def _(case):
    best = bandit(jnp.array([0.0, 1.0]), case.ref[:2]).optimum(1e-8)[0]
    yield best - jnp.array([-1e8, 0.0]), 1e8


@identity("E11", "the rarest winner of a million draws keeps its digits", sizes=(3,))
def _(case):
    rare = 1e-12
    best = best_of_n_weights(jnp.array([1 - rare, rare]), jnp.array([0.0, 1.0]), 1e6)
    yield best[1] / -math.expm1(1e6 * math.log1p(-rare)) - 1, 1


@identity("E12", "a sum over a million actions keeps its digits", sizes=(3,))
def _(case):
    place = jnp.arange(10**6)
    logp = log_softmax(case.theta[0] + jnp.sin(place.astype(case.theta.dtype)))
    parts = [metrics.mass(logp, place % 10 == digit) for digit in (0, 9)]
    parts.append(metrics.mass(logp, (place % 10 > 0) & (place % 10 < 9)))
    yield jnp.stack(parts).sum() - 1, 1


# --- they hold -------------------------------------------------------------------------------------------------------
def table() -> list[Any]:
    return [
        pytest.param(entry, bits, how, id=f"{entry.number}-{entry.statement}-float{bits}-{how}")
        for entry in IDENTITIES
        for bits in entry.bits
        for how in ("jit", "eager")
        if how == "jit" or entry.number not in ITERATED
    ]


@pytest.mark.parametrize(("entry", "bits", "how"), table())
def test_identity(entry: Identity, bits: int, how: str) -> None:
    for actions in sizes(entry, bits) if how == "jit" else (min(17, entry.sizes[-1]),):
        found = compiled(actions, bits)[entry.number] if how == "jit" else eager(entry, actions, bits)
        assert (found <= entry.tolerance).all(), f"{actions} actions: {found} epsilon, allowed {entry.tolerance}"


# --- statistics of draws ---------------------------------------------------------------------------------------------
REWARD = np.array([0.5, -1.0, 1.2, 0.1])
LEARNER, REFERENCE = (np.log(p) for p in ([0.4, 0.2, 0.1, 0.3], [0.1, 0.3, 0.4, 0.2]))
POLICY_GRADIENT = np.exp(LEARNER) * (REWARD - np.exp(LEARNER) @ REWARD)
KL = np.exp(LEARNER) @ (LEARNER - REFERENCE)
DRAWS, ROUNDS = 2**17, 8  # Groups of 3 at a time, and how many times.
BOTH = pytest.mark.parametrize("bits", [32, 64])


def estimates(actions: Any) -> dict[str, Any]:
    """What one group [3] says about 1: the KL over the KL, a force along the policy gradient over its square."""
    logp = jnp.asarray(LEARNER)
    of = {
        "reward": jnp.asarray(REWARD)[actions],
        "ref_logp": jnp.asarray(REFERENCE)[actions],
        "old_logp": logp[actions],
    }
    group = Group.of(**of)
    found = {}
    for name in ("reinforce", "rloo", "reinforce_group"):
        each = pull(name, logp[actions], group)
        gradient = jnp.zeros(4).at[actions].add(each) - each.sum() * jnp.exp(logp)
        found[name] = (gradient * POLICY_GRADIENT).sum() / (POLICY_GRADIENT**2).sum()
    for name in ("kl_k1", "kl_k3"):
        found[name] = OBJECTIVES[name](logp[actions][:, None], group) / KL
    return found


@functools.cache
def drawn(bits: int) -> dict[str, np.ndarray]:
    """[groups] of every estimate, and the actions [groups, 3], from the package's own sampler."""
    with jax.enable_x64(bits == 64):

        @jax.jit
        def one(key: Any) -> dict[str, Any]:
            actions = sample_categorical(key, jnp.asarray(LEARNER), 3 * DRAWS).reshape(DRAWS, 3)
            return {**jax.vmap(estimates)(actions), "actions": actions}

        rounds = [one(key) for key in jax.random.split(jax.random.key(0), ROUNDS)]
        return {name: np.concatenate([r[name] for r in rounds]).astype(np.float64) for name in rounds[0]}


MEANS = [("M01", "reinforce", 1), ("M02", "rloo", 1), ("M03", "reinforce_group", 2 / 3), ("M05", "kl_k1", 1),
         ("M06", "kl_k3", 1)]  # fmt: skip


@pytest.mark.parametrize(("name", "wanted"), [pytest.param(*rest, id=f"{n}-{rest[0]}") for n, *rest in MEANS])
@BOTH
def test_the_mean_over_drawn_groups_is_the_exact_one(name: str, wanted: float, bits: int) -> None:
    found = drawn(bits)[name]
    error = found.std() / math.sqrt(found.size)
    assert 6 * error < 0.01 * wanted  # A bias of 1 % could not hide.
    assert abs(found.mean() - wanted) < 5 * error


@BOTH
def test_m08_draws_have_the_probabilities_of_the_policy(bits: int) -> None:
    actions = drawn(bits)["actions"].astype(int).ravel()
    likely = np.exp(LEARNER).max()
    assert 6 * math.sqrt(likely * (1 - likely) / actions.size) < 0.01 * likely
    assert p_value(actions, LEARNER) > 1e-4


@pytest.mark.parametrize("number", ["M09", "M13"])
@BOTH
def test_the_best_of_three_drawn_is_distributed_as_best_of_n_weights_says(number: str, bits: int) -> None:
    score = REWARD if number == "M09" else np.array([1.0, 0.0, 1.0, 1.0])  # M13: with ties
    actions = drawn(bits)["actions"].astype(int)
    with jax.enable_x64(bits == 64):
        wanted = np.asarray(best_of_n_weights(jnp.exp(jnp.asarray(LEARNER)), jnp.asarray(score), 3), np.float64)
        best = jax.vmap(lambda x: Group.of(reward=x, ref_logp=x).best())
        share = np.asarray(jax.jit(best)(jnp.asarray(score)[actions]), np.float64)
    if number == "M09":  # One winner, or several of one name.
        assert p_value(actions[np.arange(len(actions)), share.argmax(1)], np.log(np.maximum(wanted, 1e-300))) > 1e-4
    each = (share[:, :, None] * (actions[:, :, None] == np.arange(4))).sum(1)
    error = each.std(0) / math.sqrt(len(each))
    assert (6 * error < 0.01 * wanted)[wanted > 0.2].all() and (wanted > 0.2).any()
    assert (np.abs(each.mean(0) - wanted) < 5 * error).all()


@BOTH
def test_m10_means_of_blocks_scatter_by_the_exact_variance_over_their_size(bits: int) -> None:
    groups = np.array(list(itertools.product(range(4), repeat=3)))
    with jax.enable_x64(bits == 64):
        every = np.asarray(jax.jit(jax.vmap(estimates))(groups)["rloo"], np.float64)
    chance = np.exp(LEARNER)[groups].prod(1)
    variance = chance @ (every - chance @ every) ** 2
    for block in (100, 1600):
        found = drawn(bits)["rloo"]
        means = found[: found.size // block * block].reshape(-1, block).mean(1)
        spread = stats.chi2(means.size).cdf(block * ((means - 1) ** 2).sum() / variance)
        assert 5e-5 / 2 < spread < 1 - 5e-5 / 2
