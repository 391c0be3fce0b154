"""Figures of labelled results, legible on a projector.

Every function takes a problem, or an `xarray.Dataset` with dims (problem, algorithm, seed, step) as `sweep` returns
it, and gives a figure that a notebook shows and `save` writes. Axes carry name and unit; lines are means over seeds,
bands 10-90 % of the seeds, or the confidence interval of their mean where that is asked for.
"""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator
from scipy import stats

from bandit_pft import metrics, style
from bandit_pft.errors import ConfigError, check_choice, check_names, nearest
from bandit_pft.problems import Problem
from bandit_pft.store import write_file

NAMES = {
    "expected_reward": "expected reward",
    "kl": "KL(π ‖ reference)",
    "kl_reverse": "KL(reference ‖ π)",
    "entropy": "entropy",
    "mass_near_peak": "mass near the peak",
    "reward_queries": "reward queries",
    "loss": "loss",
    "step": "gradient step",
}
DIMS = ("problem", "algorithm", "seed", "step")


def seed_range(values: np.ndarray) -> tuple[Any, Any]:
    """10 % and 90 % of the seeds (first axis), between order statistics: what was seen, not what is to be expected.

    Of n seeds, the range holds a new one with a probability of about 0.8 (n - 1) / (n + 1): half the time at n = 5.
    """
    low, high = np.percentile(values, (10, 90), axis=0)
    return low, high


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[Any, Any]:
    """Student's confidence interval of the mean over seeds (first axis); infinite for a single one."""
    n = len(values)
    if n < 2:
        return np.full(values.shape[1:], -np.inf), np.full(values.shape[1:], np.inf)
    half = stats.t.ppf((1 + level) / 2, n - 1) * values.std(0, ddof=1) / math.sqrt(n)
    return values.mean(0) - half, values.mean(0) + half


SPREADS = {
    "seeds": (seed_range, "10-90 % of the seeds", "10 %, 90 %"),
    "mean": (mean_interval, "95 % confidence interval of the mean", "95 % confidence interval"),
}
Spread = Literal["seeds", "mean"]


class SlideFigure(Figure):
    """A figure outside pyplot's global list, which notebooks show all the same."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with matplotlib.rc_context(style.RC):
            self.savefig(buffer, format="png")
        return buffer.getvalue()


def save(figure: Figure, path: str | Path) -> tuple[Path, Path]:
    """Write `path`.svg and `path`.png, each whole or not at all; the same figure gives the same bytes.

    Raises:
        StoreError: they cannot be written.
    """
    drawn = {"svg": io.BytesIO(), "png": io.BytesIO()}
    with matplotlib.rc_context(style.RC):
        figure.savefig(drawn["svg"], format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(drawn["png"], format="png", metadata={"Software": None})
    svg, png = (Path(f"{Path(path)}.{ending}") for ending in drawn)
    write_file(svg, drawn["svg"].getvalue())
    write_file(png, drawn["png"].getvalue())
    return svg, png


# --- figures ---------------------------------------------------------------------------------------------------------
def problem_figure(problem: Problem, *, optima: Sequence[float] = (), context: int = 0) -> Figure:
    """Reference and reward over the responses, as probabilities and as log-probabilities.

    Args:
        optima: draws the best policy at these KL penalties beta as well, ref exp(r / beta) / Z.

    Raises:
        ResourceError: the responses cannot be enumerated. DomainError: no such context.
    """
    log_ref = np.asarray(problem.ref_table(context), np.float64)
    reward = np.asarray(problem.reward_table(context), np.float64)
    best = [(beta, np.asarray(problem.optimum(beta)[context], np.float64)) for beta in optima]
    with matplotlib.rc_context(style.RC):
        figure = SlideFigure(figsize=style.SLIDE, layout="constrained")
        figure.get_layout_engine().set(wspace=0.08)  # type: ignore[union-attr]
        for log, ax in zip((False, True), figure.subplots(1, 2), strict=True):
            _draw_reward(ax, reward, name=not log)
            _draw_distribution(ax, log_ref, style.REFERENCE, style.REFERENCE_DASHES, "reference")
            for i, (beta, logp) in enumerate(best):
                _draw_distribution(
                    ax, logp, style.OPTIMUM, style.DASHES[i % len(style.DASHES)], f"optimum, β = {beta:g}"
                )
            _distribution_axes(ax, log=log, tables=[log_ref, *(logp for _, logp in best)])
            ax.set_xlabel(_response_name(problem))
            ax.set_ylabel("probability (log scale)" if log else "probability")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.suptitle(problem.name)
    return figure


def learning_curves(
    ds: xr.Dataset, y: str = "expected_reward", x: str = "step", *, spread: Spread = "seeds"
) -> Figure:  # fmt: skip
    """`y` against `x`, one panel per problem, one line per method.

    Args:
        x: "step", or any variable of the data set such as "reward_queries" or "kl". Where `x` differs between
            seeds, the line joins the means and bars at its end show the spread both ways.
        spread: bands of the seeds (`seed_range`), or of what their mean tells (`mean_interval`).

    Raises:
        ConfigError: not a variable of the data set, dims missing, or no such spread.
    """
    return _curves(ds, y, x, {}, spread)


def frontier(ds: xr.Dataset, problems: Iterable[Problem] = ()) -> Figure:
    """Expected reward against KL(pi || reference): what every method pays for its reward.

    Args:
        problems: draws the optimum of those among them that the data set holds: no policy lies above that line.
    """
    return _curves(ds, "expected_reward", "kl", {p.name: _optimal_frontier(p) for p in problems})


def mass_figure(ds: xr.Dataset, problem: Problem, *, step: int = -1, floor: float = 1e-8) -> Figure:
    """Where the mass went: each method's distribution, the reference dashed, the reward as an area; context means.

    Args:
        ds: holds `log_prob` (problem, algorithm, seed, step, action) [nats]. Lines are single seeds, the bold one their
            mean probability.
        step: which recorded step, counted as in a list.
        floor: probabilities below it are drawn at the lower edge.

    Raises:
        ConfigError: no `log_prob`, or the problem is not in the data set.
    """
    _check(ds, "log_prob")
    if problem.name not in ds["problem"].values:
        raise ConfigError(
            f"the data set has no problem {problem.name!r}: {nearest(problem.name, _strings(ds, 'problem'))}"
        )
    log_refs, rewards = _tables(problem)
    log_ref = np.logaddexp.reduce(log_refs) - math.log(len(log_refs))
    reward = rewards.mean(0)
    last = ds.sel(problem=problem.name).isel(step=step)
    logp = last["log_prob"].transpose("algorithm", "seed", "action").values.astype(np.float64)
    methods, families = _methods(ds)
    dashes = style.line_styles(methods, families)
    columns = min(len(methods), 3)
    rows = math.ceil(len(methods) / columns)
    with matplotlib.rc_context(style.RC):
        figure = SlideFigure(figsize=(style.SLIDE[0], max(style.SLIDE[1], 3.1 * rows + 1.2)), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for i, (ax, method) in enumerate(zip(axes, methods, strict=False)):
            paint = style.colour(families[i])
            _draw_reward(ax, reward, name=False)
            _draw_distribution(ax, log_ref, style.REFERENCE, style.REFERENCE_DASHES, "reference")
            for one in logp[i]:
                _draw_distribution(ax, one, paint, (), lw=0.8, alpha=0.4)
            mean = np.logaddexp.reduce(logp[i], axis=0) - math.log(logp.shape[1])
            _draw_distribution(ax, mean, paint, dashes[method], style.label(method))
            reached = float(last["expected_reward"].isel(algorithm=i).mean())
            title = textwrap.fill(f"{style.label(method)}: {reached:.2f}", 30)
            ax.set_title(title, color=paint, loc="left", fontsize=16)
            _distribution_axes(ax, log=True, tables=[log_ref, *logp.reshape(-1, logp.shape[-1])], floor=floor)
        for ax in axes[len(methods) :]:
            ax.set_visible(False)
        for ax in axes[max(len(methods) - columns, 0) : len(methods)]:
            ax.tick_params(labelbottom=True)
            ax.set_xlabel(_response_name(problem))
        handles = [
            Line2D([], [], color=style.REFERENCE, ls=(0, style.REFERENCE_DASHES), label="reference"),
            Patch(color=style.REWARD, alpha=0.45, lw=0, label=f"reward (linear, at most {reward.max():.3g})"),
            Line2D([], [], color="#333333", lw=0.8, label="one seed"),
            Line2D([], [], color="#333333", label=f"mean over {_seeds(logp.shape[1])}"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        figure.suptitle(f"{problem.name} after {int(last['step'])} gradient steps, with the expected reward reached")
        figure.supylabel("probability (log scale)", fontsize=16)
    return figure


# --- tables ----------------------------------------------------------------------------------------------------------
def table(ds: xr.Dataset, y: str = "expected_reward", *, step: int = -1, spread: Spread = "seeds") -> str:
    """Methods against problems as text: mean over seeds of `y` at a recorded step, [10 %, 90 %] or its interval."""
    rows = _rows(ds, y, step, spread)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([_caption(ds, y, step, spread), lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


METRICS = ("expected_reward", "kl", "kl_reverse", "entropy", "mass_near_peak")


def summary(ds: xr.Dataset, *, step: int = -1, width: int | None = None) -> str:
    """All metrics as text, a block for each problem and a row for each method: mean, 10 % and 90 % over seeds.

    Args:
        width: of a line; columns for which it is too short stand below the others, after the methods once more. Five
            metrics with gradient steps and reward queries need 119 characters. No number is ever cut.

    Raises:
        ConfigError: none of the metrics, or dims missing.
    """
    shown = [name for name in METRICS if name in ds] or ["expected_reward"]
    _check(ds, *shown)
    methods, _ = _methods(ds)
    problems = _strings(ds, "problem")
    taken = int(ds["step"][step])
    queries = ds["reward_queries"].isel(step=step).transpose("problem", "algorithm").values
    values = {name: ds[name].transpose(*DIMS).isel(step=step).values.astype(np.float64) for name in shown}
    bodies = [
        [
            [style.label(method), *(_spread_cell(values[name][p, m]) for name in shown), f"{taken:,}",
             f"{queries[p, m]:,.0f}" if np.isfinite(queries[p, m]) else "exact"]
            for m, method in enumerate(methods)
        ]
        for p in range(len(problems))
    ]  # fmt: skip
    units = {"expected_reward": "reward", "kl": "KL(π‖ref) nats", "kl_reverse": "KL(ref‖π) nats",
             "entropy": "entropy nats", "mass_near_peak": "mass near peak"}  # fmt: skip
    head = ["method", *(units[name] for name in shown), "steps", "queries"]
    below = ["", *("mean 10 % 90 %" for _ in shown), "", ""]
    widths = [max(len(row[i]) for row in (head, below, *itertools.chain(*bodies))) for i in range(len(head))]
    rule = ["-" * size for size in widths]
    # Below steps and queries nothing stands in the second line.
    lines = lambda body: [
        _line(row, widths, part) for part in _parts(widths, width) for row in (head, below, rule, *body)
    ]
    blocks = [[name, *filter(None, lines(body))] for name, body in zip(problems, bodies, strict=True)]
    lost = [
        f"{style.label(method)} on {problem}: {bad} of {ds.sizes['seed']} seeds not finite, and not in the numbers"
        for p, problem in enumerate(problems)
        for m, method in enumerate(methods)
        if (bad := int((~np.isfinite([values[name][p, m] for name in shown])).any(0).sum()))
    ]
    caption = f"after {taken:,} gradient steps: mean, 10 % and 90 % over {_seeds(ds.sizes['seed'])}"
    return "\n\n".join([caption, *("\n".join(block) for block in blocks), *(["\n".join(lost)] if lost else [])])


def _parts(widths: Sequence[int], most: int | None) -> list[list[int]]:
    """The columns after the first, in parts that fit with it into a line."""
    parts: list[list[int]] = [[]]
    for column in range(1, len(widths)):
        size = widths[0] + sum(2 + widths[i] for i in (*parts[-1], column))
        if parts[-1] and most is not None and size > most:
            parts.append([])
        parts[-1].append(column)
    return parts


def _line(row: Sequence[str], widths: Sequence[int], part: Sequence[int]) -> str:
    return "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in part)]).rstrip()


def _spread_cell(seeds: np.ndarray) -> str:
    good = seeds[np.isfinite(seeds)]
    if not good.size:
        return "-"
    # Adding 0 turns -0.0 into 0.0.
    return " ".join(f"{round(x, 2) + 0:4.2f}" for x in (good.mean(), *seed_range(good)))


def markdown_table(ds: xr.Dataset, y: str = "expected_reward", *, step: int = -1, spread: Spread = "seeds") -> str:
    """The same table in Markdown."""
    head, *body = _rows(ds, y, step, spread)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join([_caption(ds, y, step, spread), "", *("| " + " | ".join(line) + " |" for line in lines)])


def _rows(ds: xr.Dataset, y: str, step: int, spread: Spread) -> list[list[str]]:
    check_choice("spread", spread, SPREADS)
    _check(ds, y)
    values = ds[y].transpose(*DIMS).isel(step=step).values.astype(np.float64)
    methods, _ = _methods(ds)
    rows = [["method", *_strings(ds, "problem")]]
    for i, method in enumerate(methods):
        rows.append([style.label(method), *(_cell(values[j, i], SPREADS[spread][0]) for j in range(values.shape[0]))])
    return rows


def _cell(seeds: np.ndarray, spread: Callable[..., Any]) -> str:
    good = seeds[np.isfinite(seeds)]
    lost = f" ({seeds.size - good.size} of {seeds.size} not finite)" if good.size < seeds.size else ""
    if not good.size:
        return "-" + lost
    low, high = spread(good)
    return f"{good.mean():.3f} [{low:.3f}, {high:.3f}]" + lost


def _caption(ds: xr.Dataset, y: str, step: int, spread: Spread) -> str:
    return (
        f"{_axis_name(ds, y)} after {int(ds['step'][step])} gradient steps: "
        f"mean [{SPREADS[spread][2]}] over {_seeds(ds.sizes['seed'])}"
    )


# --- pieces ----------------------------------------------------------------------------------------------------------
class End(NamedTuple):
    """Where a line ends, and how its name is written."""

    x: float
    y: float
    text: str
    paint: str
    dashes: tuple[float, ...] = ()


def _curves(
    ds: xr.Dataset, y: str, x: str, optima: dict[str, tuple[np.ndarray, np.ndarray]], spread: Spread = "seeds"
) -> Figure:  # fmt: skip
    check_choice("spread", spread, SPREADS)
    _check(ds, y, *(() if x == "step" else (x,)))
    methods, families = _methods(ds)
    dashes = style.line_styles(methods, families)
    problems = _strings(ds, "problem")
    ys, xs = (a.transpose(*DIMS).values.astype(np.float64) for a in xr.broadcast(ds[y], ds[x]))
    drawn = np.asarray((np.isfinite(ys) & np.isfinite(xs)).all(-1))
    log = _is_log(x, xs[drawn])
    optima = {name: optimum for name, optimum in optima.items() if name in problems}
    columns = min(len(problems), 2)
    rows = math.ceil(len(problems) / columns)
    label_height = 1.3 * style.RC["legend.fontsize"] / 72
    height = max(style.SLIDE[1] - 1, 4.5 * rows, rows * (label_height * (len(methods) + 2) + 1.5))
    with matplotlib.rc_context(style.RC):
        figure = SlideFigure(figsize=(style.SLIDE[0], height), layout="constrained")
        figure.get_layout_engine().set(wspace=0.06, hspace=0.06)  # type: ignore[union-attr]
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        panels: list[tuple[Axes, list[End]]] = []
        for p, (ax, name) in enumerate(zip(axes, problems, strict=False)):
            ends = []
            if name in optima:
                ax.plot(*optima[name], color=style.OPTIMUM, lw=1.2, label="optimum", zorder=1)
                x_end, y_end = (float(v[-1]) for v in optima[name])
                ends.append(End(x_end, y_end, "optimum", style.OPTIMUM))
            for m, method in enumerate(methods):
                good = drawn[p, m]
                if good.any():
                    paint = style.colour(families[m])
                    # A logarithmic axis has no place for 0, and would draw a line from its edge.
                    shown = (xs[p, m][good] > 0).all(0) if log else slice(None)
                    label = style.label(method)
                    end = _draw_runs(ax, xs[p, m][good][:, shown], ys[p, m][good][:, shown], paint, dashes[method],
                                     SPREADS[spread][0], label)  # fmt: skip
                    ends.append(End(*end, label, paint, dashes[method]))
            panels.append((ax, ends))
            ax.set_title(name)
            ax.set_xlabel(_axis_name(ds, x))
            ax.tick_params(labelbottom=True)
        for ax in axes[len(problems) :]:
            ax.set_visible(False)
        for ax in axes[::columns]:
            ax.set_ylabel(_axis_name(ds, y))
        every_x = np.concatenate([xs[drawn].ravel(), *(k for k, _ in optima.values())])
        every_y = np.concatenate([ys[drawn].ravel(), *(r for _, r in optima.values())])
        _limits(axes[0], every_x, every_y, log)
        figure.supxlabel(_note(ds, drawn, spread), fontsize=14, color="#444444")
        label_ends(figure, panels)
    return figure


def _note(ds: xr.Dataset, drawn: np.ndarray, spread: Spread) -> str:
    """What the lines are, and which runs are not what they seem."""
    note = f"lines: mean over {_seeds(ds.sizes['seed'])}"
    if ds.sizes["seed"] > 1:
        note += f"; bands and bars: {SPREADS[spread][1]}"
    if not drawn.all():
        note += f"; {int((~drawn).sum())} of {drawn.size} runs have no finite values and are left out"
    frozen = int((ds["first_bad_step"] >= 0).sum()) if "first_bad_step" in ds else 0
    return note + (f"; {frozen} of {drawn.size} runs diverged and are drawn as they froze" if frozen else "")


def _draw_runs(
    ax: Axes, x: np.ndarray, y: np.ndarray, paint: str, dashes: tuple[float, ...], spread: Callable[..., Any],
    label: str,
) -> tuple[float, float]:  # fmt: skip
    """Draw one method's runs [seed, step]; its end."""
    line_x, line_y = x.mean(0), y.mean(0)
    ax.plot(line_x, line_y, color=paint, ls=(0, dashes) if dashes else "-", label=label, zorder=3)
    if len(y) > 1:
        low, high = spread(y)
        if (x == x[0]).all() and line_x[0] < line_x[-1] and (np.diff(line_x) >= 0).all():
            ax.fill_between(line_x, low, high, color=paint, alpha=0.16, lw=0, zorder=2)
        else:
            left, right = spread(x[:, -1])
            ax.plot([line_x[-1]] * 2, [low[-1], high[-1]], color=paint, lw=1.4, zorder=3)
            ax.plot([left, right], [line_y[-1]] * 2, color=paint, lw=1.4, zorder=3)
    ax.plot(line_x[-1], line_y[-1], "o", color=paint, ms=7, zorder=4, clip_on=False)
    return float(line_x[-1]), float(line_y[-1])


def _is_log(name: str, x: np.ndarray) -> bool:
    positive = x[x > 0]
    return bool(name == "reward_queries" and positive.size and positive.max() > 20 * positive.min())


def _limits(ax: Axes, x: np.ndarray, y: np.ndarray, log: bool) -> None:
    low, high = (y.min(), y.max()) if y.size else (0.0, 1.0)
    room = 0.03 * ((high - min(low, 0)) or 1.0)
    ax.set_ylim(low - room if low < 0 else 0, high + room)
    if log:
        ax.set_xscale("log")
    elif x.size:
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlim(min(x.min(), 0), x.max() if x.max() > min(x.min(), 0) else 1)


SWATCH = 1.05, 1.14  # Where the piece of line next to a name begins and ends, in panel widths.


def label_ends(figure: Figure, panels: Sequence[tuple[Axes, Sequence[End]]]) -> None:
    """Name each line right of its panel, as near to the line's end as the other names allow."""
    figure_notes = []
    for ax, ends in panels:
        notes = [
            ax.annotate(
                end.text, (SWATCH[1], 0.5), (6, 0), "axes fraction", "offset points",
                color=end.paint, fontsize=14, fontweight="bold", va="center", annotation_clip=False,
            )
            for end in ends
        ]  # fmt: skip
        figure_notes.append(notes)
    figure.draw_without_rendering()  # The layout decides how many pixels there are to share out.
    for (ax, ends), notes in zip(panels, figure_notes, strict=True):
        to_panel = (ax.transData - ax.transAxes).transform
        starts = [to_panel((end.x, end.y)) for end in ends]
        gap = 1.3 * style.RC["legend.fontsize"] / 72 * figure.dpi / ax.bbox.height
        places = spread([y for _, y in starts], gap)
        for end, note, (x, y), place in zip(ends, notes, starts, places, strict=True):
            note.xy = (SWATCH[1], place)
            how: dict[str, Any] = {"transform": ax.transAxes, "color": end.paint, "clip_on": False, "zorder": 2.5}
            ax.add_line(Line2D([x, SWATCH[0]], [y, place], lw=0.8, **how)).set_in_layout(False)
            ax.add_line(Line2D(SWATCH, [place] * 2, ls=(0, end.dashes) if end.dashes else "-", lw=2.2, **how))
            ax.lines[-1].set_in_layout(False)


def spread(wanted: Sequence[float] | np.ndarray, gap: float) -> np.ndarray:
    """Places at least `gap` apart, in the order of the wanted ones and nearest to them in squares, inside [0, 1].

    With more labels than fit, they are evenly spaced from 0 on, `gap` apart.
    """
    order = np.argsort(wanted, kind="stable")
    offset = gap * np.arange(len(order))
    blocks: list[list[float]] = []  # mean, count: adjacent violators are pooled
    for value in np.asarray(wanted, float)[order] - offset:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, count = blocks.pop()
            total = blocks[-1][1] + count
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * count) / total, total]
    pooled = np.concatenate([np.full(int(count), mean) for mean, count in blocks]) if blocks else np.zeros(0)
    places = np.empty(len(order))
    places[order] = np.clip(pooled, 0, max(1 - gap * (len(order) - 1), 0)) + offset
    return places


def _tables(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability under the reference [S, A] and reward [S, A] of every response."""
    contexts = range(problem.num_contexts)
    log_ref = np.stack([np.asarray(problem.ref_table(s), np.float64) for s in contexts])
    return log_ref, np.stack([np.asarray(problem.reward_table(s), np.float64) for s in contexts])


def _optimal_frontier(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """KL [nats] and expected reward of ref exp(r / beta) / Z, context means, from the reference to the maximum."""
    log_ref, reward = (jnp.asarray(x) for x in _tables(problem))

    def point(logp: Array) -> tuple[Array, Array]:
        return metrics.kl(logp, log_ref).mean(), metrics.expected_reward(logp, reward).mean()

    betas = jnp.geomspace(10, 1e-4, 120) * (jnp.ptp(reward) + (jnp.ptp(reward) == 0))
    path = jax.lax.map(lambda beta: point(problem.optimum(beta)), betas)
    x, y = (np.append(start, rest) for start, rest in zip(point(log_ref), path, strict=True))
    return x, y


def _draw_reward(ax: Axes, reward: np.ndarray, *, name: bool) -> None:
    above = ax.twinx()
    above.set_zorder(0)
    ax.set_zorder(1)
    ax.patch.set_visible(False)
    above.fill_between(np.arange(reward.size), reward, min(reward.min(), 0), color=style.REWARD, alpha=0.45, lw=0)
    above.set_ylim(min(reward.min(), 0), max(reward.max(), 0) * 1.05 or 1)
    above.grid(False)
    if name:
        above.set_ylabel("reward", color=style.REWARD_EDGE)
        above.tick_params(axis="y", colors=style.REWARD_EDGE)
        above.spines["right"].set_visible(True)
    else:
        above.set_yticks([])
        return
    ax.fill_between([], [], color=style.REWARD, alpha=0.45, lw=0, label="reward")


def _draw_distribution(
    ax: Axes, logp: np.ndarray, paint: str, dashes: tuple[float, ...], label: str = "", **how: Any
) -> None:
    ax.plot(np.arange(logp.size), np.exp(logp), color=paint, ls=(0, dashes) if dashes else "-", label=label, **how)


def _distribution_axes(ax: Axes, *, log: bool, tables: Sequence[np.ndarray], floor: float = 1e-8) -> None:
    size = tables[0].size
    ax.set_xlim(-0.5 - 0.01 * size, size - 0.5 + 0.01 * size)  # The paper's reference has spikes at both ends.
    if not log:
        ax.set_ylim(0, None)
        return
    finite = np.concatenate([x[np.isfinite(x)] for x in tables])
    low = max(floor, math.exp(max(finite.min(), -700.0)))
    ax.set_yscale("log", nonpositive="clip")
    ax.set_ylim(10.0 ** math.floor(math.log10(low)), 1.5)
    ax.yaxis.set_minor_locator(FixedLocator([]))


def _response_name(problem: Problem) -> str:
    return "action" if problem.length == 1 else "response, shorter ones first"


def _axis_name(ds: xr.Dataset, name: str) -> str:
    units = "" if name == "step" else str(ds[name].attrs.get("units", ""))
    plain = NAMES.get(name, name.replace("_", " "))
    return plain if not units or units in plain or name == "reward_queries" else f"{plain} ({units})"


def _check(ds: xr.Dataset, *variables: str) -> None:
    check_names("the data set", variables, map(str, ds.data_vars))
    missing = [dim for dim in DIMS if dim not in ds.dims]
    if missing or "family" not in ds.coords:
        what = f"dimensions {missing}" if missing else "a coordinate `family` along `algorithm`"
        raise ConfigError(f"the data set lacks {what}: pass what `sweep` returns, before selecting or averaging")
    for variable in variables:
        other = [str(dim) for dim in ds[variable].dims if dim not in (*DIMS, "action")]
        if other:
            raise ConfigError(f"{variable} depends on {', '.join(other)} too: choose one with .sel({other[0]}=...)")


def _methods(ds: xr.Dataset) -> tuple[list[str], list[str]]:
    return _strings(ds, "algorithm"), [str(f) for f in ds["family"].values]


def _strings(ds: xr.Dataset, dim: str) -> list[str]:
    return [str(value) for value in ds[dim].values]


def _seeds(number: int) -> str:
    return f"{number} seed{'s' if number != 1 else ''}"
