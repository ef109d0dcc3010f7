"""What came out: the figures that stages name in their `meta:`, and the table of a run."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from labdag.execution.outcome import Outcome, StageState
from labdag.files import exists
from labdag.pipeline.graph import Stage
from labdag.pipeline.targets import results

MISSING = "-"


def figures(root: Path, stages: Iterable[Stage], without: Container[str] = ()) -> dict[str, str]:
    """Headline figures of some stages, formatted, by name.

    A stage names them in dvc.yaml, with the format to print each in: `meta: {summary: {accuracy: ".2%"}}`.
    They are looked up in the stage's metrics files; what is not there yet is shown as a dash,
    and so are the figures of stages in `without`. What the format does not fit is shown as it is.
    """
    found: dict[str, str] = {}
    for stage in stages:
        wanted = stage.meta.summary
        values = metrics(root, [stage]) if wanted and stage.name not in without else {}
        for name, style in wanted.items():
            found[name] = _formatted(values[name], style) if name in values else MISSING
    return found


def metrics(root: Path, stages: Iterable[Stage]) -> dict[str, Any]:
    """What stands at the top of some stages' metrics files; of a name that stands there twice, the last."""
    values: dict[str, Any] = {}
    for stage in stages:
        for path in stage.metrics:
            values |= _read(root / path)
    return values


def report(root: Path, stages: Iterable[Stage]) -> str:
    """The page that a person will want to open, from the last stage that names one (`meta: {report: PATH}`)."""
    path = next((stage.meta.report for stage in reversed(list(stages)) if stage.meta.report), None)
    if path is None:
        return MISSING
    return path if "://" in path or exists(root / path) else f"{path} is not there"


def rows(root: Path, stages: dict[str, Stage], outcomes: Mapping[str, Outcome]) -> list[dict[str, str]]:
    """A row for each result, with what its stages did and found."""
    table = []
    for key, members in results(stages).items():
        ended = [outcomes[name] for name in members if name in outcomes]
        bad = {outcome.stage: outcome for outcome in ended if outcome.ending.is_failure}
        row = {
            "target": key,
            "run": str(sum(outcome.ending is StageState.COMPLETED for outcome in ended)),
            "reused": str(sum(outcome.ending.is_reused for outcome in ended)),
            # What a failed or skipped stage left behind is not this run's result.
            **figures(root, members.values(), without=bad),
            "seconds": f"{sum(outcome.seconds for outcome in ended):.1f}",
            "report": report(root, members.values()),
        }
        if bad:
            first = next(iter(bad.values()))
            row["report"] = f"{first.ending.lower()}: {first.stage}"
        table.append(row)
    return table


def counts(outcomes: Iterable[Outcome]) -> str:
    """How many stages ended how, in a line."""
    endings = [outcome.ending for outcome in outcomes]
    restored = endings.count(StageState.CACHED)
    reused = f"{sum(ending.is_reused for ending in endings)} reused" + (f" ({restored} restored)" if restored else "")
    told = [f"{endings.count(StageState.COMPLETED)} run", reused]
    told += [
        f"{endings.count(ending)} {ending.lower()}" for ending in StageState if ending.is_failure and ending in endings
    ]
    return f"{counted(len(endings))}: {', '.join(told)}"


def counted(count: int) -> str:
    """So many stages."""
    return f"{count} stage" if count == 1 else f"{count} stages"


def _formatted(value: Any, style: str) -> str:
    try:
        return format(value, style)
    except (ValueError, TypeError, OverflowError):
        return value if isinstance(value, str) else json.dumps(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
