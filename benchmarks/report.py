"""The report as text: targets, one table per workload, cold start, scaling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import cold, scaling
from benchmarks.peers import OURS
from benchmarks.tasks import TITLES


def render(report: dict[str, Any], names: list[str]) -> str:
    """Markdown; what has not been measured (yet) is left out."""
    host = report["machine"]
    loads = (host["load_before"][0], *(report["load_at_end"][:1] if "load_at_end" in report else ()))
    lines = ["# Benchmark results", ""]
    if report["quick"]:
        lines += ["**Quick run with tiny sizes: it shows that all peers agree; its times mean nothing.**", ""]
    if "load_at_end" not in report:
        lines += ["**This run did not finish.**", ""]
    lines += [
        f"{host['processor']}, {host['cores']} cores, Python {host['python']}, "
        + ", ".join(f"{name} {v}" for name, v in host["versions"].items())
        + f"; {host['date']}; load average before / after {' / '.join(f'{x:.2f}' for x in loads)}.",
    ]
    if "triad_GB_per_s" in host:
        lines += [
            f"Measured limits, all cores: {host['triad_GB_per_s']:.1f} GB/s (a = b + s c), "
            f"{host['exponentials_per_ns']:.2f} exponentials per ns (float32, in cache)."
        ]
    lines += ["Median of interleaved repetitions after warm-up, float32; every row's results agree between peers."]
    if not report["quick"]:
        lines += ["", "## Targets", "", *_verdicts(targets(report))]
    if report.get("since"):
        lines += ["", *report["since"]]
    if report.get("figure"):
        lines += ["", f"![Time over that of {OURS}, and scaling]({report['figure']})"]
    for workload in dict.fromkeys(c["workload"] for c in report["cells"]):
        cells = [c for c in report["cells"] if c["workload"] == workload]
        lines += ["", f"## {workload}: {TITLES[workload]}" if not report["quick"] else f"## {workload}", ""]
        lines += _table(cells, names, host) + _over_floor(cells)
    if report.get("cold"):
        lines += ["", "## Cold start: a fresh process until eight methods x 200 steps x 32 seeds are done", ""]
        lines += cold.table(report["cold"])
    if report.get("scaling"):
        lines += ["", "## Scaling of bandit_pft", "", *scaling.table(report["scaling"])]
    if report.get("memory"):
        shown = ", ".join(f"{name} {x:,.0f}" for name, x in report["memory"].items())
        lines += ["", f"Peak memory of each peer's process [MB], everything included: {shown}."]
    for part, reason in report.get("failed", {}).items():
        lines += ["", f"{part} failed: {reason}"]
    return "\n".join(lines)


# --- targets -------------------------------------------------------------------------------------------------------
class Target(NamedTuple):
    """A bound and what was measured, None where it was not."""

    name: str
    bound: float
    at_least: bool
    measured: float | None

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


def targets(report: dict[str, Any]) -> list[Target]:
    """What was aimed at, and what this report says about it."""

    def total(workload: str, name: str, wanted: Callable[[dict[str, Any]], bool]) -> float | None:
        cells = [c for c in report["cells"] if c["workload"] == workload and wanted(c)]
        found = [sum(c["floor"].values()) if name == "floor" else c["seconds"].get(name) for c in cells]
        return None if not found or None in found else sum(x for x in found if x is not None)

    def ratio(workload: str, above: str, below: str, wanted: Callable[[dict[str, Any]], bool]) -> float | None:
        top, bottom = (total(workload, name, wanted) for name in (above, below))
        return None if top is None or not bottom else top / bottom

    found = [
        Target(f"W1, time of {name} over ours", bound, True, ratio("W1", name, OURS, lambda c: True))
        for name, bound in (("common JAX", 100), ("torch", 8), ("numba", 4), ("C", 1))
    ]
    for workload in ("W2", "W3"):
        for kind, adam in (("SGD", False), ("Adam", True)):
            exact = lambda c, adam=adam: c["floor"] is not None and c["task"]["adam"] == adam
            where = f"{workload} exact, {kind}"
            found += [
                Target(f"{where}, time of torch over ours", 6, True, ratio(workload, "torch", OURS, exact)),
                Target(f"{where}, our time over the floor", 2.5, False, ratio(workload, OURS, "floor", exact)),
            ]
    flat = scaling.spread(report.get("scaling", {}))
    what = "exact steps, largest over smallest time per element, K = 100 to 1e6"
    return [*found, Target(what, scaling.TARGET_SPREAD, False, flat)]


def _verdicts(found: list[Target]) -> list[str]:
    lines = ["| | target | measured | |", "|---|---|---|---|"]
    for target in found:
        measured = "not measured" if target.measured is None else f"{target.measured:.2f}"
        verdict = {None: "", True: "met", False: "not met"}[target.met]
        sign = ">=" if target.at_least else "<="
        lines.append(f"| {target.name} | {sign} {target.bound:g} | {measured} | {verdict} |")
    return lines


# --- tables --------------------------------------------------------------------------------------------------------
def _table(cells: list[dict[str, Any]], names: list[str], host: dict[str, Any]) -> list[str]:
    networks = "contexts" in cells[0]["task"]
    unit, factor = ("milliseconds per run", 1e3) if networks else ("microseconds per step", 1e6)
    count = lambda task: task["seeds"] if networks else task["steps"]
    lines = [f"| {unit} | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    reasons: dict[str, list[str]] = {}
    for c in cells:
        row = []
        for name in names:
            seconds = c["seconds"].get(name)
            mark = "*" if name in c["scaled_from"] else ""
            row.append("n/a" if seconds is None else f"{factor * seconds / count(c['task']):,.1f}{mark}")
            if seconds is None:
                reason = f"{name}: {c['not_available'].get(name, 'did not run')}"
                reasons.setdefault(reason, []).append(c["label"])
        flag = " **disagrees**" if c["disagreement"] else ""
        lines.append(f"| {c['label']}{flag} | " + " | ".join(row) + " |")
    total = {n: sum(c["seconds"][n] for c in cells) for n in names if all(n in c["seconds"] for c in cells)}
    show = lambda f: " | ".join(f(total[n]) if n in total else "n/a" for n in names)
    lines.append("| total [ms] | " + show(lambda s: f"{1e3 * s:,.1f}") + " |")
    if OURS in total:
        lines.append(f"| time over that of {OURS} | " + show(lambda s: f"{s / total[OURS]:.2f}") + " |")
    if "C" in total:
        lines.append("| time over that of C | " + show(lambda s: f"{s / total['C']:.2f}") + " |")
    built = lambda n: sum(c["setup_seconds"].get(n, 0) for c in cells)
    lines.append("| set-up: compilation, first steps [s] | " + " | ".join(f"{built(n):.1f}" for n in names) + " |")
    if "exponentials_per_ns" in host and not networks:
        exps = [c["task"]["rates"] * c["task"]["seeds"] * c["task"]["actions"] * c["task"]["steps"] for c in cells]
        floor = sum(exps) / host["exponentials_per_ns"] / 1e6
        lines += ["", f"One exponential per action, policy and step, and nothing else, would take {floor:,.1f} ms."]
    scaled = {(name, steps) for c in cells for name, steps in c["scaled_from"].items()}
    lines += [
        f"- \\* {name}: {steps} steps were run, and the time scaled; agreement of these rows is checked at small sizes."
        for name, steps in sorted(scaled)
    ]
    for reason, labels in reasons.items():
        lines.append(f"- n/a: {reason}" + (f" ({', '.join(labels)})" if len(labels) < len(cells) else ""))
    return lines


def _over_floor(cells: list[dict[str, Any]]) -> list[str]:
    """Exact steps against the sum of what they cannot do without."""
    cells = [c for c in cells if c["floor"]]
    if not cells:
        return []
    names = [n for n in ("C", OURS) if any(n in c["seconds"] for c in cells)]
    lines = [
        "",
        "Floor [us per step]: logits read and written (with Adam its moments too) as fast as a copy between arrays of "
        "that size, one exponential per action, Adam's arithmetic in cache; measured beside the peers.",
        "",
        "| | traffic | exponentials | Adam | floor | " + " | ".join(f"{n} over the floor" for n in names) + " |",
        "|---" * (5 + len(names)) + "|",
    ]
    for c in cells:
        floor = sum(c["floor"].values())
        parts = [f"{1e6 * x / c['task']['steps']:,.1f}" for x in (*c["floor"].values(), floor)]
        over = [f"{c['seconds'][n] / floor:.2f}" if n in c["seconds"] else "n/a" for n in names]
        lines.append(f"| {c['label']} | " + " | ".join([*parts, *over]) + " |")
    return lines
