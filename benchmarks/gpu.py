"""The suite on one accelerator: this package against PyTorch on the same card, and against the card's own copy.

    python3 benchmarks/gpu.py [--quick] [--out FOLDER]

Runs from a checkout, without an installation; needs jax, jaxtyping, numpy, optax, torch and xarray. On a machine
without a card both run on the CPU. Ends with `ok`, or exit code 1 where results disagree or a peer failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.__main__ import cell
from benchmarks.peers import OURS, Peer, Worker
from benchmarks.tasks import Task

# Of the copy's speed, where a step moves at least a million logits; times PyTorch, where problems are small.
SHARE, TIMES = 0.8, 5.0
LARGE = 1_000_000


def peers(cuda: bool) -> list[Peer]:
    # The card belongs to several processes in turn: nobody may take all of its memory.
    ours = (("XLA_PYTHON_CLIENT_PREALLOCATE", "false"),)
    torch = (("BENCHMARK_TORCH_DEVICE", "cuda" if cuda else "cpu"),)
    return [
        Peer(OURS, "peer_ours", environment=ours),
        Peer("torch", "peer_torch", environment=torch),
        Peer("torch.compile", "peer_torch", "build_compiled", environment=torch),
    ]


def tasks(quick: bool) -> list[Task]:
    if quick:
        return [
            Task("small", "grpo", True, 100, 2, 4, 10),
            Task("batch", "reinforce", False, 3000, 1, 2, 10, rate=0.1, adam=True),
            Task("large", "reinforce", False, 20_000, 1, 1, 10, rate=1000.0),
        ]

    def rows(workload: str, k: int, many: int, steps: int) -> list[Task]:
        exact = lambda name, rate, adam=False: Task(workload, name, False, k, 1, many, steps, rate=rate, adam=adam)
        return [exact("reinforce", 0.05 * k), exact("forward_kl", 0.002 * k), exact("reinforce", 1 / steps, True)]

    drawn = lambda workload, name, k, many, rate: Task(workload, name, True, k, 1, many, 200, rate=rate)
    return [
        *(Task("small", name, False, 100, 32, 32, 500) for name in ("forward_kl", "reinforce", "reverse_kl")),
        *(Task("small", name, True, 100, 32, 32, 500) for name in ("best_of_n", "grpo", "dpo", "ipo")),
        *rows("batch", 50_257, 32, 200),
        drawn("batch", "grpo", 50_257, 32, 100.0),
        *rows("large", LARGE, 1, 200),
        drawn("large", "grpo", LARGE, 1, 100.0),
        drawn("large", "reinforce", LARGE, 1, 10.0),
        *rows("huge", 64 * LARGE, 1, 50),
    ]


def copy_speed(torch: Any, floats: int, device: str) -> float:
    """Bytes read and written per second, by the fastest of some copies."""
    a, b = torch.ones(floats, device=device), torch.empty(floats, device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(5):
        wait()
        start = time.perf_counter()
        for _ in range(10):
            b.copy_(a)
        wait()
        times.append((time.perf_counter() - start) / 10)
    return 8 * floats / min(times[1:])


def table(cells: list[dict[str, Any]], copied: float) -> list[str]:
    names = [OURS, "torch", "torch.compile"]
    lines = [
        "| microseconds per step | " + " | ".join(names) + " | torch over ours | share of the copy's speed | |",
        "|---" * (len(names) + 4) + "|",
    ]
    for c in cells:
        task, seconds = c["task"], c["seconds"]
        row = [f"{1e6 * seconds[n] / task['steps']:,.1f}" if n in seconds else "n/a" for n in names]
        over = share = verdict = ""
        if {OURS, "torch"} <= set(seconds):
            ratio = seconds["torch"] / seconds[OURS]
            over = f"{ratio:.2f}"
            if c["workload"] == "small":
                verdict = "met" if ratio >= TIMES else f"not met: {TIMES:g}"
        if OURS in seconds and not task["sampled"] and task["actions"] > 100:
            # Logits are read and written once, with Adam its two moments as well.
            moved = (24 if task["adam"] else 8) * task["actions"] * task["seeds"] * task["steps"]
            reached = moved / seconds[OURS] / copied
            share = f"{reached:.0%}"
            if task["actions"] >= LARGE:
                verdict = "met" if reached >= SHARE else f"not met: {SHARE:.0%}"
        label = f"{c['workload']}, {c['label']}, {task['rates'] * task['seeds']:,} x {task['actions']:,}"
        lines.append("| " + " | ".join([label, *row, over, share, verdict]) + " |")
    reasons = {f"- n/a: {n}, {c['label']}: {why}" for c in cells for n, why in c["not_available"].items()}
    return [*lines, "", *sorted(reasons)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to try out the script itself")
    parser.add_argument("--only", nargs="*", metavar="PART", help="of: small batch large huge")
    parser.add_argument("--out", type=Path, help="folder for gpu.json and GPU.md, written as it goes")
    given = parser.parse_args(arguments)
    try:
        import torch
    except ModuleNotFoundError:
        print(f"gpu.py needs torch, which {sys.executable} does not have: pip install torch")
        return 2
    cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if cuda else "CPU"
    copied = copy_speed(torch, 1 << (20 if given.quick else 28 if cuda else 24), "cuda" if cuda else "cpu")
    cells: list[dict[str, Any]] = []
    head = [f"# {name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}", "",
            f"A copy reads and writes {copied / 1e9:,.1f} GB/s. In both ratios larger is better.", ""]  # fmt: skip
    workers = [Worker(peer) for peer in peers(cuda)]
    try:
        for task in tasks(given.quick):
            if given.only and task.workload not in given.only:
                continue
            cells.append(cell(task, workers, 1 if given.quick else 5, 5.0, 180.0))
            if given.out:
                given.out.mkdir(parents=True, exist_ok=True)
                (given.out / "gpu.json").write_text(json.dumps({"device": name, "copy": copied, "cells": cells}) + "\n")
                (given.out / "GPU.md").write_text("\n".join(head + table(cells, copied)) + "\n")
    finally:
        for worker in workers:
            worker.stop()
    print("\n".join(head + table(cells, copied)))
    wrong = [f"{c['workload']} {c['label']}: {c['disagreement'] or c['not_available']}"
             for c in cells if c["disagreement"] or c["not_available"]]  # fmt: skip
    print("failed: " + "; ".join(wrong) if wrong else "ok")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
