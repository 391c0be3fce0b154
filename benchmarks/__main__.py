"""`python -m benchmarks`: every peer does every task; agreement is checked, times are compared.

Repetitions are interleaved between the peers, and medians are reported, so that a disturbance of the machine hits all
of them. Each peer warms up (compiles) before it is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cold, scaling
from benchmarks.peers import OURS, PEERS, Worker
from benchmarks.tasks import TITLES, Task, workloads

HERE = Path(__file__).parent
PACKAGES = ("numpy", "jax", "jaxlib", "optax", "torch", "numba", "bandit_pft")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything works, times are noise")
    parser.add_argument("--only", nargs="*", metavar="WORKLOAD", help="of: W1 W2 W3 W4 cold scaling")
    parser.add_argument("--peers", nargs="*", metavar="NAME", help=f"of: {', '.join(repr(p.name) for p in PEERS)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds after which a peer stops repeating a cell")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds that one compilation or run may take")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for results.json and RESULTS.md")
    given = parser.parse_args(arguments)
    known = {peer.name: peer for peer in PEERS}
    for name in given.peers or ():
        if name not in known:
            parser.error(f"no peer is named {name!r}: choose from {', '.join(map(repr, known))}")
    for name in given.only or ():
        if name not in ("W1", "W2", "W3", "W4", "cold", "scaling"):
            parser.error(f"no workload is named {name!r}: choose from W1, W2, W3, W4, cold, scaling")
    peers = [known[name] for name in given.peers or known]
    wanted = lambda name: not given.only or name.split()[0] in given.only
    if given.quick:
        given.repeats = min(given.repeats, 2)

    report: dict[str, Any] = {"machine": machine(), "quick": given.quick, "cells": []}
    workers = [Worker(peer) for peer in peers]
    try:
        for name, tasks in workloads(given.quick).items():
            if wanted(name):
                for task in tasks:
                    report["cells"].append(cell(task, workers, given.repeats, given.budget, given.limit))
    finally:
        for worker in workers:
            worker.stop()
    if wanted("cold"):
        report["cold"] = cold.measure(peers, given.quick, given.limit)
    if wanted("scaling"):
        report["scaling"] = scaling.measure(given.quick)
    report["load_at_end"] = os.getloadavg()

    text = render(report, [peer.name for peer in peers])
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    (given.out / "RESULTS.md").write_text(text + "\n")
    wrong = [c for c in report["cells"] if c["disagreement"]]
    for c in wrong:
        print(f"DISAGREE {c['workload']} {c['label']}: {c['disagreement']}", file=sys.stderr)
    return 1 if wrong else 0


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
def cell(task: Task, workers: list[Worker], repeats: int, budget: float, limit: float) -> dict[str, Any]:
    """Times [s] and results of every peer on one task."""
    built, reasons = {}, {}
    for worker in workers:
        answer = worker.build(task, limit)
        if answer.reason:
            reasons[worker.peer.name] = answer.reason
        else:
            built[worker.peer.name] = answer.seconds
    times: dict[str, list[float]] = {name: [] for name in built}
    values: dict[str, list[np.ndarray]] = {name: [] for name in built}
    loads = []
    for repeat in range(repeats):
        loads.append(os.getloadavg()[0])
        # Another order each time: nobody always runs in the wake of the same peer.
        for worker in workers[repeat % len(workers) :] + workers[: repeat % len(workers)]:
            name = worker.peer.name
            if name in reasons or sum(times[name]) > budget:
                continue
            answer = worker.ask("run", 1 + repeat, limit)
            if answer.reason:
                reasons[name] = answer.reason
                continue
            times[name].append(answer.seconds)
            values[name].append(answer.value)
    done = {name: x for name, x in values.items() if x and name not in reasons}
    print(f"{task.workload} {task.label}: " + ", ".join(f"{n} {np.median(times[n]):.3g} s" for n in done), flush=True)
    return {
        "workload": task.workload,
        "label": task.label,
        "task": task._asdict(),
        "seconds": {name: float(np.median(times[name])) for name in done},
        "all_seconds": {name: times[name] for name in done},
        "setup_seconds": built,
        "expected_reward": {name: float(np.mean(x)) for name, x in done.items()},
        "not_available": reasons,
        "load": loads,
        "disagreement": disagreement(task, done),
    }


def disagreement(task: Task, values: dict[str, list[np.ndarray]], exact: float = 1e-3, deviations: float = 5.0) -> str:
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


# --- the report ----------------------------------------------------------------------------------------------------
def render(report: dict[str, Any], names: list[str]) -> str:
    """Markdown tables: microseconds per step, totals, and each peer's time over ours."""
    host = report["machine"]
    load = " / ".join(f"{x:.2f}" for x in (host["load_before"][0], report["load_at_end"][0]))
    lines = ["# Benchmark results", ""]
    if report["quick"]:
        lines += ["**Quick run with tiny sizes: it shows that all peers agree; its times mean nothing.**", ""]
    lines += [
        f"{host['processor']}, {host['cores']} cores, Python {host['python']}, "
        + ", ".join(f"{name} {v}" for name, v in host["versions"].items())
        + f"; {host['date']}; load average before / after {load}.",
    ]
    if "triad_GB_per_s" in host:
        lines += [
            f"Measured limits, all cores: {host['triad_GB_per_s']:.1f} GB/s (a = b + s c), "
            f"{host['exponentials_per_ns']:.2f} exponentials per ns (float32, in cache)."
        ]
    lines += ["Median of interleaved repetitions after warm-up, float32; every row's results agree between peers."]
    for workload in dict.fromkeys(c["workload"] for c in report["cells"]):
        cells = [c for c in report["cells"] if c["workload"] == workload]
        lines += ["", f"## {workload}: {TITLES[workload]}" if not report["quick"] else f"## {workload}", ""]
        lines += _table(cells, names, host)
    for cold_table in [report.get("cold")]:
        if cold_table:
            lines += ["", "## Cold start: a fresh process until eight methods x 200 steps x 32 seeds are done", ""]
            lines += cold.table(cold_table)
    if report.get("scaling"):
        lines += ["", "## Scaling of bandit_pft", "", *scaling.table(report["scaling"])]
    return "\n".join(lines)


def _table(cells: list[dict[str, Any]], names: list[str], host: dict[str, Any]) -> list[str]:
    lines = ["| microseconds per step | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    reasons = []
    for c in cells:
        row = []
        for name in names:
            seconds = c["seconds"].get(name)
            row.append("n/a" if seconds is None else f"{seconds / c['task']['steps'] * 1e6:,.1f}")
            if seconds is None:
                reasons.append(f"{name}, {c['label']}: {c['not_available'].get(name, 'did not run')}")
        flag = " **disagrees**" if c["disagreement"] else ""
        lines.append(f"| {c['label']}{flag} | " + " | ".join(row) + " |")
    total = {n: sum(c["seconds"][n] for c in cells) for n in names if all(n in c["seconds"] for c in cells)}
    show = lambda f: " | ".join(f(total[n]) if n in total else "n/a" for n in names)
    lines.append("| total [ms] | " + show(lambda s: f"{1e3 * s:,.1f}") + " |")
    if OURS in total:
        lines.append(f"| time over that of {OURS} | " + show(lambda s: f"{s / total[OURS]:.2f}") + " |")
    if "C" in total:
        lines.append("| time over that of C | " + show(lambda s: f"{s / total['C']:.2f}") + " |")
    if "exponentials_per_ns" in host:
        exps = [c["task"]["rates"] * c["task"]["seeds"] * c["task"]["actions"] * c["task"]["steps"] for c in cells]
        floor = sum(exps) / host["exponentials_per_ns"] / 1e6
        lines += ["", f"One exponential per action, policy and step, and nothing else, would take {floor:,.1f} ms."]
    lines += [f"- n/a: {reason}" for reason in reasons]
    return lines


if __name__ == "__main__":
    sys.exit(main())
