"""What an objective is, how one is added, and what can be measured on any of them."""

from __future__ import annotations

import functools
import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bandit_pft.errors import (
    ConfigError,
    ShapeError,
    as_floats,
    check_choice,
    check_hyper,
    check_number,
    naming,
    nearest,
    shown,
)
from bandit_pft.groups import ExactGroup, Group, check_logp, prepare

Family = Literal["supervised", "reward", "preference", "unpaired", "distribution", "penalty"]
Logp = Float[Array, "N T"]
Loss = Float[Array, ""]
Hyper = float | Float[Array, ""]

OBJECTIVES: dict[str, Objective] = {}


class Range(NamedTuple):
    """What a hyper-parameter of this name means, and the values for which its formula makes sense."""

    meaning: str
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None


HYPER: dict[str, Range] = {
    "alpha": Range("order of the alpha-divergence: 1 is the reverse KL, towards 0 the forward KL", above=0),
    "beta": Range("scale of beta * log(pi / pi_ref), the implicit reward: pi* ~ pi_ref exp(r / beta)", above=0),
    "clip": Range("a probability ratio outside 1 -+ clip no longer pays", above=0, below=1),
    "clip_high": Range("a probability ratio above 1 + clip_high no longer pays", above=0),
    "clip_low": Range("a probability ratio below 1 - clip_low no longer pays", above=0, below=1),
    "delta": Range("how far the baseline lies above the mean reward; below 0 pulls more than it pushes"),
    "desirable_weight": Range("weight of the responses above the threshold", at_least=0),
    "jeffreys_weight": Range("share of the backward KL in Jeffreys' divergence", at_least=0, at_most=1),
    "kl_coef": Range("weight of the KL penalty; 0 is none", at_least=0),
    "label_smoothing": Range("assumed probability that a label is wrong", at_least=0, below=0.5),
    "margin": Range("how far the winner's implicit reward must lead", at_least=0),
    "max_length": Range("tokens by which every response is divided; 0 is the width T of the group", at_least=0),
    "max_ratio": Range("cap on the importance weight", above=0),
    "mix_temperature": Range("how sharply the loss changes from one form to the other around 0", above=0),
    "mixture": Range("share of the reference in the opponent pi^(1 - mixture) * pi_ref^mixture", at_least=0, at_most=1),
    "negative": Range("weight of the push, relative to the pull on the best response", at_least=0),
    "odds_coef": Range("weight of the odds-ratio term, relative to the pull on the winner", at_least=0),
    "optimism": Range("weight of the push on the reference's own responses", at_least=0),
    "penalty_coef": Range("weight of the penalty on winners that fall below the reference", at_least=0),
    "reward_range": Range("largest absolute reward; implicit leads beyond twice that no longer pay", above=0),
    "sft_coef": Range("weight of the winner's log-probability in the loss", at_least=0),
    "undesirable_weight": Range("weight of the responses at or below the threshold", at_least=0),
}


@dataclass(frozen=True, eq=False)
class Objective:
    """A pure function of log-probabilities, with what the rest of the package needs to know about it.

    Called as `objective(logp, group, **hyper)` on ONE group: `logp` [N, T] in nats, a scalar loss back. Whatever stands
    in masked tokens never reaches the function; hyper-parameters reach it as scalars of `logp`'s type. Compared by
    identity, so make it once.
    """

    function: Callable[..., Loss]
    name: str
    family: Family
    paper: str
    hyper: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, logp: Logp, group: Group, **hyper: Any) -> Loss:
        check_hyper(self.name, hyper, self.hyper)
        if not isinstance(group, Group):
            raise TypeError(f"group is {shown(group)}; make one with Group.of(reward=..., ref_logp=...)")
        if logp.shape != group.mask.shape:
            raise ShapeError(f"logp has shape {logp.shape}; the group holds responses of shape {group.mask.shape}")
        hide = lambda x: jnp.where(group.mask, x, 0)
        clean = group._replace(ref_logp=hide(group.ref_logp), old_logp=hide(group.old_logp))
        numbers = {name: jnp.asarray(value, logp.dtype) for name, value in {**self.hyper, **hyper}.items()}
        for name, value in numbers.items():
            if value.ndim:
                raise ShapeError(f"{self.name}: {name} has shape {value.shape}; it must be a number: vmap over several")
        with naming(f"objective {self.name} fails"):
            loss = jnp.asarray(self.function(hide(logp), clean, **numbers))
        if loss.shape or not jnp.issubdtype(loss.dtype, jnp.floating):
            raise ShapeError(
                f"objective {self.name} returns {loss.dtype} of shape {loss.shape}; it must return one float: reduce "
                "with group.mean, token_mean or pair_mean"
            )
        return loss

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return inspect.getdoc(self.function).splitlines()[0]  # type: ignore[union-attr]

    @property
    def formula(self) -> str:
        """The docstring's line that begins with `L =`."""
        lines = [line.strip() for line in inspect.getdoc(self.function).splitlines()]  # type: ignore[union-attr]
        return next((line for line in lines if line.startswith("L =")), "")

    def check(self, hyper: Mapping[str, Any]) -> None:
        """Refuse hyper-parameters that this objective does not have, or outside their range.

        Raises:
            ConfigError: an unknown name. DomainError: a value outside its range.
        """
        check_hyper(self.name, hyper, self.hyper)
        for name, value in hyper.items():
            limits = HYPER.get(name, Range(""))
            check_number(
                f"{self.name}: {name}",
                value,
                above=limits.above,
                at_least=limits.at_least,
                at_most=limits.at_most,
                below=limits.below,
            )


def objective(*, family: Family, paper: str = "") -> Callable[[Callable[..., Loss]], Objective]:
    """Register a function as an objective under its own name.

    The function takes `(logp, group, *, name: float = default, ...)`, works on one group, has a docstring whose first
    line says what it does and one of whose lines is the formula, `L = ...`. Running a notebook cell again replaces the
    objective that the cell defined before.

    Args:
        family: decides the colour, and which laws hold for its force.
        paper: key in `papers.bib`.

    Raises:
        ConfigError: the signature does not fit, or another module's objective has the name.
    """

    def register(function: Callable[..., Loss]) -> Objective:
        made = as_objective(function, family=family, paper=paper)
        known = OBJECTIVES.get(made.name)
        if known is not None and known.function.__module__ != function.__module__:
            raise ConfigError(
                f"objective {made.name!r} exists already, from {known.function.__module__}: give yours another name"
            )
        OBJECTIVES[made.name] = made
        return made

    return register


def as_objective(function: Callable[..., Loss] | Objective, *, family: str = "reward", paper: str = "") -> Objective:
    """An objective from a plain function, without registering it."""
    if isinstance(function, Objective):
        return function
    check_choice("family", family, get_args(Family))
    name = getattr(function, "__name__", type(function).__name__)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:  # Not callable, or written in C.
        raise TypeError(f"objective is {shown(function)}; it must be a function of (logp, group, *, ...)") from error
    if len(parameters) < 2 or any(p.kind is not p.KEYWORD_ONLY or p.default is p.empty for p in parameters[2:]):
        raise ConfigError(
            f"{name}{inspect.signature(function)} must be {name}(logp, group, *, hyper=default, ...): "
            "everything after the group is keyword-only and has a default"
        )
    if not inspect.getdoc(function):
        raise ConfigError(f"{name} has no docstring: say in one line what it does, and its formula as 'L = ...'")
    defaults = {p.name: p.default for p in parameters[2:]}
    made = Objective(function, name, cast(Family, family), paper, defaults)
    made.check(defaults)
    return replace(made, hyper={name: float(value) for name, value in defaults.items()})


def get_objective(which: str | Objective | Callable[..., Loss]) -> Objective:
    """An objective by name, as `module:function`, or itself.

    Raises:
        ConfigError: no such objective (with the nearest names), or the module cannot be imported.
    """
    if not isinstance(which, str):
        return as_objective(which)
    if which in OBJECTIVES:
        return OBJECTIVES[which]
    if ":" not in which:
        raise ConfigError(f"no objective is named {which!r}: {nearest(which, OBJECTIVES)}")
    module, _, attribute = which.partition(":")
    try:
        return as_objective(getattr(importlib.import_module(module), attribute))
    except (Exception, SystemExit) as error:  # The module is the reader's own, and runs when it is imported.
        raise ConfigError(f"objective {which!r} cannot be loaded: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """What went wrong in one line, and in which line of the module that was imported."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    place = next((f" ({frame.filename}, line {frame.lineno})" for frame in frames if frame.name == "<module>"), "")
    return " ".join(f"{type(error).__name__}: {error}{place}".split())


def batch_loss(objective: Objective, logp: Float[Array, "B N T"], groups: Group, **hyper: Any) -> Loss:
    """Loss of a prepared batch: the sum over its groups."""
    return jax.vmap(lambda one, group: objective(one, group, **hyper))(logp, groups).sum()


def force(objective: Objective | str, logp: Logp, group: Group, **hyper: Any) -> Float[Array, "N T"]:
    """-d loss / d logp: positive where a token is pulled up, negative where it is pushed down.

    Args:
        logp: [N, T] log-probabilities of the group's tokens under the learner, in nats.
        group: what was sampled, and how it was judged.
        **hyper: the objective's hyper-parameters; the others keep their defaults.

    Raises:
        ConfigError: unknown objective or hyper-parameter. DomainError: a value out of range. ShapeError: as named.
    """
    made = get_objective(objective)
    made.check(hyper)
    logp = as_floats("logp", logp, shape=(None, None))
    if isinstance(group, Group) and group.mask.shape == logp.shape:
        check_logp("logp", logp, group.mask)
    return -jax.grad(lambda x: made(x, group, **hyper))(logp)


def batch_force(objective: Objective, logp: Float[Array, "B N T"], groups: Group, **hyper: Any) -> Array:
    """`force` of every group of a prepared batch, [B, N, T]."""
    return -jax.grad(lambda x: batch_loss(objective, x, groups, **hyper))(logp)


# --- penalties on the distance from the reference ------------------------------------------------------------------
MAX_EXPONENT = 40.0


def safe_exp(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """exp(x), constant (force 0) above x = 40, where it is 2e17.

    Its square, times any reward below 1e3, is still finite in float32, so a log-ratio of 1e4 nats gives a large number
    and no nan. Every exponential of a log-ratio or of reward / beta in this package goes through here.
    """
    return jnp.exp(jnp.minimum(x, MAX_EXPONENT))


KL_ESTIMATES: dict[str, Callable[[Array], Array]] = {
    "k1": lambda gain: gain,
    "k2": lambda gain: gain**2 / 2,
    "k3": lambda gain: safe_exp(-gain) - 1 + gain,
}


def with_kl(
    objective: Objective | str,
    kl: str = "k2",
    place: str = "loss",
) -> Objective:
    """The objective with a penalty on the distance from the reference, and one more hyper-parameter, `kl_coef`.

    Args:
        kl: estimate of KL(pi, pi_ref) from a response's gain = log pi - log pi_ref (of the whole response, in nats):
            k1 = gain, k2 = gain^2 / 2, k3 = exp(-gain) - 1 + gain.
        place: "loss" adds `kl_coef * mean k`. On-policy its expected gradient is none for k1, that of the reverse
            KL(pi, pi_ref) for k2 and that of the forward KL(pi_ref, pi) for k3.
            "reward" subtracts `kl_coef * k` from the reward, without gradient, before anything else sees it; k1 is then
            the reverse KL. Labels (`score`) and running baselines stay as they were.

    Raises:
        ConfigError: another `kl` or `place`, an objective with a `kl_coef` of its own, or "reward" for an objective
            that does not look at rewards.

    Source: Tang and Munos 2025, "On a few pitfalls in KL divergence gradient estimation for RL"; Schulman 2020.
    """
    made = get_objective(objective)
    check_choice("kl", kl, KL_ESTIMATES)
    check_choice("place", place, ("loss", "reward"))
    if "kl_coef" in made.hyper:
        raise ConfigError(f"{made.name} has a KL penalty of its own: set its kl_coef instead")
    if place == "reward" and not measure(made).reads_reward:
        raise ConfigError(f"{made.name} does not look at rewards: use place='loss'")
    estimate = KL_ESTIMATES[kl]

    def function(logp: Logp, group: Group, *, kl_coef: Hyper, **hyper: Hyper) -> Loss:
        gain = group.total(logp - group.ref_logp)
        if place == "loss":
            return made.function(logp, group, **hyper) + kl_coef * group.mean(estimate(gain))
        penalty = kl_coef * estimate(jax.lax.stop_gradient(gain))
        return made.function(logp, group._replace(reward=group.reward - penalty), **hyper)

    function.__doc__ = inspect.getdoc(made.function)
    return Objective(function, f"{made.name}_{kl}_in_{place}", made.family, made.paper, {**made.hyper, "kl_coef": 0.1})


# --- what an objective does, measured ------------------------------------------------------------------------------
class Properties(NamedTuple):
    """What an objective's force does, seen on fixed random groups at its default hyper-parameters.

    Attributes:
        pulls: some response is pulled up.
        pushes: some response is pushed down: the objective has a negative gradient.
        total: sum of all forces of the batch; 0 where only differences between responses count.
        reads_reward: the force changes with `reward`.
        reads_score: the force changes with `score`, what the labeller saw.
        reads_reference: the force changes with `ref_logp`.
        reads_old: the force changes with `old_logp`: the objective corrects for samples of an older policy.
        reward_shift_invariant: adding one number to every reward and score leaves the force as it was (thresholds and
            running baselines held fixed).
        token_level: the tokens of one response feel different forces.
    """

    pulls: bool
    pushes: bool
    total: float
    reads_reward: bool
    reads_score: bool
    reads_reference: bool
    reads_old: bool
    reward_shift_invariant: bool
    token_level: bool


def measure(objective: Objective | str, **hyper: float) -> Properties:
    """Measure an objective on 16 random groups of 6 responses, rewards centred and standard normal.

    Learner, reference and old policy differ. All but `token_level` (3 tokens) are measured on single tokens. Objectives
    of the family "distribution" are measured on whole tables of 6.

    Raises:
        ConfigError: unknown objective or hyper-parameter. DomainError: a value out of range.
    """
    return _measure(get_objective(objective), tuple(sorted(hyper.items())))


@functools.cache
def reads_running(made: Objective, kind: type[Group], n: int, t: int) -> bool:
    """Whether the loss of such a group depends on the running mean or deviation of rewards, by the program it becomes.

    Args:
        n, t: responses and tokens of the group.
    """

    def loss(baseline: Array, scale: Array, logp: Array, reward: Array) -> Loss:
        return made(logp, kind.of(reward=reward, ref_logp=logp)._replace(baseline=baseline, scale=scale))

    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    program = jax.make_jaxpr(loss)(array(), array(), array(n, t), array(n)).jaxpr
    read = {id(x) for equation in program.eqns for x in equation.invars} | {id(x) for x in program.outvars}
    return any(id(x) in read for x in program.invars[:2])


@functools.cache
def _measure(made: Objective, hyper: tuple[tuple[str, float], ...]) -> Properties:
    made.check(dict(hyper))
    exact = made.family == "distribution"
    normal = np.random.default_rng(0).standard_normal
    logits = normal((16, 6, 3))
    normalise = lambda x: np.asarray(jax.nn.log_softmax(jnp.asarray(x, jnp.float32), axis=1))
    # `other` is far away, to meet the hinges and clips that are flat nearby.
    logp, ref, old, other = (normalise(logits + scale * normal((16, 6, 3))) for scale in (0.0, 0.7, 0.3, 10.0))
    reward = normal((16, 6)).astype(np.float32)
    reward -= reward.mean(1, keepdims=True)
    order = normal((16, 6)).astype(np.float32)
    one = np.zeros((16, 6, 3), bool)
    one[..., 0] = True

    make = functools.partial(ExactGroup.of if exact else Group.of, draws=4.0 if exact else None, threshold=0.0)
    batch = jax.vmap(lambda r, f, o, m, w: make(reward=r, ref_logp=f, old_logp=o, mask=m, weight=w if exact else None))(
        reward, ref, old, one, np.exp(old[..., 0])
    )
    base = prepare(batch, logp)
    scored = lambda groups: prepare(groups, logp)._replace(kl=base.kl, mean_gain=base.mean_gain)
    variants = [
        base,
        base._replace(reward=jnp.asarray(order)),
        scored(base._replace(score=jnp.asarray(order))),
        base._replace(ref_logp=jnp.asarray(other)),
        base._replace(old_logp=jnp.asarray(other)),
        scored(base._replace(reward=base.reward + 2, score=base.score + 2)),
        scored(base._replace(mask=jnp.ones_like(base.mask))),
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *variants)
    numbers = dict(hyper)
    run = jax.jit(jax.vmap(lambda groups: batch_force(made, jnp.asarray(logp), groups, **numbers)))
    found = np.asarray(run(stacked), np.float64)
    plain, by_reward, by_score, by_ref, by_old, shifted = found[:6, ..., 0]
    tolerance = 1e-5 * np.abs(plain).max()
    differs = lambda x: bool(np.abs(x - plain).max() > tolerance)
    return Properties(
        pulls=bool(plain.max() > tolerance),
        pushes=bool(plain.min() < -tolerance),
        total=float(plain.sum()),
        reads_reward=differs(by_reward),
        reads_score=differs(by_score),
        reads_reference=differs(by_ref),
        reads_old=differs(by_old),
        reward_shift_invariant=not differs(shifted),
        token_level=bool(np.ptp(found[6], axis=-1).max() > 1e-5 * np.abs(found[6]).max()),
    )
