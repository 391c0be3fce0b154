"""Exercises of the notebooks: `check` explains what differs, and every cell below goes on with something right."""

from __future__ import annotations

import base64
import html
import inspect
import itertools
import math
import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from bandit_pft import metrics
from bandit_pft.errors import ConfigError, nearest, shown
from bandit_pft.groups import Group
from bandit_pft.objectives import force

QUICK = "BANDIT_PFT_QUICK"


def size(full: int, quick: int) -> int:
    """How many seeds or steps: `quick` where the environment says BANDIT_PFT_QUICK=1, as the tests do."""
    return quick if os.environ.get(QUICK, "") not in ("", "0") else full


@dataclass(frozen=True)
class Described:
    """A figure with what it shows in words, for those who do not see it: its own numbers where no text is given."""

    figure: Any
    text: str = ""

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self.figure._repr_png_()).decode()
        text = html.escape(self.text or in_words(self.figure))
        return f'<img alt="{text}" style="max-width: 100%" src="data:image/png;base64,{picture}">'


def in_words(figure: Any) -> str:
    """Title, axes, and every named line: its height at five places, and where it is lowest and highest."""
    panels: dict[str, str] = {}  # The same lines on another scale are told once.
    y_name = figure.get_supylabel()
    for ax in figure.axes:
        lines = "; ".join(_line_in_words(line) for line in ax.get_lines() if not line.get_label().startswith("_"))
        y_name = ax.get_ylabel() or y_name
        title = f"{ax.get_title() or ax.get_title(loc='left')}, ".removeprefix(", ")
        if lines:
            panels.setdefault(lines, f"{title}{y_name} at each {ax.get_xlabel()}")
    told = (figure.get_suptitle(), *(f"{head}. {lines}" for lines, head in panels.items()), figure.get_supxlabel())
    return ". ".join(part.rstrip(".") for part in told if part) + "."


def _line_in_words(line: Any) -> str:
    x, y = (np.asarray(values, np.float64) for values in line.get_data())
    places = np.unique([*np.linspace(0, len(y) - 1, 5).round().astype(int), y.argmin(), y.argmax()])
    return f"{line.get_label()}: {', '.join(f'{y[i]:.3g} at {x[i]:.4g}' for i in places)}"


def reveal(prediction: Any, figure: Any, *found: str, anyway: bool = False) -> Described | None:
    """What was predicted next to what was found, in lines and in a figure; nothing of it before something is predicted.

    Args:
        anyway: show it without a prediction too, as in a lecture.
    """
    written = "" if prediction is None or prediction is ... else str(prediction).strip()
    if not (written.strip(".… ") or anyway):
        print("You wrote: nothing yet. Write one sentence into `prediction`, and run that cell and this one again.")
        return None
    print("\n".join((f"You wrote: {written}", "The run says:", textwrap.indent("\n".join(found), "  "))))
    return Described(figure)


class Exercise(NamedTuple):
    """Something to write in at most three lines.

    Attributes:
        task: what the function returns. hint: what to think of when it does not.
        solution: what a student would write.
        truth: the same numbers, found in another way.
        cases: (random generator) -> arguments to compare on.
    """

    task: str
    hint: str
    solution: Callable[..., Any]
    truth: Callable[..., Any]
    cases: Callable[[np.random.Generator], list[tuple[Any, ...]]]


EXERCISES: dict[str, Exercise] = {}


def _exercise(
    task: str, hint: str, truth: Callable[..., Any], cases: Callable[[np.random.Generator], list[tuple[Any, ...]]]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(solved: Callable[..., Any]) -> Callable[..., Any]:
        EXERCISES[solved.__name__] = Exercise(task, hint, solved, truth, cases)
        return solved

    return register


def check(name: str, function: Any) -> Callable[..., Any]:
    """Compare a student's function with the truth, print one line, and give the function to go on with.

    Returns:
        The function itself if it is right, else the reference solution.

    Raises:
        ConfigError: no such exercise, with the nearest names.
    """
    exercise = _named(name)
    wrong = _difference(name, exercise, function)
    print(f"{name}: {f'{wrong} Going on with the reference solution.' if wrong else 'right. Going on with yours.'}")
    return exercise.solution if wrong else function


def solution(name: str) -> None:
    """Print the source of the reference solution.

    Raises:
        ConfigError: no such exercise, with the nearest names.
    """
    print(source_of(name))


def source_of(name: str) -> str:
    """The solution as a student would write it."""
    source = inspect.getsource(_named(name).solution)
    return source[source.index("def ") :].rstrip()


def _named(name: str) -> Exercise:
    if name not in EXERCISES:
        raise ConfigError(f"no exercise is named {name!r}: {nearest(name, EXERCISES)}")
    return EXERCISES[name]


def _difference(name: str, exercise: Exercise, function: Any) -> str:
    """What is wrong with a function, in one line; empty if nothing is."""
    unwritten = f"not written yet. It should return {exercise.task}."
    if not callable(function):
        return unwritten if function is None or function is ... else f"{shown(function)} is not a function."
    for case in exercise.cases(np.random.default_rng(0)):
        case = tuple(jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in case)
        expected = np.asarray(exercise.truth(*case), np.float64)
        call = f"{name}({_arguments(exercise.solution, case)})"
        try:
            value = function(*case)
        except Exception as error:  # Whatever it is that a student's function does.
            return f"{call} fails with {type(error).__name__}: {' '.join(str(error).split())[:200]}."
        if value is None or value is ...:
            return unwritten
        try:
            got = np.asarray(value)
            got = got.astype(np.float64, casting="same_kind" if got.dtype.kind == "f" else "safe")
        except (TypeError, ValueError):
            return f"{call} returns {shown(value)}; it should return {exercise.task}, as numbers."
        if got.shape != expected.shape:
            return f"{call} returns shape {got.shape}; it should return {exercise.task}, shape {expected.shape}."
        bad = np.argwhere(~np.isclose(got, expected, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(expected).max())))
        if len(bad):
            place = tuple(int(i) for i in bad[0])
            where = f"{list(place)}" if place else ""
            seen = f"{call}{where} should be {expected[place]:.4g} and is {got[place]:.4g}"
            return f"{seen}: {_pattern(expected, got) or exercise.hint}."
    return ""


def _arguments(function: Callable[..., Any], case: tuple[Any, ...]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, Group):
            return f"<{value.mask.shape[0]} responses>"
        if np.ndim(value) == 0:
            return f"{value:.4g}"
        return " ".join(np.array2string(np.asarray(value), precision=2, separator=", ").split())

    names = inspect.signature(function).parameters
    return ", ".join(f"{name}={text(x)}" for name, x in zip(names, case, strict=False))


def _pattern(expected: np.ndarray, got: np.ndarray) -> str:
    """A common mistake that explains every entry."""
    close = lambda a, b: np.allclose(a, b, rtol=1e-3, atol=1e-6)
    if not np.isfinite(got).all():
        return "that is no finite number: look for a division by 0 or a logarithm of 0"
    if close(got, -expected):
        return "the sign is the other way round: the force is minus the gradient, positive where it pulls"
    with np.errstate(over="ignore"):
        if close(np.exp(got), expected) or close(got, np.exp(expected)):
            return "one is the logarithm of the other"
    if expected.size > 1 and close(np.ptp(got - expected), 0):
        return f"every entry is off by {np.mean(got - expected):.3g}"
    large = np.abs(expected) > 1e-6
    ratio = got[large] / expected[large]
    if ratio.size > 1 and abs(ratio[0]) > 1e-3 and close(ratio, ratio[0]) and close(got[~large], 0):
        return f"every entry is {ratio[0]:.3g} times what it should be: a factor such as N, 2 or beta"
    return ""


# --- 00: policies ----------------------------------------------------------------------------------------------------
def _logs(rng: np.random.Generator, *sizes: int) -> list[np.ndarray]:
    return [np.log(rng.dirichlet(np.ones(n))) for n in sizes]


@_exercise(
    "the expected reward, one number",
    "sum over all actions of probability times reward; logp holds logarithms",
    # The slope of log E exp(t r) at t = 0.
    lambda logp, reward: jax.grad(lambda t: jax.nn.logsumexp(logp + t * reward))(0.0),
    lambda rng: [(logp, rng.normal(size=logp.size)) for logp in _logs(rng, 3, 4)],
)
def mean_reward(logp, reward):
    return (jnp.exp(logp) * reward).sum()


# --- 01: imitation ---------------------------------------------------------------------------------------------------
def _every_draw(prob: Any, reward: Any, n: int) -> np.ndarray:
    share = np.zeros(len(prob))
    for drawn in itertools.product(range(len(prob)), repeat=n):
        top = [a for a in drawn if reward[a] == max(float(reward[b]) for b in drawn)]
        for a in top:
            share[a] += math.prod(float(prob[b]) for b in drawn) / len(top)
    return share


@_exercise(
    "the probability of each action to be the best of n draws, [A]",
    "the best reward is at most r when all n draws are, which has probability (mass up to r)^n",
    lambda prob, reward, n: _every_draw(np.asarray(prob), np.asarray(reward), n),
    lambda rng: [(rng.dirichlet(np.ones(3)), np.array([0.1, 0.7, 0.3]), 2),
                 (rng.dirichlet(np.ones(3)), np.array([0.5, 0.2, 0.5]), 4)],
)  # fmt: skip
def best_of_n_share(prob, reward, n):
    upto = (prob * (reward <= reward[:, None])).sum(1)
    below = (prob * (reward < reward[:, None])).sum(1)
    return prob * (upto**n - below**n) / (upto - below)


# --- 02: rewards -----------------------------------------------------------------------------------------------------
@_exercise(
    "each reward minus the mean of the other rewards, [N]",
    "leave the response's own reward out of the mean, and divide by N - 1",
    lambda reward: [float(x) - np.delete(np.asarray(reward), i).mean() for i, x in enumerate(reward)],
    lambda rng: [(rng.uniform(size=n),) for n in (2, 4)],
)
def leave_one_out(reward):
    return reward - (reward.sum() - reward) / (len(reward) - 1)


# --- 03: both KLs ----------------------------------------------------------------------------------------------------
@_exercise(
    "minus the gradient of KL(p, q) in the logits of p, [A]",
    "each action moves by p times (its log-ratio minus the mean log-ratio under p)",
    lambda logp, logq: -jax.grad(lambda logits: metrics.kl(jax.nn.log_softmax(logits), logq))(logp),
    lambda rng: [tuple(_logs(rng, 3, 3)), tuple(_logs(rng, 4, 4))],
)
def reverse_kl_step(logp, logq):
    p = jnp.exp(logp)
    gap = logq - logp
    return p * (gap - (p * gap).sum())


# --- 04: negative gradients ------------------------------------------------------------------------------------------
def _winner_force(objective: str, lead: Any, beta: float) -> Any:
    pair = Group.of(reward=[1.0, 0.0], ref_logp=[-9.0, -9.0])
    return jax.vmap(lambda x: force(objective, pair.ref_logp.at[0].add(x), pair, beta=beta)[0, 0])(lead)


@_exercise(
    "IPO's force on the winner at each lead",
    "the loss is (lead - 1 / (2 beta))^2 and the force is minus its derivative",
    lambda lead, beta: _winner_force("ipo", lead, beta),
    lambda rng: [(rng.normal(size=3), 0.1), (rng.normal(size=3), 0.5)],
)
def ipo_force(lead, beta):
    return 1 / beta - 2 * lead


@_exercise(
    "DPO's force on the winner at each lead",
    "the loss is -log sigmoid(beta lead), and the derivative of log sigmoid(x) is sigmoid(-x)",
    lambda lead, beta: _winner_force("dpo", lead, beta),
    lambda rng: [(rng.normal(size=3), 0.1), (rng.normal(size=3), 2.0)],
)
def dpo_force(lead, beta):
    return beta / (1 + jnp.exp(beta * lead))


# --- 05: on-policy ---------------------------------------------------------------------------------------------------
def _one_round_at_a_time(log_ref: Any, reward: Any, beta: float, rounds: int) -> np.ndarray:
    prob = np.exp(np.asarray(log_ref, np.float64))
    for _ in range(rounds):
        prob = prob * np.exp(np.asarray(reward, np.float64) / beta)
        prob /= prob.sum()
    return np.log(prob)


@_exercise(
    "the log-probabilities after that many rounds, [A]",
    "each round multiplies by exp(r / beta) once more; subtract the log of the sum at the end",
    _one_round_at_a_time,
    lambda rng: [
        (logp, rng.uniform(size=logp.size), 0.5, rounds) for logp, rounds in zip(_logs(rng, 3, 4), (1, 3), strict=True)
    ],
)
def rwr_rounds(log_ref, reward, beta, rounds):
    logits = log_ref + rounds * reward / beta
    return logits - jnp.logaddexp.reduce(logits)


# --- 06: clipping ----------------------------------------------------------------------------------------------------
def _ppo_force(log_ratio: Any, advantage: Any, clip: float) -> Any:
    old = jnp.full((len(log_ratio), 1), -5.0)
    group = Group.of(reward=advantage, ref_logp=old, old_logp=old)
    return len(log_ratio) * force("ppo_clip", old + log_ratio[:, None], group, clip=clip)[:, 0]


@_exercise(
    "the force on each response before the mean is taken, [N]",
    "ratio times advantage; 0 where the ratio is above 1 + clip and still pulled, or below 1 - clip and still pushed",
    _ppo_force,
    lambda rng: [(np.array([0.5, -0.5, 0.5, -0.5]), np.array([1.0, 1.0, -1.0, -1.0]), 0.2),
                 (rng.normal(size=4), rng.normal(size=4), 0.3)],
)  # fmt: skip
def clipped_force(log_ratio, advantage, clip):
    ratio = jnp.exp(log_ratio)
    inside = jnp.where(advantage > 0, ratio < 1 + clip, ratio > 1 - clip)
    return jnp.where(inside, ratio * advantage, 0.0)


# --- 07: labels ------------------------------------------------------------------------------------------------------
def _noise_wins(gap: Any, temperature: float) -> np.ndarray:
    """The worse one wins where its noise is larger by the gap: an integral over that noise, a Gumbel variable."""
    noise = np.linspace(-8.0, 40.0, 20_001)
    smaller = stats.gumbel_r.cdf(noise - np.asarray(gap)[:, None] / temperature)
    return np.trapezoid(stats.gumbel_r.pdf(noise) * smaller, noise, axis=1)


@_exercise(
    "the chance that the worse response of a pair is labelled the better one, at each gap in reward",
    "a Bradley-Terry labeller prefers the better one with probability sigmoid(gap / temperature)",
    _noise_wins,
    lambda rng: [(rng.uniform(size=3), 0.2), (rng.uniform(size=3), 1.0)],
)
def flip_chance(gap, temperature):
    return jax.nn.sigmoid(-gap / temperature)


# --- 08: coverage ----------------------------------------------------------------------------------------------------
@_exercise(
    "the chance that at least one of n draws hits a region of this mass, for each mass",
    "one draw misses with probability 1 - mass, and the draws are independent",
    lambda mass, n: sum(math.comb(n, k) * mass**k * (1 - mass) ** (n - k) for k in range(1, n + 1)),
    lambda rng: [(rng.uniform(size=3), 2), (rng.uniform(size=3), 5)],
)
def hit_chance(mass, n):
    return 1 - (1 - mass) ** n


# --- 09: shared parameters -------------------------------------------------------------------------------------------
def _through_parameters(features: Any, winner: int, loser: int) -> Any:
    def lead(theta: Any) -> Any:
        logp = jax.nn.log_softmax(features @ theta)
        return logp[winner] - logp[loser]

    theta = jnp.ones(features.shape[1])
    return jax.jvp(lambda theta: features @ theta, (theta,), (jax.grad(lead)(theta),))[1]


@_exercise(
    "how far each logit moves in one step of rate 1 that pulls the winner and pushes the loser by 1, [A]",
    "logits are features @ theta, so theta moves by the features' difference, winner minus loser",
    _through_parameters,
    lambda rng: [(rng.normal(size=(3, 2)), 0, 2), (rng.normal(size=(4, 3)), 3, 1)],
)
def pair_step(features, winner, loser):
    return features @ (features[winner] - features[loser])


# --- 10: language models ---------------------------------------------------------------------------------------------
def _offset_pairs(logp: Any, group: Any) -> float:
    mask, score = np.asarray(group.mask), np.asarray(group.score, np.float64)
    gain = np.where(mask, np.asarray(logp, np.float64) - np.asarray(group.ref_logp), 0).sum(1)
    pairs = [(w, i) for w, i in itertools.permutations(range(len(score)), 2) if score[w] > score[i]]
    return float(np.mean([np.logaddexp(0, score[w] - score[i] - 0.1 * (gain[w] - gain[i])) for w, i in pairs]))


def _texts(rng: np.random.Generator, *lengths: int) -> tuple[np.ndarray, Group]:
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    logp, ref = -rng.uniform(0.5, 9, (2, *mask.shape))
    # A tie is not compared.
    reward = [0.0, *rng.uniform(size=len(lengths) - 2), 0.0]
    return logp, Group.of(reward=reward, ref_logp=ref, mask=mask)


@_exercise(
    "the loss of the group, one number",
    "x = beta * gain - offset * score of every response, then minus group.pair_mean of log sigmoid(x_w - x_l)",
    _offset_pairs,
    lambda rng: [_texts(rng, 1, 1, 1), _texts(rng, 4, 1, 3, 2)],
)
def dpo_offset(logp, group, *, beta=0.1, offset=1.0):
    """L = -mean over pairs log sigmoid(beta (gain_w - gain_l) - offset (score_w - score_l))"""
    x = beta * group.total(logp - group.ref_logp) - offset * group.score
    return -group.pair_mean(jax.nn.log_sigmoid(x[:, None] - x[None, :]))
