"""`python -m benchmarks`: every peer does every task; agreement is checked, times are compared.

Repetitions are interleaved between the peers, and medians are reported, so that a disturbance of the machine hits all
of them. Each peer warms up (compiles) before it is timed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cold, history, scaling
from benchmarks.peers import PEERS, Worker
from benchmarks.report import render
from benchmarks.tasks import MANY, Network, Task, workloads

HERE = Path(__file__).parent
PACKAGES = ("numpy", "jax", "jaxlib", "optax", "torch", "numba", "bandit_pft")


PARTS = ("W1", "W2", "W3", "W4", "W5", "cold", "scaling")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything works, times are noise")
    parser.add_argument("--only", nargs="*", metavar="PART", help=f"of: {' '.join(PARTS)}")
    parser.add_argument("--peers", nargs="*", metavar="NAME", help=f"of: {', '.join(repr(p.name) for p in PEERS)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budget", type=float, default=10.0, help="seconds after which a peer stops repeating a cell")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds that one compilation or run may take")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the report, its figure and history.jsonl")
    given = parser.parse_args(arguments)
    known = {peer.name: peer for peer in PEERS}
    for name in given.peers or ():
        if name not in known:
            parser.error(f"no peer is named {name!r}: choose from {', '.join(map(repr, known))}")
    for name in given.only or ():
        if name not in PARTS:
            parser.error(f"no part is named {name!r}: choose from {', '.join(PARTS)}")
    peers = [known[name] for name in given.peers or known]
    wanted = lambda name: not given.only or name.split()[0] in given.only
    if given.quick:
        given.repeats = min(given.repeats, 2)
    given.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": machine(), "quick": given.quick, "cells": [], "failed": {}}

    def save() -> str:
        """After each piece, so that a run that is killed leaves what it has."""
        text = render(report, [peer.name for peer in peers])
        (given.out / "results.json").write_text(json.dumps(report, indent=1) + "\n")
        (given.out / "RESULTS.md").write_text(text + "\n")
        return text

    @contextmanager
    def part(name: str) -> Iterator[None]:
        """A part that fails is a line of the report."""
        try:
            yield
        except Exception as error:
            report["failed"][name] = f"{type(error).__name__}: {str(error)[:200]}"
            print(f"{name} failed: {report['failed'][name]}", file=sys.stderr)
        save()

    workers = [Worker(peer) for peer in peers]
    try:
        for workload, tasks in workloads(given.quick).items():
            for task in tasks if wanted(workload) else ():
                with part(f"{workload} {task.label}"):
                    found = cell(task, workers, given.repeats, given.budget, given.limit)
                    report["cells"].append(found)
                    times = ", ".join(f"{name} {x:.3g} s" for name, x in found["seconds"].items())
                    print(f"{workload} {task.label}: {times}", flush=True)
        with part("memory"):
            answers = {worker.peer.name: worker.ask("memory") for worker in workers if worker.process is not None}
            report["memory"] = {name: answer.value for name, answer in answers.items() if not answer.reason}
    finally:
        for worker in workers:
            worker.stop()
    if wanted("cold"):
        with part("cold"):
            report["cold"] = {}
            cold.measure(peers, given.quick, given.limit, report["cold"], save)
    if wanted("scaling"):
        with part("scaling"):
            report["scaling"] = {}
            scaling.measure(given.quick, report["scaling"], save, given.limit)
    with part("figure"):
        from benchmarks import figure

        report["figure"] = figure.draw(report, given.out)
    report["load_at_end"] = os.getloadavg()
    if not (given.quick or given.only or given.peers):
        with part("history"):
            now, path = history.entry(report), given.out / "history.jsonl"
            report["since"] = history.compared(now, history.last(path, now["machine"]))
            history.append(path, now)
    print(save())
    wrong = [c for c in report["cells"] if c["disagreement"]]
    for c in wrong:
        print(f"DISAGREE {c['workload']} {c['label']}: {c['disagreement']}", file=sys.stderr)
    return 1 if wrong or report["failed"] else 0


def machine() -> dict[str, Any]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), processor)
    except OSError:
        pass
    limits: dict[str, Any] = {}
    try:
        from benchmarks.peer_c import machine as measured

        limits = measured()
    except Exception as error:
        limits["unmeasured"] = str(error)
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": found,
        "load_before": os.getloadavg(),
        "date": time.strftime("%Y-%m-%d"),
        **limits,
    }


# --- one task, all peers -------------------------------------------------------------------------------------------
def cell(
    task: Task | Network, workers: list[Worker], repeats: int, budget: float, limit: float,
    left: Callable[[], float] = lambda: math.inf,
) -> dict[str, Any]:  # fmt: skip
    """Times [s] and results of every peer on one task, with the floor below them where one is counted.

    Args:
        budget: seconds after which a peer stops repeating. limit: seconds of one answer.
        left: seconds until everything has to end.
    """
    built, reasons = _built(task, workers, lambda: min(limit, left()))
    many = task.actions > MANY
    scaled_from = {
        worker.peer.name: worker.peer.capped
        for worker in workers
        if worker.peer.capped
        and worker.peer.name in built
        and many
        and task.sampled
        and task.steps > worker.peer.capped
    }
    times: dict[str, list[float]] = {name: [] for name in built}
    values: dict[str, list[np.ndarray]] = {name: [] for name in built}
    loads, floors = [], []
    for repeat in range(repeats):
        loads.append(os.getloadavg()[0])
        if isinstance(task, Task) and many and not task.sampled and any(w.peer.name == "C" for w in workers):
            floors += _floor(task)
        # Another order each time: nobody always runs in the wake of the same peer.
        for worker in workers[repeat % len(workers) :] + workers[: repeat % len(workers)]:
            name = worker.peer.name
            spent = sum(times.get(name, ()))
            # A repetition that is cut off would take along what is known.
            if name in reasons or spent > budget or (spent and left() < 2 * spent):
                continue
            steps = scaled_from.get(name)
            answer = worker.ask("run", (1 + repeat, *((steps,) if steps else ())), min(limit, left()))
            if answer.reason:
                reasons[name] = answer.reason
                continue
            times[name].append(answer.seconds * (task.steps / steps if steps else 1))
            if not steps:
                values[name].append(answer.value)
    done = [name for name, x in times.items() if x and name not in reasons]
    compared = {name: values[name] for name in done if values[name]}
    return {
        "workload": task.workload,
        "label": task.label,
        "task": task._asdict(),
        "seconds": {name: float(np.median(times[name])) for name in done},
        "all_seconds": {name: times[name] for name in done},
        "setup_seconds": built,
        "expected_reward": {name: float(np.mean(x)) for name, x in compared.items()},
        "not_available": reasons,
        "scaled_from": {name: steps for name, steps in scaled_from.items() if name in done},
        "floor": {part: float(np.median([x[part] for x in floors])) for part in floors[0]} if floors else None,
        "load": loads,
        "disagreement": disagreement(task, compared),
    }


def _built(task: Task | Network, workers: list[Worker], limit: Callable[[], float]) -> tuple[dict, dict[str, str]]:
    """Seconds before each peer's first result, and why others have none."""
    built, reasons = {}, {}
    for worker in workers:
        if reason := worker.peer.skips.get(task.workload):
            reasons[worker.peer.name] = reason
            continue
        answer = worker.build(task, limit())
        if answer.reason:
            reasons[worker.peer.name] = answer.reason
        else:
            built[worker.peer.name] = answer.seconds
    return built, reasons


def _floor(task: Task) -> list[dict[str, float]]:
    """One measurement, none without a C compiler."""
    try:
        from benchmarks.peer_c import floor

        return [floor(task)]
    except (RuntimeError, OSError):
        return []


def disagreement(
    task: Task | Network, values: dict[str, list[np.ndarray]], exact: float = 1e-3, deviations: float = 5.0
) -> str:
    """Empty where all peers computed the same thing: each policy within `exact`, or within the error of sampling.

    Sampled runs are averaged over learning rates first: a peer may use the same draws for all of them.
    """
    if not values:
        return ""
    for name, runs in values.items():
        if not all(x.shape == (task.rows,) and np.isfinite(x).all() for x in runs):
            return f"{name} gave {runs[0].shape} or non-finite values"
    if not task.sampled:
        middle = np.median([runs[0] for runs in values.values()], 0)
        worst = {name: max(float(abs(x - middle).max()) for x in runs) for name, runs in values.items()}
        return ", ".join(f"{name} off by {x:.2g}" for name, x in worst.items() if x > exact)
    per_seed = {
        name: np.concatenate([x.reshape(task.rates, task.seeds).mean(0) for x in runs]).astype(np.float64)
        for name, runs in values.items()
    }
    free = sum(len(x) - 1 for x in per_seed.values())
    if free == 0 or len(per_seed) < 2:
        return ""
    variance = sum(((x - x.mean()) ** 2).sum() for x in per_seed.values()) / free
    said = []
    for name, x in per_seed.items():
        others = np.concatenate([y for other, y in per_seed.items() if other != name])
        error = np.sqrt(variance * (1 / len(x) + 1 / len(others))) + 1e-6
        if abs(x.mean() - others.mean()) > deviations * error:
            said.append(f"{name} {x.mean():.4f}, others {others.mean():.4f} +- {error:.1g}")
    return ", ".join(said)


if __name__ == "__main__":
    sys.exit(main())
