"""Many devices: the actions of one bandit are split among them, also beyond one process and one machine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bandit_pft.errors import ConfigError, ShapeError, shown
from bandit_pft.errors import devices as local_devices
from bandit_pft.kernels import BLOCK
from bandit_pft.problems import Problem


def shard_actions(problem: Problem, devices: Sequence[Any] | None = None) -> Problem:
    """The same bandit with its actions split evenly among devices, in their order.

    `simulate` then runs on all of them. Parameters, the optimiser's state, tables and masses are split as the actions
    are; devices exchange sums, and the numbers of the responses that were drawn. Results are those of one device up to
    the order of sums, so that a float32 run agrees to its rounding and draws the same responses from the same key,
    unless a uniform number falls within that rounding of the border between two actions.

    Args:
        problem: its number of actions must be a multiple of 1,024 for each device, so that no block of the sampler lies
            on two. Fill up with actions that the reference forbids (-inf): they have no mass and no gradient.
        devices: default all that JAX knows. After `join_processes()` these are the devices of all processes, each of
            which then makes the same calls.

    Returns:
        A problem for `simulate` with a policy that has a number for each action: tabular, tabular_shared, factorised.
        The record's numbers are whole on every process; what has an axis of actions, as `Result.params`, is split:
        `np.asarray` makes it whole in one process, `jax.experimental.multihost_utils.process_allgather(x, tiled=True)`
        among several.

    Raises:
        TypeError, ConfigError: not a bandit, or no devices. ShapeError: the actions do not split into whole blocks.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"problem is {shown(problem)}; make one with bandit(...) or contextual_bandit(...)")
    if problem.length > 1 or problem.reward_fn is not None:
        raise ConfigError(
            f"{problem.name or 'this problem'} is no table of actions: only bandits are split among devices; sweep "
            "runs the methods and seeds of other problems side by side on them"
        )
    local_devices()  # Says what to do where there are none.
    places = jax.devices() if devices is None else list(devices)
    if not places:
        raise ConfigError("devices is empty; name one or more of jax.devices()")
    actions, step = problem.num_tokens, BLOCK * len(places)
    if len(places) > 1 and actions % step:
        more = -actions % step
        raise ShapeError(
            f"the problem has {actions:,} actions, and {len(places)} devices take multiples of {step:,}: use "
            f"{actions + more:,}, filled up with {more:,} forbidden actions (ref -inf, any reward within the range of "
            f"the others){f', or {actions - actions % step:,}' if actions > step else ''}"
        )
    mesh = jax.make_mesh((len(places),), ("actions",), axis_types=(AxisType.Auto,), devices=places)
    put = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))
    split = lambda x: put(x, None, None, "actions")
    return dataclasses.replace(
        problem,
        ref_logits=split(problem.ref_logits),
        token_reward=split(problem.token_reward),
        bonus=put(problem.bonus),
        features=put(problem.features),
        data_logits=split(problem.data_logits),
    )


def join_processes(*, patience: int = 100) -> None:
    """Join the processes that were started together, here or on other machines, before anything else of JAX is used.

    It is `jax.distributed.initialize`, which finds SLURM by itself; elsewhere the variables JAX_COORDINATOR_ADDRESS (of
    the first process, host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID say where the others are. `shard_actions` then
    splits over all of their devices, and `sweep(worker="auto")` shares its tiles among them. A process that has ended
    waits for the others at its exit.

    Args:
        patience: seconds of silence after which a process counts as dead. JAX then ends all others with exit code 134,
            naming it on their standard error; at once, where the first one died, through which they talk.

    Raises:
        ConfigError: it does not know of any other process. RuntimeError: JAX was used, or this was called, before.
    """
    given = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    try:
        known: Any = {name: int(os.environ[variable]) for name, variable in given.items() if variable in os.environ}
        # Shares of work are uneven: the first one that is done waits for the last, however long.
        jax.distributed.initialize(**known, heartbeat_timeout_seconds=patience, shutdown_timeout_seconds=30 * 24 * 3600)
    except ValueError as error:
        raise ConfigError(
            f"no other processes are known ({error}): start this with srun, or set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error
