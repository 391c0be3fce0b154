"""Cost of this package against problem size, one axis at a time; a fresh process per point gives its peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple


class Point(NamedTuple):
    """One run; `dense` keeps steps on the drawn responses alone from being taken."""

    objective: str = "grpo"
    exact: bool = False
    policy: str = "tabular"
    dense: bool = False
    actions: int = 100
    contexts: int = 1
    tokens: int = 1
    draws: int = 16
    steps: int = 200
    seeds: int = 32
    devices: int = 1


class Curve(NamedTuple):
    """Points along one axis; `per_step` takes the start and the end of a run out of its time."""

    axis: str
    points: list[Point]
    per_step: bool = False


EXACT, SPARSE, DENSE = "exact steps, reinforce", "grpo, steps on the drawn actions", "grpo, dense steps"
WORK = 200_000_000  # actions x policies x steps of an exact point
TARGET_SPREAD = 1.3


def curves(quick: bool = False) -> dict[str, Curve]:
    """All of them; quick: the first two points of each, small."""
    base = Point()

    def along(axis: str, *values: int, per_step: bool = False, **fixed: Any) -> Curve:
        return Curve(axis, [base._replace(**fixed, **{axis: value}) for value in values], per_step)

    def sampled(objective: str, axis: str, *values: int) -> Curve:
        found = []
        for point in along(axis, *values, objective=objective).points:
            # Millions of actions or thousands of contexts: fewer seeds and steps keep a point below a minute.
            cells = point.actions * point.contexts
            if cells > 1000:
                point = point._replace(seeds=max(1, 32_000 // cells), steps=50)
            found.append(point)
        return Curve(axis, found)

    def exact(actions: int) -> Point:
        policies = max(1, min(1000, 100_000 // actions))
        work = WORK // 1000 if quick else WORK
        steps = max(1, work // (actions * policies))
        return base._replace(objective="reinforce", exact=True, actions=actions, seeds=policies, steps=steps)

    few = lambda objective, *actions: along(
        "actions", *actions, objective=objective, steps=200 if quick else 20_000, seeds=1, per_step=True
    )
    dense = lambda actions: base._replace(dense=True, actions=actions, seeds=1, steps=max(20, 40_000_000 // actions))
    large = (40_000, 50_000) if quick else (100_000, 1_000_000, 10_000_000)
    found = {
        "grpo, actions": sampled("grpo", "actions", 10, 100, 1000, 10_000, 100_000, 1_000_000),
        "dpo, actions": sampled("dpo", "actions", 100, 10_000, 1_000_000),
        "grpo, contexts": sampled("grpo", "contexts", 1, 10, 100),
        "grpo, draws": along("draws", 4, 16, 64, 256),
        "dpo, draws": along("draws", 4, 64, 256, objective="dpo"),
        "grpo, steps": along("steps", 50, 200, 800, 3200),
        "grpo, seeds": along("seeds", 1, 32, 512, 2048),
        "grpo, devices": along("devices", 1, 2, seeds=512),
        "grpo, tokens, factorised": along("tokens", 1, 4, 16, 64, policy="factorised"),
        "grpo, tokens, transformer": along("tokens", 2, 8, 32, policy="transformer", seeds=2, steps=20),
        EXACT: Curve("actions", [exact(k) for k in (100, 1000, 10_000, 100_000, 1_000_000)]),
        SPARSE: few("grpo", *large),
        DENSE: Curve("actions", [dense(k) for k in large], per_step=True),
        "rloo, steps on the drawn actions": few("rloo", large[1]),
        "dpo, steps on the drawn actions": few("dpo", large[1]),
    }
    return {name: curve._replace(points=curve.points[:2]) for name, curve in found.items()} if quick else found


def setting(point: Point) -> tuple[Any, Any, Any]:
    """Problem, method and probe of a point."""
    import numpy as np
    import optax

    from bandit_pft import Method, bandit, sequences
    from bandit_pft.methods import SGD
    from bandit_pft.policies import factorised, tabular, transformer
    from benchmarks.peer_ours import expected_reward_probe
    from benchmarks.tasks import Task, arrays

    table = arrays(Task("", point.objective, True, point.actions, 1, 1, point.steps, rate=0.1))
    make, places = (bandit, ()) if point.policy == "tabular" else (sequences, (point.tokens,))
    tile = lambda x: np.tile(x, (point.contexts, *places, 1))
    features = np.zeros((point.contexts, 1), np.float32)
    method = Method(
        point.objective,
        learning_rate=1e-3 if point.policy == "transformer" else 0.1,
        num_responses=point.draws,
        data="exact" if point.exact else "sampled",
        policy={"tabular": tabular, "factorised": factorised}.get(point.policy) or transformer(),
        optimizer=optax.sgd(1.0) if point.dense else SGD,  # another plain SGD than the one that is looked for
    )
    problem = make(tile(table.reward), tile(table.ref_logp), features=features, name="scaling")
    return problem, method, expected_reward_probe if point.policy == "tabular" else loss_probe


def measure_point(point: Point, per_step: bool) -> dict[str, float]:
    """Runs in the fresh process: seconds of a warm run, and the peak memory [MB] that the runs add."""
    import resource

    import numpy as np

    from bandit_pft import sweep

    problem, method, probe = setting(point)

    def run(seed: int, steps: int) -> float:
        seeds = range(seed * point.seeds, (seed + 1) * point.seeds)
        start = time.perf_counter()
        sweep(problem, method, seeds=seeds, steps=steps, every=steps, probe=probe)
        return time.perf_counter() - start

    def warm(steps: int) -> tuple[float, float]:
        first, times = run(0, steps), []
        while len(times) < 5 and sum(times) < 3:
            times.append(run(1 + len(times), steps))
        return first, float(np.median(times))

    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before = peak()
    first, seconds = warm(point.steps)
    steps, took = point.steps, seconds
    if per_step:
        short = max(2, steps // 10)
        # Below the noise of start and end, a step is not known better than this.
        took, steps = max(seconds - warm(short)[1], 0.01 * seconds), steps - short
    each = 1e9 * took / (point.seeds * steps * point.contexts)
    return {
        "seconds": seconds,
        "first_seconds": first,
        "nanoseconds_per_policy_step": each,
        "nanoseconds_per_element": each / (point.actions * point.tokens),
        "peak_MB": peak() - before,
    }


def loss_probe(problem: Any, state: Any) -> dict[str, Any]:
    return {"loss": state.loss}


def measure(quick: bool, results: dict[str, Any], save: Any, limit: float = 180.0) -> None:
    """Fills `results` point by point."""
    root = Path(__file__).parents[1]
    for name, curve in curves(quick).items():
        here = results.setdefault(name, {"axis": curve.axis, "per_step": curve.per_step, "points": []})
        for point in curve.points:
            command = [sys.executable, "-m", "benchmarks.scaling", json.dumps(point), str(int(curve.per_step))]
            flags = f"--xla_force_host_platform_device_count={point.devices}" if point.devices > 1 else ""
            environment = {**os.environ, **({"XLA_FLAGS": flags} if flags else {})}
            found: dict[str, Any] = point._asdict()
            try:
                done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=limit)
                if done.returncode:
                    found["reason"] = (done.stderr.strip().splitlines() or ["failed"])[-1][:200]
                else:
                    found |= json.loads(done.stdout.splitlines()[-1])
            except subprocess.TimeoutExpired:
                found["reason"] = f"took longer than {limit:.0f} s"
            here["points"].append(found)
            shown = {key: found[key] for key in ("seconds", "reason") if key in found}
            print(f"scaling of {name} = {found[curve.axis]}: {shown}", flush=True)
            save()


def spread(results: dict[str, Any]) -> float | None:
    """Largest over smallest time per element of exact steps; None unless every point was measured."""
    found = [p.get("nanoseconds_per_element") for p in results.get(EXACT, {}).get("points", ())]
    return max(found) / min(found) if len(found) > 1 and None not in found else None


def table(results: dict[str, Any]) -> list[str]:
    base = ", ".join(f"{x} {name}" for name, x in Point()._asdict().items() if isinstance(x, int) and x not in (0, 1))
    lines = [
        f"One axis at a time around {base}. Nanoseconds per policy, context and step of a warm run, everything "
        "included; for steps on the drawn actions and their dense counterpart, the difference between a run and one of "
        "a tenth of its steps. Per element: over actions and tokens. First run: with compilation. Memory: the peak "
        "that the runs add.",
        "",
        "| | value | seeds x steps | run [s] | ns per policy-step | ns per element | first run [s] | memory [MB] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, curve in results.items():
        for p in curve["points"]:
            begin = f"| {name} | {p[curve['axis']]:,} | {p['seeds']} x {p['steps']:,}"
            if "reason" in p:
                lines.append(f"{begin} | n/a | n/a | n/a | n/a | {p['reason']} |")
                continue
            lines.append(
                f"{begin} | {p['seconds']:.3f} | {p['nanoseconds_per_policy_step']:,.0f} "
                f"| {p['nanoseconds_per_element']:.3g} | {p['first_seconds']:.2f} | {p['peak_MB']:,.0f} |"
            )
    flat = spread(results)
    if flat is not None:
        lines += ["", f"Exact steps, largest over smallest time per element: {flat:.2f} (target: {TARGET_SPREAD})."]
    lines += _sparse(results)
    return lines


def _sparse(results: dict[str, Any]) -> list[str]:
    """The steps that touch only what was drawn, beside those that touch everything."""
    step = lambda name: {
        p["actions"]: p["nanoseconds_per_policy_step"] / 1e3
        for p in results.get(name, {}).get("points", ())
        if "reason" not in p
    }
    few, whole = step(SPARSE), step(DENSE)
    both = [k for k in few if k in whole]
    if not both:
        return []
    rows = ["| actions | on the drawn actions [us per step] | dense [us per step] | ratio |", "|---|---|---|---|"]
    rows += [f"| {k:,} | {few[k]:,.1f} | {whole[k]:,.1f} | {whole[k] / few[k]:,.1f} |" for k in both]
    return ["", "Where forces sum to zero (grpo, 16 draws, SGD, one policy):", "", *rows]


if __name__ == "__main__":
    print(json.dumps(measure_point(Point(*json.loads(sys.argv[1])), bool(int(sys.argv[2])))))
