"""Whether stages make again what dvc.lock says that they made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labdag.errors import UserError
from labdag.pipeline.graph import NEVER_RUN, Pipeline, Stage, told
from labdag.pipeline.targets import select
from labdag.pipeline.workspace import isolated
from labdag.results.compare import MISSING, leaves

PURPOSE = "verify"


@dataclass(frozen=True)
class Difference:
    """An output that was made anew with another content.

    Attributes:
        stage: whose it is.
        path: of it, from the root.
        what: in what it differs, as far as can be told.
        follows: a stage upstream of which an output differs too; None where this stage itself is the first.
    """

    stage: str
    path: str
    what: str
    follows: str | None


@dataclass(frozen=True)
class Verification:
    """What came of running stages again.

    Attributes:
        outs: how many outputs were held against dvc.lock.
        differences: metrics first, and those of stages upstream before those that follow from them.
    """

    outs: int
    differences: list[Difference]


def verify(root: Path, targets: list[str], run: Callable[[list[str], Path], object]) -> Verification:
    """Run stages again where nothing was ever run, and hold the hash of each output against dvc.lock.

    Args:
        root: the repository.
        targets: what to verify, with all upstream; none means all that dvc.lock has.
        run: brings stages up to date in a repository, given their names and its root.

    Raises:
        UserError: a target was never run, was recorded with another definition or other params than it has now, or by
            DVC 2, or works on files outside the repository.
    """
    with Pipeline(root) as pipeline:
        stages = _to_verify(pipeline, targets)
        recorded = {name: pipeline.hashes(name) if stage.is_run else {} for name, stage in stages.items()}
        before = pipeline.recorded_metrics(stages)
        with isolated(pipeline, stages, PURPOSE) as copy:
            run(targets or list(stages), copy)
            with Pipeline(copy) as again:
                made = {name: again.hashes(name) for name in stages}
                now = again.metrics(stages)
    differing = {name: _unlike(recorded[name], made[name]) for name in stages}
    first = _first_upstream(stages, differing)
    differences = [
        Difference(name, path, _told_of_metrics(before.get(path), now.get(path)), first[name])
        for name, paths in differing.items()
        for path in paths
    ]
    metrics = {path for stage in stages.values() for path in stage.metrics}
    differences.sort(key=lambda difference: difference.path not in metrics)
    return Verification(sum(map(len, recorded.values())), differences)


def _to_verify(pipeline: Pipeline, targets: list[str]) -> dict[str, Stage]:
    stages = select(pipeline.stages, targets)
    reasons = {name: pipeline.changes(name) for name in stages}
    never = [name for name, changes in reasons.items() if any(change.text == NEVER_RUN for change in changes)]
    if never and targets:
        raise UserError(f"{never[0]} was never run, so there is nothing to hold it against; `labdag run` does.")
    stages = {name: stage for name, stage in stages.items() if name not in never}
    if not stages:
        raise UserError("Nothing was ever run here, so there is nothing to verify; `labdag run` does.")
    for name in stages:
        edits = [change for change in reasons[name] if change.source is None and not change.of_out]
        edits = [change for change in edits if change.text != "it always runs"]
        if edits:
            raise UserError(
                f"{name} was recorded as something else: {told(edits)}. `labdag run` records it as it is now."
            )
        if strays := pipeline.strays(name):
            raise UserError(
                f"{name} can't be verified: {strays[0]} lies outside the repository, and so outside an isolated copy."
            )
        if any(kind != "md5" for kind, _ in pipeline.hashes(name).values()):
            raise UserError(
                f"{name} was recorded by DVC 2, with another kind of hash; `dvc cache migrate --dvc-files` mends that."
            )
    return stages


def _unlike(recorded: Mapping[str, tuple[str, str]], made: Mapping[str, tuple[str, str]]) -> list[str]:
    return [path for path, digest in recorded.items() if made.get(path) != digest]


def _first_upstream(stages: Mapping[str, Stage], differing: Mapping[str, list[str]]) -> dict[str, str | None]:
    """For each stage one upstream of which an output differs, and of none upstream of that; None where there is none.

    Args:
        stages: each after those that it depends on.
        differing: paths of the outputs of each that differ.
    """
    first: dict[str, str | None] = {}
    for name, stage in stages.items():
        found = [first[up] or up for up in stage.upstream if up in stages and (first[up] or differing[up])]
        first[name] = found[0] if found else None
    return first


def _told_of_metrics(before: Any, now: Any) -> str:
    """What became of the values of a metrics file; empty where it is none."""
    old, new = dict(leaves(before)), dict(leaves(now))
    names: Iterable[str] = dict.fromkeys([*old, *new])
    changed = [
        f"{name} {old.get(name, MISSING)} → {new.get(name, MISSING)}"
        for name in names
        if old.get(name) != new.get(name)
    ]
    return "; ".join(changed)
