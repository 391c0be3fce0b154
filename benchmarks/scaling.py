"""Cost of this package against problem size, one axis at a time; a fresh process per point gives its peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BASE = {"actions": 100, "contexts": 1, "draws": 16, "steps": 200, "seeds": 32}
AXES = {
    "actions": (10, 100, 1000, 10_000, 100_000, 1_000_000),
    "contexts": (1, 10, 100, 1000),
    "draws": (4, 16, 64, 256),
    "steps": (50, 200, 800, 3200),
    "seeds": (1, 8, 32, 128, 512, 2048),
}
QUICK = {name: values[:2] for name, values in AXES.items()}
OBJECTIVES = ("grpo", "dpo")


def point(objective: str, **sizes: int) -> dict[str, float]:
    """Runs in the fresh process: seconds of a warm run, and the peak memory [MB] that the runs add."""
    import resource

    import numpy as np

    from bandit_pft import Method, bandit, sweep
    from benchmarks.peer_ours import expected_reward_probe
    from benchmarks.tasks import Task, arrays

    size = {**BASE, **sizes}
    # Millions of actions or thousands of contexts: fewer seeds and steps keep a point below a minute.
    cells = size["actions"] * size["contexts"]
    if cells > 1000:
        size["seeds"] = max(1, min(size["seeds"], 32_000 // cells))
        size["steps"] = min(size["steps"], 50)
    table = arrays(Task("", objective, True, size["actions"], 1, 1, size["steps"], rate=0.1))
    tile = lambda x: np.tile(x, (size["contexts"], 1))
    features = np.zeros((size["contexts"], 1), np.float32)
    problem = bandit(tile(table.reward), tile(table.ref_logp), features=features, name="scaling")
    method = Method(objective, learning_rate=0.1, num_responses=size["draws"])

    def run(seed: int) -> None:
        seeds = range(seed * size["seeds"], (seed + 1) * size["seeds"])
        sweep(problem, method, seeds=seeds, steps=size["steps"], every=size["steps"], probe=expected_reward_probe)

    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before = peak()
    start = time.perf_counter()
    run(0)
    first = time.perf_counter() - start
    times = []
    while len(times) < 5 and sum(times) < 3:
        start = time.perf_counter()
        run(1 + len(times))
        times.append(time.perf_counter() - start)
    work = size["seeds"] * size["steps"] * size["contexts"]
    seconds = float(np.median(times))
    return {
        **{name: float(x) for name, x in size.items()},
        "seconds": seconds,
        "first_seconds": first,
        "nanoseconds_per_policy_step": 1e9 * seconds / work,
        "peak_MB": peak() - before,
    }


def measure(quick: bool) -> dict[str, Any]:
    root = Path(__file__).parents[1]
    results: dict[str, Any] = {}
    for objective in OBJECTIVES[: 1 if quick else None]:
        for axis, values in (QUICK if quick else AXES).items():
            for value in values:
                command = [sys.executable, "-m", "benchmarks.scaling", objective, f"{axis}={value}"]
                try:
                    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=180)
                    failed = (done.stderr.strip().splitlines() or ["failed"])[-1][:200] if done.returncode else ""
                except subprocess.TimeoutExpired:
                    failed = "took longer than 180 s"
                here = results.setdefault(f"{objective}, {axis}", {})
                here[str(value)] = {"reason": failed} if failed else json.loads(done.stdout.splitlines()[-1])
                print(f"scaling of {objective}, {axis} = {value}: {here[str(value)]}", flush=True)
    return results


def table(results: dict[str, Any]) -> list[str]:
    base = ", ".join(f"{x} {name}" for name, x in BASE.items())
    lines = [
        f"One axis at a time around {base}, sampled, metrics at the end. Nanoseconds per policy, context and step "
        "(warm run, everything included), and peak memory added [MB].",
        "",
        "| | value | seeds x steps | run [s] | ns per policy-step | first run [s] | memory [MB] |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, points in results.items():
        for value, p in points.items():
            if "reason" in p:
                lines.append(f"| {name} | {value} | n/a | n/a | n/a | n/a | {p['reason']} |")
                continue
            lines.append(
                f"| {name} | {int(value):,} | {p['seeds']:.0f} x {p['steps']:.0f} | {p['seconds']:.3f} "
                f"| {p['nanoseconds_per_policy_step']:,.0f} | {p['first_seconds']:.2f} | {p['peak_MB']:,.0f} |"
            )
    return lines


if __name__ == "__main__":
    axis, _, value = sys.argv[2].partition("=")
    print(json.dumps(point(sys.argv[1], **{axis: int(value)})))
