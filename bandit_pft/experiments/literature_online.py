"""Policy gradients after the paper: baselines, clipping, KL placement, over-optimisation, collapse, forgetting."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array
from matplotlib.figure import Figure
from scipy import stats

from bandit_pft.claims import Criterion, Outcome, claim, experiment, figure
from bandit_pft.experiments.drawing import lines, points
from bandit_pft.groups import ExactGroup, Group, best_of_n_weights
from bandit_pft.methods import SGD, Method
from bandit_pft.objectives import force, with_kl
from bandit_pft.probes import distribution_probe
from bandit_pft.problems import bandit, log_softmax, paper_bandit, paper_reference
from bandit_pft.sweep import sweep


def _log(probs: Any) -> np.ndarray:
    probs = np.asarray(probs, np.float64)
    return np.log(probs / probs.sum(-1, keepdims=True))


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) of log-probabilities [nats]."""
    return (np.exp(p) * (p - q)).sum(-1)


def _every_action(log_pi: Any, log_ref: Any, reward: Any, draws: float = 1e6) -> ExactGroup:
    """All actions of a bandit, on-policy; by default in the limit of large groups."""
    made = ExactGroup.of(reward=reward, ref_logp=log_ref, old_logp=log_pi, weight=jnp.exp(log_pi), draws=draws)
    assert isinstance(made, ExactGroup)
    return made


def _in_logits(pull: Any, log_pi: Any) -> Any:
    """A force on log-probabilities as the step of a softmax's logits."""
    return pull - jnp.exp(log_pi) * pull.sum(-1, keepdims=True)


def _flow(
    pull: Callable[[Array], Array], start: Any, steps: int, rate: float = 1.0, natural: bool = False, every: int = 1
) -> np.ndarray:  # fmt: skip
    """Log-probabilities [steps / every + 1, A] of a softmax that follows `pull`, a force for log-probabilities."""

    def step(x: Array) -> Array:
        # The Fisher matrix of a softmax is diag(pi) - pi pi': its inverse divides by pi.
        return log_softmax(x + rate * (pull(x) / jnp.exp(x) if natural else _in_logits(pull(x), x)))

    def row(x: Array, _: None) -> tuple[Array, Array]:
        x = jax.lax.fori_loop(0, every, lambda _, x: step(x), x)
        return x, x

    start = jnp.asarray(start, jnp.float32)
    rows = jax.jit(lambda x: jax.lax.scan(row, x, None, steps // every)[1])(start)
    return np.concatenate([np.asarray(start)[None], np.asarray(rows)]).astype(np.float64)


def _on_policy(which: Any, log_ref: Any, reward: Any, **hyper: float) -> Callable[[Array], Array]:
    """The exact on-policy force of an objective."""
    ref = jnp.asarray(log_ref, jnp.float32)
    return lambda x: force(which, x[:, None], _every_action(x, ref, reward), **hyper)[:, 0]


# --- where the KL penalty stands -------------------------------------------------------------------------------------
PLACES = {"k1 in loss": ("k1", "loss"), "k2 in loss": ("k2", "loss"), "k3 in loss": ("k3", "loss"),
          "k1 in reward": ("k1", "reward")}  # fmt: skip


@experiment(
    "20 random pairs of policy and reference over 6 actions: the exact on-policy step of each penalty against the "
    "gradients of both KLs; then 5 actions, rewards 0 to 1, penalty 0.5, exact REINFORCE for 500 steps of size 1.",
    equal="exact", seconds=5,
)  # fmt: skip
def kl_placement(quick: bool) -> Outcome:
    made = {name: with_kl("reinforce", *place) for name, place in PLACES.items()}
    pi, ref = _log(np.exp(np.random.default_rng(33).standard_normal((2, 20, 6))))

    def steps(x: Array, ref: Array) -> dict[str, Array]:
        nothing = jnp.zeros(6)
        found = {name: _in_logits(_on_policy(o, ref, nothing, kl_coef=1.0)(x), x) for name, o in made.items()}
        stale = _every_action(ref, ref, nothing)
        return found | {"stale": _in_logits(force(made["k1 in loss"], x[:, None], stale, kl_coef=1.0)[:, 0], x)}

    found = jax.jit(jax.vmap(steps))(jnp.asarray(pi), jnp.asarray(ref))
    reverse, forward = -np.exp(pi) * (pi - ref - _kl(pi, ref)[:, None]), np.exp(ref) - np.exp(pi)
    size = lambda x: np.linalg.norm(np.asarray(x), axis=-1)
    error = lambda name, y: size(found[name] - y) / size(y)
    measures = {
        "k1 in loss: step / reverse KL's": (size(found["k1 in loss"]) / size(reverse)).max(),
        "k1 in loss, off-policy: least step": (size(found["stale"]) / size(reverse)).min(),
        "k1 in reward: error to reverse KL": error("k1 in reward", reverse).max(),
        "k2 in loss: error to reverse KL": error("k2 in loss", reverse).max(),
        "k3 in loss: error to forward KL": error("k3 in loss", forward).max(),
        "k3 in loss: error to reverse KL": error("k3 in loss", reverse),
    }
    problem = bandit([0, 0.25, 0.5, 0.75, 1], probs=[0.4, 0.3, 0.15, 0.1, 0.05])
    start, reward = problem.ref_table(0), problem.reward_table(0)
    optimum, table = np.exp(np.asarray(problem.optimum(0.5)[0])), []
    for name, o in made.items():
        pi = np.exp(_flow(_on_policy(o, start, reward, kl_coef=0.5), start, 500))
        distance = np.abs(pi - optimum).sum(-1) / 2
        measures[f"{name}: distance to optimum"] = distance[-1]
        table.append(points(name, np.arange(501), distance, family="reward" if "reward" in name else "penalty"))
    return Outcome(measures, {"kl_placement": pd.concat(table)})


@figure("kl_placement", kl_placement)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, "gradient steps", "total variation to the optimum",
                 "Where the KL penalty stands decides where training ends",
                 note="REINFORCE, exact, penalty 0.5. 0: ends at π_ref exp(r / β) / Z.")  # fmt: skip


claim(
    "F33a", "A k1 penalty in the loss has no gradient on average: it does not hold the policy at all.", kl_placement,
    [Criterion("k1 in loss: step / reverse KL's", at_most=1e-3),
     Criterion("k1 in loss: distance to optimum", at_least=0.3),
     Criterion("k1 in loss, off-policy: least step", at_least=0.1, control=True)],
    source="liu2025rethinking",
    why="E over pi of grad log pi is zero; only responses of another policy leave something over.",
)  # fmt: skip
claim(
    "F33b", "On-policy, k1 in the reward and k2 in the loss are one gradient, that of the reverse KL, and end at the "
    "regularised optimum.", kl_placement,
    [Criterion("k1 in reward: error to reverse KL", at_most=1e-3),
     Criterion("k2 in loss: error to reverse KL", at_most=1e-3),
     Criterion("k1 in reward: distance to optimum", at_most=0.01),
     Criterion("k2 in loss: distance to optimum", at_most=0.01)],
    source="liu2025rethinking",
    why="Both pull each response by minus its log-ratio, weighted with its own probability.",
)  # fmt: skip
claim(
    "F33c", "k3 in the loss, as in GRPO, is not the gradient of the reverse KL, so training ends elsewhere.",
    kl_placement,
    [Criterion("k3 in loss: error to forward KL", at_most=1e-3),
     Criterion("k3 in loss: error to reverse KL", at_least=0.1),
     Criterion("k3 in loss: distance to optimum", at_least=0.02),
     Criterion("k2 in loss: distance to optimum", at_most=0.01, control=True)],
    source="shah2025comedy",
    why="Its on-policy gradient is that of the forward KL(pi_ref, pi): it pulls by pi_ref - pi. Close to the "
    "reference both agree to first order.",
)  # fmt: skip


# --- what a question weighs ------------------------------------------------------------------------------------------
RATES = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99])
SIZES = (8, 64)


def _step_weights(name: str) -> dict[str, np.ndarray]:
    """Expected step of the logit of success, over the rates of success: large groups and every group of n answers."""

    def whole(p: Array) -> Array:
        log_pi = jnp.log(jnp.stack([p, 1 - p]))
        return _in_logits(_on_policy(name, log_pi, jnp.array([1.0, 0.0]))(log_pi), log_pi)[0]

    def drawn(reward: Array) -> Array:
        even = jnp.full((reward.size, 1), np.log(0.5))
        return force(name, even, Group.of(reward=reward, ref_logp=even))[:, 0]

    found = {"large groups": np.asarray(jax.jit(jax.vmap(whole))(jnp.asarray(RATES)), np.float64)}
    for n in SIZES:
        right = np.arange(n + 1)
        reward = (np.arange(n) < right[:, None]).astype(np.float64)
        pull = np.asarray(jax.jit(jax.vmap(drawn))(jnp.asarray(reward)), np.float64)
        step = np.einsum("ki,kip->kp", pull, reward[..., None] - RATES)
        found[f"groups of {n}"] = (stats.binom.pmf(right[:, None], n, RATES) * step).sum(0)
    return found


@experiment(
    "One question answered right with probability p from 0.01 to 0.99: expected step of the logit of being right, "
    "summed over every group of 8 or 64 answers, and in the limit of large groups.",
    equal="exact", seconds=3,
)  # fmt: skip
def question_weight(quick: bool) -> Outcome:
    found = {"GRPO": _step_weights("grpo"), "Dr. GRPO": _step_weights("dr_grpo")}
    half, asked = RATES == 0.5, (RATES >= 0.02) & (RATES <= 0.98)
    variance = RATES * (1 - RATES)
    theory = {"GRPO": np.sqrt(variance), "Dr. GRPO": variance}
    relative = lambda w: w / w[half]
    measures, table = {}, []
    for size in found["GRPO"]:
        for name, weights in found.items():
            curve, law = relative(weights[size]), relative(theory[name])
            measures[f"{name}, {size}: largest error of the law"] = float(np.abs(curve / law - 1)[asked].max())
            rare = RATES <= 0.5
            if size != "groups of 64":
                table.append(points(name, RATES[rare], curve[rare], family="reward", panel=size))
                table.append(points("√(p(1−p))" if name == "GRPO" else "p(1−p)", RATES[rare], law[rare], panel=size))
        lift = relative(found["GRPO"][size]) / relative(found["Dr. GRPO"][size])
        measures[f"{size}: GRPO / Dr. GRPO at p = 0.02"] = float(lift[RATES == 0.02][0])
    return Outcome(measures, {"question_weight": pd.concat(table)})


@figure("question_weight", question_weight)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, "probability of a right answer", "step, relative to p = 1/2",
                 "How much a question counts: GRPO and Dr. GRPO", note="Expected step of the logit, exact.",
                 log_x=True, log_y=True)  # fmt: skip


claim(
    "F27", "The group z-score makes a question count by sqrt(p (1 - p)).", question_weight,
    [Criterion(f"GRPO, {size}: largest error of the law", at_most=0.1, where=size)
     for size in ("large groups", "groups of 64", "groups of 8")],
    source="shao2024deepseekmath", depends_on="the size of the group",
    why="A group of n has right and wrong answers at all only with probability about n p: below p = 1 / n the weight "
    "falls with p and no longer with its root.",
)  # fmt: skip
claim(
    "F28a", "Without the division by the standard deviation a question counts p (1 - p); the division favours "
    "questions that are too easy or too hard.", question_weight,
    [c for size in ("large groups", "groups of 64", "groups of 8") for c in (
        Criterion(f"Dr. GRPO, {size}: largest error of the law", at_most=0.01, where=size),
        Criterion(f"{size}: GRPO / Dr. GRPO at p = 0.02", at_least=2, where=size))],
    source="liu2025understanding", depends_on="the size of the group",
    why="The mean step is the reward's variance over answers, times (n - 1) / n for groups of n.",
)  # fmt: skip


# --- what a long answer weighs ---------------------------------------------------------------------------------------
@experiment(
    "Answers of 2 to 6 tokens, all lengths equally likely, right with probability 0.3 whatever the length: exact "
    "on-policy training of one number per answer until 90 % are right.",
    equal="convergence", seconds=2,
)  # fmt: skip
def answer_length(quick: bool) -> Outcome:
    length = np.tile(np.arange(2, 7), 2)
    right = np.arange(10) < 5
    mask = np.arange(6) < length[:, None]
    start = _log(np.where(right, 0.3, 0.7))
    spread = lambda x: jnp.where(mask, x[:, None] / length[:, None], 0)
    measures, table = {}, []
    for name, which, rate in (("GRPO", "grpo", 1.0), ("Dr. GRPO", "dr_grpo", 10.0), ("DAPO", "dapo", 1.0)):

        def pull(x: Array, which: str = which) -> Array:
            group = ExactGroup.of(reward=right.astype(np.float32), ref_logp=spread(x), mask=mask,
                                  weight=jnp.exp(x), draws=1e6)  # fmt: skip
            # On-policy all tokens of an answer are pulled alike, so that their sum, log pi of the answer, is.
            return force(which, spread(x), group)[:, 0]

        pi = np.exp(_flow(pull, start, 400, rate))
        success = pi[:, right].sum(-1)
        stop = int(np.argmax(success >= 0.9))
        for kind, those in (("wrong", ~right), ("right", right)):
            mean = (pi[:, those] * length[those]).sum(-1) / pi[:, those].sum(-1)
            measures[f"{name}: tokens added to {kind} answers"] = mean[stop] - mean[0]
            table.append(points(name, success[: stop + 1], mean[: stop + 1], family="reward", panel=f"{kind} answers"))
        measures[f"{name}: share right"] = success[stop]
    return Outcome(measures, {"answer_length": pd.concat(table)})


@figure("answer_length", answer_length)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, "share of right answers", "mean length [tokens]",
                 "Dividing by the length makes wrong answers longer", note="Exact, one number per answer.")  # fmt: skip


claim(
    "F28b", "GRPO's division by the length makes wrong answers longer and right ones shorter; Dr. GRPO does neither.",
    answer_length,
    [Criterion("GRPO: tokens added to wrong answers", at_least=0.2),
     Criterion("GRPO: tokens added to right answers", at_most=-0.2),
     Criterion("Dr. GRPO: tokens added to wrong answers", at_least=-0.05, at_most=0.05),
     Criterion("Dr. GRPO: tokens added to right answers", at_least=-0.05, at_most=0.05),
     Criterion("GRPO: share right", at_least=0.9, control=True),
     Criterion("Dr. GRPO: share right", at_least=0.9, control=True)],
    source="liu2025understanding",
    why="A wrong answer of 6 tokens is pushed a third as much as one of 2, and a right one is pulled a third as much.",
)  # fmt: skip


# --- collapse by design ----------------------------------------------------------------------------------------------
BETAS = np.logspace(-2, 1, 31)
NEAR, FAR = 20, 70


@experiment(
    "The paper's reference, reward 1 for bins 20 and 70 and 0 elsewhere, then 0.2 more for bin 70: the regularised "
    "optimum for 31 β from 0.01 to 10, and RLOO with k1 in the reward, β = 0.2, exact, for 3,000 steps.",
    equal="exact", seconds=3,
)  # fmt: skip
def designed_collapse(quick: bool) -> Outcome:
    ref = np.asarray(paper_reference(), np.float64)
    reward = np.zeros(100)
    reward[[NEAR, FAR]] = 1
    better = reward + 0.2 * (np.arange(100) == FAR)
    odds = lambda x: np.asarray(x[..., FAR] - x[..., NEAR], np.float64)
    optimum = jax.jit(jax.vmap(lambda r, beta: bandit(r, jnp.asarray(ref)).optimum(beta)[0]))
    at = lambda r, betas: np.asarray(optimum(jnp.broadcast_to(r, (len(betas), 100)), jnp.asarray(betas)), np.float64)
    equal, unequal = odds(at(reward, BETAS)), odds(at(better, BETAS))
    crossing = 0.2 / -odds(ref)
    close = crossing * np.linspace(0.8, 1.25, 201)
    found = _root(close, odds(at(better, close)))
    # Mode-anchored augmentation: what is good gets the reward that makes the optimum as likely there as at the anchor.
    augmented = at(np.where(reward > 0.5, 1 + BETAS[:, None] * (ref[NEAR] - ref), reward), BETAS)
    trained = {}
    for name, which, hyper in (
        ("with KL", with_kl("rloo", "k1", "reward"), {"kl_coef": 0.2}),
        ("without KL", "rloo", {}),
    ):
        trained[name] = _flow(_on_policy(which, ref, jnp.asarray(reward), **hyper), ref, 3000)
    mass = lambda x: np.exp(x[..., [NEAR, FAR]]).sum(-1)
    measures = {
        "equal rewards: largest change of the log-odds": np.abs(equal - odds(ref)).max(),
        "0.2 more: change of the log-odds at β = 0.1": np.interp(0.1, BETAS, unequal) - odds(ref),
        "trained with KL: change of the log-odds": np.abs(odds(trained["with KL"][-1]) - odds(ref)),
        "trained without KL: change of the log-odds": odds(trained["without KL"][-1]) - odds(ref),
        "bin 70's share of both": 1 / (1 + np.exp(-equal.max())),
        "crossing β / predicted": found / crossing,
        "augmented: largest log-odds": np.abs(odds(augmented)).max(),
        "augmented: least mass gained on both": (mass(augmented) - mass(at(reward, BETAS))).min(),
    }
    table = [
        points("equal rewards", BETAS, equal), points("bin 70 worth 0.2 more", BETAS, unequal),
        points("augmented", BETAS, odds(augmented)),
    ]  # fmt: skip
    return Outcome(measures, {"designed_collapse": pd.concat(table)})


def _root(x: np.ndarray, y: np.ndarray) -> float:
    """Where a monotone curve crosses 0."""
    order = np.argsort(y)
    return float(np.interp(0, y[order], x[order]))


@figure("designed_collapse", designed_collapse)
def _(table: pd.DataFrame) -> Figure:
    table = table.assign(
        y=np.clip(table["y"], -4, 6), low=np.clip(table["low"], -4, 6), high=np.clip(table["high"], -4, 6)
    )
    return lines(table, "β", "log-odds of bin 70 against 20 [nats]",
                 "With equal rewards the optimum keeps the reference's odds at every β", log_x=True,
                 note="Exact optima; cut off at 6 nats.")  # fmt: skip


claim(
    "F37a", "KL-regularised RL is designed to collapse: among equal rewards its optimum keeps the reference's odds, "
    "whatever β.", designed_collapse,
    [Criterion("equal rewards: largest change of the log-odds", at_most=1e-3),
     Criterion("trained with KL: change of the log-odds", at_most=0.05),
     Criterion("bin 70's share of both", at_most=0.1),
     Criterion("0.2 more: change of the log-odds at β = 0.1", at_least=1, control=True)],
    source="gxchen2025kl",
    why="pi* is pi_ref exp(r / β) / Z: equal rewards multiply both by the same factor, so the far mode stays rare.",
)  # fmt: skip
claim(
    "F37b", "With unequal rewards the modes cross at β = ΔR / log(ratio of the reference).", designed_collapse,
    [Criterion("crossing β / predicted", at_least=0.99, at_most=1.01)],
    source="gxchen2025kl",
    why="Below that β the reward's lead exceeds the reference's, and soon all mass is on one mode either way.",
)  # fmt: skip
claim(
    "F37c", "Rewards augmented by the reference's lead of an anchor make the optimum equally likely on all good modes.",
    designed_collapse,
    [Criterion("augmented: largest log-odds", at_most=1e-3),
     Criterion("augmented: least mass gained on both", at_least=-1e-6),
     Criterion("equal rewards: largest change of the log-odds", at_most=1e-3, control=True)],
    source="gxchen2025kl",
    why="r + β log(pi_ref(anchor) / pi_ref) cancels the reference inside the good set.",
)  # fmt: skip


# --- how far from the start ------------------------------------------------------------------------------------------
RL = ("NPG", "RWR", "softmax PG")


@experiment(
    "The paper's reference, reward 1 for bins 60 to 80: exact training until 99 % succeed. On-policy: natural policy "
    "gradient, reward-weighted regression fitted to the end each round (β = 10), softmax policy gradient. Supervised: "
    "on uniform labels, on bin 70 alone, on the reference's own successes.",
    equal="convergence", seconds=5,
)  # fmt: skip
def razor(quick: bool) -> Outcome:
    start = np.asarray(paper_reference(), np.float64)
    good = (np.arange(100) >= 60) & (np.arange(100) <= 80)
    reward, ref = jnp.asarray(good, jnp.float32), jnp.asarray(start, jnp.float32)

    def fixed(which: str, weight: Any) -> Callable[[Array], Array]:
        group = ExactGroup.of(reward=reward, ref_logp=ref, weight=weight, threshold=0.5)
        return lambda x: force(which, x[:, None], group)[:, 0]

    regression = _on_policy("rwr", ref, reward, beta=10.0)
    # The best fit to weighted samples is their force; as a natural step from x it is log(force) - x, times pi.
    fitted = lambda x: jnp.exp(x) * (jnp.log(regression(x)) - x)
    advantage = _on_policy("reinforce_group", ref, reward)
    paths = {
        "NPG": _flow(advantage, start, 200, 0.1, natural=True),
        "RWR": _flow(fitted, start, 200, natural=True),
        "softmax PG": _flow(advantage, start, 4000, 2.0),
        "SFT, uniform labels": _flow(fixed("sft", good / good.sum()), start, 4000, 2.0),
        "SFT, one label": _flow(fixed("sft", 1.0 * (np.arange(100) == 70)), start, 4000, 0.5),
        "SFT, own successes": _flow(fixed("filtered", np.exp(start)), start, 4000, 2.0),
    }
    p0 = np.exp(start)[good].sum()
    least = lambda p: p * np.log(p / p0) + (1 - p) * np.log((1 - p) / (1 - p0))
    measures, table = {}, []
    for name, path in paths.items():
        success, kl = np.exp(path)[:, good].sum(-1), _kl(path, start)
        end = int(np.argmax(success >= 0.99))
        measures[f"{name}: success"] = success[end]
        measures[f"{name}: KL"] = np.interp(0.99, success[: end + 1], kl[: end + 1])
        measures[f"{name}: KL / least"] = measures[f"{name}: KL"] / least(0.99)
        grid = np.linspace(p0, 0.99, 60)
        table.append(points(name, grid, np.interp(grid, success[: end + 1], kl[: end + 1]),
                            family="supervised" if "SFT" in name else "reward"))  # fmt: skip
    for name in RL:
        for labels in ("uniform labels", "one label"):
            measures[f"KL of {name} / SFT, {labels}"] = measures[f"{name}: KL"] / measures[f"SFT, {labels}: KL"]
    return Outcome(measures, {"razor": pd.concat(table)})


@figure("razor", razor)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, "probability of success", "KL(π || π₀) [nats]",
                 "How far from the start: on-policy and supervised",
                 note="Exact, all from the same start.")  # fmt: skip


claim(
    "F38a", "Among all policies that solve the task, on-policy RL finds the one closest in KL to where it began.",
    razor,
    [c for name in RL[:2] for c in (Criterion(f"{name}: KL / least", at_most=1.1, where=name),
                                    Criterion(f"{name}: success", at_least=0.99, where=name))],
    source="shenfeld2025razor", depends_on="the kind of gradient",
    why="Natural gradient and weighted regression multiply all successes by the same factor, and so does the least KL.",
)  # fmt: skip
claim(
    "F38b", "The plain policy gradient of a softmax finds the closest one too.", razor,
    [Criterion("softmax PG: KL / least", at_most=1.1), Criterion("softmax PG: success", at_least=0.99, control=True)],
    source="shenfeld2025razor",
    why="It moves a logit by pi A, so among equal successes those that are likely already win all.",
)  # fmt: skip
claim(
    "F38c", "At equal success, on-policy RL is closer in KL to where it began than supervised fine-tuning.", razor,
    [Criterion(f"KL of {name} / SFT, {labels}", at_most=0.95, where=f"{name} against {labels}")
     for labels in ("uniform labels", "one label") for name in RL],
    source="shenfeld2025razor", depends_on="the labels and the kind of gradient",
    why="Supervised learning goes where its labels are: uniform ones are almost the reference's own successes here, "
    "a single one is far away.",
)  # fmt: skip
claim(
    "F38d", "It is the on-policy data and not the RL loss that keeps the policy close: imitating the start's own "
    "successes does too.", razor,
    [Criterion("SFT, own successes: KL / least", at_most=1.1),
     Criterion("SFT, own successes: success", at_least=0.99, control=True)],
    source="chen2025retaining",
    why="The start's successes have the proportions of the policy with the least KL.",
)  # fmt: skip


# --- the baseline ----------------------------------------------------------------------------------------------------
ESTIMATORS = {
    "REINFORCE": "reinforce",
    "RLOO": "rloo",
    "group mean": "reinforce_group",
    "exact mean": "reinforce_running",
}
OFFSETS = {"rewards 0 to 1": 0.0, "rewards 5 to 6": 5.0, "rewards of mean 0": -0.26}


@experiment(
    "4 actions with probabilities 0.4, 0.3, 0.2, 0.1 and rewards 0, 0.2, 0.5, 1, plus an offset: mean and variance of "
    "the step over all 256 groups of 4 draws, each weighted with its probability.",
    equal="reward queries", seconds=1,
)  # fmt: skip
def baseline_variance(quick: bool) -> Outcome:
    probs, reward = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.0, 0.2, 0.5, 1.0])
    drawn = np.array(list(itertools.product(range(4), repeat=4)))
    chance, log_pi = probs[drawn].prod(-1), np.log(probs)
    offsets = np.unique(np.round(np.concatenate([np.linspace(-1, 1, 21), list(OFFSETS.values())]), 6))
    gradient = probs * (reward - probs @ reward)

    def pulls(which: str) -> Callable[[Array, Array], Array]:
        def one(actions: Array, offset: Array) -> Array:
            logp = jnp.asarray(log_pi)[actions][:, None]
            group = Group.of(reward=jnp.asarray(reward)[actions] + offset, ref_logp=logp)
            return force(which, logp, group._replace(baseline=offset + probs @ reward))[:, 0]

        return jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))

    measures, table = {}, []
    variance: dict[str, np.ndarray] = {}
    for name, which in ESTIMATORS.items():
        pull = np.asarray(pulls(which)(jnp.asarray(drawn), jnp.asarray(offsets)), np.float64)
        step = np.einsum("ogi,gia->oga", pull, np.eye(4)[drawn] - probs)
        mean = np.einsum("g,oga->oa", chance, step)
        error = np.linalg.norm(mean - gradient, axis=-1) / np.linalg.norm(gradient)
        variance[name] = np.einsum("g,oga->o", chance, (step - mean[:, None]) ** 2)
        measures[f"{name}: error of the mean step"] = error.max()
        shown = offsets <= 1
        table.append(points(name, offsets[shown], variance[name][shown], family="reward"))
    for name, offset in OFFSETS.items():
        at = np.argmin(np.abs(offsets - offset))
        measures[f"{name}: variance of RLOO / REINFORCE"] = variance["RLOO"][at] / variance["REINFORCE"][at]
        measures[f"{name}: variance of RLOO / exact mean"] = variance["RLOO"][at] / variance["exact mean"][at]
    return Outcome(measures, {"baseline_variance": pd.concat(table)})


@figure("baseline_variance", baseline_variance)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, "added to every reward", "variance of the step",
                 "A baseline pays unless rewards are centred already", log_y=True,
                 note="Groups of 4 draws, summed over all of them.")  # fmt: skip


claim(
    "F26a", "The leave-one-out baseline is unbiased.", baseline_variance,
    [Criterion("RLOO: error of the mean step", at_most=1e-3),
     Criterion("group mean: error of the mean step", at_least=0.2, control=True)],
    source="ahmadian2024back",
    why="The other draws' rewards do not depend on this draw; a mean that contains its own shrinks the step by 1/n.",
)  # fmt: skip
claim(
    "F26b", "RLOO's step has less variance than REINFORCE's.", baseline_variance,
    [Criterion(f"{name}: variance of RLOO / REINFORCE", at_most=0.95, where=name) for name in OFFSETS],
    source="ahmadian2024back", depends_on="where the rewards are centred",
    why="REINFORCE's variance grows with the square of the mean reward, RLOO's does not; around 0 the noise of three "
    "other draws costs a little and saves nothing.",
)  # fmt: skip


# --- over-optimisation -----------------------------------------------------------------------------------------------
NOISES = {"light tails": lambda rng, shape: rng.standard_normal(shape) * 0.2 / stats.norm.ppf(0.75),
          "heavy tails": lambda rng, shape: rng.standard_t(2, shape) * 0.2 / stats.t.ppf(0.75, 2)}  # fmt: skip
PEAKS = {"near peak": "R5", "far peak": "R4"}
CASES = [f"{peak}, {noise}" for peak in PEAKS for noise in NOISES]
FOLDS = 5


@experiment(
    "The paper's near and far peak; proxy = reward + noise per action of median size 0.2, Gaussian or Student's t with "
    "2 degrees of freedom, 200 draws of it: exact best of N = 1 to 10^6 by the proxy, and the optimum for it with β "
    "from 30 to 0.003, judged by the true reward.",
    equal="KL", seconds=5,
)  # fmt: skip
def over_optimisation(quick: bool) -> Outcome:
    draws = 200
    sizes, betas = jnp.logspace(0, 6, 31), jnp.logspace(1.5, -2.5, 31)

    @jax.jit
    def paths(gold: Array, proxies: Array, ref: Array) -> tuple[Array, ...]:
        """True reward and KL of both ways to optimise each proxy."""

        def one(proxy: Array) -> tuple[Array, ...]:
            best = jax.vmap(lambda n: best_of_n_weights(jnp.exp(ref), proxy, n))(sizes)
            tilted = jax.vmap(lambda beta: jnp.exp(bandit(proxy, ref).optimum(beta)[0]))(betas)
            kl = lambda pi: jnp.where(pi > 0, pi * (jnp.log(jnp.where(pi > 0, pi, 1)) - ref), 0).sum(-1)
            return best @ gold, kl(best), tilted @ gold, kl(tilted)

        return jax.vmap(one)(proxies)

    measures, table = {}, []
    for peak, which in PEAKS.items():
        problem = paper_bandit(which)
        gold, ref = problem.reward_table(0), problem.ref_table(0)
        rng = np.random.default_rng(35)
        noises = {name: noise(rng, (draws, 100)) for name, noise in NOISES.items()} | {"no noise": np.zeros((2, 100))}
        for name, noise in noises.items():
            found = (np.asarray(x, np.float64) for x in paths(gold, gold + jnp.asarray(noise, gold.dtype), ref))
            best, best_kl, tilted, tilted_kl = found
            # The highest point is chosen on half of the draws and its height measured on the others.
            top = best[::2].mean(0).argmax()
            measures[f"{peak}, {name}: reward lost after the top"] = best[1::2, top] - best[1::2, -1]
            distance = np.sqrt(np.maximum(best_kl, 0)).mean(0)
            table.append(
                points(name, distance, best, family="distribution" if name == "no noise" else "supervised", panel=peak)
            )
            if name == "no noise":
                continue
            folds = lambda x: x.reshape(FOLDS, -1, x.shape[-1]).mean(1)
            for way, y, kl, form in (("Best-of-N", best, best_kl, lambda d: d), ("RL", tilted, tilted_kl, np.log)):
                pairs = zip(
                    folds(np.sqrt(np.maximum(kl, 0))),
                    folds(y - np.exp(np.asarray(ref)) @ np.asarray(gold)),
                    strict=True,
                )
                measures[f"{peak}, {name}: fit, {way}"] = [_explained(d, gain, form) for d, gain in pairs]
    return Outcome(measures, {"over_optimisation": pd.concat(table)})


def _explained(d: np.ndarray, gain: np.ndarray, form: Callable[[np.ndarray], np.ndarray]) -> float:
    """Share of the variance that gain = d (alpha - beta form(d)) explains."""
    d, gain = d[d > 1e-3], gain[d > 1e-3]
    basis = np.stack([d, d * form(d)], -1)
    rest = gain - basis @ np.linalg.lstsq(basis, gain, rcond=None)[0]
    return float(1 - (rest**2).sum() / ((gain - gain.mean()) ** 2).sum())


@figure("over_optimisation", over_optimisation)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, "√KL(best of N by the proxy || reference) [√nats]", "true reward",
                 "Over-optimisation: the best of N by a noisy proxy",
                 note="N = 1 to 10⁶, over draws of the noise")  # fmt: skip


claim(
    "F35a", "Optimised against a proxy, the true reward first rises and then falls.", over_optimisation,
    [*(Criterion(f"{case}: reward lost after the top", at_least=0.05, where=case) for case in CASES),
     *(Criterion(f"{peak}, no noise: reward lost after the top", at_most=1e-3, control=True) for peak in PEAKS)],
    source="gao2023scaling", depends_on="the tails of the noise and the distance of the peak",
    why="With light tails the proxy's best action is still better than an average one; heavy tails put outliers above "
    "the peak, and that costs only what had been gained before.",
)  # fmt: skip
claim(
    "F35b", "For Best-of-N the true reward follows d (α - β d) with d = √KL.", over_optimisation,
    [Criterion(f"{case}: fit, Best-of-N", at_least=0.95, where=case) for case in CASES],
    source="gao2023scaling", depends_on="the tails of the noise and the distance of the peak",
    why="Two numbers describe a curve that rises and bends once.",
)  # fmt: skip
claim(
    "F35c", "For RL the true reward follows d (α - β log d) with d = √KL.", over_optimisation,
    [Criterion(f"{case}: fit, RL", at_least=0.95, where=case) for case in CASES],
    source="gao2023scaling", depends_on="the tails of the noise and the distance of the peak",
    why="Along the exact optima pi_ref exp(proxy / β), which training with a KL penalty ends at.",
)  # fmt: skip


# --- the baseline of old samples -------------------------------------------------------------------------------------
DELTAS = np.array([-0.3, -0.2, -0.1, -0.05, -0.02, 0.02, 0.05, 0.1])


CASES_31 = (
    "5 actions, once",
    "5 actions, 20 rounds",
    "far peak, exact",
    "far peak, 30 samples",
    "near peak, 30 samples",
)


def _asymre(start: Any, weight: Any, reward: Any, rate: float, steps: int = 20_000) -> Array:
    """Log-probabilities [sets, deltas, A] at the end of AsymRE on sets [sets, deltas, A] of weighted samples."""

    def one(x: Array, weight: Array, reward: Array, delta: Array) -> Array:
        group = ExactGroup.of(reward=reward, ref_logp=x, weight=weight, draws=1e6)
        pull = lambda y: force("asymre", y[:, None], group, delta=delta)[:, 0]
        step = lambda _, y: log_softmax(y + rate * _in_logits(pull(y), y))
        return jax.lax.fori_loop(0, steps, step, x)

    return jax.vmap(jax.vmap(one, (0, 0, None, 0)), (0, 0, 0, None))(start, weight, reward, jnp.asarray(DELTAS))


@experiment(
    "AsymRE on fixed samples with the baseline from 0.3 below to 0.1 above their mean reward, to the end: 5 actions "
    "with probabilities 0.4, 0.3, 0.2, 0.08, 0.02 and rewards 0, 0.3, 0.6, 0.8, 1, once and for 20 rounds with new "
    "samples of the result; the paper's far peak, exact, and both peaks on 30 samples (20 data sets).",
    equal="convergence", seconds=3,
)  # fmt: skip
def low_baseline(quick: bool) -> Outcome:
    probs, reward = np.array([0.4, 0.3, 0.2, 0.08, 0.02]), np.array([0, 0.3, 0.6, 0.8, 1.0])
    start = jnp.broadcast_to(jnp.log(jnp.asarray(probs)), (1, DELTAS.size, 5))

    def again(x: Array, _: None) -> tuple[Array, Array]:
        x = _asymre(x, jnp.exp(x), jnp.asarray(reward)[None], 2.0)
        return x, x

    rounds = jax.jit(lambda x: jax.lax.scan(again, x, None, 20)[1])(start)
    first, last = (np.exp(np.asarray(rounds[i, 0], np.float64)) for i in (0, -1))

    far, near = paper_bandit("R4"), paper_bandit("R5")
    rewards = np.stack([np.asarray(x.reward_table(0), np.float64) for x in (far, near)])
    ref = far.ref_table(0)
    chance = np.exp(np.asarray(ref, np.float64))
    counts = np.random.default_rng(31).multinomial(30, chance / chance.sum(), size=5 if quick else 20) / 30
    weight = np.concatenate([chance[None], counts, counts])
    told = np.concatenate([rewards[:1], *(np.broadcast_to(r, counts.shape) for r in rewards)])
    spread = lambda x: jnp.broadcast_to(jnp.asarray(x), (len(weight), DELTAS.size, 100))
    run = jax.jit(lambda weight, told: _asymre(spread(ref), weight, told, 20.0))
    ends = np.exp(np.asarray(run(spread(weight[:, None]), jnp.asarray(told)), np.float64))
    exact, *sampled = np.split((ends * told[:, None]).sum(-1), [1, 1 + len(counts)])
    value = dict(zip(CASES_31, (first @ reward, last @ reward, exact[0], *sampled), strict=True))

    left = lambda pi: np.exp(-(pi * np.log(np.maximum(pi, 1e-300))).sum(-1))
    at = {delta: int(np.argmin(np.abs(DELTAS - delta))) for delta in (-0.05, -0.02, 0.02, 0.05)}
    measures: dict[str, Any] = {}
    for name, pi, r, mean in (("5 actions", first, reward, probs @ reward),
                              ("100 actions", ends[0], rewards[0], chance @ rewards[0])):  # fmt: skip
        measures[f"{name}: least gain below"] = (pi @ r - mean)[DELTAS < 0].min()
        measures[f"{name}: left, 0.02 below"] = left(pi)[at[-0.02]]
        measures[f"{name}: left, 0.02 above"] = left(pi)[at[0.02]]
    for case, v in value.items():
        measures[f"{case}: reward lost from 0.05 below to 0.05 above"] = v[..., at[-0.05]] - v[..., at[0.05]]
    return Outcome(
        measures, {"low_baseline": pd.concat([points(c, DELTAS, v, family="reward") for c, v in value.items()])}
    )


@figure("low_baseline", low_baseline)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, "baseline − mean reward of the samples", "expected reward at the end",
                 "AsymRE on old samples: below and above their mean reward", markers=True,
                 note="over data sets")  # fmt: skip


claim(
    "F31a", "Off-policy REINFORCE is safe with a baseline below the samples' mean reward, and its support collapses as "
    "soon as the baseline is above it.", low_baseline,
    [c for name in ("5 actions", "100 actions") for c in (
         Criterion(f"{name}: least gain below", at_least=0, where=name),
         Criterion(f"{name}: left, 0.02 below", at_least=2, where=name),
         Criterion(f"{name}: left, 0.02 above", at_most=1.05, where=name))],
    source="arnal2025asymmetric", depends_on="how many actions are nearly as good as the best",
    why="Below by d, the end is mu (r - V) cut off from below and divided by d: it narrows as d shrinks, and an action "
    "whose mu (r - V) leads by more than d is alone already before the baseline reaches the mean.",
)  # fmt: skip
claim(
    "F31b", "A baseline above the samples' mean reward costs reward in the end.", low_baseline,
    [Criterion(f"{case}: reward lost from 0.05 below to 0.05 above", at_least=0.05, where=case)
     for case in CASES_31],
    source="arnal2025asymmetric", depends_on="the problem and the samples",
    why="What is left is where mu (r - V) is largest: no bad action here, so one round loses little or even gains. But "
    "the best action is gone, and later rounds no longer find it; over rounds 0.1 below is already too high.",
)  # fmt: skip


# --- more room upwards -----------------------------------------------------------------------------------------------
CLIPS = [0.2, 0.28, 1.0]
ROUNDS = 100
ARMS = {"rare reward": 0.0, "rare reward and decoy": 0.5}
PASSES = {"coarse steps": 8, "fine steps": 32}
CASES_29 = [f"{arm}, {steps}" for arm in ARMS for steps in PASSES]


@experiment(
    "20 actions, reward 1 for one of probability 0.002, and, as a decoy, 0.5 for one of probability 0.3: DAPO with "
    "clip_low 0.2, 64 draws a round, 100 rounds, 16 seeds, SGD: 8 passes a round of rate 1 (coarse: a step overshoots "
    "the clip) or 32 of rate 0.25 (fine).",
    equal="reward queries", seconds=8,
)  # fmt: skip
def clip_higher(quick: bool) -> Outcome:
    probs = np.full(20, (1 - 0.302) / 18)
    probs[[0, 19]] = 0.3, 0.002
    problems = [bandit([worth, *[0.0] * 18, 1.0], probs=probs, name=name) for name, worth in ARMS.items()]
    # The same number of steps and records for all, so that one compiled program serves them.
    run = lambda passes, rate, seeds: sweep(
        problems, Method("dapo", learning_rate=rate, reuse=passes, num_responses=64, optimizer=SGD), seeds=seeds,
        every=8, steps=ROUNDS * 32, probe=distribution_probe, grid={"clip_high": CLIPS},
    )  # fmt: skip
    at = {clip: CLIPS.index(clip) for clip in (0.2, 0.28)}
    single = run(1, 1.0, range(2))["entropy"].values[:, 0]
    measures: dict[str, Any] = {"one pass: largest difference of the entropy": np.ptp(single[:, :2], axis=1).max()}
    table = []
    for steps, passes in PASSES.items():
        data = run(passes, 8 / passes, range(16)).isel(step=slice(0, ROUNDS * passes // 8 + 1, passes // 8))
        for i, arm in enumerate(ARMS):
            rare = np.exp(data["log_prob"].values[i, 0, ..., 19].astype(np.float64))
            entropy = data["entropy"].values[i, 0].astype(np.float64)
            reached = rare >= 0.5
            time = np.where(np.any(reached, -1), reached.argmax(-1), ROUNDS)
            case = f"{arm}, {steps}"
            measures[f"{case}: rounds with 0.28 / with 0.2"] = time[at[0.28]] / time[at[0.2]].mean()
            measures[f"{case}: rounds with 1 / with 0.2"] = time[-1] / time[at[0.2]].mean()
            measures[f"{case}: share that gets there"] = np.any(reached, -1)[at[0.28]]
            early = entropy[..., :50].mean(-1)
            measures[f"{case}: entropy gained by 0.28"] = early[at[0.28]] - early[at[0.2]]
            fine = steps == "fine steps"
            panels = {f"its probability, {steps}": rare} if i == 0 else {}
            panels |= {f"entropy [nats]{', with a decoy' * i}": entropy} if fine else {}
            for panel, y in panels.items():
                for clip, runs in zip(CLIPS, y, strict=True):
                    table.append(points(f"clip {clip:g}", np.arange(ROUNDS + 1), runs, family="reward", panel=panel))
    return Outcome(measures, {"clip_higher": pd.concat(table)})


@figure("clip_higher", clip_higher)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, "rounds", "", "DAPO: more room upwards for a rare rewarded action", share_y=False)  # fmt: skip


claim(
    "F29a", "More room upwards (0.28 instead of 0.2) lets a rare good answer grow faster.", clip_higher,
    [*(Criterion(f"{case}: rounds with 0.28 / with 0.2", at_most=0.9, where=case) for case in CASES_29),
     Criterion("one pass: largest difference of the entropy", at_most=1e-6, control=True)],
    source="yu2025dapo", depends_on="the size of a step and on what else pays",
    why="Its probability rises by 1 + clip in a round that draws it, unless a single step overshoots either clip; next "
    "to a decoy that is drawn all the time, nothing finds it.",
)  # fmt: skip
claim(
    "F29b", "More room upwards keeps the entropy from collapsing.", clip_higher,
    [*(Criterion(f"{case}: entropy gained by 0.28", at_least=0.02, where=case) for case in CASES_29),
     Criterion("one pass: largest difference of the entropy", at_most=1e-6, control=True)],
    source="yu2025dapo", depends_on="the size of a step and on what else pays",
    why="A wider clip speeds up whatever is learnt, and with one number per action all that is learnt narrows.",
)  # fmt: skip


# --- one ratio per response ------------------------------------------------------------------------------------------
SPANS = (4, 16, 64)


@experiment(
    "Responses of 4, 16 or 64 tokens out of 4, reward the share of the first token; the learner's logits have moved by "
    "0.3 (standard deviation) since the samples were drawn: ratios and steps of 500 groups of 8, nothing clipped, "
    "8 seeds.",
    equal="reward queries", seconds=4,
)  # fmt: skip
def sequence_ratio(quick: bool) -> Outcome:
    free = {"clip_low": 0.999, "clip_high": 1e3}

    def puller(which: str) -> Callable[[Array, Array, Array], Array]:
        def one(new: Array, old: Array, reward: Array) -> Array:
            return force(which, new, Group.of(reward=reward, ref_logp=old, old_logp=old), **free)

        return jax.jit(jax.vmap(one))

    pulls = {"token": puller("dapo"), "sequence": puller("gspo")}
    measures: dict[str, Any] = {}
    kept: dict[str, list[np.ndarray]] = {f"{what} {name}": [] for what in ("ratio", "step") for name in pulls}
    for length in SPANS:
        ratios, stale_steps, fresh_steps = ({name: [] for name in pulls} for _ in range(3))
        for seed in range(4 if quick else 8):
            rng = np.random.default_rng(seed)
            new = _log(np.exp(0.3 * rng.standard_normal((length, 4))))
            drawn = rng.integers(4, size=(500, 8, length))
            logp = np.take_along_axis(new[None, None], drawn[..., None], -1)[..., 0]
            reward, score = (drawn == 0).mean(-1), np.eye(4)[drawn] - np.exp(new)
            for name, pull in pulls.items():
                fresh, stale = (
                    np.asarray(pull(jnp.asarray(logp), jnp.asarray(old), jnp.asarray(reward)), np.float64)
                    for old in (logp, np.full(logp.shape, -np.log(4.0)))
                )
                # On-policy the ratio is 1: what a stale batch changes is the ratio.
                pulled = np.abs(fresh) > 1e-6
                ratios[name].append((stale[pulled] / fresh[pulled]).var())
                for steps, x in ((stale_steps, stale), (fresh_steps, fresh)):
                    steps[name].append(np.einsum("gnt,gntv->gtv", x, score).var(0).sum())
        over = lambda x: np.asarray(x["sequence"]) / np.maximum(x["token"], 1e-12)
        measures[f"{length} tokens: variance of the sequence ratio"] = ratios["sequence"]
        measures[f"{length} tokens: variance of the ratio, sequence / token"] = over(ratios)
        measures[f"{length} tokens: variance of the step, sequence / token"] = over(stale_steps)
        measures[f"{length} tokens: variance of the fresh step, sequence / token"] = over(fresh_steps)
        for name in pulls:
            kept[f"ratio {name}"].append(np.sqrt(ratios[name]))
            kept[f"step {name}"].append(np.asarray(stale_steps[name]) / np.asarray(fresh_steps[name]))
    panels = {"ratio": "standard deviation of the ratio", "step": "variance of the step, stale / fresh"}
    table = [points(f"{name} ratio", SPANS, np.stack(kept[f"{what} {name}"], -1), family="reward", panel=panel)
             for what, panel in panels.items() for name in pulls]  # fmt: skip
    return Outcome(measures, {"sequence_ratio": pd.concat(table)})


@figure("sequence_ratio", sequence_ratio)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, "tokens", "", "One ratio per token or per response, on stale samples",
                 markers=True, share_y=False)  # fmt: skip


claim(
    "F30a", "On stale samples, one ratio per response varies less than one per token.", sequence_ratio,
    [*(Criterion(f"{length} tokens: variance of the ratio, sequence / token", at_most=0.5, where=f"{length} tokens")
       for length in SPANS),
     *(Criterion(f"{length} tokens: variance of the sequence ratio", at_least=1e-4, control=True) for length in SPANS)],
    source="zheng2025group", depends_on="the length",
    why="It is a geometric mean: its variance falls with the number of tokens.",
)  # fmt: skip
claim(
    "F30b", "On stale samples, the step of the logits varies less with one ratio per response.", sequence_ratio,
    [*(Criterion(f"{length} tokens: variance of the step, sequence / token", at_most=0.95, where=f"{length} tokens")
       for length in SPANS),
     *(Criterion(f"{length} tokens: variance of the fresh step, sequence / token", at_least=0.99, at_most=1.01,
                 control=True) for length in SPANS)],
    source="zheng2025group", depends_on="the length",
    why="Which responses are drawn varies far more than their ratios.",
)  # fmt: skip
