"""The metrics of a pipeline, and what became of them since a revision."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from flows import graph

WORKSPACE = "workspace"
DEPTH = 2  # levels of a metrics file that tables show; `dvc metrics show` and `dvc metrics diff` show all
MISSING = "-"

Rows = list[dict[str, Any]]


def tables(root: Path, paths: Collection[str], rev: str = "HEAD") -> tuple[Rows, Rows]:
    """What some metrics files hold now, and in what they differ from what they held at `rev`.

    Args:
        root: the repository's root.
        paths: of metrics files, from the root.
        rev: a git revision; where there is none of that name, as before the first commit, nothing differs.

    Returns:
        A row for each file with a column for each metric; and a row for each metric that differs.
    """
    found = graph.metrics(root, (rev, WORKSPACE), paths)
    now = {path: dict(leaves(values)) for path, values in found.get(WORKSPACE, {}).items()}
    shown = [{"metrics": path, **values} for path, values in now.items() if values]
    if rev not in found:
        return shown, []
    changed = []
    for path in paths:
        old, new = dict(leaves(found[rev].get(path, {}))), now.get(path, {})
        for name in dict.fromkeys([*old, *new]):
            before, after = old.get(name, MISSING), new.get(name, MISSING)
            if before != after:
                change = _change(before, after)
                changed.append({"metrics": path, "metric": name, rev: before, "now": after, "change": change})
    return shown, changed


def leaves(values: Any, depth: int = DEPTH) -> Iterator[tuple[str, Any]]:
    """Numbers and strings in the upper levels of a metrics file, by their dotted names."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            if not isinstance(value, Mapping):
                yield str(name), value
            elif depth > 1:
                yield from ((f"{name}.{inner}", leaf) for inner, leaf in leaves(value, depth - 1))


def _change(before: Any, after: Any) -> Any:
    try:
        return after - before
    except TypeError:
        return MISSING
