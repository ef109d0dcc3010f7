"""Which points of a sweep are tried, and in which order: all of a grid, or what a search thinks promising."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from labdag.errors import UserError
from labdag.sweeping.points import FIGURES, Point, Setting, Span, point

Metrics = Mapping[str, Any]


class Search(Protocol):
    """Gives points one by one, and is told what became of each.

    Attributes:
        count: how many it may give.
    """

    count: int

    def ask(self) -> Point | None:
        """The next point; None if there is none left."""

    def tell(self, tried: Point, metrics: Metrics | None) -> None:
        """Take the metrics of a point that was asked for; None if it failed."""


class Grid:
    """All points, one after the other."""

    def __init__(self, points: list[Point]) -> None:
        self._left, self.count = list(points), len(points)

    def ask(self) -> Point | None:
        """The next point; None if there is none left."""
        return self._left.pop(0) if self._left else None

    def tell(self, tried: Point, metrics: Metrics | None) -> None:
        """Nothing follows from it."""


class Study:
    """Optuna's search (tree-structured Parzen estimator), kept in a file so that it can go on.

    Args:
        file: of the studies, a SQLite database.
        name: of this one.
        target: what is made.
        settings: what is varied.
        trials: how many points may be tried, those of earlier sweeps included.
        metric: dotted name of the figure that is to be best.
        maximize: whether more of it is better.
        log: takes lines of what is found.
    """

    def __init__(
        self,
        file: Path,
        name: str,
        target: str,
        settings: list[Setting],
        trials: int,
        metric: str,
        *,
        maximize: bool,
        log: Callable[[str], None],
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.count, self._maximize = trials, maximize
        self._target, self._settings, self._trials, self._metric, self._log = target, settings, trials, metric, log
        file.parent.mkdir(parents=True, exist_ok=True)
        self._study = optuna.create_study(
            storage=f"sqlite:///{file}",
            study_name=name,
            direction="maximize" if maximize else "minimize",
            load_if_exists=True,
        )
        self._complete, self._fail = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL
        self._running: dict[str, Any] = {}
        for left in self._study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # by a sweep that was broken off
            self._study.tell(left.number, state=self._fail)
            self._study.enqueue_trial(left.params)
        known = self._study.get_trials(states=[self._complete])
        # Another seed each time, or it would begin anew with what it has tried. And a point that is being tried counts
        # as bad, so that those tried at once are not all alike.
        self._study.sampler = optuna.samplers.TPESampler(seed=len(known), constant_liar=True)
        self._tried = len(known)
        self.known = [self._point(trial.params) for trial in known]

    def ask(self) -> Point | None:
        """The next point; None if all trials were made."""
        if self._tried >= self._trials:
            return None
        self._tried += 1
        trial = self._study.ask()
        found = self._point({setting.name: self._suggested(trial, setting) for setting in self._settings})
        self._running.setdefault(found.name, []).append(trial)
        return found

    def tell(self, tried: Point, metrics: Metrics | None) -> None:
        """Take what came of a point.

        Raises:
            UserError: it has no such metric.
        """
        trial = self._running[tried.name].pop(0)
        if metrics is None:
            self._study.tell(trial, state=self._fail)
            return
        value = metrics.get(self._metric)
        if not isinstance(value, int | float):
            raise no_metric(self._target, self._metric, metrics)
        self._study.tell(trial, value)
        done = [trial.value for trial in self._study.get_trials(states=[self._complete]) if trial.value is not None]
        if done:  # nan counts as a failure
            best = max(done) if self._maximize else min(done)
            self._log(f"{tried.name}: {self._metric} {value:g}; the best so far: {best:g}")

    def _suggested(self, trial: Any, setting: Setting) -> Any:
        span = setting.values
        if not isinstance(span, Span):
            return trial.suggest_categorical(setting.name, span)
        if span.is_whole:
            return trial.suggest_int(setting.name, int(span.low), int(span.high), log=span.is_log)
        return trial.suggest_float(setting.name, span.low, span.high, log=span.is_log)

    def _point(self, values: Mapping[str, Any]) -> Point:
        chosen = [values[setting.name] for setting in self._settings]
        picked = [
            float(f"{value:.{FIGURES}g}") if isinstance(setting.values, Span) and isinstance(value, float) else value
            for setting, value in zip(self._settings, chosen, strict=True)
        ]
        return point(self._target, self._settings, picked)


def no_metric(target: str, metric: str, metrics: Metrics) -> UserError:
    """What to say where a search is for a figure that there is not."""
    numbers = [name for name, each in metrics.items() if isinstance(each, int | float)]
    plain = [name for name in numbers if "." not in name.rpartition(":")[2]]
    return UserError(f"{target} has no metric '{metric}'; it has {', '.join(plain or numbers) or 'none'}.")
