"""The chart of a sweep: what a figure came to, by each param that was varied."""

from __future__ import annotations

import math
import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from labdag.results.compare import is_number
from labdag.sweeping.swept import Found, Result, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from labdag.sweeping.points import Setting

PANEL = 3.6  # inches
WIDE = 50  # from where on the greatest of some values is so many times the least that their logarithms are shown
MOST_TICKS = 6  # values that are written under the axis, each where it stands
BLUE, VERMILLION = "#0072B2", "#D55E00"


def draw(sweep: Sweep, path: Path) -> Path | None:
    """Draw a panel for each param: a dot for each run, and where there are several of a value, mean and deviation.

    Args:
        sweep: what is to be drawn.
        path: of the picture, a PNG.

    Returns:
        The path; None if no two runs have the figure, or nothing but the seed was varied.
    """
    runs = [run for run in sweep.results if run.found is not Found.FAILED and is_number(run.metrics.get(sweep.metric))]
    shown = sweep.shown()
    if len(runs) < 2 or not shown:
        return None
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    with rc_context({"text.parse_math": False}):  # a $ in a value is a $
        figure = Figure(figsize=(0.6 + PANEL * len(shown), PANEL), layout="constrained", dpi=120)
        figure.suptitle(path.stem)
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, setting in zip(panels, shown, strict=True):
            _panel(axes, sweep, runs, setting)
        if sweep.styles.get(sweep.metric, "").endswith("%"):
            panels[0].yaxis.set_major_formatter(PercentFormatter(xmax=1))
        panels[0].set_ylabel(sweep.metric.replace("_", " "))
        figure.savefig(part, format="png", metadata={"Software": None})
    part.replace(path)
    return path


def _panel(axes: Axes, sweep: Sweep, runs: list[Result], setting: Setting) -> None:
    values = [run.point.values[setting.name] for run in runs]
    if all(is_number(value) for value in values):
        places = [float(value) for value in values]
        if min(places) > 0 and max(places) >= WIDE * min(places):
            axes.set_xscale("log")
        if len(set(places)) <= MOST_TICKS:
            axes.set_xticks(sorted(set(places)), [f"{place:g}" for place in sorted(set(places))])
            axes.minorticks_off()
        elif axes.get_xscale() == "linear":
            axes.locator_params(axis="x", nbins=4)
    else:
        names = list(dict.fromkeys(map(str, values)))
        places = [float(names.index(str(value))) for value in values]
        axes.set_xticks(range(len(names)), names)
    heights = [float(run.metrics[sweep.metric]) for run in runs]
    axes.plot(places, heights, "o", color=BLUE, alpha=0.6, markersize=5)
    groups: dict[float, list[float]] = {}
    for place, height in zip(places, heights, strict=True):
        groups.setdefault(place, []).append(height)
    several = {
        place: found
        for place, found in sorted(groups.items())
        if len(found) > 1 and all(map(math.isfinite, found))  # others have no deviation
    }
    if several and not sweep.is_search:
        means = [statistics.fmean(found) for found in several.values()]
        spread = [statistics.stdev(found) for found in several.values()]
        label = "mean ± standard deviation"
        axes.errorbar(list(several), means, spread, color=VERMILLION, marker="s", markersize=4, capsize=4, label=label)
        axes.legend(frameon=False, fontsize="small")
    axes.set_xlabel(setting.short)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
