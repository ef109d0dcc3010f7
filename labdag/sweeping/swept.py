"""What came of a sweep."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from labdag.results.compare import is_percent, styled
from labdag.sweeping.points import Point, Setting, told

MOST = 6  # figures that tables show of a target that does not say which


class Found(StrEnum):
    """What became of a point."""

    RECORDED = "Recorded"
    KNOWN = "Known"  # an earlier sweep had recorded it
    FAILED = "Failed"


@dataclass(frozen=True)
class Result:
    """A point of a sweep.

    Attributes:
        point: it.
        found: what became of it.
        experiment: the name of its experiment; empty if it failed.
        reason: why it failed.
        metrics: figures by their dotted names.
    """

    point: Point
    found: Found
    experiment: str = ""
    reason: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def told(self) -> Mapping[str, Any] | None:
        """The metrics, as a search takes them: None if there are none."""
        return None if self.found is Found.FAILED else self.metrics


class PointsFailedError(Exception):
    """At least one point failed.

    Attributes:
        sweep: what came of the others.
    """

    def __init__(self, sweep: Sweep) -> None:
        super().__init__("\n".join(f"{each.point.name}: {each.reason}" for each in sweep.failed()))
        self.sweep = sweep


@dataclass(frozen=True)
class Sweep:
    """What came of a sweep.

    Attributes:
        settings: what was varied.
        results: of all points.
        styles: the figures that tables show, with the format of each.
        seed: dotted name of the param that changes figures by chance alone, if there is one and it was varied.
        metric: the figure that it is about.
        is_search: whether its best value was searched for.
        minimize: whether less of it is better.
    """

    settings: list[Setting]
    results: list[Result]
    styles: Mapping[str, str]
    seed: str | None = None
    metric: str = "accuracy"
    is_search: bool = False
    minimize: bool = False

    def failed(self) -> list[Result]:
        """The points that failed."""
        return [result for result in self.results if result.found is Found.FAILED]

    def shown(self) -> list[Setting]:
        """What was varied, the seed apart."""
        return [setting for setting in self.settings if setting.name != self.seed]

    def rows(self) -> list[dict[str, str]]:
        """A row for each combination of values, seeds apart: mean and standard deviation of the figures.

        They are in the order in which they were asked for, or of a search the best first.
        """
        shown = self.shown()
        groups: dict[tuple[str, ...], list[Result]] = {}
        for result in self._ordered():
            groups.setdefault(tuple(told(result.point.values[setting.name]) for setting in shown), []).append(result)
        rows, columns = [], self._columns()
        for values, results in groups.items():
            row = {
                _other(setting.short, "param", ["runs"]): value for setting, value in zip(shown, values, strict=True)
            }
            good = [result for result in results if result.found is not Found.FAILED]
            row["runs"] = str(len(good))
            for name, style in columns.items():
                figures = [result.metrics[name] for result in good if isinstance(result.metrics.get(name), int | float)]
                row[_other(name, "metric", row)] = _spread(figures, style)
            rows.append(row)
        return rows

    def _columns(self) -> dict[str, str]:
        """The figures to show, with the format of each; those of a name that several metrics files have, all."""
        if not self.styles:
            return self._unstyled()
        there = dict.fromkeys(name for result in self.results for name in result.metrics)
        return {
            name: style
            for wanted, style in self.styles.items()
            for name in [each for each in there if each == wanted or each.endswith(f":{wanted}")] or [wanted]
        }

    def _unstyled(self) -> dict[str, str]:
        """Where no stage says what to show: the first figures that there are."""
        good = [result.metrics for result in self.results if result.found is not Found.FAILED]
        names = [name for name, value in (good[0] if good else {}).items() if isinstance(value, int | float)]
        return dict.fromkeys([name for name in names if "." not in name][:MOST], ".4g")

    def _ordered(self) -> list[Result]:
        if not self.is_search:
            return self.results
        return sorted(self.results, key=_worth(self.metric, 1 if self.minimize else -1))


def _other(name: str, kind: str, taken: Container[str]) -> str:
    """A column's name, told from those that are taken."""
    return f"{name} ({kind})" if name in taken else name


def _worth(metric: str, sign: int) -> Callable[[Result], float]:
    def worth(result: Result) -> float:
        value = result.metrics.get(metric)
        return sign * value if isinstance(value, int | float) else math.inf

    return worth


def _spread(figures: list[float], style: str) -> str:
    """Mean ± standard deviation, or as much of that as can be told."""
    if not figures:
        return "-"
    if len(set(figures)) == 1:
        return styled(figures[0], style)
    if not all(map(math.isfinite, figures)):  # they have no deviation
        return styled(sum(figures), style)
    mean, deviation = statistics.fmean(figures), statistics.stdev(figures)
    if is_percent(style):
        return f"{styled(mean, style)} ± {format(deviation, style)[:-1]}"
    return f"{mean:.4g} ± {deviation:.2g}"
