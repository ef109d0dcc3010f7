"""The metrics of a pipeline, and what became of them since a revision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flows.graph import Pipeline

DEPTH = 2  # levels of a metrics file that tables show; `dvc metrics show` and `dvc metrics diff` show all
MISSING = "-"

Rows = list[dict[str, Any]]


def tables(pipeline: Pipeline, names: Iterable[str], rev: str = "HEAD") -> tuple[Rows, Rows]:
    """What the metrics files of some stages hold now, and in what they differ from what they held at `rev`.

    Args:
        pipeline: that the stages are of.
        names: of the stages.
        rev: a git revision; of metrics that it does not have, as before the first commit, all is new.

    Returns:
        A row for each file with a column for each metric; and a row for each metric that differs.
    """
    names = list(names)
    before, now = (
        {path: dict(leaves(values)) for path, values in pipeline.metrics(names, of).items()} for of in (rev, None)
    )
    changed = []
    for path in now:
        old, new = before.get(path, {}), now[path]
        for name in dict.fromkeys([*old, *new]):
            was, is_now = old.get(name, MISSING), new.get(name, MISSING)
            if was != is_now:
                change = _change(was, is_now)
                changed.append({"metrics": path, "metric": name, rev: was, "now": is_now, "change": change})
    return [{"metrics": path, **values} for path, values in now.items() if values], changed


def leaves(values: Any, depth: int = DEPTH) -> Iterator[tuple[str, Any]]:
    """Numbers and strings in the upper levels of a metrics file, by their dotted names."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            if isinstance(value, int | float | str):
                yield str(name), value
            elif depth > 1:
                yield from ((f"{name}.{inner}", leaf) for inner, leaf in leaves(value, depth - 1))


def _change(was: Any, is_now: Any) -> Any:
    try:
        return float(f"{is_now - was:.6g}")
    except TypeError:
        return MISSING
