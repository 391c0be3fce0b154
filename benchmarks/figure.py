"""The report as one picture: who takes how long compared with us, and how our steps scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from bandit_pft.style import COLOURS, RC, REFERENCE, REWARD_EDGE, SLIDE
from benchmarks import scaling
from benchmarks.peers import OURS

# What is compiled is filled; one library, one colour.
LOOKS: dict[str, tuple[str, str, bool]] = {
    "C": ("#000000", "s", True),
    "numba": (COLOURS["preference"], "D", True),
    "NumPy": (REFERENCE, "v", False),
    "torch": (COLOURS["reward"], "o", False),
    "torch.compile": (COLOURS["reward"], "o", True),
    "common JAX": (COLOURS["unpaired"], "^", True),
    "bandit_pft, 2 devices": (COLOURS["supervised"], "P", True),
}


def draw(report: dict[str, Any], folder: Path) -> str:
    """Writes results.png and results.svg; gives the first one's name."""
    with plt.rc_context(RC):
        figure = plt.figure(figsize=SLIDE, layout="constrained")
        # Fixed shares: what is drawn does not decide how much room it has.
        grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1), height_ratios=(1, 1))
        _peers(figure, figure.add_subplot(grid[:, 0]), report)
        _flat(figure.add_subplot(grid[0, 1]), report.get("scaling", {}))
        _sparse(figure.add_subplot(grid[1, 1]), report.get("scaling", {}))
        for ending, more in (("png", {}), ("svg", {"metadata": {"Date": None}})):
            figure.savefig(folder / f"results.{ending}", **more)
        plt.close(figure)
    return "results.png"


def _peers(figure: Any, axes: Any, report: dict[str, Any]) -> None:
    rows: dict[str, list[dict[str, Any]]] = {}
    for c in report["cells"]:
        large = c["workload"] in ("W2", "W3")
        kind = " sampled" if c["task"]["sampled"] else " Adam" if c["task"]["adam"] else " exact"
        rows.setdefault(c["workload"] + (kind if large or c["workload"] == "W1" else ""), []).append(c)
    seen = []
    for place, cells in enumerate(rows.values()):
        for name, (colour, marker, filled) in LOOKS.items():
            if not all({name, OURS} <= set(c["seconds"]) for c in cells):
                continue
            total = lambda name, cells=cells: sum(c["seconds"][name] for c in cells)
            axes.plot(total(name) / total(OURS), place, marker, color=colour, markersize=11, markeredgewidth=2,
                      markerfacecolor=colour if filled else "white", zorder=3)  # fmt: skip
            seen.append(name)
    axes.axvline(1, color=COLOURS["supervised"], zorder=2)
    axes.set(xscale="log", xlabel=f"time over that of {OURS} (left of the line: faster)", ylim=(len(rows) - 0.4, -0.6))
    axes.set_yticks(range(len(rows)), list(rows))
    axes.grid(axis="y", visible=False)
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, markersize=11, markeredgewidth=2, label=name,
               markerfacecolor=colour if filled else "white")
        for name, (colour, marker, filled) in LOOKS.items() if name in seen
    ]  # fmt: skip
    if handles:
        figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False)


def _curve(results: dict[str, Any], name: str, value: str) -> tuple[list[float], list[float]]:
    points = [p for p in results.get(name, {}).get("points", ()) if "reason" not in p]
    return [p["actions"] for p in points], [p[value] for p in points]


def _flat(axes: Any, results: dict[str, Any]) -> None:
    x, y = _curve(results, scaling.EXACT, "nanoseconds_per_element")
    axes.set(xscale="log", xlabel="actions", ylabel="ns per action")
    if x:
        axes.plot(x, y, "o-", color=COLOURS["supervised"])
        axes.axhspan(min(y), scaling.TARGET_SPREAD * min(y), color="#E6E6E6", zorder=0)
    axes.set_ylim(bottom=0)
    axes.set_title("Exact steps; grey: flat within 30 %")


def _sparse(axes: Any, results: dict[str, Any]) -> None:
    axes.set(xscale="log", yscale="log", xlabel="actions", ylabel="µs per step")
    for name, colour, text in (
        (scaling.DENSE, REWARD_EDGE, "dense"),
        (scaling.SPARSE, COLOURS["supervised"], "on the drawn actions"),
    ):
        x, y = _curve(results, name, "nanoseconds_per_policy_step")
        if x:
            axes.plot(x, [value / 1e3 for value in y], "o-", color=colour, label=text)
    axes.set_title("grpo, 16 draws, SGD")
    if axes.lines:
        axes.legend(frameon=False)
