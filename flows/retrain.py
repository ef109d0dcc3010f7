"""The scheduled flow: a result made anew at the newest commit, held against the registered one, and registered."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.schemas import State
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from flows import compare, server
from flows.files import remove, replace
from flows.gate import Check, Gate, judge
from flows.gate import read as read_gate
from flows.git import GitError, git, top
from flows.graph import GraphError, Pipeline, Stage, find_root
from flows.points import Point, Setting, Span, read, settings, write
from flows.registry import Version, register, versions, was_registered
from flows.reproduce import RunCancelledError, StageFailedError, reproduce
from flows.revisions import EXPERIMENTS, WORKSPACE, History, Revision
from flows.targets import results, select
from flows.workspace import at_commit, dvc, has_remote, save

FRESH = "fresh"  # the value of a param that is to have one that it never had
SEEDS = 2**31  # fresh values are less than that
SIGN = "labdag retrain"  # what the messages of its experiments begin with
DIGITS = 16  # of a digest that are enough to tell inputs apart


class Ending(StrEnum):
    """What came of a retraining; the name of its state in the UI."""

    REGISTERED = "Registered"  # it passed the gate
    NOT_REGISTERED = "NotRegistered"  # it did not
    UP_TO_DATE = "UpToDate"  # nothing has changed since the last one


EVENTS = {
    Ending.REGISTERED: "registered",
    Ending.NOT_REGISTERED: "not-registered",
    Ending.UP_TO_DATE: "up-to-date",
}


@dataclass(frozen=True)
class Retraining:
    """What a run of the flow did.

    Attributes:
        ending: what came of it.
        reason: of the ending, in a sentence.
        experiment: the DVC experiment that holds what was made.
        version: under which it is registered, if it is.
        checks: what the gate asked, and what it found.
    """

    ending: Ending
    reason: str
    experiment: str
    version: str | None = None
    checks: tuple[Check, ...] = ()

    def rows(self) -> list[dict[str, str]]:
        """The gate's checks as a table."""
        return [
            {"gate": check.asked, "found": check.found, "passed": "yes" if check.is_met else "no"}
            for check in self.checks
        ]


def _run_name() -> str:
    return f"retrain {flow_run.parameters.get('target')}"


@flow(name="retrain", flow_run_name=_run_name)
def retrain(
    target: str,
    values: list[str] | None = None,
    branch: str | None = None,
    remote: str | None = None,
    model: str | None = None,
    jobs: Annotated[int | None, Field(ge=1)] = None,
    pull: bool = False,
    force: bool = False,
    root: str | None = None,
) -> Retraining | State[Retraining]:
    """Make a result anew at the newest commit of a branch, and register its model if it passes the gate.

    All is done in a clone that shares DVC's cache: the workspace is neither read nor written. What was made is recorded
    as a DVC experiment; the gate is `retrain.<target>` in params.yaml. A Prefect event tells how it ended:
    `labdag.retrain.registered`, `.not-registered`, `.up-to-date` or `.failed`.

    Args:
        target: The result (lab) to make anew, as `labdag list` has it.
        values: Params to set, such as train.epochs=20; seed=fresh takes a seed that was never tried.
        branch: The branch whose newest commit is taken; default: the one checked out.
        remote: The git remote that has the branch, and gets what is registered; default: none.
        model: The artifact of dvc.yaml to register; default: the one that the target makes.
        jobs: Stages at once; default: one per CPU core.
        pull: Fetch what is missing from DVC's remote.
        force: Retrain even if nothing has changed since the last time.
        root: The DVC repository; default: the current folder's.

    Returns:
        A Retraining.

    Raises:
        flows.graph.GraphError: something is not as it should be: the branch, the target, a param, the gate, the data
            upstream, DVC's remote.
        flows.reproduce.StageFailedError: a stage failed.
        flows.reproduce.RunCancelledError: the run was cancelled.
    """
    run = UUID(str(flow_run.id))
    try:
        folder = Path(root).expanduser().absolute() if root else find_root(Path.cwd())
        work = _Work(folder, target, values or [], branch, remote, model, jobs, pull, force, get_run_logger().info)
        # Cancelled in the UI, the run ends as it does by `kill`: with no stage left behind.
        with server.watched(run, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            done = work.retrained()
    except (GraphError, GitError, OSError, StageFailedError) as error:  # a sentence, with no traceback
        _emit(run, target, "failed", str(error))
        data = error if isinstance(error, StageFailedError) else GraphError(str(error))
        return server.ending(Failed(message=str(error), data=data))
    except RunCancelledError as error:
        _emit(run, target, "failed", f"cancelled: {error}")
        return server.ending(Cancelled(message=str(error), data=error))
    except BaseException as error:
        _emit(run, target, "failed", str(error) or type(error).__name__)
        raise
    if done.checks:
        server.show("gate", done.rows(), f"What the gate of {target} asks")
    _emit(run, target, EVENTS[done.ending], done.reason)
    return server.ending(Completed(name=done.ending.value, message=done.reason, data=done))


def _emit(run: UUID, target: str, what: str, reason: str) -> None:
    emit_event(
        f"labdag.retrain.{what}",
        {"prefect.resource.id": f"labdag.retrain.{target}", "prefect.resource.name": f"retraining of {target}"},
        related=[{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}],
        payload={"target": target, "reason": reason},
    )


@dataclass
class _Work:
    """A retraining; its attributes are the parameters of the flow."""

    root: Path
    target: str
    values: list[str]
    branch: str | None
    remote: str | None
    model: str | None
    jobs: int | None
    pull: bool
    force: bool
    log: Callable[[str], None]

    def retrained(self) -> Retraining:
        """Do it.

        Raises:
            GraphError, GitError, OSError, StageFailedError, RunCancelledError: as the flow says.
        """
        commit = self._newest()
        with self._clone(commit) as copy:
            return self._in(copy)

    def _newest(self) -> str:
        """The newest commit of the branch."""
        branch = self.branch or git(self.root, "rev-parse", "--abbrev-ref", "HEAD").strip()
        if self.remote is None:
            try:
                where = branch if branch == "HEAD" else f"refs/heads/{branch}"
                return git(self.root, "rev-parse", "--verify", "--quiet", f"{where}^{{commit}}").strip()
            except GitError:
                known = git(self.root, "for-each-ref", "--format=%(refname:short)", "refs/heads").split()
                raise GraphError(
                    f"{self.root} has no branch '{branch}' with a commit; it has {', '.join(known) or 'none'}."
                ) from None
        try:
            listed = git(self.root, "ls-remote", self.remote, f"refs/heads/{branch}").split()
            if not listed:
                raise GraphError(f"The git remote '{self.remote}' has no branch '{branch}'.")
            # No ref of the repository is moved.
            git(
                self.root, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--refmap=", self.remote, listed[1]
            )
        except GitError as error:
            raise GraphError(f"The git remote '{self.remote}' can't be read: {error}") from None
        return listed[0]

    @contextmanager
    def _clone(self, commit: str) -> Iterator[Path]:
        """A clone at the commit, gone at the end; one that a killed run with the same parameters has left goes on."""
        place = self.root / ".dvc" / "tmp" / "labdag" / "retrain" / quote(self.target, safe="@")
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.with_name(f"{place.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise GraphError(f"Another retraining of {self.target} is at work; wait for its end.") from None
            ready = place.with_name(f"{place.name}.ready")
            now = json.dumps([commit, self.values])
            try:
                if not place.exists() or not ready.exists() or ready.read_text(encoding="utf-8") != now:
                    remove(ready)
                    remove(place)
                    at_commit(self.root, commit, place)
                    if self.remote is not None:  # versions that others have registered
                        url = git(self.root, "remote", "get-url", self.remote).strip()
                        git(place, "fetch", "--quiet", "--force", self._url(url), "+refs/tags/*:refs/tags/*")
                    replace(ready, now, place.parent)
                yield place / self.root.relative_to(top(self.root))
            finally:
                remove(ready)
                remove(place)

    def _url(self, url: str) -> str:
        """A remote's address, as it is valid elsewhere."""
        near = top(self.root) / url
        return str(near) if "://" not in url and near.exists() else url

    def _in(self, copy: Path) -> Retraining:
        with ExitStack() as held:
            pipeline = held.enter_context(Pipeline(copy))
            stages = select(pipeline.stages, [self.target])
            model = self._model(pipeline, stages)
            gate = read_gate(read(copy), self.target)
            chosen = self._settings(copy)
            for name in stages:
                if strays := pipeline.strays(name):
                    raise GraphError(f"{name} can't be made in a clone: {strays[0]} lies outside the repository.")
            seen = self._upstream(pipeline, stages, copy)
            self._check_out(stages, copy)
            texts = [pipeline.fingerprint(stages, [setting.name for setting in chosen]), gate.model_dump_json(), model]
            digest = hashlib.sha256("\n".join([*texts, *sorted(self.values), *seen.values()]).encode()).hexdigest()
            digest = digest[:DIGITS]
            past = _past(self.root, self.target)
            same = [each for each in past if each.digest == digest]
            if same and not self.force:
                return self._known(same[-1], model, copy)
            values = {s.name: self._value(s, digest, len(same)) for s in chosen}
            if values:
                write(copy, Point(self.target, values))
                self.log(f"Set {', '.join(f'{name}={value}' for name, value in values.items())}")
        self._fetch(seen, past[-1].upstream if past else {}, copy)
        server.call(reproduce, targets=[self.target], jobs=self.jobs, pull=self.pull, root=str(copy))
        with History(copy) as history:
            champion = next(iter(versions(top(copy), model)), None)
            checks = self._judged(history, champion, gate)
        passed = all(check.is_met for check in checks)
        name = f"{quote(self.target, safe='').replace('%', '_')}-retrain-{_next_number(past)}"
        told = {
            "target": self.target,
            "set": values,
            "upstream": seen,
            "passed": passed,
            "gate": [dataclasses.asdict(check) for check in checks],
        }
        message = f"{SIGN} {digest}\n\n{json.dumps(told, indent=1, default=str)}"
        with Pipeline(copy) as pipeline:
            made = save(pipeline, copy, stages, name, message, self.root)
        record = _Past(name, made, digest, self.target, passed, seen, tuple(checks))
        self.log(f"Recorded as the experiment {name}.")
        if not passed:
            failed = "; ".join(f"{check.asked}: {check.found}" for check in checks if not check.is_met)
            against = f", against {champion.tag}" if champion else ""
            return Retraining(
                Ending.NOT_REGISTERED, f"{name} did not pass the gate{against}: {failed}", name, None, tuple(checks)
            )
        return self._register(record, model, copy)

    def _model(self, pipeline: Pipeline, stages: Mapping[str, Stage]) -> str:
        """The name of the artifact to register."""
        if self.target not in results(pipeline.stages):
            known = ", ".join(results(pipeline.stages))
            raise GraphError(f"'{self.target}' is no result that could be judged; there are {known}.")
        found = pipeline.artifacts(name for name, stage in stages.items() if stage.is_run)
        if self.model is not None and self.model not in found:
            raise GraphError(f"No artifact of dvc.yaml that {self.target} makes is called '{self.model}'; "
                             f"there are {', '.join(found) or 'none'}.")  # fmt: skip
        if self.model is None and len(found) != 1:
            raise GraphError(
                f"{self.target} makes {', '.join(found)}: say which one is to be registered, with `model`."
                if found
                else f"dvc.yaml has no artifact that {self.target} makes, so there is nothing to register: name its "
                f"model there, such as `artifacts: {{{self.target}: {{path: model.safetensors, type: model}}}}`."
            )
        return self.model or found[0]

    def _settings(self, copy: Path) -> list[Setting]:
        if not self.values:
            return []
        chosen = settings(self.values, read(copy), self.target)
        for setting in chosen:
            if isinstance(setting.values, Span) or len(setting.values) != 1:
                raise GraphError(f"{setting.name} is to have one value here; `labdag sweep` tries many.")
        return chosen

    @staticmethod
    def _value(setting: Setting, digest: str, count: int) -> Any:
        """The value of a setting; a fresh one is the same again in a run that was broken off."""
        assert not isinstance(setting.values, Span)
        if setting.values[0] != FRESH:
            return setting.values[0]
        return int(hashlib.sha256(f"{digest} {setting.name} {count}".encode()).hexdigest()[:DIGITS], 16) % SEEDS

    def _upstream(self, pipeline: Pipeline, stages: Mapping[str, Stage], copy: Path) -> dict[str, str]:
        """Look at what stages fetch from outside: a sign of it for each that says how to.

        Raises:
            GraphError: it can't be taken.
        """
        if imports := pipeline.imports(stages):
            self.log(f"Checking upstream: {', '.join(imports)}")
            dvc(copy, "update", "--quiet", *imports)
        found = {}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        for name, stage in stages.items():
            if stage.meta.upstream:
                self.log(f"Checking upstream: {name}")
                folder = copy / Path(name.rpartition(":")[0]).parent
                done = subprocess.run(
                    stage.meta.upstream,
                    shell=True,
                    cwd=folder,
                    env=os.environ | {"PATH": path},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                said = [line for line in done.stderr.splitlines() if line.strip()]
                if done.returncode != 0:
                    start = next((i for i, line in enumerate(said) if line.startswith("Error: ")), len(said) - 1)
                    why = (
                        "\n".join(said[start:]).removeprefix("Error: ") if said else f"it exited with {done.returncode}"
                    )
                    raise GraphError(f"{name}: the data upstream can't be taken: {why}")
                for line in said:
                    self.log(f"{name}: {line}")
                found[name] = hashlib.sha256(done.stdout.encode()).hexdigest()[:DIGITS]
        return found

    def _fetch(self, seen: Mapping[str, str], before: Mapping[str, str], copy: Path) -> None:
        """Run anew what fetches something that has changed upstream, or of which that is not known.

        Args:
            seen: what is there upstream, by stage.
            before: what was there when it was fetched last.
            copy: the clone.
        """
        note = copy / ".dvc" / "tmp" / "labdag" / "fetched.json"  # by a run with the same parameters that was killed
        done = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        for name, sign in seen.items():
            if sign in (before.get(name), done.get(name)):
                continue
            why = "has changed upstream" if name in before else "may have changed upstream since it was fetched last"
            self.log(f"{name}: what it fetches {why}; it is fetched anew.")
            server.call(reproduce, targets=[name], force=True, jobs=self.jobs, root=str(copy))
            done[name] = sign
            replace(note, json.dumps(done), note.parent)

    def _check_out(self, stages: Mapping[str, Stage], copy: Path) -> None:
        """Bring in the clone what DVC tracks and no stage makes."""
        tracked = [name for name, stage in stages.items() if not stage.is_run and stage.outs]
        missing = [name for name in tracked if any(not (copy / out.path).exists() for out in stages[name].outs)]
        if missing:
            dvc(copy, "pull" if self.pull else "checkout", "--quiet", *missing)

    def _judged(self, history: History, champion: Version | None, gate: Gate) -> list[Check]:
        """Hold what was made against the gate; leaves a table of what is different from the champion."""
        now = dataclasses.replace(history.read(WORKSPACE), name="retrained")
        stages = results(now.stages)[self.target]
        old: Revision | None = None
        if champion is not None:
            try:
                old = dataclasses.replace(history.read(champion.commit), name=champion.tag)
            except GraphError as error:
                raise GraphError(f"The champion, {champion.tag}, can't be read. {error}") from None
            lines = compare.diff(old, now, history.repeats, [self.target], everything=False)
            rows = []
            for line in lines:
                was, is_now, change, remark = compare.printed(line)
                rows.append(
                    {"what": line.what or "-", champion.tag: was, "now": is_now, "change": change, "remark": remark}
                )
            server.show("champion-diff", rows, f"What is different from the champion, {champion.tag}")
        styles = {k: v for s in stages.values() for k, v in {**s.meta.extremes, **s.meta.summary}.items()}
        return judge(
            gate,
            self._figures(now) or {},
            self._figures(old) if old else None,
            compare.spread(now, stages, history.repeats),
            styles,
        )

    def _figures(self, revision: Revision) -> dict[str, Any] | None:
        stages = results(revision.stages).get(self.target, {})
        records = {name: revision.records[name] for name in stages if name in revision.records}
        return compare.figures(compare.metrics_of(records)) if records else None

    def _known(self, record: _Past, model: str, copy: Path) -> Retraining:
        """Nothing is to be done, but for a version that a run which was killed has not registered."""
        version = next((v for v in versions(top(copy), model) if v.commit == record.commit), None)
        if record.passed and not was_registered(top(copy), model, record.commit):
            self.log(f"{record.name} had passed the gate, and was not registered yet.")
            return self._register(record, model, copy)
        how = f"registered as {version.tag}" if version else "which did not pass the gate"
        if record.passed and version is None:
            how = "whose version was taken back"
        reason = f"nothing has changed since {record.name}, {how}"
        return Retraining(Ending.UP_TO_DATE, reason, record.name, version.name if version else None)

    def _register(self, record: _Past, model: str, copy: Path) -> Retraining:
        """Push what was made to DVC's remote, and tag its commit as the model's next version."""
        if has_remote(copy):
            self._push(record, copy)
        else:
            self.log("Nothing is pushed: DVC has no default remote (`dvc remote add --default`).")
        version = register(top(copy), model, record.commit, f"{record.name} passed the gate of {self.target}")
        tag = f"refs/tags/{version.tag}"
        if self.remote is not None:
            ref = next(
                line.split()[1]
                for line in git(copy, "for-each-ref", "--format=%(objectname) %(refname)", EXPERIMENTS).splitlines()
                if line.split()[0] == record.commit
            )
            url = git(self.root, "remote", "get-url", "--push", self.remote).strip()
            git(copy, "push", "--quiet", self._url(url), f"{tag}:{tag}", f"{ref}:{ref}")
        git(self.root, "fetch", "--quiet", "--no-write-fetch-head", top(copy), f"{tag}:{tag}")
        reason = f"{record.name} passed the gate, and is {version.tag}"
        return Retraining(Ending.REGISTERED, reason, record.name, version.name, record.checks)

    def _push(self, record: _Past, copy: Path) -> None:
        """Push the outputs of what an experiment holds."""
        names = [name for name, stage in self._stages_at(copy, record).items() if stage.is_run]
        dvc(copy, "push", "--quiet", *names)
        self.log("Pushed to DVC's remote.")

    def _stages_at(self, copy: Path, record: _Past) -> dict[str, Stage]:
        """Check the experiment out in the clone, as far as it is not what lies there: its stages."""
        git(copy, "checkout", "--quiet", "--force", "--detach", record.commit)
        with Pipeline(copy) as pipeline:
            return select(pipeline.stages, [self.target])


@dataclass(frozen=True)
class _Past:
    """An experiment that a retraining has recorded.

    Attributes:
        name: of the experiment.
        commit: its hash.
        digest: of all that it was made from.
        target: what was made.
        passed: whether it passed the gate.
        upstream: a sign of what was there upstream, by stage.
        checks: what the gate asked and found.
    """

    name: str
    commit: str
    digest: str
    target: str
    passed: bool
    upstream: Mapping[str, str]
    checks: tuple[Check, ...]


def _past(root: Path, target: str) -> list[_Past]:
    """The recorded retrainings of a target, the oldest first."""
    form = "%(objectname)%00%(refname)%00%(contents)%01"
    found = []
    for entry in git(root, "for-each-ref", "--sort=creatordate", f"--format={form}", EXPERIMENTS).split("\1"):
        commit, _, rest = entry.strip().partition("\0")
        ref, _, message = rest.partition("\0")
        first, _, text = message.partition("\n")
        if not first.startswith(f"{SIGN} "):
            continue
        try:
            told = json.loads(text)
            checks = tuple(Check(**check) for check in told["gate"])
            past = _Past(
                ref.rpartition("/")[2],
                commit,
                first.split()[-1],
                told["target"],
                told["passed"],
                told["upstream"],
                checks,
            )
        except (ValueError, KeyError, TypeError):  # somebody has edited it
            continue
        if past.target == target:
            found.append(past)
    return found


def _next_number(past: list[_Past]) -> int:
    """The first number that no retraining of the target has."""
    numbers = {each.name.rpartition("-")[2] for each in past}
    return next(number for number in itertools.count(len(past) + 1) if str(number) not in numbers)
