"""The flow that brings a DVC pipeline up to date: every stage a task, independent stages at once."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

from prefect import allow_failure, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas import State
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from labdag.errors import UserError
from labdag.execution.execute import Executor
from labdag.execution.journal import Journal, Run
from labdag.execution.outcome import Outcome, StageState
from labdag.execution.schedule import Schedule, sizes
from labdag.execution.supervisor import sweep
from labdag.git import GitError, find_root, git
from labdag.orchestration import server
from labdag.orchestration.logs import drop_repeated_failures
from labdag.pipeline import graph
from labdag.pipeline.targets import select
from labdag.results import artifacts, compare, summary

MANY = 1000  # threads at most; how many stages really run at once is for the schedule to say
NOT_STARTED = "not started"  # how the reason begins for a stage that could have run, had another one not failed
CLAIM_SECONDS = 0.2  # between two tries to claim a stage that another run has


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


class RunCancelledError(Exception):
    """Somebody cancelled the run.

    Attributes:
        reproduction: what the run did before.
    """

    def __init__(self, message: str, reproduction: Reproduction) -> None:
        super().__init__(message)
        self.reproduction = reproduction


drop_repeated_failures()


def _run_name() -> str:
    targets = flow_run.parameters.get("targets")
    return f"reproduce {' '.join(targets)}" if targets else "reproduce everything"


@server.served(name="reproduce", flow_run_name=_run_name, task_runner=ThreadPoolTaskRunner(max_workers=MANY))
def reproduce(
    targets: list[str] | None = None,
    jobs: Annotated[int | None, Field(ge=1)] = None,
    force: bool = False,
    keep_going: bool = False,
    downstream: bool = False,
    pull: bool = False,
    allow_missing: bool = False,
    single_item: bool = False,
    force_downstream: bool = False,
    no_run_cache: bool = False,
    no_commit: bool = False,
    slots: dict[str, int] | None = None,
    root: str | None = None,
) -> Reproduction | State[Reproduction]:
    """Reproduce stages of a DVC pipeline, each as a task whose state says what happened.

    Args:
        targets: Stages, groups, keys or globs to bring up to date, with all upstream; none: everything.
        jobs: Stages at once; default: one per CPU core.
        force: Run the selected stages even if nothing changed.
        keep_going: After a failure, go on with what does not depend on it, instead of starting no more.
        downstream: Take what depends on the targets, instead of what they depend on.
        pull: Fetch what is missing from DVC's remote.
        allow_missing: Leave stages alone of which only data are missing that are recorded.
        single_item: Take the targets alone, without what is upstream.
        force_downstream: Run what depends on a stage that has run, even if what it reads did not change.
        no_run_cache: Restore nothing from earlier runs, but run again.
        no_commit: Keep no outputs in DVC's cache; `dvc commit` does later.
        slots: How much there is of each resource of meta.slots; default: the machine's cpu and gpu.
        root: The DVC repository; default: the current folder's.

    Returns:
        A Reproduction.

    Raises:
        StageFailedError: a stage failed; those that depend on it were skipped.
        RunCancelledError: the run was cancelled; its running stages were ended, the others not started.
        labdag.errors.UserError: the pipeline can't be read or a target is unknown.
    """
    logger = get_run_logger()
    folder = Path(root) if root else find_root(Path.cwd())
    journal = Journal(folder)
    run = Run.of_this_process(uuid4().hex, server.named(), str(flow_run.id))
    with ExitStack() as held:
        pipeline = held.enter_context(graph.take(folder))
        pipeline.allow_missing = allow_missing
        stages = select(pipeline.stages, targets or [], downstream=downstream, single=single_item)
        given = {
            "--pull": pull,
            "--allow-missing": allow_missing,
            "--no-run-cache": no_run_cache,
            "--no-commit": no_commit,
        }
        options = [option for option, is_given in given.items() if is_given]
        for problem in graph.problems(stages.values()):
            logger.warning(problem)
        held.enter_context(journal.open(run))
        executor = held.enter_context(Executor(pipeline, journal, run.id, stages, options))
        _tidy_up(journal, pipeline, executor, logger.warning)
        _tag(folder, targets or [])
        there = sizes(pipeline.stages, slots or {})
        schedule = Schedule(stages, jobs or os.cpu_count() or 1, there)
        traversal = _Traversal(stages, executor, journal, schedule, force_downstream)
        with server.watched(UUID(str(flow_run.id)), traversal.cancel):
            outcomes = traversal.run(force=force, keep_going=keep_going)
        _show_metrics(pipeline, [name for name in stages if not outcomes[name].ending.is_failure])
    reproduction = Reproduction(stages, outcomes)
    told = summary.counts(outcomes.values())
    server.show("summary", summary.rows(folder, stages, outcomes), told)
    logger.info(told)
    if traversal.cancelled:
        return server.ending(Cancelled(message=told, data=RunCancelledError(told, reproduction)))
    failed = [outcome for outcome in outcomes.values() if outcome.ending in (StageState.FAILED, StageState.TAINTED)]
    if failed:
        message = "\n".join(f"{outcome.stage} failed: {outcome.reason}" for outcome in failed)
        names = ", ".join(outcome.stage for outcome in failed)
        return server.ending(Failed(message=f"failed: {names}", data=StageFailedError(message, reproduction)))
    is_up_to_date = all(outcome.ending is StageState.UNCHANGED for outcome in outcomes.values())
    return server.ending(Completed(name="UpToDate" if is_up_to_date else None, message=told, data=reproduction))


@task(cache_policy=NO_CACHE)
def run_stage(
    stage: graph.Stage,
    executor: Executor,
    force: bool,
    blocked: Outcome | None,
    remark: str,
    record: Callable[[Outcome], None],
) -> State[Any]:
    """Run one stage and tell what happened to it as the task's state.

    Args:
        stage: what to run.
        executor: runs it.
        force: whether to run its command even if nothing changed.
        blocked: what becomes of it without a run, if it can't or need not be run.
        remark: what to tell if it is not fresh; may be empty.
        record: takes the outcome.
    """
    if blocked is not None:
        outcome = blocked
    else:
        try:
            with artifacts.Progress(stage, get_run_logger().info) as log:
                outcome = executor.run(stage, force=force, remark=remark, log=log)
        except UserError as error:
            outcome = Outcome(stage.name, StageState.FAILED, str(error))
    record(outcome)
    if not outcome.ending.is_failure and outcome.ending is not StageState.UNCHANGED:
        artifacts.show_pictures(stage, executor.pipeline.root)
    # Skipped is of the type FAILED: of a cancelled task Prefect would not let another one come after.
    state = Failed if outcome.ending.is_failure else Completed
    # In one line, as Prefect logs it; the lines of a reason are in the stage's log.
    return state(name=outcome.ending.value, message=" ".join(outcome.reason.split()))


@dataclass
class _Traversal:
    """One run's way through its stages.

    Attributes:
        stages: what is to be run, upstream first.
        executor: runs a stage.
        journal: where stages are claimed.
        schedule: says which may start.
        force_downstream: whether what depends on a stage that is not as before is made to run.
        outcomes: what became of those that have ended.
        cancelled: whether somebody has cancelled the run.
    """

    stages: Mapping[str, graph.Stage]
    executor: Executor
    journal: Journal
    schedule: Schedule
    force_downstream: bool = False
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    cancelled: bool = False
    _told_by_tasks: dict[str, Outcome] = field(default_factory=dict)  # in their threads, until they are taken back
    _futures: dict[str, PrefectFuture[Any]] = field(default_factory=dict)
    _claims: dict[str, ExitStack] = field(default_factory=dict)
    _ended: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    _told: set[tuple[str, str]] = field(default_factory=set)
    _stale: set[str] = field(default_factory=set)  # those seen so while another run was in the way

    def cancel(self) -> None:
        """End what runs and start nothing more; may be called from any thread."""
        self.cancelled = True
        self.executor.stop()

    def run(self, *, force: bool, keep_going: bool) -> dict[str, Outcome]:
        """Run all stages, each as soon as all that it depends on has ended; tells what became of each."""
        try:
            while not self._is_over():
                try:
                    self._run(force, keep_going)
                except (KeyboardInterrupt, TerminationSignal):  # Ctrl-C, and what Prefect makes of SIGTERM
                    self.cancel()
        except BaseException:  # no stage may outlive the flow
            self.cancel()
            raise
        return {name: self.outcomes[name] for name in self.stages}

    def _is_over(self) -> bool:
        return not (self.schedule.waiting or self.schedule.running)

    def _run(self, force: bool, keep_going: bool) -> None:
        while not self._is_over():
            contended = False
            for stage in self.schedule.startable():
                is_forced = force or self._is_forced(stage)
                blocked = self._blocked(stage, keep_going)
                claim = None if blocked else self.journal.claim(stage)
                if claim is None and blocked is None and (claim := self._claim_fresh(stage, is_forced)):
                    blocked = Outcome(stage.name, StageState.UNCHANGED, graph.UNCHANGED)
                if claim is None and blocked is None:
                    contended = True
                    self._tell_once(stage.name, "Waiting for another run, which has this stage or reads its outputs.")
                    continue
                self._submit(stage, is_forced, blocked, claim)
            if not self.schedule.running and not contended:
                continue
            try:
                name = self._ended.get(timeout=CLAIM_SECONDS if contended else None)
            except queue.Empty:
                continue
            self._take_back(name)

    def _is_forced(self, stage: graph.Stage) -> bool:
        """Whether something upstream is not as before, and that is to make the stage run."""
        upstream = (self.outcomes[name] for name in stage.upstream if name in self.outcomes)
        return self.force_downstream and any(outcome.ending is not StageState.UNCHANGED for outcome in upstream)

    def _claim_fresh(self, stage: graph.Stage, force: bool) -> ExitStack | None:
        """See to it that a stage stays as it is, if that is all that it needs: another run may read its outputs."""
        claim = None if force or stage.name in self._stale else self.journal.claim(stage, shared=True)
        if claim is None:
            return None
        with claim as held, suppress(Exception):  # its own task will tell what is wrong when its turn comes
            if not self.journal.note(stage.name).exists() and not self.executor.pipeline.changes(stage.name):
                return held.pop_all()
        self._stale.add(stage.name)
        return None

    def _submit(self, stage: graph.Stage, force: bool, blocked: Outcome | None, claim: ExitStack | None) -> None:
        named = run_stage.with_options(name=stage.name, task_run_name=stage.name)
        upstream = [allow_failure(self._futures[name]) for name in stage.upstream if name in self._futures]
        if claim is not None:
            self._claims[stage.name] = claim
        self.schedule.start(stage)
        short = self.schedule.shortage(stage)
        remark = f"It wants {short}; it gets what there is." if short else ""
        future = named.submit(
            stage, self.executor, force, blocked, remark, self._record, return_state=False, wait_for=upstream
        )
        self._futures[stage.name] = future
        future.add_done_callback(partial(self._put, stage.name))

    def _record(self, outcome: Outcome) -> None:
        self._told_by_tasks[outcome.stage] = outcome

    def _put(self, name: str, _future: PrefectFuture[Any]) -> None:
        self._ended.put(name)

    def _take_back(self, name: str) -> None:
        if name in self._claims:
            self._claims.pop(name).close()
        outcome = self._told_by_tasks.pop(name, None)
        if outcome is None:  # Prefect could not run the task at all
            outcome = Outcome(name, StageState.FAILED, f"Prefect: {self._futures[name].state.message}")
        self.outcomes[name] = outcome
        self.schedule.end(name)

    def _blocked(self, stage: graph.Stage, keep_going: bool) -> Outcome | None:
        """What becomes of a stage whose upstream has ended, if it must not be run."""
        if self.cancelled:
            return Outcome(stage.name, StageState.CANCELLED, "cancelled before it was started")
        for name in stage.upstream:
            if name in self.outcomes and self.outcomes[name].ending.is_failure:
                how = "was skipped" if self.outcomes[name].ending is StageState.SKIPPED else "failed"
                return Outcome(stage.name, StageState.SKIPPED, f"{name}, which it depends on, {how}")
        if not keep_going:
            for outcome in self.outcomes.values():
                if outcome.ending in (StageState.FAILED, StageState.TAINTED):
                    return Outcome(stage.name, StageState.SKIPPED, f"{NOT_STARTED}, for {outcome.stage} failed")
        return None

    def _tell_once(self, name: str, text: str) -> None:
        if (name, text) not in self._told:
            self._told.add((name, text))
            get_run_logger().info("%s: %s", name, text)


def _tidy_up(journal: Journal, pipeline: graph.Pipeline, executor: Executor, tell: Callable[[str], None]) -> None:
    """Find what runs that died have left, put it right, and tell of it."""
    if pipeline.mend_locks():
        tell("A DVC command was killed while it wrote its list of files in use; the list is mended.")
    journal.drop_scraps()
    for dead in journal.dead():
        tell(f"Run {dead.id[:8]} (process {dead.pid}) died without a word.")
        if left := sweep(dead.id):
            tell(f"It left processes running, which were ended: {', '.join(left)}.")
        if server.mark_crashed(UUID(dead.flow_run), "its process died"):  # if this server has it
            tell("Its flow run is marked Crashed.")
        journal.bury(dead)
    for name in journal.unfinished():
        stage = pipeline.stages.get(name)
        claim = journal.claim(stage) if stage else None
        if stage and claim:
            with claim:
                if done := executor.clean(stage, tell):
                    tell(f"{done}.")
        elif stage is None:
            journal.end(name)


def _show_metrics(pipeline: graph.Pipeline, names: list[str]) -> None:
    """Leave the metrics of some stages, and in what they differ from the last commit's, as artifacts."""
    metrics, changed = compare.tables(pipeline, names)
    if metrics:
        server.show("metrics", metrics, "Metrics of all stages of this run.")
    if changed:
        server.show("metrics-diff", changed, "In what they differ from those of the last commit (HEAD).")


def _tag(folder: Path, targets: list[str]) -> None:
    """Tag the flow run with its targets and the state of the git repository."""
    tags = list(targets)
    with suppress(GitError):  # there is no git repository, or no commit yet
        head, edits = git(folder, "rev-parse", "--short", "HEAD"), git(folder, "status", "--porcelain")
        tags += [f"git {head.strip()}", "dirty" if edits else "clean"]
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(str(flow_run.id)), tags=tags)
