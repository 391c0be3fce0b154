"""Between torch and the objectives: log-probabilities go in, the objective's own force comes out as a gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from bandit_pft.errors import ConfigError
from bandit_pft.groups import Group, prepare
from bandit_pft.objectives import Objective, batch_loss, get_objective, measure


def on_cpu() -> Any:
    """JAX works on the CPU here, so that the accelerator and its memory stay torch's."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])


class Batch(NamedTuple):
    """B groups of N responses of at most T tokens, in NumPy; a response without tokens is padding.

    Attributes:
        mask: [B, N, T]. reward, score: [B, N]. ref_logp, old_logp: [B, N, T] in nats.
    """

    mask: np.ndarray
    reward: np.ndarray
    score: np.ndarray
    ref_logp: np.ndarray
    old_logp: np.ndarray


def width(tokens: int) -> int:
    """The next power of two: few widths mean few compiled programs."""
    return 1 << max(4, (tokens - 1).bit_length())


def stack(batches: Sequence[Batch], groups: int) -> Batch:
    """One batch of `groups` groups: the given ones, then padding."""
    n = max(batch.mask.shape[1] for batch in batches)
    t = width(max(batch.mask.shape[2] for batch in batches))

    def joined(name: str) -> np.ndarray:
        parts = [getattr(batch, name) for batch in batches]
        wanted = (groups, n, t)[: parts[0].ndim]
        out = np.zeros(wanted, parts[0].dtype)
        row = 0
        for part in parts:
            out[(slice(row, row + part.shape[0]), *(slice(0, size) for size in part.shape[1:]))] = part
            row += part.shape[0]
        return out

    return Batch(*(joined(name) for name in Batch._fields))


@jax.jit
def _groups(batch: Batch, numbers: Mapping[str, Any], logp: Any) -> Group:
    make = lambda mask, reward, score, ref, old: Group.of(
        mask=mask, reward=reward, score=score, ref_logp=ref, old_logp=old, **numbers
    )
    return prepare(jax.vmap(make)(*batch), logp)


def prepared(batch: Batch, numbers: Mapping[str, Any], logp: np.ndarray | None = None) -> Group:
    """Groups whose shares are those of this whole batch; the leaves are NumPy arrays.

    Args:
        numbers: `min_gap`, `threshold`, `baseline` and `scale`, as `Group.of` takes them.
        logp: [B, N, T] of the learner, where the objective looks at its distance from the reference.
    """
    with on_cpu():
        return jax.tree.map(np.asarray, _groups(batch, numbers, logp))


@functools.cache
def _program(objective: Objective) -> Any:
    return jax.jit(lambda logp, groups, hyper: jax.value_and_grad(lambda x: batch_loss(objective, x, groups, **hyper))(
        logp
    ))  # fmt: skip


class _Push(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logp: torch.Tensor, objective: Objective, groups: Group, hyper: Mapping[str, float]) -> Any:
        with on_cpu():
            loss, slope = _program(objective)(logp.detach().cpu().numpy(), groups, dict(hyper))
        ctx.slope = torch.from_numpy(np.array(slope)).to(logp.device)
        return torch.tensor(float(loss), device=logp.device)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return ctx.slope * grads[0], None, None, None


def objective_loss(
    objective: Objective, logp: torch.Tensor, groups: Group, hyper: Mapping[str, float] | None = None
) -> torch.Tensor:
    """The objective's loss of prepared groups, as a torch scalar whose gradient is minus the objective's force.

    Args:
        logp: [B, N, T] token log-probabilities under the learner, in nats, on any device.
        groups: with leaves that have a leading batch axis, from `prepare`.
    """
    return _Push.apply(logp.float(), objective, groups, dict(hyper or {}))  # type: ignore[return-value]


def checked(
    objective: str | Objective | Callable[..., Any], hyper: Mapping[str, float] | None
) -> tuple[Objective, dict[str, float]]:
    """The objective and all its hyper-parameters.

    Raises:
        ConfigError, DomainError: an objective or hyper-parameter that does not exist or fit.
    """
    made = get_objective(objective)
    made.check(hyper or {})
    if made.family == "distribution":
        raise ConfigError(f"{made.name} looks at every response there is, which no language model lists")
    return made, {name: float(value) for name, value in {**made.hyper, **(hyper or {})}.items()}


class Needs(NamedTuple):
    """What an objective looks at, measured."""

    reward: bool
    score: bool
    reference: bool
    old: bool
    distance: bool


@functools.cache
def _needs(objective: Objective, hyper: tuple[tuple[str, float], ...]) -> Needs:
    seen = measure(objective, **dict(hyper))
    rng = np.random.default_rng(0)
    logp, ref = -rng.uniform(0.1, 2, (2, 4, 4, 1)).astype(np.float32)
    reward = rng.normal(size=(4, 4)).astype(np.float32)
    batch = Batch(np.ones((4, 4, 1), bool), reward, reward, ref, ref)
    groups = prepared(batch, {})
    slope = lambda g: np.asarray(_program(objective)(logp, g, dict(hyper))[1])
    far = groups._replace(kl=groups.kl + 1, mean_gain=groups.mean_gain + 1)
    with on_cpu():
        distance = bool(np.abs(slope(far) - slope(groups)).max() > 0)
    return Needs(seen.reads_reward, seen.reads_score, seen.reads_reference or distance, seen.reads_old, distance)


def needs(objective: Objective, hyper: Mapping[str, float]) -> Needs:
    """What the objective looks at with these hyper-parameters."""
    return _needs(objective, tuple(sorted(hyper.items())))


@jax.jit
def _described(logp: Any, groups: Group, beta: Any, labelled: Any) -> dict[str, tuple[Any, Any]]:
    def one(logp: Any, group: Group) -> dict[str, tuple[Any, Any]]:
        total = group.total(logp)
        reward = beta * group.total(logp - group.ref_logp)
        pairs, single = group.pair_count(), group.count() * group.real()
        # Without pairs, the desirable are the chosen.
        paired, single_ones = pairs.sum() > 0, single * labelled
        chosen = jnp.where(paired, pairs.sum(1), single_ones * group.desirable())
        rejected = jnp.where(paired, pairs.sum(0), single_ones * (1 - group.desirable()))
        lead = reward[:, None] - reward[None, :]
        number = single.sum()
        log_ratio = group.average(logp - group.old_logp)
        return {
            "logps/mean": ((single * total).sum(), number),
            "logps/chosen": ((chosen * total).sum(), chosen.sum()),
            "logps/rejected": ((rejected * total).sum(), rejected.sum()),
            "rewards/chosen": ((chosen * reward).sum(), chosen.sum()),
            "rewards/rejected": ((rejected * reward).sum(), rejected.sum()),
            "rewards/margins": ((pairs * lead).sum(), pairs.sum()),
            "rewards/accuracies": ((pairs * (lead > 0)).sum(), pairs.sum()),
            "kl": ((single * group.total(logp - group.ref_logp)).sum(), number),
            "logps/drift": ((single * jnp.abs(log_ratio)).sum(), number),
        }

    return jax.tree.map(lambda x: x.sum(), jax.vmap(one)(logp, groups))


def described(logp: np.ndarray, groups: Group, beta: float, labelled: bool = True) -> dict[str, tuple[float, float]]:
    """Name -> (sum, count) of what is logged: log-probabilities and implicit rewards, `beta * (log pi - log pi_ref)`.

    Means over pairs, or without pairs over the desirable and the others, if `labelled`. `kl` is the mean log-ratio to
    the reference: an estimate of KL(pi, pi_ref) on responses of the learner's own. `logps/drift` is the mean size, per
    response, of the mean log-ratio of its tokens to the policy that wrote it.
    """
    with on_cpu():
        found = _described(logp, groups, beta, float(labelled))
    return {name: (float(total), float(count)) for name, (total, count) in found.items()}
