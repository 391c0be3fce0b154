"""How a learner learns: objective, data regime, optimiser, in one value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bandit_pft.errors import (
    ConfigError,
    ShapeError,
    check_choice,
    check_integer,
    check_number,
    is_traced,
    naming,
    shown,
)
from bandit_pft.objectives.core import Objective, get_objective
from bandit_pft.policies import Policy, tabular
from bandit_pft.problems import Problem

Data = Literal["sampled", "exact"]
Proxy = Literal["table", "network"]
Reference = Literal["problem", "initial"]

# Of learning rate 1: `Method.learning_rate` multiplies the update, so that it can be traced and swept.
SGD = optax.sgd(1.0)
ADAM = optax.adam(1.0)
LEARNING_RATE = 0.2


@dataclass(frozen=True, eq=False)
class Method:
    """How a learner learns: an objective, the data it sees, and the optimiser.

    The loop is the paper's Algorithm 1: collect `num_responses` for each of `prompts` contexts, go over them `reuse`
    times in minibatches, collect again.

    Attributes:
        objective: a name, an `Objective`, or your own function of `(logp, group, *, ...)`.
        hyper: its hyper-parameters; the others keep their defaults.
        learning_rate: multiplies the optimiser's update. Default: 0.2, and 1 for an optimiser of your own, which then
            keeps the rate that it was built with.
        on_policy: fraction of the responses drawn from the learner itself; the rest comes from the problem's data.
        reuse: passes over one collection before the next. inf: collect once. Default: 1, and inf when nothing is
            on-policy (one fixed data set, offline learning).
        label_noise: temperature of Gumbel noise on what the labeller sees: pairs then follow Bradley-Terry with
            reward / temperature. None: no noise, and none is drawn.
        min_gap: pairs with a smaller difference in score are not compared.
        threshold: scores above it are desirable. None: the mean score of the group.
        memory: how much of the running reward mean and deviation is kept per collection, in [0, 1).
        num_responses: N, responses per context. With exact data: the group size that is averaged over.
        prompts: B, contexts per collection; default all.
        minibatch: M, contexts per gradient step; default B. Must divide B.
        data: "sampled", or "exact" for the population dynamics (infinite data; every response is enumerated).
        policy: see `bandit_pft.policies`.
        optimizer: ADAM, SGD, or any optax optimiser.
        schedule: step -> factor on the learning rate, such as `optax.cosine_decay_schedule(1.0, 200)`.
        proxy: learn from a reward model ("table": one number per token, "network": smooth in the token) fitted to
            pairs from the reference under the same label noise, instead of from the true reward. Results always
            report the true reward.
        reference: "problem", or "initial" for the policy as it was before the first step.
        name: label in results; default the objective's name.

    Raises:
        ConfigError, DomainError, TypeError: when made, naming the argument.
    """

    objective: Any
    hyper: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: Any = None
    on_policy: Any = 1.0
    reuse: Any = None
    label_noise: Any = None
    min_gap: Any = 0.0
    threshold: Any = None
    memory: Any = 0.9
    num_responses: int = 10
    prompts: int | None = None
    minibatch: int | None = None
    data: Data = "sampled"
    policy: Policy = tabular
    optimizer: optax.GradientTransformation = ADAM
    schedule: Callable[[Any], Any] | None = None
    proxy: Proxy | None = None
    reference: Reference = "problem"
    name: str = ""

    def __post_init__(self) -> None:
        set_field = partial(object.__setattr__, self)
        set_field("objective", get_objective(self.objective))
        if not isinstance(self.hyper, Mapping):
            raise TypeError(f"hyper is {shown(self.hyper)}; it must be a dictionary such as {{'beta': 0.1}}")
        if self.learning_rate is None:
            set_field("learning_rate", LEARNING_RATE if self.optimizer is ADAM or self.optimizer is SGD else 1.0)
        self._check()
        if self.reuse is None:
            where = jnp.where if is_traced(self.on_policy) else np.where
            set_field("reuse", where(self.on_policy > 0, 1.0, math.inf)[()])
        # One type for all numbers: a program compiled for one value then serves every other.
        for name in NUMERIC:
            set_field(name, _plain(getattr(self, name)))
        set_field("hyper", {name: _plain(value) for name, value in self.hyper.items()})
        if not self.name:
            set_field("name", self.objective.name)

    def _check(self) -> None:
        made: Objective = self.objective
        made.check(self.hyper)
        check_number("learning_rate", self.learning_rate, at_least=0)
        check_number("on_policy", self.on_policy, at_least=0, at_most=1)
        check_number("min_gap", self.min_gap, at_least=0)
        check_number("memory", self.memory, at_least=0, below=1)
        if self.reuse is not None:
            check_number("reuse", self.reuse, at_least=1, allow_inf=True, advice="inf collects once")
        if self.label_noise is not None:
            check_number("label_noise", self.label_noise, at_least=0, advice="It is a temperature")
        if self.threshold is not None:
            check_number("threshold", self.threshold)
        least = 2 if made.family == "preference" or made.name in NEEDS_TWO else 1
        check_integer(
            "num_responses", self.num_responses, at_least=least, advice=f"{made.name} compares the responses of a group"
        )
        check_choice("data", self.data, get_args(Data))
        check_choice("reference", self.reference, get_args(Reference))
        if self.proxy is not None:
            check_choice("proxy", self.proxy, get_args(Proxy))
        if not isinstance(self.name, str):
            raise TypeError(f"name is {shown(self.name)}; it must be a string")
        if not isinstance(self.policy, Policy):
            raise TypeError(f"policy is {shown(self.policy)}; it must be a Policy such as `tabular`")
        if not isinstance(self.optimizer, optax.GradientTransformation):
            raise TypeError(f"optimizer is {shown(self.optimizer)}; it must be made by optax, as optax.adam(1.0)")
        if self.schedule is not None:
            if not callable(self.schedule):
                raise TypeError(f"schedule is {shown(self.schedule)}; it must be a function of the step, or None")
            _check_schedule(self.schedule)
        if made.family == "distribution" and self.data != "exact":
            raise ConfigError(f"{made.name} looks at every response: use Method({made.name!r}, data='exact')")
        if self.data == "exact" and self.label_noise is not None and made.family != "preference":
            raise ConfigError(
                f"label_noise with data='exact' has a closed form for pairs only, not for {made.name}: "
                "use data='sampled', or label_noise=None"
            )
        for name in ("prompts", "minibatch"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), at_least=1)


@lru_cache(maxsize=64)
def _check_schedule(schedule: Callable[[Any], Any]) -> None:
    with naming("schedule fails on a step"):
        factor = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), np.int32))
    if np.shape(factor):
        raise ShapeError(f"schedule returns shape {np.shape(factor)}; it must return one number")


NUMERIC = ("learning_rate", "on_policy", "reuse", "label_noise", "min_gap", "threshold", "memory")
STATIC = ("objective", "num_responses", "prompts", "minibatch", "data", "policy", "optimizer", "schedule", "proxy",
          "reference", "name")  # fmt: skip


def _plain(value: Any) -> Any:
    return value if value is None or is_traced(value) or np.ndim(value) else float(value)


def _flatten(method: Method) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return tuple(getattr(method, name) for name in ("hyper", *NUMERIC)), tuple(getattr(method, n) for n in STATIC)


def _unflatten(static: tuple[Any, ...], numeric: Any) -> Method:
    # Past the checks of __init__: JAX rebuilds methods around tracers and placeholders.
    method = object.__new__(Method)
    method.__dict__.update(zip(("hyper", *NUMERIC), numeric, strict=True))
    method.__dict__.update(zip(STATIC, static, strict=True))
    return method


jax.tree_util.register_pytree_node(Method, _flatten, _unflatten)

NEEDS_TWO = ("rloo", "grpo", "dr_grpo", "dapo", "gspo", "gspo_token", "cispo", "reinforce_group", "awr")


def batch_sizes(problem: Problem, method: Method) -> tuple[int, int]:
    """Contexts per collection and per gradient step, B and M."""
    prompts = method.prompts or problem.num_contexts
    return prompts, method.minibatch or prompts
