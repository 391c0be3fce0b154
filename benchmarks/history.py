"""One line per full run, and what became slower since the last one on the same kind of machine."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.peers import OURS

YARDSTICKS = ("C", "torch")
TOLERANCE = 0.2


def entry(report: dict[str, Any]) -> dict[str, Any]:
    """Date, commit, machine, versions, and the seconds of every cell for us and the yardsticks."""
    from bandit_pft.store import source_state

    host = report["machine"]
    return {
        "date": host["date"],
        "commit": source_state(Path(__file__).parent) or "",
        "machine": {"processor": host["processor"], "cores": host["cores"]},
        "versions": {"python": host["python"], **host["versions"]},
        "seconds": {
            f"{c['workload']} {c['label']}": {n: c["seconds"][n] for n in (OURS, *YARDSTICKS) if n in c["seconds"]}
            for c in report["cells"]
        },
    }


def last(path: Path, machine: dict[str, Any]) -> dict[str, Any] | None:
    """The latest entry of the same processor and number of cores."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [kept for line in lines if line.strip() and (kept := json.loads(line))["machine"] == machine]
    return found[-1] if found else None


def append(path: Path, now: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(now) + "\n")


def regressions(now: dict[str, Any], before: dict[str, Any]) -> dict[str, float]:
    """Cells in which we became slower by more than the tolerance -> by what factor.

    Measured against the yardstick that changed in the same direction most: where C or torch takes longer too, it is
    the machine, and where C was improved, torch was not.
    """
    found = {}
    for name, seconds in now["seconds"].items():
        old = before["seconds"].get(name, {})
        if OURS not in seconds or OURS not in old:
            continue
        changes = [seconds[y] / old[y] for y in YARDSTICKS if y in seconds and y in old]
        factor = seconds[OURS] / old[OURS] / max(changes, default=math.nan)
        if factor > 1 + TOLERANCE:
            found[name] = factor
    return found


def compared(now: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    """The comparison as lines of text."""
    if before is None:
        return ["No earlier run on this kind of machine is known."]
    since = f"the run of {before['date']}" + (f" (commit {before['commit'][:12]})" if before["commit"] else "")
    slower = regressions(now, before)
    if not slower:
        return [f"Since {since}, no row became more than {TOLERANCE:.0%} slower beyond what C or torch did."]
    rows = [f"- {name}: {factor:.2f} times" for name, factor in slower.items()]
    return [f"Since {since}, these rows became slower, beyond what C or torch did:", "", *rows]
