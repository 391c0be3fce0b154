"""Cold start: fresh process, import, compile, first result; and the second one in the same process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS, Peer

CACHES = {
    "peer_ours": "JAX_COMPILATION_CACHE_DIR",
    "peer_jax": "JAX_COMPILATION_CACHE_DIR",
    "peer_numba": "NUMBA_CACHE_DIR",
}


def child(name: str, quick: bool) -> dict[str, float]:
    """Runs in the fresh process. Seconds, measured from before the first import of a numerical library."""
    start = time.perf_counter()
    import importlib

    peer = next(p for p in PEERS if p.name == name)
    module = importlib.import_module(f"benchmarks.{peer.module}")
    imported = time.perf_counter()
    from benchmarks.tasks import workloads

    tasks = workloads(quick)["W4 sampled"][: 2 if quick else None]
    if hasattr(module, "build_many"):
        runs = [module.build_many(tasks)]  # warm-up is the first full run
        first = time.perf_counter()
    else:
        runs = [getattr(module, peer.function)(task) for task in tasks]
        for run in runs:
            run(1)
        first = time.perf_counter()
    for run in runs:
        run(2)
    second = time.perf_counter()
    return {"import": imported - start, "first": first - imported, "again": second - first}


def measure(peers: list[Peer], quick: bool, limit: float, results: dict[str, Any], save: Any) -> None:
    """Fills `results`, per peer: no cache, an empty cache being filled, the filled cache."""
    for peer in peers:
        if peer.function != "build" or peer.environment:
            continue  # compiling eight steps takes torch minutes; devices do not change the start
        variable = CACHES.get(peer.module)
        with tempfile.TemporaryDirectory() as folder:
            stages = {"no cache": None, **({"filling the cache": folder, "cached": folder} if variable else {})}
            for stage, where in stages.items():
                name = f"{peer.name}, {stage}"
                results[name] = _fresh(peer, quick, limit, variable, where)
                print(f"cold start of {name}: {results[name]}", flush=True)
                save()


def _fresh(peer: Peer, quick: bool, limit: float, variable: str | None, where: str | None) -> dict[str, Any]:
    environment = {key: x for key, x in os.environ.items() if key not in CACHES.values()}
    environment.update(peer.environment)
    if variable and where:
        environment[variable] = where
        # Small programs count: they are what a notebook waits for.
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "benchmarks.cold", peer.name, *(["--quick"] if quick else [])]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"reason": f"took longer than {limit:.0f} s"}
    if done.returncode:
        return {"reason": (done.stderr.strip().splitlines() or ["failed"])[-1][:200]}
    return {"process": time.perf_counter() - start, **json.loads(done.stdout.splitlines()[-1])}


def table(results: dict[str, Any]) -> list[str]:
    columns = {"process": "whole process", "import": "import", "first": "first result", "again": "second result"}
    lines = ["| seconds | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in results.items():
        shown = [f"{row[c]:.3f}" if c in row else "n/a" for c in columns]
        lines.append(f"| {name} | " + " | ".join(shown) + " |" + (f" {row['reason']}" if "reason" in row else ""))
    return lines


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], "--quick" in sys.argv)))
