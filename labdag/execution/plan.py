"""What a run would do, and why, told without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from labdag.execution.journal import Journal
from labdag.pipeline.graph import UNCHANGED, Pipeline, Stage, told


class Will(StrEnum):
    """What will happen to a stage."""

    UNCHANGED = "unchanged"
    RECORD = "will be recorded"  # what is there, without a command
    RESTORE = "will be restored"  # from DVC's cache
    RUN = "will run"  # if something upstream does, too, DVC's cache may yet turn out to have it
    MAYBE = "may run"  # if what upstream makes is different from before
    FAIL = "will fail"
    SKIP = "will be skipped"


@dataclass(frozen=True)
class Step:
    """What will happen to one stage.

    Attributes:
        stage: its name.
        will: what will happen.
        reason: why.
        is_fetched: whether it is to come from DVC's remote, as it is recorded.
    """

    stage: str
    will: Will
    reason: str
    is_fetched: bool = False


@dataclass(frozen=True)
class How:
    """How a run is told to go about it.

    Attributes:
        force: whether all stages are made to run.
        force_downstream: whether what depends on a stage that is not as before is made to run.
        no_run_cache: whether nothing is restored from earlier runs.
        pull: whether what is missing is fetched from DVC's remote.
    """

    force: bool = False
    force_downstream: bool = False
    no_run_cache: bool = False
    pull: bool = False


def plan(pipeline: Pipeline, stages: Mapping[str, Stage], how: How = How()) -> list[Step]:
    """Tell of each stage what a run would do to it.

    What the run-cache has is looked up as far as it can be known: where all that a stage reads is there, or will be
    restored from the cache itself.

    Args:
        pipeline: the stages' pipeline.
        stages: what would be run, each after those that it depends on.
        how: it would be run.

    Raises:
        labdag.errors.UserError: the pipeline can't be read.
    """
    steps: dict[str, Step] = {}
    coming: dict[str, object] = {}  # what will be restored: the hash of each file and folder, by its path
    finished = Journal(pipeline.root).finished()
    for stage in stages.values():
        steps[stage.name] = _step(pipeline, stage, steps, coming, stage.name in finished, how)
    return list(steps.values())


def _step(
    pipeline: Pipeline, stage: Stage, steps: Mapping[str, Step], coming: dict[str, object], finished: bool, how: How
) -> Step:
    lost = [up for up in stage.upstream if up in steps and steps[up].will in (Will.FAIL, Will.SKIP)]
    if lost:
        return Step(stage.name, Will.SKIP, f"{_listed(lost)} can't be brought up to date")
    moving = [up for up in stage.upstream if up in steps and steps[up].will is not Will.UNCHANGED]
    changes = pipeline.changes(stage.name)
    # What upstream makes anew is not as it is now when the stage's turn comes.
    lasting = [change for change in changes if change.source not in moving]
    are_fetched = all(steps[up].is_fetched for up in moving)
    if how.pull and not how.force and changes and are_fetched and not pipeline.changes(stage.name, allow_missing=True):
        reason = f"{told(changes)}; it is fetched from DVC's remote, if that has it"
        return Step(stage.name, Will.RESTORE, reason, is_fetched=True)
    if any(change.is_fatal for change in lasting):
        return Step(stage.name, Will.FAIL, told(change for change in lasting if change.is_fatal) or "")
    if not stage.is_run:
        if not lasting and not how.force:
            return Step(stage.name, Will.UNCHANGED, UNCHANGED)
        return Step(stage.name, Will.RECORD, told(lasting) or "it is told to")
    if how.force:
        return Step(stage.name, Will.RUN, "it is told to")
    if how.force_downstream and moving:
        is_sure = any(steps[up].will is not Will.MAYBE for up in moving)
        return Step(stage.name, Will.RUN if is_sure else Will.MAYBE, f"{_listed(moving)} is made anew")
    if not lasting and not moving:
        return Step(stage.name, Will.UNCHANGED, UNCHANGED)
    if finished and not moving:
        return Step(stage.name, Will.RECORD, "its command has finished, and DVC has not recorded it yet")
    if all(steps[up].will in (Will.RESTORE, Will.RECORD) for up in moving):
        found = pipeline.restorable(stage.name, coming)
        if found is not None and how.no_run_cache and not found.is_recorded:
            found = None
        if found is not None and found.is_recorded and not lasting:
            return Step(stage.name, Will.UNCHANGED, "what is restored upstream is what it has read before")
        if found is not None:
            coming.update(found.outs)
            return Step(stage.name, Will.RESTORE, told(lasting) or f"{_listed(moving)} is restored")
    if lasting:
        return Step(stage.name, Will.RUN, told(lasting) or "")
    return Step(stage.name, Will.MAYBE, f"if what {_listed(moving)} makes is different from before")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + (" or " if len(names) > 1 else "") + names[-1]
