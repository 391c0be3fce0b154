"""Identities of the field, compiled in float32 and float64, and not compiled, from 2 to 1,000 actions.

One side of each identity is a function of this package, the other a closed form, an enumeration, or the package by
another way. An entry yields differences (or how far an inequality is violated) with their scale, the size of what was
subtracted: rewards, log-ratios, beta. Never the gradient: at a peaked policy it is as small as the rounding of its
parts. `tolerance` is in units of the type's epsilon. Letters: I identities, C convergence, M means and enumerations,
E extremes.

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
from bandit_pft.errors import is_traced
from bandit_pft.groups import ExactGroup, Group, best_of_n_weights, prepare
from bandit_pft.kernels import sample_categorical, total
from bandit_pft.objectives import OBJECTIVES, batch_loss, core, force, numerics, with_kl
from bandit_pft.problems import bandit, log_softmax

SIZES = (2, 3, 17, 1000)
SEEDS, LOGIT_SCALES = range(3), (0.1, 1.0, 5.0)
BETAS = (0.05, 0.5, 5.0)
EPS64 = float(np.finfo(np.float64).eps)
# One program is optimised as users' are, whatever `conftest.py` asks of the others: the operations are the same.
FULL = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_prefer_vector_width": 256,
}


# --- the table -------------------------------------------------------------------------------------------------------
class Case:
    """A problem and three policies, [K] each: learner, reference, and the old one that the responses came from.

    All identities of a program share it, so that what they have in common is traced once.
    """

    def __init__(self, theta: Any, ref: Any, old: Any, reward: Any) -> None:
        self.theta, self.reward = theta, reward
        self.logp, self.ref, self.old = log_softmax(theta), log_softmax(ref), log_softmax(old)
        self.problem = bandit(reward, self.ref)
        self.on_policy = self.exact(self.logp)
        self.off_policy = self.exact(self.old)
        self.labelled = self.exact(self.old, temperature=1.0)
        self.sampled = Group.of(reward=reward, ref_logp=self.ref)

    def exact(self, weight: Any, **known: Any) -> ExactGroup:
        """All K responses, drawn from `weight` (log-probabilities)."""
        given = {"reward": self.reward, "ref_logp": self.ref, "old_logp": weight, "weight": jnp.exp(weight), "draws": 4}
        return ExactGroup.of(**{**given, **known})

    @functools.cached_property
    def optima(self) -> Any:
        """[betas, K]."""
        return over(self, BETAS, lambda beta: self.problem.optimum(beta)[0])

    def regularised(self, logp: Any, beta: Any) -> Any:
        """E r - beta KL(pi, ref)."""
        return metrics.expected_reward(logp, self.reward) - beta * metrics.kl(logp, self.ref)


class Identity(NamedTuple):
    number: str
    statement: str
    differences: Callable[[Case], Iterator[tuple[Any, Any]]]
    tolerance: float
    sizes: tuple[int, ...]
    bits: tuple[int, ...]
    eager: bool


IDENTITIES: list[Identity] = []


def identity(
    number: str,
    statement: str,
    *,
    tolerance: float = 64,
    sizes: tuple[int, ...] = SIZES,
    bits: tuple[int, ...] = (32, 64),
    eager: bool = True,
) -> Callable[[Any], Any]:
    """Adds the decorated function to the table: it takes a `Case` and yields pairs (difference, scale)."""

    def add(function: Any) -> Any:
        IDENTITIES.append(Identity(number, statement, function, tolerance, sizes, bits, eager))
        return function

    return add


def over(case: Case, values: Any, f: Callable[..., Any], *rows: Any) -> Any:
    """f of every value (and row), stacked: whichever of a batch and a loop compiles less."""
    rows = (jnp.asarray(values), *rows)
    return jax.vmap(f)(*rows) if is_traced(case.theta) else jnp.stack([f(*row) for row in zip(*rows, strict=True)])


def size(*arrays: Any) -> Any:
    """The largest number in them, at least 1: every scale contains an addition of order 1."""
    return jnp.maximum(1, jnp.max(jnp.stack([jnp.abs(x).max() for x in arrays])))


def digits(case: Case) -> float:
    """Levels of a sum over K terms."""
    return math.log2(2 * case.theta.size)


def pull(objective: Any, logp: Any, group: Group, **hyper: Any) -> Any:
    return force(objective, logp[:, None], group, **hyper)[:, 0]


def slope(objective: Any, theta: Any, group: Group, **hyper: Any) -> Any:
    """Gradient of the loss in the logits."""
    logp, back = jax.vjp(log_softmax, theta)
    return -back(pull(objective, logp, group, **hyper))[0]


def loss(name: str, logp: Any, group: Group, **hyper: Any) -> Any:
    """Also for hyper-parameters that `force` would refuse."""
    return batch_loss(OBJECTIVES[name], logp[None, :, None], jax.tree.map(lambda x: x[None], group), **hyper)


def in_logits(f: Callable[[Any], Any], theta: Any) -> Any:
    """Gradient of a function of log-probabilities."""
    return jax.grad(lambda x: f(log_softmax(x)))(theta)


def policy_gradient(case: Case, logp: Any) -> Any:
    """In the logits, in closed form."""
    pi = jnp.exp(logp)
    return pi * (case.reward - pi @ case.reward)


def bradley_terry(reward: Any) -> Any:
    """[i, j]: how often i beats j."""
    return 1 / (1 + jnp.exp(reward[None, :] - reward[:, None]))


# --- softmax and divergences -----------------------------------------------------------------------------------------
@identity("I01", "probabilities sum to 1", tolerance=4)
def _(case):
    yield metrics.mass(case.logp, jnp.ones_like(case.logp, bool)) - 1, digits(case)
    yield jnp.exp(case.problem.ref_table(0)).sum() - 1, digits(case)


@identity("I02", "a shift of all logits changes no log-probability")
def _(case):
    yield log_softmax(case.theta + 7) - case.logp, size(case.theta + 7)


@identity("I03", "gradients in the logits sum to 0", tolerance=32)
def _(case):
    gap = size(case.logp, case.ref)
    of_metrics = {
        lambda x: metrics.expected_reward(x, case.reward): size(case.reward),
        lambda x: metrics.kl(x, case.ref): gap,
        lambda x: metrics.kl(case.ref, x): 1,
        metrics.entropy: gap,
    }
    for f, scale in of_metrics.items():
        yield in_logits(f, case.theta).sum(), digits(case) * scale
    for name, scale in {"sft": 1, "rwr": jnp.exp(2 * case.reward.max()), "dpo": 1, "ipo": 20 * gap}.items():
        yield slope(name, case.theta, case.off_policy).sum(), digits(case) * scale


@identity("I08", "KL(pi, pi) is 0 with gradient 0, and no KL is negative")
def _(case):
    yield metrics.kl(case.logp, case.logp), 1
    yield in_logits(lambda x: metrics.kl(x, case.logp), case.theta), size(case.logp)
    for other in (case.ref, log_softmax(case.theta + 1e-3 * case.ref)):
        yield 4 * jnp.minimum(metrics.kl(case.logp, other), 0), size(case.logp - other)


@identity("I31", "entropy is log K minus the KL from uniform")
def _(case):
    uniform = log_softmax(jnp.zeros_like(case.theta))
    yield metrics.entropy(case.logp) + metrics.kl(case.logp, uniform) - math.log(case.logp.size), size(case.logp)


@identity("I32", "half the KL bounds the squared total variation distance (Pinsker)")
def _(case):
    more = case.logp > case.ref
    apart = metrics.mass(case.logp, more) - metrics.mass(case.ref, more)
    yield jnp.minimum(metrics.kl(case.logp, case.ref) - 2 * apart**2, 0), size(case.logp - case.ref)


@identity("I33", "both KLs add up to the sum of (p - q) (log p - log q)")
def _(case):
    p, q = case.logp, case.ref
    yield metrics.kl(p, q) + metrics.kl(q, p) - ((jnp.exp(p) - jnp.exp(q)) * (p - q)).sum(), size(p - q)


@identity("I38", "a forbidden action leaves the problem without it, and feels no gradient")
def _(case):
    pad = lambda x, value: jnp.concatenate([jnp.full(1, value, x.dtype), x, jnp.full(2, value, x.dtype)])

    def numbers(theta: Any, ref: Any, reward: Any) -> dict[str, Any]:
        problem = bandit(reward, ref)
        value = lambda x: metrics.expected_reward(x, reward) - metrics.kl(x, ref) + metrics.entropy(x)
        return {
            "value": value(log_softmax(theta)),
            "gradient": in_logits(value, theta),
            "optimum": jnp.exp(problem.optimum(0.5)[0]),
        }

    narrow = numbers(case.theta, case.ref, case.reward)
    padded = numbers(pad(case.theta, -jnp.inf), pad(case.ref, -jnp.inf), pad(case.reward, 100.0))
    scale = size(case.theta, case.ref, case.reward)
    yield padded["value"] - narrow["value"], scale
    for name in ("gradient", "optimum"):
        yield padded[name][1:-2] - narrow[name], scale
        yield jnp.append(padded[name][:1], padded[name][-2:]), 1e-30


@identity("I39", "renaming the actions renames the results")
def _(case):
    order = np.random.default_rng(0).permutation(case.theta.size)

    def numbers(theta: Any, ref: Any, old: Any, reward: Any) -> Any:
        here = Case(theta, ref, old, reward)
        best = best_of_n_weights(jnp.exp(here.logp), here.reward, 5.0)
        return jnp.stack([here.logp, here.problem.optimum(1.0)[0], best, pull("dpo", here.logp, here.off_policy)])

    theta, *rest = (jnp.stack([x, x[order]]) for x in (case.theta, case.ref, case.old, case.reward))
    plain, renamed = over(case, theta, numbers, *rest)
    yield renamed - plain[:, order], 2 * size(case.logp, case.ref, case.reward * 10)


# --- policy gradients ------------------------------------------------------------------------------------------------
@identity("I04", "the gradient of the expected reward is pi (r - J)")
def _(case):
    wanted = policy_gradient(case, case.logp)
    yield in_logits(lambda x: metrics.expected_reward(x, case.reward), case.theta) - wanted, size(case.reward)
    yield slope("reinforce", case.theta, case.on_policy) + wanted, size(case.reward)


@identity("I05", "a baseline does not change the policy gradient")
def _(case):
    wanted = -slope("reinforce", case.theta, case.on_policy)
    changed = {
        "reinforce": (case.on_policy._replace(reward=case.reward + 2), 1),
        "reinforce_running": (case.on_policy._replace(baseline=jnp.asarray(3.0)), 1),
        "rloo": (case.on_policy, 1),
        "reinforce_group": (case.on_policy, 3 / 4),
    }
    for name, (group, factor) in changed.items():
        yield slope(name, case.theta, group) + factor * wanted, size(case.reward) + 3


@identity("I46", "enumerated over single draws, (r - b) grad log pi averages to the policy gradient for any b")
def _(case):
    def single(own: Any, reward: Any, baseline: Any) -> Any:
        group = Group.of(reward=reward[None], ref_logp=own[None])
        return pull("reinforce_running", own[None], group._replace(baseline=baseline))

    for baseline in (0.0, 3.0):
        each = jax.vmap(single, (0, 0, None))(case.logp, case.reward, jnp.asarray(baseline))[:, 0]
        mean = jnp.exp(case.logp) * each
        found = mean - mean.sum() * jnp.exp(case.logp)
        yield found - policy_gradient(case, case.logp), size(case.reward - baseline)


@identity("I19", "no step of the exact natural policy gradient, theta + eta r, lowers the reward", tolerance=16)
def _(case):
    step = lambda eta: metrics.expected_reward(log_softmax(case.theta + eta * case.reward), case.reward)
    reached = over(case, (0.0, 1e-3, 0.1, 1.0, 30.0), step)
    yield jnp.minimum(reached[1:] - reached[0], 0), size(case.reward)


@identity("I20", "the Fisher matrix times r - J is the policy gradient")
def _(case):
    logp, turn = jax.linearize(log_softmax, case.theta)
    advantage = case.reward - metrics.expected_reward(logp, case.reward)
    (found,) = jax.linear_transpose(turn, case.theta)(jnp.exp(logp) * turn(advantage))
    yield found + slope("reinforce", case.theta, case.on_policy), size(case.reward)


@identity("I22", "at ratio 1 the clipped gradient is REINFORCE's with the same advantages")
def _(case):
    group = case.on_policy._replace(baseline=jnp.asarray(0.3))
    clipped = {"ppo_clip": "reinforce_running", "dr_grpo": "reinforce_group", "grpo": "reinforce_normalized"}
    for name, plain in clipped.items():
        yield pull(name, case.logp, group) - pull(plain, case.logp, group), size(case.reward)


@identity("I23", "elsewhere the clipped gradient is the unclipped one of the samples outside the dead zone")
def _(case):
    advantage, ratio = case.reward - 0.3, jnp.exp(case.logp - case.old)
    dead = jnp.where(advantage > 0, ratio > 1.2, ratio < 0.8)
    wanted = jnp.where(dead, 0, jnp.exp(case.logp) * advantage)
    found = pull("ppo_clip", case.logp, case.off_policy._replace(baseline=jnp.asarray(0.3)), clip=0.2)
    yield found - wanted, size(case.reward) * size(case.logp - case.old)


@identity("I24", "group z-scores have mean 0 and deviation 1, whatever the rewards' unit and zero", tolerance=512)
def _(case):
    other = 3 * case.reward + 5
    plain = numerics.z_score(case.sampled, epsilon=0.0)
    condition = size(case.reward) / jnp.std(case.reward, ddof=1)
    yield plain.mean(), condition
    yield jnp.std(plain, ddof=1) - 1, condition
    turned = numerics.z_score(case.sampled._replace(reward=other), epsilon=0.0)
    yield turned - plain, size(plain) * size(other) / jnp.std(other, ddof=1)


@identity("I25", "the leave-one-out advantage is G / (G - 1) times reward minus group mean")
def _(case):
    number, found = case.reward.size, case.sampled.leave_one_out_advantage()
    others = (case.reward.sum() - case.reward) / (number - 1)
    yield found - (case.reward - others), size(case.reward)
    yield found - number / (number - 1) * case.sampled.group_advantage(), size(case.reward)


@identity("M16", "a group's deviation has G - 1 in the denominator, a policy's has none")
def _(case):
    yield case.sampled.standard_deviation() - jnp.std(case.reward, ddof=1), size(case.reward)
    even = case.on_policy._replace(weight=jnp.full_like(case.reward, 1 / case.reward.size))
    yield even.standard_deviation() - jnp.std(case.reward), size(case.reward)


def nearby(case: Case) -> Any:
    """Half-way to the old policy, since ratios count as at most exp(40) in this package."""
    return log_softmax((case.logp + case.old) / 2)


@identity("M11", "under the old policy the mean probability ratio is 1")
def _(case):
    group = case.off_policy._replace(reward=jnp.ones_like(case.reward))
    yield loss("ppo_clip", nearby(case), group, clip=1e9) + 1, size(nearby(case) - case.old)


@identity("M12", "the gradient of the unclipped surrogate is the policy gradient at any policy")
def _(case):
    logp = nearby(case)
    found = in_logits(lambda x: loss("ppo_clip", x, case.off_policy, clip=1e9), logp)
    yield found + policy_gradient(case, logp), size(case.reward) * size(logp - case.old)


@identity("M14", "RLOO averages to the policy gradient over all K^3 groups", sizes=(2, 3))
def _(case):
    draws = np.array(list(itertools.product(range(case.theta.size), repeat=3)))

    def one(reward: Any, own: Any) -> Any:
        return pull("rloo", own, Group.of(reward=reward, ref_logp=own))

    chance = jnp.exp(case.logp[draws].sum(-1))
    each = chance[:, None] * jax.vmap(one)(case.reward[draws], case.logp[draws])
    mean = jnp.zeros_like(case.logp).at[draws].add(each)
    yield mean - mean.sum() * jnp.exp(case.logp) - policy_gradient(case, case.logp), size(case.reward)


# --- weighted likelihood ---------------------------------------------------------------------------------------------
@identity("I06", "exact SFT is the forward KL: both have the gradient pi - q")
def _(case):
    wanted = jnp.exp(case.logp) - jnp.exp(case.old)
    yield slope("sft", case.theta, case.off_policy) - wanted, 1
    yield in_logits(lambda x: metrics.kl(case.old, x), case.theta) - wanted, 1
    wanted = jnp.exp(case.logp) - jnp.exp(case.problem.optimum(0.5)[0])
    yield slope("forward_kl", case.theta, case.off_policy, beta=0.5) - wanted, size(case.reward)


@identity("I17", "exact RWR has the gradient (sum of weights) (pi - q), and rests at q ~ pi_old exp(r / beta)")
def _(case):
    q = bandit(case.reward, case.old).optimum(0.5)[0]
    weight = jnp.exp(case.old + 2 * case.reward).sum()
    wanted, scale = weight * (jnp.exp(case.logp) - jnp.exp(q)), weight * size(case.reward)
    yield slope("rwr", case.theta, case.off_policy, beta=0.5) - wanted, scale
    yield slope("rwr", q, case.off_policy, beta=0.5), scale


@identity("I18", "n optima at beta, each the next one's reference, are one at beta / n; equal rewards move nothing")
def _(case):
    logp = case.ref
    for _ in range(2):
        logp = bandit(case.reward, logp).optimum(1.0)[0]
    yield logp - case.problem.optimum(0.5)[0], size(logp, case.ref, case.reward * 2)
    flat = bandit(jnp.full_like(case.reward, 3), case.ref).optimum(0.5)[0]
    yield flat - case.ref, size(case.ref)


BEST_OF = (1.0, 2.0, 3.0, 8.0, 64.0, 1e6)


def best_of(case: Case, draws: tuple[float, ...] = BEST_OF) -> tuple[Any, Any]:
    """(draws [n, 1], distribution of the best of so many [n, K]); some scores tie."""
    best = over(case, draws, lambda n: best_of_n_weights(jnp.exp(case.logp), jnp.round(4 * case.reward), n))
    return jnp.asarray(draws)[:, None], best


@identity("I26", "the distribution of the best of n sums to 1")
def _(case):
    yield best_of(case)[1].sum(1) - 1, 1


@identity("I27", "the best of one draw is a draw")
def _(case):
    yield best_of(case)[1][0] - jnp.exp(case.logp), 1


@identity("I28", "the best of n lies at most log n - (n - 1) / n nats away", tolerance=256)
def _(case):
    n, best = best_of(case)
    away = metrics.kl(jnp.log(best), jnp.broadcast_to(case.logp, best.shape))[:, None]
    yield jnp.maximum(away - (jnp.log(n) - (n - 1) / n), 0), jnp.log(n) + 1


# XLA's float64 log1p is wrong by up to 120 epsilon.
@identity("I29", "the best of n draws is no action more than n times as often as one draw", tolerance=256)
def _(case):
    n, best = best_of(case)
    yield jnp.maximum(best / (n * jnp.exp(case.logp)) - 1, 0), 1


@identity("I30", "the reward of the best of n grows with n")
def _(case):
    score, best = jnp.round(4 * case.reward), best_of(case)[1]
    reached = metrics.expected_reward(jnp.log(best), jnp.broadcast_to(score, best.shape))
    yield jnp.minimum(jnp.diff(reached), 0), size(score)


@identity("M17", "the best of 4 is what all K^4 draws give, ties shared by probability", sizes=(2, 3))
def _(case):
    score, best = jnp.round(4 * case.reward), best_of(case, (4.0,))[1][0]
    draws = np.array(list(itertools.product(range(case.theta.size), repeat=4)))
    top = score[draws] == score[draws].max(-1, keepdims=True)
    chance = jnp.exp(case.logp[draws].sum(-1))[:, None]
    wanted = jnp.zeros_like(best).at[draws].add(chance * top / top.sum(-1, keepdims=True))
    yield best - wanted, 1
    yield pull("best_of_n", case.logp, case.on_policy._replace(score=score)) - wanted, 1


# --- the KL penalty and its optimum ----------------------------------------------------------------------------------
@identity("I07", "the gradient of KL(pi, ref) is pi (log-ratio - KL)")
def _(case):
    ratio = case.logp - case.ref
    wanted = jnp.exp(case.logp) * (ratio - metrics.kl(case.logp, case.ref))
    yield in_logits(lambda x: metrics.kl(x, case.ref), case.theta) - wanted, size(ratio)


PENALISED = with_kl("reinforce")


@identity("I09", "the KL-regularised reward is flat at ref exp(r / beta) / Z")
def _(case):
    def slopes(beta: Any, best: Any) -> Any:
        found = [
            in_logits(lambda x: case.regularised(x, beta), best),
            beta * slope("reverse_kl", best, case.off_policy, beta=beta),
            slope(PENALISED, best, case.on_policy._replace(weight=jnp.exp(best)), kl_coef=beta),
        ]
        return jnp.stack(found) / size(case.reward, beta * case.ref)

    yield over(case, BETAS, slopes, case.optima), 1


@identity("I10", "its largest value is beta log Z")
def _(case):
    def gap(beta: Any, best: Any) -> Any:
        level = beta * jax.nn.logsumexp(case.ref + case.reward / beta)
        return (case.regularised(best, beta) - level) / size(case.reward, beta * case.ref)

    yield over(case, BETAS, gap, case.optima), 1


@identity("I11", "every policy lies beta KL(pi, pi*) below it", tolerance=128)
def _(case):
    def beyond(beta: Any, best: Any) -> Any:
        gap = case.regularised(best, beta) - case.regularised(case.logp, beta)
        away = [metrics.kl(case.logp, best), loss("reverse_kl", case.logp, case.off_policy, beta=beta)]
        return (gap - beta * jnp.stack(away)) / size(case.reward, beta * case.ref, beta * case.logp)

    yield over(case, BETAS, beyond, case.optima), 1


@identity("I12", "at the optimum beta log-ratio differences are reward differences")
def _(case):
    beta = jnp.asarray(BETAS)[:, None]
    implicit = beta * (case.optima - case.ref)
    off = implicit - implicit[:, :1] - (case.reward - case.reward[0])
    yield off, 2 * jnp.maximum(size(case.reward), beta * size(case.ref))


@identity("I45", "a temperature towards 0 leaves the best action alone, without overflow", tolerance=8)
def _(case):
    best = jnp.arange(case.reward.size) == case.reward.argmax()
    # The best may have any probability under the reference: what is left of the others is at most its inverse.
    lead = (case.reward.max() - jnp.where(best, -jnp.inf, case.reward).max()) / 1e-3 + case.ref.min()
    problem = case.problem
    yield over(case, (1e-3,), lambda t: jnp.where(lead < 60, 0, jnp.exp(problem.optimum(t)[0]) - best)), 1
    yield over(case, (1e-10, 1e-30), lambda t: jnp.exp(problem.optimum(t)[0]) - best), 1


@identity("I34", "the mean of k1 and of k3 is the KL, and k3 is never negative")
def _(case):
    wanted, scale = metrics.kl(case.logp, case.ref), size(case.logp - case.ref)
    for name in ("kl_k1", "kl_k3"):
        yield loss(name, case.logp, case.on_policy) - wanted, scale
    yield jnp.minimum(core.KL_ESTIMATES["k3"](case.logp - case.ref), 0), scale


@identity("I35", "the on-policy gradient of k3 is that of the other KL, pi - ref", tolerance=512)
def _(case):
    yield slope("kl_k3", case.theta, case.on_policy) - (jnp.exp(case.logp) - jnp.exp(case.ref)), 1


@identity("I36", "the on-policy gradient of k2 is that of KL(pi, ref)")
def _(case):
    wanted = in_logits(lambda x: metrics.kl(x, case.ref), case.theta)
    yield slope("kl_k2", case.theta, case.on_policy) - wanted, size(case.logp - case.ref)


@identity("I37", "the on-policy gradient of k1 is 0")
def _(case):
    yield slope("kl_k1", case.theta, case.on_policy), 1


# --- preferences -----------------------------------------------------------------------------------------------------
@identity("I13", "with Bradley-Terry labels DPO rests at ref exp(r / beta) / Z")
def _(case):
    rest = lambda beta, best: pull("dpo", best, case.labelled, beta=beta) / beta / size(case.reward, beta * case.ref)
    yield over(case, BETAS, rest, case.optima), 1


def wins(case: Case) -> Any:
    """[winner, loser]: how often each pair is drawn and won, in sum 1."""
    won = jnp.exp(case.old[:, None] + case.old[None, :]) * bradley_terry(case.reward)
    return won / won.sum()


@identity("I14", "for a small beta DPO's force over beta is half the wins of a response less half its losses")
def _(case):
    won, ratio = wins(case), case.logp - case.ref
    wanted, spread = (won.sum(1) - won.sum(0)) / 2, ratio.max() - ratio.min()
    off = lambda beta: jnp.abs(pull("dpo", case.logp, case.labelled, beta=beta) / beta - wanted)
    yield over(case, (1e-3, 1e-6), lambda beta: jnp.maximum(off(beta) - beta * spread / 4, 0)), 1


@identity("I15", "DPO's gradient is -beta times row less column sums of W sigmoid(-margin), without a softmax term")
def _(case):
    won, ratio = wins(case), case.logp - case.ref

    def off(beta: Any) -> Any:
        weight = won / (1 + jnp.exp(beta * (ratio[:, None] - ratio[None, :])))
        wanted = -beta * (weight.sum(1) - weight.sum(0))
        pulled = pull("dpo", case.logp, case.labelled, beta=beta)
        in_theta = jax.vjp(log_softmax, case.theta)[1](pulled)[0]
        return (jnp.stack([-pulled, -in_theta]) - wanted) / (beta * size(beta * ratio))

    yield over(case, (0.1, 2.0), off), 1


@identity("I43", "turning all labels round and the sign of beta gives the same DPO loss")
def _(case):
    turned = case.labelled._replace(score=-case.reward)
    off = lambda beta: loss("dpo", case.logp, case.labelled, beta=beta) - loss("dpo", case.logp, turned, beta=-beta)
    yield over(case, (0.1, 2.0), off), size(2 * (case.logp - case.ref))


@identity("I44", "at the reference DPO's loss is log 2 and IPO's 1 / (4 tau^2)")
def _(case):
    yield loss("dpo", case.ref, case.labelled, beta=0.3) - math.log(2), 1
    yield loss("ipo", case.ref, case.labelled, beta=0.3) - 1 / (4 * 0.3**2), 1 / (4 * 0.3**2)


@identity("I16", "IPO rests at ref exp(win rate / tau) / Z", tolerance=128)
def _(case):
    problem = bandit(bradley_terry(case.reward) @ jnp.exp(case.old), case.ref)
    rest = lambda tau: tau * pull("ipo", problem.optimum(tau)[0], case.labelled, beta=tau) / size(tau * case.ref)
    yield over(case, (0.05, 0.5), rest), 1


@identity("I42", "KTO's gradient is c - pi sum c with c of each response alone")
def _(case):
    batch = jax.tree.map(lambda x: x[None], case.off_policy)
    group = jax.tree.map(lambda x: x[0], prepare(batch, case.logp[None, :, None]))
    sign = jnp.where(case.reward > jnp.exp(case.old) @ case.reward, 1.0, -1.0)
    value = 1 / (1 + jnp.exp(-sign * 0.3 * (case.logp - case.ref - metrics.kl(case.logp, case.ref))))
    c = -jnp.exp(case.old) * jnp.where(sign > 0, 1.5, 0.5) * 0.3 * sign * value * (1 - value)
    found = slope("kto", case.theta, group, beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    yield found - (c - jnp.exp(case.logp) * c.sum()), size(case.logp, case.ref)


def newton(gradient: Callable[[Any], Any], start: Any, steps: int) -> Any:
    """Newton's method in the logits, whose constant direction is flat."""

    def step(_: Any, x: Any) -> Any:
        hessian = jax.jacfwd(gradient)(x) + jnp.ones((x.size, x.size)) / x.size
        return x - jnp.linalg.solve(hessian, gradient(x))

    return log_softmax(jax.lax.fori_loop(0, steps, step, start))


@identity("C01", "Newton's method on DPO goes from the reference to ref exp(r / beta) / Z",
          tolerance=1e-10 / EPS64, sizes=(3, 17), bits=(64,), eager=False)  # fmt: skip
def _(case):
    even = case.exact(log_softmax(jnp.zeros_like(case.old)), temperature=1.0)
    found = newton(lambda theta: slope("dpo", theta, even, beta=0.5), case.ref, 20)
    yield found - case.problem.optimum(0.5)[0], size(case.ref)


@identity("C02", "IPO is quadratic in the log-ratios: Newton's method is there after one step",
          tolerance=1e-10 / EPS64, sizes=(3, 17), bits=(64,), eager=False)  # fmt: skip
def _(case):
    group = case.exact(log_softmax(jnp.zeros_like(case.old)), temperature=1.0)
    found = newton(lambda theta: slope("ipo", theta, group, beta=0.5), case.theta, 1)
    rate = bradley_terry(case.reward).mean(1)
    yield found - bandit(rate, case.ref).optimum(0.5)[0], size(case.ref, case.theta)


# --- differentiation and batching ------------------------------------------------------------------------------------
# Their loss is not what they differentiate: parts of it are data.
FROZEN = {"cispo", "gspo_token", "nash_md"}
DIFFERENTIABLE = sorted(
    name
    for name, made in OBJECTIVES.items()
    if made.function.__module__.startswith("bandit_pft.") and name not in FROZEN
)


@identity("I40", "forces are central differences of the loss",
          tolerance=1e-7 / EPS64, sizes=(3,), bits=(64,), eager=False)  # fmt: skip
def _(case):
    # Not too close to certainty, where some third derivatives are beyond 1e4.
    logp, direction, h = log_softmax(jnp.tanh(case.theta)), case.reward - 0.4, 1e-5
    for name in DIFFERENTIABLE:
        both = jax.value_and_grad(functools.partial(loss, name, group=case.off_policy))
        value, gradient = jax.vmap(lambda step: both(logp + step * direction))(jnp.array([-h, 0, h]))  # noqa: B023
        found = (gradient[1] * direction).sum()
        yield found - (value[2] - value[0]) / (2 * h), size(found)


@identity("I41", "a batch and its members one by one agree")
def _(case):
    def numbers(logp: Any) -> Any:
        best = best_of_n_weights(jnp.exp(logp), case.reward, 3.0)
        return jnp.stack([metrics.kl(logp, case.ref) + best, pull("dpo", logp, case.off_policy)])

    batch = jax.vmap(numbers)(jnp.stack([case.old, case.logp]))
    yield batch[1] - numbers(case.logp), size(case.logp, case.ref)


# --- far beyond what probabilities can hold --------------------------------------------------------------------------
@identity("E01", "logits 100 and 10,000 apart stay so far apart", sizes=(3,))
def _(case):
    far = jnp.array([0.0, -100.0, -1e4])
    yield log_softmax(far) - far, 1


@identity("E02", "a KL counts what float32 cannot hold as a probability", sizes=(3,))
def _(case):
    even, sure = log_softmax(jnp.zeros(3)), jnp.array([0.0, -1e4, -1e4])
    yield metrics.kl(even, sure) - (2e4 / 3 - math.log(3)), 1e4
    yield metrics.kl(sure, even) - math.log(3), 1


@identity("E03", "what both policies forbid adds nothing", sizes=(3,))
def _(case):
    wide = jnp.append(case.logp, -jnp.inf)
    yield metrics.kl(wide, wide), 1
    yield metrics.entropy(wide) - metrics.entropy(case.logp), 1
    reached = metrics.expected_reward(wide, jnp.append(case.reward, 1e30))
    yield reached - metrics.expected_reward(case.logp, case.reward), size(case.reward)


@identity("E04", "an action that only the learner takes makes the KL infinite", sizes=(3,))
def _(case):
    yield jnp.where(metrics.kl(case.logp, case.ref.at[1].set(-jnp.inf)) == jnp.inf, 0, 1), 1


@identity("E05", "gradients pass by a forbidden action", sizes=(3,))
def _(case):
    away = lambda theta, ref: in_logits(lambda x: metrics.kl(x, ref), theta)
    found = away(jnp.append(case.theta, -jnp.inf), jnp.append(case.ref, -jnp.inf))
    yield found - jnp.append(away(case.theta, case.ref), 0), size(case.logp, case.ref)


def winner_and_losers() -> Group:
    return Group.of(reward=[1.0, 0.0, 0.0], ref_logp=jnp.zeros(3))


@identity("E06", "DPO's loss and force vanish where the winner leads by 1e4", sizes=(3,))
def _(case):
    ahead = jnp.array([0.0, -1e4, -1e4])
    yield loss("dpo", ahead, winner_and_losers(), beta=1.0), 1e-30
    yield pull("dpo", ahead, winner_and_losers(), beta=1.0), 1e-30


@identity("E07", "where it trails by 1e4 the loss is that distance and the force on it 1", sizes=(3,))
def _(case):
    behind = jnp.array([-1e4, 0.0, 0.0])
    yield loss("dpo", behind, winner_and_losers(), beta=1.0) - 1e4, 1e4
    yield pull("dpo", behind, winner_and_losers(), beta=1.0) - jnp.array([1.0, -0.5, -0.5]), 1


@identity("E09", "equal rewards give GRPO exactly no force, however their mean is rounded", sizes=(3,))
def _(case):
    yield pull("grpo", case.logp, case.off_policy._replace(reward=jnp.full_like(case.reward, 0.1))), 1e-30


@identity("E10", "a beta of 1e-8 overflows nothing", sizes=(3,))
def _(case):
    best = bandit(jnp.array([0.0, 1.0, -1.0]), jnp.array([-1.0, -2.0, -4.0])).optimum(1e-8)[0]
    yield best - jnp.array([1 - 1e8, 0.0, -2 - 2e8]), 1e8


@identity("E11", "the rarest winner of a million draws keeps its digits", sizes=(3,))
def _(case):
    rare = 1e-12
    best = best_of_n_weights(jnp.array([0.5, 0.5 - rare, rare]), jnp.array([0.0, 0.0, 1.0]), 1e6)
    yield best[2] / -math.expm1(1e6 * math.log1p(-rare)) - 1, 1


@identity("E12", "a sum over a million actions keeps its digits", sizes=(3,))
def _(case):
    logp = log_softmax(jnp.sin(jnp.arange(10**6) * case.theta[0]))
    yield total(jnp.exp(logp)) - 1, 1
    yield (
        metrics.expected_reward(logp, jnp.broadcast_to(case.reward[0], logp.shape)) - case.reward[0],
        size(case.reward),
    )


# --- they hold -------------------------------------------------------------------------------------------------------
@functools.cache
def arrays(actions: int, bits: int) -> list[np.ndarray]:
    """Logits of the three policies and rewards, [lanes, K] for every seed and scale of the logits."""
    normal = np.stack([np.random.default_rng((actions, seed)).standard_normal((4, actions)) for seed in SEEDS])
    scale = np.array([[scale, scale, scale, 1.0] for scale in LOGIT_SCALES])
    lanes = (normal[:, None] * scale[..., None]).reshape(-1, 4, actions).astype(f"float{bits}")
    return list(lanes.swapaxes(0, 1))


def error(entry: Identity, case: Case) -> Any:
    """The largest difference of one case in units of epsilon and scale."""
    parts = [jnp.max(jnp.abs(difference) / scale) for difference, scale in entry.differences(case)]
    return jnp.stack(parts).max() / np.finfo(case.theta.dtype).eps


def sizes(entry: Identity, bits: int) -> tuple[int, ...]:
    # What the number of actions does to rounding, float32 shows; a program for each takes seconds to compile.
    if bits == 32 or entry.bits == (64,):
        return entry.sizes
    return tuple(actions for actions in entry.sizes if actions not in (2, 17))


@functools.cache
def compiled(actions: int, bits: int) -> dict[str, np.ndarray]:
    """[lanes] of every identity, from one program."""
    entries = [entry for entry in IDENTITIES if bits in entry.bits and actions in sizes(entry, bits)]

    def every(lane: list[Any]) -> dict[str, Any]:
        case = Case(*lane)
        return {entry.number: error(entry, case) for entry in entries}

    # One lane at a time: all pairs of a thousand actions take megabytes.
    run = jax.jit(
        lambda lanes: jax.lax.map(every, lanes), compiler_options=FULL if (actions, bits) == (17, 32) else None
    )
    with jax.enable_x64(bits == 64):
        return jax.tree.map(np.asarray, run(arrays(actions, bits)))


@functools.cache
def concrete(bits: int) -> Case:
    """The last lane: the widest logits. Each operation compiles alone for each size, so that three actions must do."""
    return Case(*(jnp.asarray(lanes[-1]) for lanes in arrays(3, bits)))


def table(how: str) -> list[Any]:
    # What the type does, compiled programs show; without, each operation of the other type would be compiled alone too.
    return [
        pytest.param(entry, bits, id=f"{entry.number}-{entry.statement}-float{bits}")
        for entry in IDENTITIES
        for bits in (entry.bits if how == "jit" else entry.bits[:1])
        if entry.eager or how == "jit"
    ]


@pytest.mark.parametrize(("entry", "bits"), table("jit"))
def test_identity(entry: Identity, bits: int) -> None:
    for actions in sizes(entry, bits):
        found = compiled(actions, bits)[entry.number]
        assert (found <= entry.tolerance).all(), f"{actions} actions: {found} epsilon, allowed {entry.tolerance}"


@pytest.mark.parametrize(("entry", "bits"), table("eager"))
def test_identity_without_jit(entry: Identity, bits: int) -> None:
    with jax.enable_x64(bits == 64):
        found = float(error(entry, concrete(bits)))
    assert found <= entry.tolerance, f"{found} epsilon, allowed {entry.tolerance}"


# --- statistics of draws ---------------------------------------------------------------------------------------------
REWARD = np.array([0.5, -1.0, 1.2, 0.1])
LEARNER, REFERENCE = (np.log(p) for p in ([0.4, 0.2, 0.1, 0.3], [0.1, 0.3, 0.4, 0.2]))
POLICY_GRADIENT = np.exp(LEARNER) * (REWARD - np.exp(LEARNER) @ REWARD)
KL = np.exp(LEARNER) @ (LEARNER - REFERENCE)
DRAWS, ROUNDS = 2**17, 8  # Groups of 3 at a time, and how many times.
BOTH = pytest.mark.parametrize("bits", [32, 64])


def estimates(actions: Any) -> dict[str, Any]:
    """What one group [3] says about 1: the KL over the KL, a force along the policy gradient over its square."""
    logp, reward, ref = (jnp.asarray(x)[actions] for x in (LEARNER, REWARD, REFERENCE))
    group = Group.of(reward=reward, ref_logp=ref, old_logp=logp)
    found = {}
    for name in ("reinforce", "rloo", "reinforce_group"):
        each = pull(name, logp, group)
        gradient = jnp.zeros(4).at[actions].add(each) - each.sum() * jnp.exp(LEARNER)
        found[name] = (gradient * POLICY_GRADIENT).sum() / (POLICY_GRADIENT**2).sum()
    for name in ("kl_k1", "kl_k3"):
        found[name] = OBJECTIVES[name](logp[:, None], group) / KL
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


MEANS = {"M01": ("reinforce", 1), "M02": ("rloo", 1), "M03": ("reinforce_group", 2 / 3),
         "M05": ("kl_k1", 1), "M06": ("kl_k3", 1)}  # fmt: skip


@pytest.mark.parametrize("number", MEANS)
@BOTH
def test_the_mean_over_drawn_groups_is_the_exact_one(number: str, bits: int) -> None:
    name, wanted = MEANS[number]
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
    score = REWARD if number == "M09" else np.array([1.0, 0.0, 1.0, 1.0])  # M13: with ties.
    actions = drawn(bits)["actions"].astype(int)
    with jax.enable_x64(bits == 64):
        wanted = np.asarray(best_of_n_weights(jnp.exp(LEARNER), jnp.asarray(score), 3), np.float64)
        best = jax.jit(jax.vmap(lambda x: Group.of(reward=x, ref_logp=-jnp.ones(3)).best()))
        share = np.asarray(best(jnp.asarray(score)[actions]), np.float64)
    if number == "M09":  # One winner, perhaps drawn twice.
        assert p_value(actions[np.arange(len(actions)), share.argmax(1)], np.log(wanted)) > 1e-4
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
        assert 2.5e-5 < spread < 1 - 2.5e-5  # 1e-4, both sides, two sizes.
