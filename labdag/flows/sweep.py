"""Sweeps: a target made with many combinations of params, each in a copy of its own, recorded as DVC experiments."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from labdag.errors import UserError
from labdag.execution.execute import CLAIMS
from labdag.execution.output import Lines
from labdag.execution.schedule import CPU, detected
from labdag.files import file_name, remove, replace
from labdag.git import GitError, find_root, git, snapshot, top
from labdag.orchestration import server
from labdag.orchestration.logs import drop_repeated_failures
from labdag.pipeline.graph import Pipeline, Stage, take
from labdag.pipeline.revisions import History, Record
from labdag.pipeline.targets import select
from labdag.pipeline.workspace import require_commit, save, submodules, twin
from labdag.processes import PARENT
from labdag.results.compare import figures, metrics_of
from labdag.sweeping.chart import draw
from labdag.sweeping.points import Point, grid, read, require_read, settings, write
from labdag.sweeping.search import Grid, Search, Study, no_metric
from labdag.sweeping.swept import Found, PointsFailedError, Result, Sweep

MANY = 1000  # threads at most; how many points are made at once is for the sweep to say
DIGITS = 16  # of a digest that are enough to tell inputs apart

# In the environment of a run, so that its lines, which get a time and a name here, have none of their own.
PLAIN_LOG = {
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(task_run_name)s: %(message)s",
    "PREFECT_LOGGING_COLORS": "false",
}

drop_repeated_failures()


@server.served(name="sweep", flow_run_name="sweep {target}", task_runner=ThreadPoolTaskRunner(max_workers=MANY))
def sweep(
    target: str,
    values: list[str],
    jobs: Annotated[int, Field(ge=1)] = 1,
    trials: Annotated[int | None, Field(ge=1)] = None,
    metric: str = "accuracy",
    minimize: bool = False,
    root: str | None = None,
) -> Sweep | State[Sweep]:
    """Make a target with many combinations of some params' values, and record each as a DVC experiment.

    Each point has a copy of the repository, as it was when the sweep began, which shares DVC's cache. A sweep that was
    broken off goes on where it was; what is recorded already is not made again.

    Args:
        target: What to bring up to date at each point: a key (lab), stage or group.
        values: Params and their values, such as train.lr=0.1,0.01 or seed=1..5.
        jobs: Points at once.
        trials: Search (with Optuna), and try so many points, instead of all of a grid.
        metric: The figure that a search makes best.
        minimize: Whether less of it is better.
        root: The DVC repository; default: the current folder's.

    Raises:
        PointsFailedError: a point failed; the others are recorded.
        labdag.errors.UserError: the pipeline can't be read, the target or a param is unknown, or there is no commit.
    """
    folder = Path(root) if root else find_root(Path.cwd())
    try:
        done = _swept(folder, target, values, jobs, trials, metric, minimize)
    except UserError as error:  # a sentence for the user, who needs no traceback with it
        return server.ending(Failed(message=str(error), data=error))
    if picture := draw(done, folder / ".dvc" / "tmp" / "labdag" / "charts" / f"{file_name(target)}.png"):
        get_run_logger().info("A chart of it: %s", picture)
    server.show("sweep", done.rows(), f"{target}: {', '.join(values)}")
    if failed := done.failed():
        message = f"{len(failed)} of {len(done.results)} points failed; what the others made is recorded"
        return server.ending(Failed(message=message, data=PointsFailedError(done)))
    return server.ending(Completed(data=done))


def _swept(
    folder: Path, target: str, values: list[str], jobs: int, trials: int | None, metric: str, minimize: bool
) -> Sweep:
    with ExitStack() as held:
        pipeline = held.enter_context(take(folder))
        stages = select(pipeline.stages, [target])
        chosen = settings(values, read(folder), target)
        require_read(pipeline, stages, chosen, target)
        digest = pipeline.fingerprint(stages, [setting.name for setting in chosen])[:DIGITS]
        for name in stages:
            if strays := pipeline.strays(name):
                raise UserError(f"{name} can't be made in a copy: {strays[0]} lies outside the repository.")
        base = held.enter_context(_begun(pipeline, stages, digest))
        copied = held.enter_context(Pipeline(base))
        children = held.enter_context(_Children())
        held.enter_context(server.watched(UUID(str(flow_run.id)), children.end))
        work = _Work(held.enter_context(History(folder)), copied, target, stages, digest, jobs, children)
        if trials is None:
            results = _made(work, Grid(grid(target, chosen)))
        else:
            made = figures(metrics_of(work.history.locked("HEAD", work.stages)))
            if made and metric not in made:  # which the code may have got since; if not, the first point will show it
                get_run_logger().warning("As it was committed, %s", no_metric(target, metric, made))
            study = Study(
                folder / ".dvc" / "tmp" / "labdag" / "studies.db",
                " ".join([target, digest, "less" if minimize else "more", metric, *sorted(values)]),
                target,
                chosen,
                trials,
                metric,
                maximize=not minimize,
                log=get_run_logger().info,
            )
            results = _made(work, study, study.known)
    styles = {name: style for stage in stages.values() for name, style in stage.meta.summary.items()}
    if trials is not None:
        return Sweep(chosen, results, styles, metric=metric, is_search=True, minimize=minimize)
    seeds = {stage.meta.seed for stage in stages.values()} & {setting.name for setting in chosen}
    return Sweep(chosen, results, styles, seed=next(iter(seeds), None), metric=metric)


def _made(work: _Work, search: Search, known: Iterable[Point] = ()) -> list[Result]:
    """Make all points that a search asks for, so many at once: their results, and those of points `known` before."""
    results = {point.name: result for point in known if (result := work.known(point))}
    asked = list(results)
    running: dict[str, Any] = {}
    ended: queue.SimpleQueue[Point] = queue.SimpleQueue()
    while True:
        while len(running) < work.jobs and (point := search.ask()):
            if point.name in results:  # a search may come back to one
                search.tell(point, results[point.name].told())
                continue
            if point.name in running:
                search.tell(point, None)
                continue
            asked.append(point.name)
            named = make_point.with_options(name=point.name, task_run_name=point.name)
            running[point.name] = named.submit(work, point)  # a future has to live until its task has ended
            running[point.name].add_done_callback(partial(_put, ended, point))
        if not running:
            return [results[name] for name in asked]
        point = ended.get()
        del running[point.name]
        results[point.name] = work.results.get(point.name) or Result(point, Found.FAILED, reason="Prefect lost it")
        get_run_logger().info("%d of %d points", len(results), search.count)
        search.tell(point, results[point.name].told())


def _put(ended: queue.SimpleQueue[Point], point: Point, _future: Any) -> None:
    ended.put(point)


@task(cache_policy=NO_CACHE)
def make_point(work: _Work, point: Point) -> State[Any]:
    """Make one point of a sweep; the task's state says what became of it."""
    try:
        result = work.make(point, get_run_logger().info)
    except (UserError, GitError, OSError) as error:
        result = Result(point, Found.FAILED, reason=str(error))
    work.results[point.name] = result
    if result.found is Found.FAILED:
        return Failed(name=result.found.value, message=result.reason)
    return Completed(name=result.found.value, message=f"experiment {result.experiment}")


class _Work:
    """What all points of a sweep have in common. (No dataclass: Prefect would look for its futures in one.)

    Args:
        history: of the user's repository.
        base: the pipeline of the copy of it that points are copied from.
        target: what is made.
        stages: those that this takes.
        digest: of all that they read.
        jobs: points at once.
        children: runs that end with the sweep.

    Attributes:
        results: of the points that have ended.
    """

    def __init__(
        self,
        history: History,
        base: Pipeline,
        target: str,
        stages: Mapping[str, Stage],
        digest: str,
        jobs: int,
        children: _Children,
    ) -> None:
        self.history, self.base, self.target, self.stages, self.digest = history, base, target, stages, digest
        self.jobs, self.children = jobs, children
        self.results: dict[str, Result] = {}

    def known(self, point: Point) -> Result | None:
        """What an earlier sweep has recorded of a point, if one has."""
        name, records = self._experiment(point)
        if records is None:
            return None
        place, ready = self._place(point)  # of one that was killed just after it had recorded it
        remove(place)
        remove(ready)
        return Result(point, Found.KNOWN, name, metrics=figures(metrics_of(records)))

    def _place(self, point: Point) -> tuple[Path, Path]:
        """Where the copy of a point is, next to the base, and the file that says that it is whole."""
        name = f"{point.name}-{hashlib.sha256(_told(point).encode()).hexdigest()[:8]}"
        place = top(self.base.root).parent / name
        return place, place.with_name(f"{name}.ready")

    def make(self, point: Point, log: Callable[[str], None]) -> Result:
        """Make a point, unless it is recorded already.

        Raises:
            UserError, GitError, OSError: it can't be copied or recorded.
        """
        if known := self.known(point):
            return known
        place, ready = self._place(point)
        copy = place / self.base.root.relative_to(top(self.base.root))
        if not ready.exists():  # nothing is left there of a sweep that was broken off, or a part of a copy
            remove(place)
            twin(self.base, self.stages, place, is_configured=True)
            write(copy, point)
            ready.touch()
        if reason := self._run(copy, log):
            return Result(point, Found.FAILED, reason=reason)
        with self._naming():
            name, _ = self._experiment(point)
            save(self.base, copy, self.stages, name, self._message(point), self.history.root, again=True)
        _, records = self._experiment(point)
        if records is None:
            raise UserError(f"the experiment {name} was saved, but what it holds can't be read back")
        remove(ready)
        with suppress(OSError):  # a command may have left a process that writes there; it is recorded all the same
            remove(place)
        return Result(point, Found.RECORDED, name, metrics=figures(metrics_of(records)))

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Be the only one to name an experiment: a sweep of other inputs may have a point of the same name."""
        with (top(self.base.root).parents[2] / "naming").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _run(self, copy: Path, log: Callable[[str], None]) -> str:
        """Bring the target up to date in a copy; tells why that failed, if it did."""
        claims = top(self.base.root).parent / "claims"
        claims.mkdir(exist_ok=True)
        cores = max(1, detected()[CPU] // self.jobs)
        command = [
            sys.executable,
            "-P",
            "-m",
            "labdag.cli.main",
            "run",
            self.target,
            "--jobs",
            "1",
            "--slots",
            f"{CPU}={cores}",
        ]
        env = server.environment() | PLAIN_LOG | {CLAIMS: str(claims), PARENT: str(os.getpid())}
        if not server.answers():  # it was there when the sweep began: the point gets a temporary one
            env.pop("PREFECT_API_URL", None)
        last = ""
        with self.children.started(command, copy, env) as process:
            lines = Lines()
            assert process.stdout is not None
            while True:
                data = process.stdout.read1(1 << 16)  # type: ignore[attr-defined]
                for line in lines.feed(data):
                    log(line)
                    last = line if line.startswith("Error: ") else last
                if not data:
                    break
            code = process.wait()
        return "" if code == 0 else last.removeprefix("Error: ") or f"`labdag run {self.target}` exited with {code}"

    def _message(self, point: Point) -> str:
        """Of the point's experiment: by it a later sweep knows that it is this one."""
        return f"labdag sweep {self.digest}\n\n{_told(point)}"

    def _targets(self) -> list[str]:
        return [name for name, stage in self.stages.items() if stage.is_run]

    def _experiment(self, point: Point) -> tuple[str, dict[str, Record] | None]:
        """The name that the point's experiment has, and what it recorded if there is one of these very inputs."""
        experiments = self.history.experiments()
        for number in itertools.count(1):
            name = point.name if number == 1 else f"{point.name}-{number}"
            commits = [commit for (each, _), commit in experiments.items() if each == name]
            for commit in commits:
                if git(self.history.root, "log", "-1", "--format=%B", commit).strip() == self._message(point).strip():
                    records = self.history.locked(commit, self._targets())
                    return name, records if len(records) == len(self._targets()) else None  # they may be lost
            if not commits:
                return name, None
        raise AssertionError


def _told(point: Point) -> str:
    """The values of a point, so that no other point's are told alike."""
    return "\n".join(f"{name}={json.dumps(value, default=str)}" for name, value in point.values.items())


@contextmanager
def _begun(pipeline: Pipeline, stages: Mapping[str, Stage], digest: str) -> Iterator[Path]:
    """The root of a copy of the repository for a sweep, made now or by one with the same inputs that was broken off.

    Raises:
        UserError: there is no commit, something can't be copied or kept, or the same sweep is at work.
    """
    require_commit(pipeline.root)
    if found := submodules(pipeline.root):
        raise UserError(
            f"{found[0]} is a git submodule, which a sweep's experiments would lose: `labdag sweep` can't be used here."
        )
    place = pipeline.root / ".dvc" / "tmp" / "labdag" / "sweeps" / digest
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("Another `labdag sweep` with the same inputs is at work; wait for its end.") from None
        _drop_others(place)
        ready, now = place / "base.ready", snapshot(pipeline.root)
        if not ready.exists() or ready.read_text(encoding="utf-8") != now:
            for left in place.iterdir():  # of the repository as it was then: something else may differ, too
                if left.name != "lock":
                    remove(left)
            twin(pipeline, stages, place / "base")
            replace(ready, now, place)
        yield place / "base" / pipeline.root.relative_to(top(pipeline.root))
        if list(place.glob("*.ready")) == [ready]:  # there is no point to go on with
            remove(place)


def _drop_others(place: Path) -> None:
    """Remove what sweeps with other inputs have left, which nobody will go on with."""
    for other in place.parent.iterdir():
        with suppress(OSError):  # it is in use, or its own sweep has just removed it
            if other != place:
                with (other / "lock").open("r") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(other)


class _Children:
    """Processes that end when the sweep does."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_over = False

    def __enter__(self) -> _Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Interrupt all that run, and let no more start; may be called from any thread."""
        with self._mutex:
            self._is_over = True
            for process in self._running:
                process.send_signal(signal.SIGINT)

    @contextmanager
    def started(self, command: list[str], folder: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """Start a process and be there until it ends."""
        with self._mutex:
            if self._is_over:
                raise UserError("the sweep was broken off")
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            self._running.add(process)
        try:
            with process:
                yield process
        finally:
            with self._mutex:
                self._running.discard(process)
