"""The theory of the paper: Kullback-Leibler identities, what one step does to each bin, case studies in numbers.

Everything is exact and in float64. What moves is moved by the package's own objectives, so that a broken one shows;
the formulas next to them are those of the statements.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bandit_pft import metrics, style
from bandit_pft.claims import Criterion, Outcome, claim, experiment, figure
from bandit_pft.experiments.drawing import lines, points
from bandit_pft.groups import ExactGroup, Group, best_of_n_weights
from bandit_pft.objectives import Objective, force, get_objective, with_kl
from bandit_pft.plots import SlideFigure
from bandit_pft.problems import bandit, paper_bandit

FORWARD, REVERSE = "forward_kl", "reverse_kl"
NAMES = {FORWARD: "forward KL", REVERSE: "reverse KL"}
# As weighted likelihood is a forward KL and reinforcement learning a reverse one, they have those colours.
FAMILY = {FORWARD: "supervised", REVERSE: "reward"}
EXACT = 1e-8
SEEDS, DRAWS = 10, 1000


# --- steps of the package's objectives -------------------------------------------------------------------------------
@functools.cache
def _stepper(made: Objective) -> Callable[..., jax.Array]:
    def one(logits: Any, known: Any, hyper: Any) -> Any:
        logp, back = jax.vjp(jax.nn.log_softmax, logits)
        return back(force(made, logp[:, None], ExactGroup.of(**known), **hyper)[:, 0])[0]

    return jax.jit(jax.vmap(one))


def step(
    objective: str | Objective, logits: np.ndarray, hyper: dict[str, Any] | None = None, **known: Any
) -> np.ndarray:
    """-d loss / d logits [B, A], exact expectations: what a step of rate 1 adds. All arguments have the batch axis."""
    with jax.enable_x64(True):
        return np.asarray(_stepper(get_objective(objective))(logits, known, hyper or {}))


def _aim(log_q: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rewards whose optimum is q, for the KLs between policy and optimum."""
    return {"reward": log_q, "ref_logp": np.full_like(log_q, -np.log(log_q.shape[-1]))}, {"beta": np.ones(len(log_q))}


def toward(objective: str, log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """`step` of a KL between p and any target q."""
    known, hyper = _aim(log_q)
    return step(objective, log_p, hyper, **known)


def descent(objective: str, log_p: np.ndarray, log_q: np.ndarray, steps: int, rate: float = 1.0) -> np.ndarray:
    """Probabilities [steps + 1, B, A] on the way from p to q by gradient descent in the logits."""
    move, aim = _stepper(get_objective(objective)), _aim(log_q)
    with jax.enable_x64(True):
        go = lambda logits, _: (logits + rate * move(logits, *aim), jax.nn.softmax(logits))
        return np.asarray(jax.jit(lambda start: jax.lax.scan(go, start, None, length=steps + 1)[1])(log_p))


@functools.cache
def _puller(made: Objective) -> Callable[..., jax.Array]:
    one = lambda logp, known, hyper: force(made, logp[:, None], ExactGroup.of(ref_logp=logp, **known), **hyper)[:, 0]
    return jax.jit(jax.vmap(one))


def fitted(objective: str, log_p: np.ndarray, hyper: dict[str, Any] | None = None, **known: Any) -> np.ndarray:
    """Policies [B, A] that fit a weighted likelihood of responses of p best: its own weights, normalised."""
    with jax.enable_x64(True):
        pull = np.asarray(_puller(get_objective(objective))(log_p, {"weight": np.exp(log_p), **known}, hyper or {}))
    return pull / pull.sum(-1, keepdims=True)


def spread_of(log_p: np.ndarray, change: np.ndarray) -> np.ndarray:
    """First-order change of log p where the logits change by this."""
    return change - (np.exp(log_p) * change).sum(-1, keepdims=True)


def flat(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Log-probabilities from the flat Dirichlet distribution over the last axis."""
    return np.log(rng.dirichlet(np.ones(shape[-1]), shape[:-1]))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over rows."""
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).mean())


def worst(a: Any, b: Any = 0.0) -> float:
    """Largest difference."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


def normalised(log_w: np.ndarray) -> np.ndarray:
    """Log-probabilities in proportion to these weights."""
    return log_w - np.logaddexp.reduce(log_w, axis=-1, keepdims=True)


# --- Lemma 6.1: reinforcement learning descends the reverse KL -------------------------------------------------------
@experiment(
    "1,000 random problems of 10 actions: policy and reference from the flat Dirichlet distribution, normal "
    "rewards, beta from 0.05 to 5; J = E r - beta KL(pi, ref), values and gradients in the logits, largest "
    "difference.",
    equal="exact", seconds=3,
)  # fmt: skip
def rl_is_reverse_kl(quick: bool) -> Outcome:
    """Values and gradients of the regularised reward and of the reverse KL."""
    rng = np.random.default_rng(0)
    logp, ref, reward = flat(rng, DRAWS, 10), flat(rng, DRAWS, 10), rng.standard_normal((DRAWS, 10))
    beta = np.exp(rng.uniform(np.log(0.05), np.log(5), DRAWS))
    shuffled = rng.permuted(reward, axis=1)

    def regularised(logits: Any, ref: Any, reward: Any, beta: Any) -> Any:
        logp = jax.nn.log_softmax(logits)
        return metrics.expected_reward(logp, reward) - beta * metrics.kl(logp, ref)

    def mismatch(logp: Any, ref: Any, reward: Any, beta: Any, told: Any) -> Any:
        best = bandit(told, ref).optimum(beta)[0]
        log_z = jax.nn.logsumexp(ref + told / beta)
        return regularised(logp, ref, reward, beta) - beta * (log_z - metrics.kl(logp, best))

    with jax.enable_x64(True):
        gaps = jax.jit(jax.vmap(mismatch))
        same, other = (np.abs(gaps(logp, ref, reward, beta, told)) for told in (reward, shuffled))
        gradient = np.asarray(jax.jit(jax.vmap(jax.grad(regularised)))(logp, ref, reward, beta))
    known = {"reward": reward, "ref_logp": ref, "weight": np.exp(logp)}
    reverse, forward = (beta[:, None] * step(which, logp, {"beta": beta}, **known) for which in (REVERSE, FORWARD))
    sampled = step(with_kl("reinforce", "k2"), logp, {"kl_coef": beta}, **known)
    return Outcome({
        "identity: error": worst(same),
        "reverse KL: error of the gradient": worst(gradient, reverse),
        "REINFORCE with KL penalty: error of the gradient": worst(sampled, reverse),
        "identity with shuffled rewards: mean error": other.mean(),
        "forward KL: cosine with the gradient": cosine(gradient, forward),
    }, {})  # fmt: skip


claim(
    "C23",
    "On-policy reinforcement learning with a KL penalty descends the reverse KL to the optimal policy, so it seeks "
    "modes (Lemma 6.1).",
    rl_is_reverse_kl,
    [
        Criterion("identity: error", at_most=EXACT),
        Criterion("reverse KL: error of the gradient", at_most=EXACT),
        Criterion("REINFORCE with KL penalty: error of the gradient", at_most=EXACT),
        Criterion("identity with shuffled rewards: mean error", at_least=1e-2, control=True),
        Criterion("forward KL: cosine with the gradient", at_most=0.99, control=True),
    ],
    why="J(pi) = beta log Z - beta KL(pi, pi*) with pi* in proportion to ref exp(r / beta): only the KL depends on pi.",
)


# --- Lemma 6.2: what a negative term adds ----------------------------------------------------------------------------
@functools.cache
def _pair_puller(made: Objective) -> Callable[..., jax.Array]:
    def one(pair: Any, hyper: Any) -> Any:
        group = Group.of(reward=jnp.asarray([1.0, 0.0]), ref_logp=pair)
        return force(made, pair[:, None], group, **hyper)[:, 0]

    return jax.jit(jax.vmap(one))


def pair_forces(objective: str, log_pair: np.ndarray, **hyper: np.ndarray) -> np.ndarray:
    """Forces [B, 2] of an objective on winner and loser, for policies at their reference."""
    with jax.enable_x64(True):
        return np.asarray(_pair_puller(get_objective(objective))(log_pair, hyper))


def effect(log_p: np.ndarray, forces: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
    """First-order change of log p [B, A] by forces on its first actions; logits `features @ theta`, or tabular.

    d log p = C C' f with C = features - mean of the features under p.
    """
    full = np.zeros_like(log_p)
    full[:, : forces.shape[1]] = forces
    if features is None:
        return spread_of(log_p, full - np.exp(log_p) * full.sum(-1, keepdims=True))
    centred = features - np.einsum("ba,bad->bd", np.exp(log_p), features)[:, None]
    return np.einsum("bad,bcd,bc->ba", centred, centred, full)


def product(log_p: np.ndarray) -> np.ndarray:
    """Inner product of the gradients of log p of the first two actions in the logits: |p|^2 - p_w - p_l."""
    p = np.exp(log_p)
    return (p**2).sum(-1) - p[:, 0] - p[:, 1]


@experiment(
    "10 x 1,000 policies over 10 actions from the flat Dirichlet distribution, winner and loser two fixed actions, "
    "one first-order step in the logits: forces of DPO, IPO, CPO and random ones with and without their negative "
    "part.",
    equal="gradient steps", seconds=2,
)  # fmt: skip
def negative_term(quick: bool) -> Outcome:
    """What the negative part of a pair's forces adds to winner, loser and margin."""
    rng = np.random.default_rng(1)
    log_p = flat(rng, SEEDS * DRAWS, 10)
    pair, drawn = log_p[:, :2], rng.exponential(size=(2, SEEDS * DRAWS))
    every = {
        "dpo": pair_forces("dpo", pair), "ipo": pair_forces("ipo", pair),
        "cpo": pair_forces("cpo", pair, sft_coef=drawn[0]), "random": drawn.T * [1, -1],
    }  # fmt: skip
    forces = np.stack(list(every.values()))
    # The step is linear in the forces: what the negative term adds is the effect of the negative term.
    push = np.stack([effect(log_p, np.minimum(one, 0)) for one in forces])
    winner, loser, apart = push[..., 0], push[..., 1], np.broadcast_to(product(log_p) > 0, push.shape[:2])
    seeds = lambda x: x.reshape(len(every), SEEDS, DRAWS).mean((0, 2))
    share = lambda of, among: (of & among).sum() / among.sum()
    sizes = {k: np.mean(product(flat(rng, 50_000, k)) <= 0) for k in (3, 5, 10, 100)}
    return Outcome({
        "pairs without a pull and a push": seeds((forces[..., 0] <= 0) | (forces[..., 1] >= 0)),
        "margin grows less": seeds(winner < loser),
        "loser falls less": seeds(loser > 0),
        "winner rises less, product <= 0": share(winner < 0, ~apart),
        "winner rises less, product > 0": share(winner < 0, apart),
        **{f"product <= 0, {k} actions": value for k, value in sizes.items()},
    }, {})  # fmt: skip


claim(
    "C23a",
    "Next to weighted likelihood, a negative term lets the margin grow at least as fast; where the gradients' inner "
    "product is at most 0, the winner also rises more and the loser falls more (Lemma 6.2).",
    negative_term,
    [
        Criterion("pairs without a pull and a push", at_most=0),
        Criterion("margin grows less", at_most=0),
        Criterion("loser falls less", at_most=0),
        Criterion("winner rises less, product <= 0", at_most=0),
        Criterion("winner rises less, product > 0", at_least=1, control=True),
        *(Criterion(f"product <= 0, {k} actions", at_least=0.05, at_most=0.95, control=True) for k in (3, 5, 10, 100)),
    ],
    why="In a table the inner product is |pi|^2 - pi_w - pi_l; where a third action dominates it is positive, and "
    "the winner then always rises less (control). The margin and the loser need no condition.",
)  # fmt: skip


# --- weighted likelihood is a forward KL -----------------------------------------------------------------------------
def best_of(log_p: np.ndarray, reward: np.ndarray, n: int) -> np.ndarray:
    """Distribution of the best of n, distinct rewards: differences of F^n in the order of the rewards."""
    order = np.argsort(reward, -1)
    upto = np.cumsum(np.take_along_axis(np.exp(log_p), order, -1), -1)
    upto /= upto[:, -1:]
    won = np.diff(upto**n, prepend=0, axis=-1)
    return np.take_along_axis(won, np.argsort(order, -1), -1)


@experiment(
    "200 random problems of 10 actions (flat Dirichlet references and policies, normal rewards): the policy that "
    "RWR at tau = 0.5 to 2 and Best-of-10 fit best, and their gradients in the logits against those of KL(target, "
    "pi).",
    equal="exact", seconds=6,
)  # fmt: skip
def weighted_likelihood(quick: bool) -> Outcome:
    """Targets and gradients of RWR and Best-of-N."""
    rng = np.random.default_rng(2)
    logp, ref, reward = flat(rng, 200, 10), flat(rng, 200, 10), rng.standard_normal((200, 10))
    tau = rng.uniform(0.5, 2, 200)
    known = {"reward": reward, "ref_logp": ref, "weight": np.exp(ref), "draws": np.full(200, 10.0)}
    rwr = step("rwr", logp, {"beta": tau}, **known)
    total = np.exp(ref + reward / tau[:, None]).sum(-1, keepdims=True)
    tilted, won = normalised(ref + reward / tau[:, None]), best_of(ref, reward, 10)
    best = step("best_of_n", logp, **known)
    with jax.enable_x64(True):
        optima = np.exp(jax.jit(jax.vmap(lambda r, f, t: bandit(r, f).optimum(t)[0]))(reward, ref, tau))
        packaged = np.asarray(jax.jit(jax.vmap(lambda p, r: best_of_n_weights(p, r, 10)))(np.exp(ref), reward))
    return Outcome({
        "RWR: error of the target": worst(fitted("rwr", ref, {"beta": tau}, reward=reward), optima),
        "Best-of-N: error of the target": max(
            worst(fitted("best_of_n", ref, reward=reward, draws=np.full(200, 10.0)), won), worst(packaged, won)),
        "RWR: error of the gradient": worst(rwr, total * toward(FORWARD, logp, tilted)),
        "Best-of-N: error of the gradient": worst(best, toward(FORWARD, logp, np.log(won))),
        "RWR: cosine with the reverse KL's": cosine(rwr, toward(REVERSE, logp, tilted)),
        "Best-of-N: cosine with the reverse KL's": cosine(best, toward(REVERSE, logp, np.log(won))),
    }, {})  # fmt: skip


claim(
    "C23b",
    "Offline weighted likelihood minimises a forward KL, KL(target, pi), to the re-weighted reference: ref exp(r / "
    "tau) for RWR, the distribution of the best of N for Best-of-N; so it covers modes.",
    weighted_likelihood,
    [
        *(Criterion(f"{name}: error of the {what}", at_most=EXACT) for name in ("RWR", "Best-of-N")
          for what in ("target", "gradient")),
        *(Criterion(f"{name}: cosine with the reverse KL's", at_most=0.99, control=True)
          for name in ("RWR", "Best-of-N")),
    ],
    why="The weights are data, so the loss is E_ref[F] times the cross entropy of pi under the target ref F / "
    "E_ref[F].",
)  # fmt: skip


# --- one step, bin by bin --------------------------------------------------------------------------------------------
def forward_step(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Change of log p by a forward-KL step of rate 1, up to a constant: q - p."""
    return np.exp(log_q) - np.exp(log_p)


def reverse_step(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Change of log p by a reverse-KL step of rate 1, up to a constant: p (log q - log p + KL(p, q))."""
    p = np.exp(log_p)
    return p * (log_q - log_p + (p * (log_p - log_q)).sum(-1, keepdims=True))


FORMULAS = {FORWARD: forward_step, REVERSE: reverse_step}


@experiment(
    "10,000 pairs of policy and target over 5 actions from the flat Dirichlet distribution, one step of gradient "
    "descent in the logits at rates 0.1, 1 and 10: change of log p of each action less its mean, against the "
    "formula.",
    equal="exact", seconds=2,
)  # fmt: skip
def mass_formulas(quick: bool) -> Outcome:
    """What a finite step does to each bin."""
    rng = np.random.default_rng(3)
    log_p, log_q = flat(rng, 10_000, 5), flat(rng, 10_000, 5)
    centre = lambda x: x - x.mean(-1, keepdims=True)

    def error(which: str, formula: str) -> float:
        moved = toward(which, log_p, log_q)
        told = centre(FORMULAS[formula](log_p, log_q))
        return max(worst(centre(normalised(log_p + rate * moved) - log_p), rate * told) for rate in (0.1, 1, 10))

    table, chance = [], np.geomspace(1e-4, 0.99, 100)
    for panel, q in (("target: q = 0.5", 0.5), ("target: q = 0.01", 0.01)):
        pair, aim = np.log(np.stack([chance, 1 - chance], -1)), np.log([[q, 1 - q]]).repeat(len(chance), 0)
        for which in NAMES:
            speed = spread_of(pair, toward(which, pair, aim))[:, 0]
            table.append(points(NAMES[which], chance, speed, family=FAMILY[which], panel=panel))
    return Outcome({
        **{f"{NAMES[which]}: error of the formula": error(which, which) for which in NAMES},
        "forward KL: error of the other formula": error(FORWARD, REVERSE),
    }, {"mass_formulas": pd.concat(table)})  # fmt: skip


claim(
    "C23c",
    "A gradient step of rate eta changes log p(x) by eta (q - p) + Z for the forward KL and by "
    "eta p (log q - log p + KL(p, q)) + Z' for the reverse KL, Z and Z' the same for all x.",
    mass_formulas,
    [
        *(Criterion(f"{name}: error of the formula", at_most=EXACT) for name in NAMES.values()),
        Criterion("forward KL: error of the other formula", at_least=1e-2, control=True),
    ],
    why="In softmax logits the formulas hold at any step size; the factor p makes the reverse KL slow on rare bins.",
)


@figure("mass_formulas", mass_formulas)
def draw_mass_formulas(table: pd.DataFrame) -> Figure:
    """Speed of log p against p."""
    return lines(
        table, "probability p of the bin", "change of log p per step of rate 1",
        "The reverse KL moves rare bins slowly",
        note="Two bins, p and 1 - p; first-order change of log p. Zero where p = q.", log_x=True,
    )  # fmt: skip


# --- DPO on one pair -------------------------------------------------------------------------------------------------
@experiment(
    "10 x 1,000 policies over 10 actions (flat Dirichlet, at their reference), one pair, a first-order step of DPO "
    "or IPO: tabular logits, and logits linear in 3 normal features per action.",
    equal="gradient steps", seconds=1,
)  # fmt: skip
def single_pair(quick: bool) -> Outcome:
    """How often the chosen response falls."""
    rng = np.random.default_rng(4)
    log_p, features = flat(rng, SEEDS * DRAWS, 10), rng.standard_normal((SEEDS * DRAWS, 10, 3))
    mean = np.einsum("ba,bad->bd", np.exp(log_p), features)
    chosen, rejected = features[:, 0], features[:, 1]
    told = ((chosen - mean) * (chosen - rejected)).sum(-1) < 0
    seeds = lambda x: x.reshape(SEEDS, DRAWS).mean(1)
    measures = {}
    for name in ("DPO", "IPO"):
        forces = pair_forces(name.lower(), log_p[:, :2])
        table, shared = effect(log_p, forces), effect(log_p, forces, features)
        measures |= {
            f"{name}, tabular logits: chosen falls": seeds(table[:, 0] < 0),
            f"{name}, shared features: chosen falls": seeds(shared[:, 0] < 0),
            f"{name}, shared features: other than the condition says": seeds((shared[:, 0] < 0) != told),
            f"{name}: lead falls": seeds((table[:, 0] <= table[:, 1]) | (shared[:, 0] <= shared[:, 1])),
        }
    return Outcome(measures, {})


claim(
    "C23d",
    "DPO and IPO on one pair can lower the chosen response's probability while its lead over the rejected one grows.",
    single_pair,
    [
        *(Criterion(f"{name}, {logits}: chosen falls", at_least=0.01, where=logits)
          for logits in ("tabular logits", "shared features") for name in ("DPO", "IPO")),
        *(Criterion(f"{name}{what}", at_most=0, control=True) for name in ("DPO", "IPO")
          for what in (", shared features: other than the condition says", ": lead falls")),
    ],
    source="pal2024smaug",
    depends_on="whether responses share parameters",
    why="In a table d log p(w) is in proportion to 1 - p(w) + p(l) > 0; with logits phi theta it falls exactly if "
    "(phi_w - mean phi) . (phi_w - phi_l) < 0: where the step lifts the mean logit more than the chosen one's.",
)  # fmt: skip


# --- Theorem 6.5: which KL moves mass faster -------------------------------------------------------------------------
MARGIN = 0.01


def log_mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(a - b) / log(a / b), between the geometric and the arithmetic mean."""
    return (a - b) / np.log(a / b)


def gap(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """How much more a step of the reverse KL than one of the forward KL adds to log p(x1) - log p(x2)."""
    ahead = toward(REVERSE, log_p, log_q) - toward(FORWARD, log_p, log_q)
    return ahead[:, 0] - ahead[:, 1]


def _tied(x: np.ndarray) -> np.ndarray:
    """The same with equal masses of the first two."""
    return np.concatenate([x[:, :2].mean(-1, keepdims=True).repeat(2, 1), x[:, 2:]], 1)


def _falling(x: np.ndarray) -> np.ndarray:
    """The same with the larger of the first two in front."""
    return np.concatenate([-np.sort(-x[:, :2]), x[:, 2:]], 1)


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(-1)


def _stated_1(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p[:, 0] == p[:, 1]) & (p[:, 0] >= MARGIN) & (p[:, 0] <= 1 - MARGIN) & (q[:, 0] >= q[:, 1] + MARGIN)


def _apart(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (q[:, 0] == q[:, 1]) & (p[:, 0] >= p[:, 1] + MARGIN) & (p[:, 0] <= 1 - MARGIN)


def _stated_2(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return _apart(p, q) & (q[:, 0] > (1 + MARGIN) * p[:, 0])


def _stated_3(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return _apart(p, q) & (q[:, 0] < (1 - MARGIN) * p[:, 1])


def _tight_3(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return _apart(p, q) & (q[:, 0] < p[:, 1] * np.exp(-_kl(p, q)))


def _draw(rng: np.random.Generator, keep: Callable[..., np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (p, q) over 5 bins, flat Dirichlet with the first two tied or sorted, that meet a condition."""
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < count:
        p, q = rng.dirichlet(np.ones(5), (2, 20_000))
        p, q = (_tied(p), _falling(q)) if keep is _stated_1 else (_falling(p), _tied(q))
        both = np.stack([p, q], 1)
        kept.append(both[keep(p, q)])
    return tuple(np.concatenate(kept)[:count].transpose(1, 0, 2))


def _counter_example(
    p: np.ndarray, q: np.ndarray, sign: int, keep: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Of these pairs in two decimals, the one that meets the condition and contradicts the statement most."""
    short = lambda x: np.concatenate([np.round(x[:, :-1], 2), 1 - np.round(x[:, :-1], 2).sum(-1, keepdims=True)], 1)
    p, q = short(p), short(q)
    fine = keep(p, q) & (np.minimum(p, q).min(-1) > MARGIN / 2)
    p, q = p[fine], q[fine]
    found = np.argmin(sign * gap(np.log(p), np.log(q)))
    return p[found], q[found]


@experiment(
    "For each part 10 x 1,000 pairs (p, q) over 5 bins from the flat Dirichlet distribution that meet its condition "
    "with all constants 0.01; one step in the logits of either KL, change of log p(x1) - log p(x2); "
    "counter-examples by search.",
    equal="gradient steps", seconds=3,
)  # fmt: skip
def theorem(quick: bool) -> Outcome:
    """Both KLs on random pairs."""
    rng = np.random.default_rng(5)
    sign = {"(1)": (1, _stated_1), "(2)": (1, _stated_2), "(3)": (-1, _stated_3), "(3) tight": (-1, _tight_3)}
    seeds = lambda x: x.reshape(SEEDS, DRAWS)
    measures, table = {}, []
    for part, (way, keep) in sign.items():
        p, q = _draw(rng, keep, SEEDS * DRAWS)
        ahead = way * gap(np.log(p), np.log(q))
        measures[f"{part}: share of pairs"] = seeds(ahead > 0).mean(1)
        if part == "(1)":
            sharp = p[:, 0] > log_mean(q[:, 0], q[:, 1])
            measures["(1): pairs that break the equivalence"] = seeds((ahead > 0) != sharp).sum(1)
            measures["(1), q tied as well: difference"] = worst(gap(np.log(p), np.log(_tied(q))))
        if part in ("(1)", "(3)"):
            p, q = _counter_example(p, q, way, keep)
            log_p, log_q, bins = np.log(p)[None], np.log(q)[None], np.arange(1, 6)
            measures[f"{part}: the counter-example's difference"] = way * gap(log_p, log_q)[0]
            for name, y, family in (("p", p, "reference"), ("target q", q, "distribution")):
                table.append(points(name, bins, y, family=family, panel=f"{part} counter-example"))
            for which in NAMES:
                moved = spread_of(log_p, toward(which, log_p, log_q))[0]
                table.append(points(NAMES[which], bins, moved, family=FAMILY[which], panel=f"{part} change of log p"))
    return Outcome(measures, {"theorem_counter_examples": pd.concat(table)})


claim(
    "C24",
    "After one step the reverse KL has moved mass between two bins further than the forward KL: (1) between equal "
    "ones to the one with more target, (2) to the likelier one where both must rise, (3) away from the likelier "
    "where both must fall (Theorem 6.5).",
    theorem,
    [
        Criterion("(1): share of pairs", at_least=1, where="(1) as stated"),
        Criterion("(1): pairs that break the equivalence", at_most=0, where="(1) if and only if p > log-mean(q1, q2)"),
        Criterion("(2): share of pairs", at_least=1, where="(2) as stated"),
        Criterion("(3): share of pairs", at_least=1, where="(3) as stated"),
        Criterion("(3) tight: share of pairs", at_least=1, where="(3) with q < p2 exp(-KL(p, q))"),
        Criterion("(1), q tied as well: difference", at_most=1e-12, control=True),
    ],
    depends_on="how much mass the bins hold already",
    why="The reverse KL leads by p log(q1 / q2) - (q1 - q2) in (1): with its factor p it is the slower one on rare "
    "bins. In (3) a large KL(p, q) lifts likely bins, even those that must fall.",
)  # fmt: skip


@figure("theorem_counter_examples", theorem)
def draw_counter_examples(table: pd.DataFrame) -> Figure:
    """Pairs that meet the conditions as stated, where the reverse KL is the slower one."""
    return bars(
        table, "bin", "Where the reverse KL is the slower one",
        "Found by search. Right: what a step of rate 1 does; compare the difference between bins 1 and 2.",
    )  # fmt: skip


# --- case studies ----------------------------------------------------------------------------------------------------
BINS = np.arange(40)


def bump(centre: float, width: float) -> np.ndarray:
    """A discretised normal distribution on 40 bins, on a floor of 1e-4 of its height."""
    height = np.exp(-((BINS - centre) ** 2) / (2 * width**2)) + 1e-4
    return height / height.sum()


def distance(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Total variation."""
    return np.abs(p - q).sum(-1) / 2


def best_bump(objective: str, q: np.ndarray) -> tuple[float, float]:
    """Centre and width of the single bump of least loss, to 0.25 and 0.5."""
    centre, width = (x.ravel() for x in np.meshgrid(np.arange(0, 39.1, 0.25), np.arange(0.5, 20.1, 0.5)))
    log_p = np.log([bump(c, w) for c, w in zip(centre, width, strict=True)])
    made, (known, hyper) = get_objective(objective), _aim(np.log(q)[None])
    known, hyper = ({name: value[0] for name, value in given.items()} for given in (known, hyper))
    with jax.enable_x64(True):
        loss = jax.jit(jax.vmap(lambda x: made(x[:, None], ExactGroup.of(**known), **hyper)))(log_p)
    found = int(np.argmin(loss))
    return float(centre[found]), float(width[found])


MARKS = (10, 30, 100)
LONG = 3000


@experiment(
    "40 bins, discretised normal distributions with a floor of 1e-4, gradient descent at rate 1 on 40 logits: one "
    "mode to two (3,000 steps), two modes to one and a broad start to two modes (100 steps); and the best single "
    "bump for two modes.",
    equal="gradient steps", seconds=5,
)  # fmt: skip
def kl_case_studies(quick: bool) -> Outcome:
    """Forward against reverse KL."""
    two = (bump(10, 2) + bump(30, 2)) / 2
    start = np.stack([bump(10, 4), (bump(10, 3) + bump(30, 3)) / 2, bump(20, 8)])
    target = np.stack([two, bump(30, 2), two])
    path = {which: descent(which, np.log(start), np.log(target), LONG) for which in NAMES}
    uneven = 0.4 * bump(10, 2) + 0.6 * bump(30, 2)
    best = {which: best_bump(which, uneven) for which in NAMES}
    second = {which: x[..., 20:].sum(-1) for which, x in path.items()}
    marks = list(MARKS)
    ahead = second[REVERSE][marks, 1] - second[FORWARD][marks, 1]
    off = {which: distance(x[marks, 2], target[2]) for which, x in path.items()}
    lesser = np.minimum(second[REVERSE], 1 - second[REVERSE])
    measures = {
        **{f"one mode to two: second mode's mass, {NAMES[which]}": x[LONG, 0] for which, x in second.items()},
        "two modes to one: reverse KL's least lead in mass": ahead.min(),
        "broad start: reverse KL's least lead in distance": (off[FORWARD] - off[REVERSE]).min(),
        **{f"best bump, {NAMES[which]}: {what}": value for which, x in best.items()
           for what, value in zip(("centre", "width"), x, strict=True)},
        "one mode to two: lesser mode's mass, reverse KL": lesser[100, 0],
        "broad start: lesser mode's mass, reverse KL": lesser[100, 2],
    }  # fmt: skip
    shown = {
        f"one mode to two: step {LONG}": (start[0], two, {which: x[LONG, 0] for which, x in path.items()}),
        "two modes to one: step 10": (start[1], target[1], {which: x[10, 1] for which, x in path.items()}),
        "broad start to two: step 30": (start[2], two, {which: x[30, 2] for which, x in path.items()}),
        "best single bump": (None, uneven, {which: bump(*x) for which, x in best.items()}),
    }
    table = []
    for panel, (begun, aim, found) in shown.items():
        table += [points("target", BINS, aim, panel=panel)]
        table += [points("start", BINS, begun, family="penalty", panel=panel)] if begun is not None else []
        table += [points(NAMES[which], BINS, y, family=FAMILY[which], panel=panel) for which, y in found.items()]
    return Outcome(measures, {"kl_case_studies": pd.concat(table)})


claim(
    "C25",
    "The reverse KL seeks modes, and redistributes mass faster; the forward KL covers all modes (case studies).",
    kl_case_studies,
    [
        Criterion("one mode to two: second mode's mass, reverse KL", at_most=0.01, where="one mode to two"),
        Criterion("one mode to two: second mode's mass, forward KL", at_least=0.45, where="one mode to two"),
        Criterion("two modes to one: reverse KL's least lead in mass", at_least=1e-3, where="two modes to one"),
        Criterion("broad start: reverse KL's least lead in distance", at_least=1e-3, where="a broad start"),
        Criterion("best bump, forward KL: centre", 24.5, 25, where="the best single bump"),
        Criterion("best bump, forward KL: width", 14, 15, where="the best single bump"),
        Criterion("best bump, reverse KL: centre", 29.75, 30.25, where="the best single bump"),
        Criterion("best bump, reverse KL: width", 1.5, 2.5, where="the best single bump"),
    ],
    depends_on="start and policy class",
    why="The reverse KL moves a bin in proportion to its own mass: fast away from heavy bins, and for thousands of "
    "steps not to empty ones; a class that cannot hold both modes has to choose.",
)  # fmt: skip

claim(
    "C25b",
    "Even where the policy can represent the target, a few steps on the reverse KL bring mass to a subset of the "
    "modes only.",
    kl_case_studies,
    [
        Criterion("one mode to two: lesser mode's mass, reverse KL", at_most=0.25, where="a start at one of the modes"),
        Criterion("broad start: lesser mode's mass, reverse KL", at_most=0.25, where="a broad start over both"),
    ],
    depends_on="where the policy starts",
    why="Not the divergence alone drops a mode: the start does, where it leaves the mode no mass to grow from.",
)


@figure("kl_case_studies", kl_case_studies)
def draw_case_studies(table: pd.DataFrame) -> Figure:
    """Where both KLs have brought the policy."""
    return lines(table, "bin", "probability", "Forward KL covers, reverse KL follows the mass that is there",
                 note="Gradient descent on 40 logits at rate 1; last panel: best of all single bumps.")  # fmt: skip


# --- the paper's four bins -------------------------------------------------------------------------------------------
FOUR = np.array([0.3, 0.3, 0.1, 0.3]), np.array([0.2, 0.1, 0.6, 0.1])
# As read from the plot, by its legend.
PRINTED = {FORWARD: np.array([0.33, 0.225, 0.22, 0.225]), REVERSE: np.array([0.25, 0.2, 0.35, 0.2])}
READING = 0.01
RATE, TIME = 0.002, 20


@experiment(
    "The paper's four bins, from (.3, .3, .1, .3) to (.2, .1, .6, .1): gradient flow in the logits for a time of "
    "20; largest difference over bins to the printed bars, at the time where it is least; steps and rate are not "
    "printed.",
    equal="exact", seconds=1,
)  # fmt: skip
def four_bins(quick: bool) -> Outcome:
    """The two flows against the printed bars under either legend."""
    log_p, log_q = (np.log(x)[None] for x in FOUR)
    flow = {which: descent(which, log_p, log_q, round(TIME / RATE), RATE)[:, 0] for which in NAMES}
    wrong = {(mine, bars): np.abs(flow[mine] - PRINTED[bars]).max(-1) for mine in NAMES for bars in NAMES}
    reached = {which: RATE * np.argmax(x[:, 2] >= PRINTED[REVERSE][2]) for which, x in flow.items()}
    measures = {f"{NAMES[which]} against its printed bars": wrong[which, which].min() for which in NAMES}
    measures |= {f"{NAMES[which]} against the other's bars": wrong[which, other].min()
                 for which, other in ((FORWARD, REVERSE), (REVERSE, FORWARD))}  # fmt: skip
    measures |= {f"{NAMES[which]}: most mass gained by bin 0": (x[:, 0] - x[0, 0]).max() for which, x in flow.items()}
    measures["time until bin 2 holds 0.35, reverse over forward"] = reached[REVERSE] / reached[FORWARD]
    table, bins = [], np.arange(4)
    for printed in NAMES:
        panel = f"printed as “{NAMES[printed]}”"
        table.append(points("as printed", bins, PRINTED[printed], panel=panel))
        for which in NAMES:
            nearest = flow[which][np.argmin(wrong[which, printed])]
            table.append(points(f"nearest of the {NAMES[which]}", bins, nearest, family=FAMILY[which], panel=panel))
    return Outcome(measures, {"four_bins": pd.concat(table)})


claim(
    "C25a",
    "On four bins the forward KL first raises bin 0, which must fall, while the reverse KL raises the wanted bin 2 "
    "faster (the legend of the figure, as printed).",
    four_bins,
    [
        *(Criterion(f"{name} against its printed bars", at_most=READING) for name in NAMES.values()),
        Criterion("forward KL: most mass gained by bin 0", at_least=0.01),
        Criterion("time until bin 2 holds 0.35, reverse over forward", at_most=1),
        *(Criterion(f"{name} against the other's bars", at_most=READING, control=True) for name in NAMES.values()),
    ],
    why="With softmax logits the forward KL lowers bin 0 from the start and is the faster one on bin 2; with the "
    "two labels swapped both sets of bars lie on the flows (control).",
)


@figure("four_bins", four_bins)
def draw_four_bins(table: pd.DataFrame) -> Figure:
    """The printed bars and the nearest points of both flows."""
    return bars(table, "bin", "The paper's four bins fit with the two labels swapped",
                "Gradient flow in the logits, at the time nearest to the printed bars.")  # fmt: skip


# --- rounds of weighted likelihood -----------------------------------------------------------------------------------
ROUNDS, BEST_OF, TAU = 3, 10, 0.5


@experiment(
    "R4 (far peak) and R5 (near peak), every response, each round fitted exactly: 3 rounds of Best-of-10 and of RWR "
    "at tau = 0.5 on the learner's own responses, and on the reference's.",
    equal="exact", seconds=5,
)  # fmt: skip
def exact_rounds(quick: bool) -> Outcome:
    """Iterated Best-of-N and RWR."""
    names = ("R4", "R5")
    with jax.enable_x64(True):
        tables = lambda p: (p.ref_table(0), p.reward_table(0), jnp.exp(p.optimum(TAU / ROUNDS)[0]))
        rows = jax.jit(lambda: [tables(paper_bandit(name)) for name in names])()
        ref, reward, tilted = (np.stack(column) for column in zip(*rows, strict=True))
        near = np.asarray(metrics.near_peak(jnp.asarray(reward)))
        many = jax.vmap(lambda p, r: best_of_n_weights(p, r, BEST_OF**ROUNDS))
        won = np.asarray(jax.jit(many)(np.exp(ref), reward))
    round_of_best = lambda log_p: fitted("best_of_n", log_p, reward=reward, draws=np.full(2, float(BEST_OF)))
    best, rwr = ref, ref
    for _ in range(ROUNDS):
        # The mass of the worst bins underflows in the last round, and log 0 is no log-probability.
        best = np.log(np.maximum(round_of_best(best), 1e-300))
        rwr = np.log(fitted("rwr", rwr, {"beta": np.full(2, TAU)}, reward=reward))
    once = round_of_best(ref)
    measures = {}
    for i, name in enumerate(names):
        peak = lambda p, i=i: p[i, near[i]].sum()
        measures |= {
            f"{name}: Best-of-10 three times against Best-of-1000": worst(np.exp(best[i]), won[i]),
            f"{name}: RWR three times against ref exp(3 r / tau)": worst(np.exp(rwr[i]), tilted[i]),
            f"{name}: Best-of-10 offline against Best-of-1000": worst(once[i], won[i]),
            f"{name}: mass near the peak, reference": peak(np.exp(ref)),
            f"{name}: mass near the peak, offline": peak(once),
            f"{name}: mass near the peak, three rounds": peak(np.exp(best)),
        }
    return Outcome(measures, {})


claim(
    "C25c",
    "On-policy, weighted likelihood seeks the peak too: k rounds of Best-of-N are Best-of-N^k of the reference, and "
    "k rounds of RWR are ref exp(k r / tau).",
    exact_rounds,
    [
        *(Criterion(f"{name}: {what}", at_most=EXACT, where=name) for name in ("R4", "R5")
          for what in ("Best-of-10 three times against Best-of-1000", "RWR three times against ref exp(3 r / tau)")),
        *(Criterion(f"{name}: mass near the peak, three rounds", at_least=0.9, where=name) for name in ("R4", "R5")),
        *(Criterion(f"{name}: Best-of-10 offline against Best-of-1000", at_least=1e-2, control=True)
          for name in ("R4", "R5")),
    ],
    depends_on="the place of the peak",
    why="Each round re-weights what the round before left, so the weights multiply; from the reference's responses "
    "every round is the first one again.",
)  # fmt: skip


# --- bars ------------------------------------------------------------------------------------------------------------
def bars(table: pd.DataFrame, x: str, title: str, note: str) -> Figure:
    """One panel per `panel`, one bar per `line` at each x, coloured by family."""
    panels = list(dict.fromkeys(table["panel"]))
    rows = len(panels) // 2
    with matplotlib.rc_context(style.RC):
        picture = SlideFigure(figsize=style.SLIDE, layout="constrained")
        axes = picture.subplots(rows, 2, squeeze=False, sharey=rows == 1).ravel()
        for ax, panel in zip(axes, panels, strict=True):
            here = table[table["panel"] == panel]
            names = list(dict.fromkeys(here["line"]))
            for place, name in enumerate(names):
                line = here[here["line"] == name]
                (family,) = set(line["family"])
                paint = style.REFERENCE if family == "reference" else style.colour(family)
                ax.bar(line["x"] + (place - (len(names) - 1) / 2) * 0.8 / len(names), line["y"], 0.76 / len(names),
                       color=paint, label=name)  # fmt: skip
            ax.set_title(panel)
            ax.set_xticks(sorted(set(here["x"])))
            ax.set_xlabel(x)
            ax.set_ylabel("change of log p" if "change" in panel else "probability")
            ax.margins(y=0.3)
            ax.legend(loc="upper right", ncols=1 if rows == 1 else 2, frameon=False)
        picture.suptitle(title)
        picture.supxlabel(note, fontsize=14, color="#444444")
    return picture
