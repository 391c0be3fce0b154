"""Figures of tidy tables: one row per point, columns panel, line, family, x, y and, for a band, low and high."""

from __future__ import annotations

import math
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bandit_pft import style
from bandit_pft.plots import End, SlideFigure, label_ends, seed_range


def points(line: str, x: Any, y: Any, *, family: str = "distribution", panel: str = "") -> pd.DataFrame:
    """One line: y [X], or runs [repetition, X] that become their mean and the range of 10-90 % of them."""
    y = np.asarray(y, np.float64)
    runs = y[None] if y.ndim == 1 else y
    low, high = seed_range(runs)
    rows = {"panel": panel, "line": line, "family": family, "x": np.asarray(x, np.float64)}
    return pd.DataFrame({**rows, "y": runs.mean(0), "low": low, "high": high, "runs": len(runs)})


def lines(
    table: pd.DataFrame, x: str, y: str, title: str, *, note: str = "", log_x: bool = False, log_y: bool = False,
    markers: bool = False, share_y: bool = True,
) -> Figure:  # fmt: skip
    """One panel per `panel`, one named line per `line`, coloured by family.

    Args:
        x, y: axis names with units. note: below the figure, before what lines and bands are.
    """
    panels = list(dict.fromkeys(table["panel"]))
    columns = min(len(panels), 2 if len(panels) != 3 else 3)
    rows = math.ceil(len(panels) / columns)
    names = table.drop_duplicates("line")
    dashes = style.line_styles(names["line"], names["family"])
    with matplotlib.rc_context(style.RC):
        figure = SlideFigure(figsize=(style.SLIDE[0], max(style.SLIDE[1] - 0.5, 4.6 * rows)), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=share_y).ravel()
        named = []
        for ax, panel in zip(axes, panels, strict=False):
            here, ends = table[table["panel"] == panel], []
            for name in dict.fromkeys(here["line"]):
                line = {key: values.to_numpy() for key, values in here.loc[here["line"] == name].items()}
                paint, dash = style.colour(line["family"][0]), dashes[name]
                ax.plot(line["x"], line["y"], color=paint, ls=(0, dash) if dash else "-", zorder=3, label=name,
                        marker="o" if markers else None, ms=6)  # fmt: skip
                if (line["low"] < line["high"]).any():
                    ax.fill_between(line["x"], line["low"], line["high"], color=paint, alpha=0.16, lw=0, zorder=2)
                ends.append(End(line["x"][-1], line["y"][-1], name, paint, dash))
            ax.set_title(panel)
            ax.set_xlabel(x)
            ax.tick_params(labelbottom=True)
            if log_x:
                ax.set_xscale("log")
            else:
                ax.xaxis.set_major_locator(MaxNLocator(5))
            if log_y:
                ax.set_yscale("log")
            named.append((ax, ends))
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        for ax in axes[::columns] if share_y else axes:
            ax.set_ylabel(y)
        figure.suptitle(title)
        several = table.loc[table["low"] < table["high"], "runs"]
        if len(several):
            count = " or ".join(f"{n}" for n in sorted(set(several)))
            note = f"{note}; " * bool(note) + f"lines: means, bands: 10-90 % of {count} repetitions"
        if note:
            figure.supxlabel(note, fontsize=14, color="#444444")
        label_ends(figure, named)
    return figure
