"""The suite on one accelerator: this package against PyTorch on the same card, and against the card's own copy.

    python3 benchmarks/gpu.py [--seconds 270] [--peers NAME ...] [--only PART ...] [--small] [--out FILE]

Made for a card that is lent for minutes: large problems come first, a row is printed as soon as it is known, and what
the time does not suffice for is listed as not run. Runs from a checkout, without an installation; needs jax, jaxtyping,
numpy, optax and xarray, and torch for its rows. Without a card everything is small, on the CPU. Ends with `ok` and exit
code 0, with 1 where results disagree or a peer failed, with 3 where something was not run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.__main__ import cell
from benchmarks.lent import Budget, verdict
from benchmarks.peers import OURS, Peer, Worker, is_late
from benchmarks.tasks import Task

# Of the copy's speed, where an exact step moves at least a million logits; times PyTorch, where problems are small.
SHARE, TIMES = 0.8, 5.0
LARGE = 1_000_000
PARTS = ("huge", "large", "as a user gets it", "batch", "small")
COLUMNS = (OURS, "torch", "torch.compile")
# The card belongs to several processes in turn: nobody may take all of its memory.
SHARED = (("XLA_PYTHON_CLIENT_PREALLOCATE", "false"),)
LIMIT, REPEATING = 90.0, 2.0  # seconds of one answer, and after which a peer stops repeating a cell


def peers(cuda: bool) -> dict[str, list[Peer]]:
    """By the names of `--peers`: whoever fills a column."""
    torch = (("BENCHMARK_TORCH_DEVICE", "cuda" if cuda else "cpu"),)
    given = Peer("bandit_pft, as a user gets it", "peer_ours", "build_as_given", environment=SHARED)
    return {
        OURS: [Peer(OURS, "peer_ours", environment=SHARED), given],
        "torch": [Peer("torch", "peer_torch", environment=torch)],
        "torch.compile": [Peer("torch.compile", "peer_torch", "build_compiled", environment=torch)],
    }


def takes_part(peer: Peer, task: Task) -> bool:
    return (peer.function == "build_as_given") == (task.workload == "as a user gets it")


def tasks(small: bool) -> list[Task]:
    """The largest first."""
    given = lambda name, k, many, steps: Task("as a user gets it", name, True, k, 1, many, steps)
    if small:
        return [
            Task("large", "reinforce", False, 20_000, 1, 1, 10, rate=1000.0),
            given("dpo", 100, 4, 10),
            Task("batch", "reinforce", False, 3000, 1, 2, 10, rate=0.1, adam=True),
            Task("small", "grpo", True, 100, 2, 4, 10),
        ]

    def rows(workload: str, k: int, many: int, steps: int) -> list[Task]:
        exact = lambda name, rate, adam=False: Task(workload, name, False, k, 1, many, steps, rate=rate, adam=adam)
        return [exact("reinforce", 0.05 * k), exact("forward_kl", 0.002 * k), exact("reinforce", 1 / steps, True)]

    drawn = lambda workload, name, k, many, rate: Task(workload, name, True, k, 1, many, 200, rate=rate)
    return [
        *rows("huge", 64 * LARGE, 1, 50),
        *rows("large", LARGE, 1, 200),
        drawn("large", "grpo", LARGE, 1, 100.0),
        drawn("large", "reinforce", LARGE, 1, 10.0),
        given("grpo", LARGE, 1, 200),
        given("dpo", 100, 1024, 200),
        *rows("batch", 50_257, 32, 200),
        drawn("batch", "grpo", 50_257, 32, 100.0),
        *(Task("small", name, True, 100, 32, 32, 500) for name in ("grpo", "dpo", "best_of_n", "ipo")),
        *(Task("small", name, False, 100, 32, 32, 500) for name in ("reinforce", "forward_kl", "reverse_kl")),
    ]


def row(found: dict[str, Any], copied: float) -> str:
    """A line of the table; `copied` is the speed of a copy, in bytes per second."""
    task, name = found["task"], f"{found['workload']}, {found['label']}"
    # Nobody else fills a row as a user gets it.
    times = {peer.partition(",")[0]: x for peer, x in found["seconds"].items()}
    cells = [f"{1e6 * times[peer] / task['steps']:,.1f}" if peer in times else "n/a" for peer in COLUMNS]
    over = share = goal = ""
    if {OURS, "torch"} <= set(times):
        ratio = times["torch"] / times[OURS]
        over = f"{ratio:.2f}"
        if found["workload"] == "small":
            goal = "met" if ratio >= TIMES else f"not met: {TIMES:g}"
    if OURS in times:
        # Logits are read and written once, with Adam its two moments as well.
        moved = (24 if task["adam"] else 8) * task["actions"] * task["rates"] * task["seeds"] * task["steps"]
        reached = moved / times[OURS] / copied
        share = f"{reached:.0%}"
        if not task["sampled"] and task["actions"] >= LARGE:
            goal = "met" if reached >= SHARE else f"not met: {SHARE:.0%}"
    first = ", ".join(f"{x:.1f}" for x in found["setup_seconds"].values())
    label = f"{name}, {task['rates'] * task['seeds']:,} x {task['actions']:,}"
    return "| " + " | ".join([label, *cells, over, share, goal, first]) + " |"


class Report:
    """Lines that are printed when they are known, and stand in files from then on."""

    def __init__(self, out: Path | None) -> None:
        self.out, self.lines, self.cells = out, [], []

    def say(self, *lines: str) -> None:
        print(*lines, sep="\n", flush=True)
        self.lines += lines
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.with_suffix(".md").write_text("\n".join(self.lines) + "\n")

    def add(self, found: dict[str, Any], device: dict[str, Any]) -> None:
        self.cells.append(found)
        self.say(row(found, device["copy"]))
        if self.out is not None:
            self.out.with_suffix(".json").write_text(json.dumps({**device, "cells": self.cells}) + "\n")

    def end(self, failed: list[str], not_run: list[str]) -> int:
        lines, code = verdict(failed, not_run)
        self.say("", *lines)
        return code


def head(device: dict[str, Any], small: bool, torch: str) -> list[str]:
    return [
        f"# {device['device']}, {time.strftime('%Y-%m-%d')}",
        "",
        f"{device['versions']}.",
        f"A copy reads and writes {device['copy'] / 1e9:,.1f} GB/s. PyTorch: {torch}.",
        *(["Small sizes: only to see that it works."] if small else []),
        "In both ratios larger is better. Before the first result a peer starts, compiles and warms up.",
        "",
        f"| microseconds per step | {' | '.join(COLUMNS)} | torch over ours | share of the copy's speed | goal "
        "| seconds before the first result |",
        "|---" * (len(COLUMNS) + 5) + "|",
    ]


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=270.0, help="after which it ends (default 270)")
    parser.add_argument("--peers", nargs="+", choices=COLUMNS, default=COLUMNS, help="default: all")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"of: {PARTS}")
    parser.add_argument("--small", action="store_true", help="small sizes, as without a card")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also into FILE.md, and FILE.json, row by row")
    return parser.parse_args(arguments)


def measured(given: argparse.Namespace, budget: Budget, report: Report, start: Callable[[Peer], Any]) -> int:
    """Every cell that the time suffices for; the exit code."""
    answer = start(peers(False)[OURS][0]).ask("call", ("lent", "described", given.small), budget.left())
    failed, not_run = [], []
    if answer.reason:
        (not_run if is_late(answer.reason) else failed).append(f"everything: {answer.reason}")
        return report.end(failed, not_run)
    device = answer.value
    small, there, names = given.small or device["platform"] == "cpu", peers(device["platform"] == "gpu"), given.peers
    torch = "not asked for"
    if asked := [name for name in names if name.startswith("torch")]:
        answer = start(there[asked[0]][0]).ask("call", ("peer_torch", "device"), budget.left())
        torch = f"not here, so no rows of it ({answer.reason})" if answer.reason else answer.value
        names = [name for name in names if not (answer.reason and name in asked)]
    report.say(*head(device, small, torch))
    workers = [start(peer) for name in names for peer in there[name]]
    for task in tasks(small):
        taking = [each for each in workers if takes_part(each.peer, task)]
        label = f"{task.workload}, {task.label}"
        if task.workload not in given.only or not taking:
            continue
        if budget.left() <= 0:
            not_run.append(label)
            continue
        found = cell(task, taking, 1 if small else 5, REPEATING, LIMIT, budget.left)
        report.add(found, device)
        failed += [f"{label}: {found['disagreement']}"] if found["disagreement"] else []
        for name, reason in found["not_available"].items():
            (not_run if is_late(reason) else failed).append(f"{label}, {name}: {reason}")
    return report.end(failed, not_run)


def main(
    arguments: list[str] | None = None, worker: Callable[[Peer], Any] = Worker,
    clock: Callable[[], float] = time.monotonic,
) -> int:  # fmt: skip
    given, started = parsed(arguments), {}
    try:
        budget = Budget(given.seconds, clock)
        start = lambda peer: started.setdefault(peer.name, worker(peer))
        return measured(given, budget, Report(given.out), start)
    finally:
        for each in started.values():
            each.stop()


if __name__ == "__main__":
    raise SystemExit(main())
