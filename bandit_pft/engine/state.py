"""What a run is made of: its plan, its learner, what it knows from the start, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from bandit_pft.engine.sources import Source
from bandit_pft.errors import is_traced
from bandit_pft.kernels import SPARSE
from bandit_pft.methods import SGD, Method, batch_sizes
from bandit_pft.policies import tabular
from bandit_pft.problems import Problem

OnNonfinite = Literal["freeze", "raise", "keep"]
FOREVER = 2**30  # Gradient steps that no run takes.

Pull = Callable[[Array], PyTree]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("period", "freeze"),
    meta_fields=("collects", "regime", "forbids", "few"),
)
@dataclass(frozen=True)
class Plan:
    """What the runs of one program share; `collects`, `regime` and `forbids` decide what is in it.

    Attributes:
        period: gradient steps from one collection to the next, reuse * B / M, at most 2^30.
        freeze: whether a run that turned non-finite stays as it was.
        collects: at every step, before the first one only, or every `period` steps.
        regime: where responses come from.
        forbids: whether some response may be forbidden, by the reference or in the data.
        few: whether steps may be taken on the drawn responses alone (see `engine.few`).
    """

    period: Any
    freeze: Any
    collects: Literal["always", "once", "sometimes"]
    regime: Literal["own", "data", "mixture"]
    forbids: bool
    few: bool = False


class Known(NamedTuple):
    """What a run knows from its start on: its first parameters, the order of contexts, keys, a fitted reward model."""

    params: PyTree
    order: Int[Array, " S"]
    key: Key[Array, ""]
    proxy: Float[Array, " V"] | None


class Chance(NamedTuple):
    """Random numbers of one collection: where its responses come from, and the labels' noise if there is any."""

    draws: Array | None
    noise: Float[Array, "B N"] | None


class Drawn(NamedTuple):
    """One collection, as it is kept until the next; the rest of a batch follows from it.

    Attributes:
        response: [B, N, T], None where every response is enumerated.
        old: [B, N, T] log-probabilities under the policy that the responses come from.
        weight: [B, A], that policy's probabilities where all responses are enumerated; otherwise None.
        noise: [B, N] of the labels, where there is any.
    """

    response: Any
    old: Float[Array, "B N T"]
    weight: Any
    noise: Any


class View(NamedTuple):
    """What a learner sees of itself in some contexts; where it has no table, its parameters alone.

    Attributes:
        table: log-probabilities [nats] of all responses. mass: their probabilities.
        back: a slope in the table -> the gradient in the parameters.
    """

    params: PyTree
    contexts: Int[Array, " M"]
    table: Any = None
    mass: Any = None
    back: Any = None


class Learner(NamedTuple):
    """How one policy learns on one problem, in many contexts at once.

    Attributes:
        near: what is kept from one look to the next, at first; None for most.
        look: (params, near, contexts [M]) -> (view, near).
        read: (view, response [M, N, T]) -> (logp [M, N, T], pull), and pull takes a slope there to the parameters.
        random: (key, step) -> what the collection of this step is drawn with.
        draw: (view, random) -> a collection of N responses, or of all, to each of the view's contexts.
        lay: (contexts, drawn) -> responses [M, N, T], their mask and their weights [M, N].
        table: (params, contexts) -> [M, A], or None where responses cannot be enumerated.
        reference, data: what it is held to, and where offline responses come from.
    """

    near: Any
    look: Callable[[PyTree, Any, Int[Array, " M"]], tuple[View, Any]]
    read: Callable[[View, Any], tuple[Float[Array, "M N T"], Pull]]
    random: Callable[[Key[Array, ""], Any], Any]
    draw: Callable[[View, Any], Drawn]
    lay: Callable[[Int[Array, " M"], Drawn], tuple[Array, Array, Array]]
    table: Any
    reference: Source
    data: Source


class Progress(NamedTuple):
    """How far a run has come: all that its next step needs, and the record so far. This is what a checkpoint holds.

    Attributes:
        row: rows recorded.
        near: what the learner keeps of its last step besides parameters, or None.
        ahead: what the next collection will be drawn with.
        drawn: the collection in hand, None where it need not be kept.
        stats: decayed sums of 1, the reward and its square, None for an objective that reads no running statistics.
        first_bad_step: -1 while the run is healthy.
    """

    row: Array
    params: PyTree
    optimizer: PyTree
    near: PyTree
    ahead: PyTree
    drawn: Drawn | None
    stats: Float[Array, " moments"] | None
    first_bad_step: Int[Array, ""]
    record: PyTree


def collection_period(problem: Problem, method: Method) -> int:
    """Gradient steps from one collection to the next, 2^30 where there is but one."""
    prompts, minibatch = batch_sizes(problem, method)
    return int(min(float(method.reuse) * (prompts // minibatch), float(FOREVER)))


def plan(problem: Problem, method: Method, on_nonfinite: OnNonfinite = "freeze") -> Plan:
    """The plan of one run, in plain numbers."""
    fraction, period = float(method.on_policy), collection_period(problem, method)
    collects: Any = "always" if period == 1 else "once" if period == FOREVER else "sometimes"
    regime: Any = "own" if fraction >= 1 else "data" if fraction <= 0 else "mixture"
    free = problem.data_logits is problem.ref_logits
    forbids = _forbids(problem.ref_logits) or (not free and _forbids(problem.data_logits))
    prompts, minibatch = batch_sizes(problem, method)
    few = (
        method.data == "sampled" and method.policy is tabular and method.optimizer is SGD
        and method.reference == "problem" and problem.length == 1 and problem.num_responses >= SPARSE
        and minibatch == prompts == problem.num_contexts and (regime == "own" or collects == "once")
    )  # fmt: skip
    return Plan(np.int32(period), np.bool_(on_nonfinite != "keep"), collects, regime, forbids, few)


def _forbids(logits: Any) -> bool:
    # Also of a problem that is known while a caller's program is traced, or that lies on other processes in part.
    with jax.ensure_compile_time_eval():
        minus_inf = np.isneginf if isinstance(logits, np.ndarray) else jnp.isneginf
        return is_traced(logits) or bool(minus_inf(logits).any())
