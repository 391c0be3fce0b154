"""Claims, what would confirm each, and what was measured: the verdict is computed, never written.

An experiment runs once and gives numbers to one claim or several. Its criteria are data that stand next to it and were
fixed before it ran. A claim whose criteria hold under some of its conditions only *depends on* what tells them apart.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bandit_pft.errors import ConfigError, StoreError, nearest
from bandit_pft.plots import mean_interval
from bandit_pft.store import as_json, write_file

Verdict = Literal["reproduces", "does not reproduce", "depends on"]
COMPARED = ("gradient steps", "reward queries", "KL", "convergence", "exact")


@dataclass(frozen=True)
class Criterion:
    """A measure's mean over seeds lies between two bounds.

    Attributes:
        measure: its name in the outcome.
        where: the condition under which it is asked; a claim may name several.
        control: this shows that the experiment can tell, not that the claim holds.
    """

    measure: str
    at_least: float = -math.inf
    at_most: float = math.inf
    where: str = ""
    control: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value lies between the bounds; nan never does."""
        return self.at_least <= value <= self.at_most

    def __str__(self) -> str:
        limits = [f"≥ {self.at_least:g}"] * (self.at_least > -math.inf) + [f"≤ {self.at_most:g}"] * (
            self.at_most < math.inf
        )
        return f"{self.measure} {' and '.join(limits)}"


class Outcome(NamedTuple):
    """What an experiment measured.

    Attributes:
        measures: name -> one value per seed, or a single number for what is computed exactly.
        tables: figure -> the numbers that it draws.
    """

    measures: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Experiment:
    """Something to run.

    Attributes:
        name: of its results.
        setting: what is run, in a sentence.
        equal: what the compared runs have in common, one of `COMPARED`.
        seconds: about how long it takes on two cores.
        run: (quick) -> Outcome. Quick means fewer seeds, never other criteria.
    """

    name: str
    setting: str
    equal: str
    seconds: float
    run: Callable[[bool], Outcome]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper or of the literature after it.

    Attributes:
        key: as in the table, such as "C7".
        says: the statement, as its authors mean it.
        source: BibTeX key.
        why: one sentence on the mechanism, or on what the verdict depends on.
        depends_on: what tells the conditions apart, where there are several.
    """

    key: str
    says: str
    source: str
    experiment: Experiment
    criteria: tuple[Criterion, ...]
    why: str
    depends_on: str = ""


class Picture(NamedTuple):
    """A figure and the experiment whose table it draws."""

    experiment: Experiment
    draw: Callable[[pd.DataFrame], Figure]


EXPERIMENTS: dict[str, Experiment] = {}
CLAIMS: dict[str, Claim] = {}
FIGURES: dict[str, Picture] = {}


def experiment(setting: str, *, equal: str, seconds: float) -> Callable[[Callable[[bool], Outcome]], Experiment]:
    """Decorator: register a function (quick) -> Outcome under its name."""

    def register(run: Callable[[bool], Outcome]) -> Experiment:
        made = Experiment(run.__name__, setting, equal, seconds, run)
        _add(EXPERIMENTS, made.name, made)
        return made

    return register


def claim(
    key: str, says: str, of: Experiment, criteria: Sequence[Criterion], *, why: str,
    source: str = "tajwar2024preference", depends_on: str = "",
) -> None:  # fmt: skip
    """Register a claim; its key is letters, a number and what tells several apart, as "C23a"."""
    if not re.fullmatch(r"[A-Z]+\d+[a-z]*", key):
        raise ConfigError(f"key is {key!r}; it must be like 'C7' or 'F23a'")
    _add(CLAIMS, key, Claim(key, says, source, of, tuple(criteria), why, depends_on))


def figure(name: str, of: Experiment) -> Callable[[Callable[[pd.DataFrame], Figure]], Callable[[pd.DataFrame], Figure]]:
    """Decorator: register a function that draws the experiment's table of this name."""

    def register(draw: Callable[[pd.DataFrame], Figure]) -> Callable[[pd.DataFrame], Figure]:
        _add(FIGURES, name, Picture(of, draw))
        return draw

    return register


def _add(known: dict[str, Any], key: str, value: Any) -> None:
    if key in known:
        raise ConfigError(f"{key!r} is registered twice")
    known[key] = value


# --- judging ---------------------------------------------------------------------------------------------------------
class Judged(NamedTuple):
    """One criterion with what was measured: mean, 95 % confidence interval (Student's t), number of seeds."""

    criterion: Criterion
    mean: float
    low: float
    high: float
    seeds: int
    holds: bool

    @property
    def near(self) -> bool:
        """Whether a bound lies inside the interval, so that other seeds might have decided otherwise."""
        inside = lambda bound: self.seeds > 1 and self.low < bound < self.high
        return inside(self.criterion.at_least) or inside(self.criterion.at_most)


class Row(NamedTuple):
    """A claim with its verdict."""

    claim: Claim
    judged: tuple[Judged, ...]
    verdict: Verdict
    holds_where: tuple[str, ...]


def judge(claim: Claim, measures: Mapping[str, Any]) -> Row:
    """Compare what was measured with the criteria.

    Raises:
        ConfigError: the experiment gives no such measure.
    """
    judged = []
    for criterion in claim.criteria:
        if criterion.measure not in measures:
            raise ConfigError(f"{claim.key}: {claim.experiment.name} measures no {criterion.measure!r}: "
                              f"{nearest(criterion.measure, measures)}")  # fmt: skip
        values = np.asarray(measures[criterion.measure], np.float64)
        mean = float(values.mean())
        low, high = mean_interval(values) if values.ndim and values.size > 1 else (mean, mean)
        judged.append(Judged(criterion, mean, float(low), float(high), max(values.size, 1) if values.ndim else 0,
                             criterion.holds(mean)))  # fmt: skip
    asked = [j for j in judged if not j.criterion.control]
    places = list(dict.fromkeys(j.criterion.where for j in asked))
    sound = all(j.holds for j in judged if j.criterion.control)
    good = [place for place in places if sound and all(j.holds for j in asked if j.criterion.where == place)]
    verdict: Verdict = "reproduces" if good == places else "depends on" if good else "does not reproduce"
    return Row(claim, tuple(judged), verdict, tuple(good))


# --- running ---------------------------------------------------------------------------------------------------------
QUICK = 16.0  # Seconds: experiments that take longer are left to the full run.


@functools.cache
def code_digest() -> str:
    """Of the package's own source: results of other code are not mixed in."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def chosen(claims: Sequence[str], figures: Sequence[str], quick: bool = False) -> list[Experiment]:
    """The experiments behind these claims and figures, in the order of the table; all, if none is named.

    Args:
        quick: leave out what takes more than `QUICK` seconds, unless it is named.

    Raises:
        ConfigError: no such claim or figure, with the nearest names.
    """
    for kind, names, known in (("claim", claims, CLAIMS), ("figure", figures, FIGURES)):
        for name in names:
            if name not in known:
                raise ConfigError(f"no {kind} is named {name!r}: {nearest(name, known)}")
    if not claims and not figures:
        return [made for made in EXPERIMENTS.values() if not quick or made.seconds <= QUICK]
    wanted = {CLAIMS[name].experiment.name for name in claims} | {FIGURES[name].experiment.name for name in figures}
    return [made for name, made in EXPERIMENTS.items() if name in wanted]


def result_path(made: Experiment, folder: Path, quick: bool) -> Path:
    """Where an experiment keeps what it measured."""
    return folder / f"{made.name}{'.quick' if quick else ''}.json"


def measure(made: Experiment, folder: Path, quick: bool = False) -> Outcome:
    """Run an experiment and keep what it gave in the folder."""
    begun = time.monotonic()
    outcome = made.run(quick)
    # Every compiled program maps memory, and 40 experiments would exceed the 65,530 maps that Linux allows a process.
    jax.clear_caches()
    measures = {name: as_json(np.asarray(values, np.float64)) for name, values in outcome.measures.items()}
    tables = {name: {str(column): as_json(values.to_numpy()) for column, values in table.items()}
              for name, table in outcome.tables.items()}  # fmt: skip
    mine = {"code": code_digest(), "version": version("bandit_pft"), "seconds": round(time.monotonic() - begun, 1)}
    folder.mkdir(parents=True, exist_ok=True)
    path = result_path(made, folder, quick)
    write_file(path, json.dumps({**mine, "measures": measures, "tables": tables}, allow_nan=False).encode())
    return measured(path)


def measured(path: Path) -> Outcome:
    """What an experiment gave before.

    Raises:
        StoreError: a damaged file, or results of other code.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        code, tables, measures = found["code"], found["tables"], found["measures"]
        outcome = Outcome({name: np.asarray(values, np.float64) for name, values in measures.items()},
                          {name: pd.DataFrame(columns) for name, columns in tables.items()})  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is damaged ({error}): add --again to measure anew, or delete it") from error
    if code != code_digest():
        raise StoreError(f"{path} was measured by other code of this package (version {found.get('version')}): "
                         "add --again to measure anew, or delete it")  # fmt: skip
    return outcome


def order(claim: Claim) -> tuple[Any, ...]:
    """Of the rows: letter, number, rest."""
    letter, number, rest = re.fullmatch(r"(\D+)(\d+)(.*)", claim.key).groups()  # type: ignore[union-attr]
    return letter, int(number), rest


# --- the table -------------------------------------------------------------------------------------------------------
def _number(x: float) -> str:
    return f"{x:.2e}" if 0 < abs(x) < 5e-3 or abs(x) >= 1e5 else f"{x:.3f}"


def _measured(judged: Judged) -> str:
    if judged.seeds == 0:
        return f"{_number(judged.mean)} (exact)"
    spread = f" [{_number(judged.low)}, {_number(judged.high)}]" if judged.seeds > 1 else ""
    return f"{_number(judged.mean)}{spread} ({judged.seeds} seed{'s' if judged.seeds > 1 else ''})"


def verdict_text(row: Row) -> str:
    """The verdict in words, with the conditions under which the claim holds."""
    if row.verdict == "depends on":
        return f"depends on {row.claim.depends_on}: holds with {', '.join(row.holds_where)}"
    return row.verdict


def command(claim: Claim) -> str:
    """What measures this row again."""
    return f"bandit-pft reproduce {claim.key} --again"


def markdown(rows: Sequence[Row], quick: bool) -> str:
    """The table of claims."""
    lines = [
        "# Claims, criteria, verdicts",
        "",
        "Written by `bandit-pft reproduce`. Criteria stand in the code, and verdicts are computed from means over "
        "seeds; in brackets their 95 % confidence intervals (Student's t). ✓ the criterion holds, ✗ it does not, ~ its "
        "bound lies inside the interval. *Control* lines show that an experiment can tell the difference. Bounds were "
        "set before an experiment ran, and one was moved, by 1e-6 for rounding (F37c); some settings, conditions and "
        "controls were changed after a first look.",
        *(["", "**A quick run: few seeds, and long experiments left out.**"] if quick else []),
        "",
        summary(rows),
        "",
        "| claim | statement | experiment | criterion: measured | verdict | why | run again |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        made, told = row.claim.experiment, []
        for j in row.judged:
            where = "*control* " if j.criterion.control else f"*{j.criterion.where}* " if j.criterion.where else ""
            told.append(f"{where}{j.criterion}: {'✓' if j.holds else '✗'}{'~' if j.near else ''} {_measured(j)}")
        equal = "Exact." if made.equal == "exact" else f"Compared at equal {made.equal}."
        cells = [row.claim.key, row.claim.says, f"{made.setting} {equal}", "<br>".join(told),
                 f"**{verdict_text(row)}**", row.claim.why, f"`{command(row.claim)}`"]  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def gallery(names: Iterable[str]) -> str:
    """The figures that stand beside the table, each with the claims whose experiment it shows, and its data."""
    parts = ["\n## Figures\n"]
    for name in names:
        keys = ", ".join(key for key, made in CLAIMS.items() if made.experiment is FIGURES[name].experiment)
        title = name.replace("_", " ")
        parts.append(f"### {title}: {keys}\n\n![{title}]({name}.png)\n\n[Data]({name}.csv), [SVG]({name}.svg)\n")
    return "\n".join(parts)


def summary(rows: Sequence[Row]) -> str:
    """How many claims got which verdict, in a sentence."""
    return count_verdicts(row.verdict for row in rows)


def count_verdicts(verdicts: Iterable[str]) -> str:
    """How many there are of each, in a sentence."""
    count = Counter(verdicts)
    return (f"{count.total()} claims: {count['reproduces']} reproduce, {count['depends on']} depend on a condition, "
            f"{count['does not reproduce']} do not reproduce.")  # fmt: skip


def as_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same table as plain data."""
    return [
        {
            "claim": row.claim.key, "says": row.claim.says, "source": row.claim.source,
            "experiment": row.claim.experiment.name, "setting": row.claim.experiment.setting,
            "equal": row.claim.experiment.equal, "verdict": row.verdict, "text": verdict_text(row),
            "why": row.claim.why, "command": command(row.claim),
            "criteria": [
                {"measure": j.criterion.measure, "criterion": str(j.criterion), "where": j.criterion.where,
                 "control": j.criterion.control, "mean": j.mean, "low": j.low, "high": j.high, "seeds": j.seeds,
                 "holds": j.holds}
                for j in row.judged
            ],
        }
        for row in rows
    ]  # fmt: skip
