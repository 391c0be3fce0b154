"""Who takes part, and a worker process for each: libraries do not share threads, flags or memory."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.tasks import Network, Task


class Peer(NamedTuple):
    """A library and how it is used.

    Attributes:
        skips: workload -> why this peer leaves it out.
        capped: steps of a sampled task with many actions that are run; the time is scaled to all of them.
    """

    name: str
    module: str
    function: str = "build"
    environment: tuple[tuple[str, str], ...] = ()
    skips: Mapping[str, str] = {}
    capped: int | None = None


TWO_DEVICES = (("XLA_FLAGS", "--xla_force_host_platform_device_count=2"),)

SLOW_START = "eight compilations of about ten seconds are not a matter of latency"

# The floor comes first: the others are held against it.
PEERS = (
    Peer("C", "peer_c"),
    Peer("bandit_pft", "peer_ours"),
    Peer("bandit_pft, 2 devices", "peer_ours", environment=TWO_DEVICES),
    Peer("numba", "peer_numba"),
    Peer("NumPy", "peer_numpy"),
    Peer("torch", "peer_torch"),
    Peer("torch.compile", "peer_torch", "build_compiled", skips=dict.fromkeys(("W4 exact", "W4 sampled"), SLOW_START)),
    Peer("common JAX", "peer_jax", capped=5),
)
OURS = "bandit_pft"
NO_TIME, TOO_LONG = "no time was left", "took longer than"


class Answer(NamedTuple):
    """What a worker gives back: the value and the wall time [s], or the reason why there is none."""

    value: Any
    seconds: float
    reason: str = ""


def builder(peer: Peer, task: Task | Network) -> Any:
    module = importlib.import_module(f"benchmarks.{peer.module}")
    if isinstance(task, Task):
        return getattr(module, peer.function)
    if peer.function != "build" or not hasattr(module, "build_network"):
        raise NotImplementedError("trains tables, no networks")
    return module.build_network


def _serve(peer: Peer, pipe: Any) -> None:
    os.environ.update(peer.environment)
    run = None
    while True:
        what, argument = pipe.recv()
        start = time.perf_counter()
        try:
            if what == "stop":
                return
            if what == "build":
                run, value = builder(peer, argument)(argument), None
            elif what == "call":
                module, function, *given = argument
                value = getattr(importlib.import_module(f"benchmarks.{module}"), function)(*given)
            elif what == "memory":
                value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            else:
                assert run is not None
                value = np.asarray(run(*argument))
            pipe.send(Answer(value, time.perf_counter() - start))
        except BaseException as error:
            line = (str(error).strip().splitlines() or [""])[0]
            pipe.send(Answer(None, 0.0, f"{type(error).__name__}: {line[:200]}"))
            if os.environ.get("BENCHMARK_TRACEBACK"):
                traceback.print_exc()


def is_late(reason: str) -> bool:
    """Whether it is time that a result is missing for."""
    return reason.startswith((NO_TIME, TOO_LONG))


class Worker:
    """A peer in its own process, restarted after it ran past a limit or died."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.process: Any = None

    def ask(self, what: str, argument: Any = None, limit: float = 600.0) -> Answer:
        if limit <= 0:
            return Answer(None, 0.0, NO_TIME)
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=_serve, args=(self.peer, other), daemon=True)
            self.process.start()
            other.close()
        try:
            self.pipe.send((what, argument))
            if self.pipe.poll(limit):
                return self.pipe.recv()
            reason = f"{TOO_LONG} {limit:.0f} s"
        except (EOFError, OSError):
            self.process.join(5)
            reason = f"process ended with code {self.process.exitcode}"
        self.stop()
        return Answer(None, 0.0, reason)

    def build(self, task: Task | Network, limit: float) -> Answer:
        return self.ask("build", task, limit)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None
