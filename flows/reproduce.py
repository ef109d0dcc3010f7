"""The flow that brings a DVC pipeline up to date: every stage a task, independent stages at once."""

from __future__ import annotations

import logging
import os
import queue
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from prefect import allow_failure, flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field

from flows import graph, summary
from flows.execute import Ending, Executor, Outcome


@dataclass(frozen=True)
class Reproduction:
    """What a run of the flow did.

    Attributes:
        stages: the stages that were selected, upstream first.
        outcomes: what became of each.
    """

    stages: dict[str, graph.Stage]
    outcomes: dict[str, Outcome]


class StageFailedError(Exception):
    """At least one stage failed.

    Attributes:
        reproduction: what the run did all the same.
    """

    def __init__(self, message: str, reproduction: Reproduction) -> None:
        super().__init__(message)
        self.reproduction = reproduction


def _without_empty_traceback(record: logging.LogRecord) -> bool:
    """Drop the "NoneType: None" that Prefect logs after a task that returned a Failed state."""
    if record.exc_info == (None, None, None):
        record.exc_info = None
    return True


logging.getLogger("prefect.task_runs").addFilter(_without_empty_traceback)


def _run_name() -> str:
    targets = flow_run.parameters.get("targets")
    return f"reproduce {' '.join(targets)}" if targets else "reproduce everything"


@flow(name="reproduce", flow_run_name=_run_name)
def reproduce(
    targets: Annotated[
        list[str] | None,
        Field(description="Labs, stages or globs to bring up to date, with all upstream; none means everything."),
    ] = None,
    jobs: Annotated[int | None, Field(ge=1, description="Stages at once; default: one per CPU core.")] = None,
    force: Annotated[bool, Field(description="Run the selected stages even if nothing changed.")] = False,
    root: Annotated[str | None, Field(description="The DVC repository; default: the current folder's.")] = None,
) -> Reproduction | State[Reproduction]:
    """Reproduce stages of a DVC pipeline, each as a task whose state says what happened.

    Returns:
        A Reproduction.

    Raises:
        StageFailedError: a stage failed; those that depend on it were skipped, the others went on.
        flows.graph.GraphError: the pipeline can't be read or a target is unknown.
    """
    logger = get_run_logger()
    folder = Path(root) if root else graph.find_root(Path.cwd())
    stages = graph.select(graph.load(folder), targets or [])
    executor = Executor(folder)
    try:
        outcomes = _schedule(stages, executor, jobs or os.cpu_count() or 1, force)
    except BaseException:  # Ctrl-C and Prefect's own signals too: no stage may outlive the flow
        executor.stop()
        raise
    reproduction = Reproduction(stages, outcomes)
    create_table_artifact(
        key="summary",
        table=summary.rows(folder, stages, outcomes),
        description=summary.counts(outcomes.values()),
    )
    logger.info(summary.counts(outcomes.values()))
    failed = [outcome for outcome in outcomes.values() if outcome.ending is Ending.FAILED]
    if failed:
        message = "\n".join(f"{outcome.stage} failed: {outcome.reason}" for outcome in failed)
        names = ", ".join(outcome.stage for outcome in failed)
        return Failed(message=f"failed: {names}", data=StageFailedError(message, reproduction))
    return Completed(message=summary.counts(outcomes.values()), data=reproduction)


@task(cache_policy=NO_CACHE)
def run_stage(
    stage: str, executor: Executor, force: bool, blocked: str | None, record: Callable[[Outcome], None]
) -> State[Any]:
    """Run one stage and tell what happened to it as the task's state.

    Args:
        stage: its name.
        executor: runs it.
        force: whether to run its command even if nothing changed.
        blocked: why it must be skipped, if so.
        record: takes the outcome.
    """
    if blocked is not None:
        outcome = Outcome(stage, Ending.SKIPPED, blocked)
    else:
        outcome = executor.run(stage, force=force, log=get_run_logger().info)
    record(outcome)
    # Skipped is of the type FAILED: of a cancelled task Prefect would not let another one come after.
    state = Failed if outcome.ending in (Ending.FAILED, Ending.SKIPPED) else Completed
    return state(name=outcome.ending.value, message=outcome.reason)


def _schedule(stages: dict[str, graph.Stage], executor: Executor, jobs: int, force: bool) -> dict[str, Outcome]:
    """Submit each stage as soon as all that it depends on has ended, `jobs` at a time."""
    outcomes: dict[str, Outcome] = {}

    def record(outcome: Outcome) -> None:
        outcomes[outcome.stage] = outcome

    futures: dict[str, PrefectFuture[Any]] = {}
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    waiting, running = dict(stages), 0
    while waiting or running:
        ready = [s for s in waiting.values() if all(up in outcomes for up in s.upstream if up in stages)]
        for stage in ready[: jobs - running]:
            named = run_stage.with_options(name=stage.name, task_run_name=stage.name)
            upstream = [allow_failure(futures[name]) for name in stage.upstream if name in futures]
            future = named.submit(
                stage.name, executor, force, _blocked(stage, outcomes), record, return_state=False, wait_for=upstream
            )
            future.add_done_callback(partial(_put, ended, stage.name))
            futures[stage.name] = future
            del waiting[stage.name]
            running += 1
        name = ended.get()
        running -= 1
        if name not in outcomes:  # Prefect could not run the task at all
            outcomes[name] = Outcome(name, Ending.FAILED, f"Prefect: {futures[name].state.message}")
    return {name: outcomes[name] for name in stages}


def _put(ended: queue.SimpleQueue[str], name: str, _future: PrefectFuture[Any]) -> None:
    ended.put(name)


def _blocked(stage: graph.Stage, outcomes: dict[str, Outcome]) -> str | None:
    """Why a stage whose upstream stages have ended must be skipped, if so."""
    for name in stage.upstream:
        if name in outcomes and outcomes[name].ending is Ending.FAILED:
            return f"{name}, which it depends on, failed"
        if name in outcomes and outcomes[name].ending is Ending.SKIPPED:
            return f"{name}, which it depends on, was skipped"
    return None
