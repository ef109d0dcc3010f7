"""The scheduled flow: a result made anew at the newest commit, held against the registered one, and registered."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import psutil
from prefect import get_run_logger
from prefect.client.schemas import State
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from labdag.errors import UserError
from labdag.files import file_name, remove, replace
from labdag.flows.reproduce import RunCancelledError, StageFailedError, reproduce
from labdag.git import GitError, find_root, git, top, uncommitted
from labdag.orchestration import server
from labdag.orchestration.states import RetrainingState
from labdag.pipeline.graph import Pipeline, Stage
from labdag.pipeline.revisions import EXPERIMENTS, WORKSPACE, History, Revision
from labdag.pipeline.settings import has_remote
from labdag.pipeline.targets import results, select
from labdag.pipeline.workspace import TAGS, at_commit, dvc, refresh, require_commit, save
from labdag.results import compare
from labdag.retraining.gate import Check, Gate, judge
from labdag.retraining.gate import read as read_gate
from labdag.retraining.registry import Version, check_name, register, versions, was_registered
from labdag.retraining.retrained import THEIRS, Past, free_name, known
from labdag.retraining.upstream import DIGITS, made, outdated, signs
from labdag.sweeping.points import Point, Setting, Span, read, require_read, settings, write

LOCK = "dvc.lock"  # what a run has recorded; the clone finds it in DVC's cache
MOST = 5  # files to name that are not committed
FRESH = "fresh"  # the value of a param that is to have one that it never had
MODELS = (".safetensors", ".pt", ".pth", ".onnx", ".pkl", ".joblib", ".bin")  # how their names end
STRAY_SECONDS = 10.0  # that a process which was killed may take to end
SEEDS = 2**31  # fresh values are less than that


EVENTS = {
    RetrainingState.REGISTERED: "registered",
    RetrainingState.NOT_REGISTERED: "not-registered",
    RetrainingState.UP_TO_DATE: "up-to-date",
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

    ending: RetrainingState
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


@server.served(name="retrain", flow_run_name=_run_name)
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
        labdag.errors.UserError: something is not as it should be: the branch, the target, a param, the gate, the data
            upstream, DVC's remote.
        labdag.flows.reproduce.StageFailedError: a stage failed.
        labdag.flows.reproduce.RunCancelledError: the run was cancelled.
    """
    run = UUID(str(flow_run.id))
    try:
        folder = find_root(Path(root).expanduser().resolve() if root else Path.cwd())
        work = _Work(folder, target, values or [], branch, remote, model, jobs, pull, force, get_run_logger().info)
        # Cancelled in the UI, the run ends as it does by `kill`: with no stage left behind.
        with server.watched(run, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            done = work.retrained()
    except (UserError, GitError, OSError, StageFailedError) as error:  # a sentence, with no traceback
        _emit(run, target, "failed", str(error))
        data = error if isinstance(error, StageFailedError) else UserError(str(error))
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
            UserError, GitError, OSError, StageFailedError, RunCancelledError: as the flow says.
        """
        commit = self._newest()
        self._tell(commit)
        with self._clone(commit) as copy:
            return self._in(copy)

    def _tell(self, commit: str) -> None:
        """Say which commit is taken, and what of the workspace it lacks: somebody may have expected that to count."""
        changed = []
        if commit == git(self.root, "rev-parse", "HEAD").strip():
            changed = [path for path in uncommitted(self.root) if Path(path).name != LOCK]
        shown = ", ".join(changed[:MOST]) + (f" and {len(changed) - MOST} more" if len(changed) > MOST else "")
        self.log(f"Taken is the commit {commit[:7]}" + (f", without what is not committed: {shown}." if shown else "."))

    def _newest(self) -> str:
        """The newest commit of the branch."""
        require_commit(self.root)
        branch = self.branch or git(self.root, "rev-parse", "--abbrev-ref", "HEAD").strip()
        if self.remote is None:
            try:
                where = branch if branch == "HEAD" else f"refs/heads/{branch}"
                return git(self.root, "rev-parse", "--verify", "--quiet", f"{where}^{{commit}}").strip()
            except GitError:
                known = git(self.root, "for-each-ref", "--format=%(refname:short)", "refs/heads").split()
                raise UserError(
                    f"{self.root} has no branch '{branch}' with a commit; it has {', '.join(known) or 'none'}."
                ) from None
        # By name only: git would take an address for one, or an option.
        if self.remote not in (known := git(self.root, "remote").split("\n")[:-1]):
            raise UserError(f"{self.root} has no git remote '{self.remote}'; it has {', '.join(known) or 'none'}.")
        try:
            listed = git(self.root, "ls-remote", self.remote, f"refs/heads/{branch}").split()
            if not listed:
                raise UserError(f"The git remote '{self.remote}' has no branch '{branch}'.")
            # No ref of the repository is moved.
            git(
                self.root, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--refmap=", self.remote, listed[1]
            )
        except GitError as error:
            raise UserError(f"The git remote '{self.remote}' can't be read: {error}") from None
        return listed[0]

    @contextmanager
    def _clone(self, commit: str) -> Iterator[Path]:
        """A clone at the commit, gone at the end; one that a killed run with the same parameters has left goes on."""
        place = self.root / ".dvc" / "tmp" / "labdag" / "retrain" / file_name(self.target)
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.with_name(f"{place.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"Another retraining of {self.target} is at work; wait for its end.") from None
            ready = place.with_name(f"{place.name}.ready")
            now = json.dumps([commit, self.values, self.remote])
            _end_strays(place)
            try:
                if self._is_left(place, ready, now, commit):
                    remove(place / ".git" / "index.lock")  # of a git that was killed
                    refresh(self.root, place)
                else:
                    remove(ready)
                    remove(place)
                    at_commit(self.root, commit, place)
                    replace(ready, now, place.parent)
                if self.remote is not None:  # what others have registered
                    refs = (f"+{TAGS}*:{TAGS}*", f"+{EXPERIMENTS}/*:{THEIRS}/*")
                    git(place, "fetch", "--quiet", self._url("get-url", self.remote), *refs)
                yield place / self.root.relative_to(top(self.root))
            finally:
                remove(ready)
                remove(place)

    @staticmethod
    def _is_left(place: Path, ready: Path, now: str, commit: str) -> bool:
        """Whether a killed run has left a clone that is whole and as it is to be."""
        with suppress(OSError, GitError):
            return ready.read_text(encoding="utf-8") == now and git(place, "rev-parse", "HEAD").strip() == commit
        return False

    def _url(self, *asked: str) -> str:
        """The address of the git remote, as it is valid elsewhere."""
        url = git(self.root, "remote", *asked).strip()
        near = top(self.root) / url
        return str(near) if "://" not in url and near.exists() else url

    def _in(self, copy: Path) -> Retraining:
        with ExitStack() as held:
            pipeline = held.enter_context(Pipeline(copy))
            stages = select(pipeline.stages, [self.target])
            model = self._model(pipeline, stages)
            gate = read_gate(read(copy), self.target)
            chosen = self._settings(copy)
            require_read(pipeline, stages, chosen, self.target)
            for name in stages:
                if strays := pipeline.strays(name):
                    raise UserError(f"{name} can't be made in a clone: {strays[0]} lies outside the repository.")
            if imports := pipeline.imports(stages):
                self.log(f"Checking upstream: {', '.join(imports)}")
                dvc(copy, "update", *imports)
            seen = signs(stages, copy, self.log)
            self._check_out(stages, copy)
            texts = [pipeline.fingerprint(stages, [setting.name for setting in chosen]), gate.model_dump_json(), model]
            digest = hashlib.sha256("\n".join([*texts, *sorted(self.values), *seen.values()]).encode()).hexdigest()
            digest = digest[:DIGITS]
            past = known(copy, self.target)
            same = [each for each in past if each.digest == digest]
            champion = next(iter(versions(top(copy), model)), None)
            held_against = champion.tag if champion else None
            always = [name for name in pipeline.always_run(stages) if name not in seen]
            if always:
                self.log(f"DVC always runs {', '.join(always)}, so there is something to do each time.")
            elif same and not self.force and self._is_settled(same[-1], model, held_against, copy):
                return self._known(same[-1], model, copy)
            values = {s.name: self._value(s, digest, len(same)) for s in chosen}
            if values:
                write(copy, Point(self.target, values))
                self.log(f"Set {', '.join(f'{name}={value}' for name, value in values.items())}")
            old = outdated(pipeline, seen, past)
        self._fetch({name: seen[name] for name in old}, past[-1].upstream if past else {}, copy)
        server.call(reproduce, targets=[self.target], jobs=self.jobs, pull=self.pull, root=str(copy))
        checks = self._judged(copy, champion, gate)
        passed = all(check.is_met for check in checks)
        with Pipeline(copy) as pipeline:
            record = Past(
                name=free_name(copy, self.target),
                target=self.target,
                digest=digest,
                upstream=seen,
                fetched=made(pipeline, seen),
                champion=held_against,
                passed=passed,
                checks=tuple(checks),
                values=values,
            )
            ref, commit = save(pipeline, copy, stages, record.name, record.message(), self.root)
        record = dataclasses.replace(record, ref=ref, commit=commit)
        self.log(f"Recorded as the experiment {record.name}.")
        if passed:
            return self._register(record, model, copy)
        failed = "; ".join(f"{check.asked}: {check.found}" for check in checks if not check.is_met)
        against = f", against {champion.tag}" if champion else ""
        reason = f"{record.name} did not pass the gate{against}: {failed}"
        return Retraining(RetrainingState.NOT_REGISTERED, reason, record.name, None, record.checks)

    @staticmethod
    def _is_settled(record: Past, model: str, champion: str | None, copy: Path) -> bool:
        """Whether the gate would decide the same again: what it did not register was held against this champion."""
        is_registered = record.passed and was_registered(top(copy), model, record.commit)
        return is_registered or record.champion == champion

    def _model(self, pipeline: Pipeline, stages: Mapping[str, Stage]) -> str:
        """The name of the artifact to register."""
        if self.target not in results(pipeline.stages):
            known = ", ".join(results(pipeline.stages))
            raise UserError(f"'{self.target}' is no result that could be judged; there are {known}.")
        found = pipeline.artifacts(name for name, stage in stages.items() if stage.is_run)
        if self.model is not None and self.model not in found:
            raise UserError(f"No artifact of dvc.yaml that {self.target} makes is called '{self.model}'; "
                             f"there are {', '.join(found) or 'none'}.")  # fmt: skip
        if self.model is None and len(found) != 1:
            raise UserError(
                f"{self.target} makes {', '.join(found)}: say which one is to be registered, with `model`."
                if found
                else f"dvc.yaml has no artifact that {self.target} makes, so there is nothing to register: name its "
                f"model there, such as `artifacts: {{{self.target}: {{path: {_likely(stages)}, type: model}}}}`."
            )
        model = self.model or found[0]
        check_name(model)
        return model

    def _settings(self, copy: Path) -> list[Setting]:
        if not self.values:
            return []
        chosen = settings(self.values, read(copy), self.target)
        for setting in chosen:
            if isinstance(setting.values, Span) or len(setting.values) != 1:
                raise UserError(f"{setting.name} is to have one value here; `labdag sweep` tries many.")
        return chosen

    @staticmethod
    def _value(setting: Setting, digest: str, count: int) -> Any:
        """The value of a setting; a fresh one is the same again in a run that was broken off."""
        assert not isinstance(setting.values, Span)
        if setting.values[0] != FRESH:
            return setting.values[0]
        return int(hashlib.sha256(f"{digest} {setting.name} {count}".encode()).hexdigest()[:DIGITS], 16) % SEEDS

    def _fetch(self, old: Mapping[str, str], before: Mapping[str, str], copy: Path) -> None:
        """Run anew what fetches something that is not known to be what is there upstream now.

        Args:
            old: what is there upstream, by stage.
            before: what was there at the last retraining.
            copy: the clone.
        """
        note = copy / ".dvc" / "tmp" / "labdag" / "fetched.json"  # by a run with the same parameters that was killed
        done = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        for name, sign in old.items():
            if done.get(name) == sign:
                continue
            why = "has changed upstream" if before.get(name, sign) != sign else "may be another upstream by now"
            self.log(f"{name}: what it fetches {why}; it is fetched anew.")
            server.call(reproduce, targets=[name], force=True, jobs=self.jobs, root=str(copy))
            done[name] = sign
            replace(note, json.dumps(done), note.parent)

    def _check_out(self, stages: Mapping[str, Stage], copy: Path) -> None:
        """Bring in the clone, whole, what DVC tracks and no stage makes."""
        tracked = [name for name, stage in stages.items() if not stage.is_run and any(out.cached for out in stage.outs)]
        if tracked:
            dvc(copy, "pull" if self.pull else "checkout", "--force", *tracked)

    def _judged(self, copy: Path, champion: Version | None, gate: Gate) -> list[Check]:
        """Hold what was made against the gate; leaves a table of what is different from the champion."""
        with History(copy) as history:
            now = dataclasses.replace(history.read(WORKSPACE), name="retrained")
            stages = results(now.stages)[self.target]
            old = None if champion is None else self._champion(history, champion, copy)
            if old is not None:
                rows = []
                for line in compare.diff(old, now, history.repeats, [self.target], everything=False):
                    was, is_now, change, remark = compare.printed(line)
                    rows.append(
                        {"what": line.what or "-", old.name: was, "now": is_now, "change": change, "remark": remark}
                    )
                server.show("champion-diff", rows, f"What is different from the champion, {old.name}")
            spread = compare.spread(now, stages, history.repeats)
        styles = {k: v for s in stages.values() for k, v in {**s.meta.extremes, **s.meta.summary}.items()}
        return judge(gate, self._figures(now) or {}, self._figures(old) if old else None, spread, styles)

    def _champion(self, history: History, champion: Version, copy: Path) -> Revision:
        """The champion's metrics, from DVC's remote if they are not here.

        Raises:
            UserError: they can't be had.
        """
        try:
            found = history.read(champion.commit)
            if missing := [path for record in found.records.values() for path in record.missing]:
                with tempfile.TemporaryDirectory(dir=copy / ".dvc" / "tmp") as place:
                    there = at_commit(copy, champion.commit, Path(place) / "champion")
                    dvc(there, "fetch", *missing)
                found = history.read(champion.commit)
        except UserError as error:
            raise UserError(f"The champion, {champion.tag}, can't be read. {error}") from None
        if self._figures(found) is None:
            model, _, version = champion.tag.replace("=", ":").rpartition("@")
            raise UserError(
                f"The champion, {champion.tag}, has no metrics of {self.target} to be held against; if it is of no "
                f"use any more, take it back (`gto deprecate {model} {version}`)."
            )
        return dataclasses.replace(found, name=champion.tag)

    def _figures(self, revision: Revision) -> dict[str, Any] | None:
        stages = results(revision.stages).get(self.target, {})
        records = {name: revision.records[name] for name in stages if name in revision.records}
        return compare.figures(compare.metrics_of(records)) if records else None

    def _known(self, record: Past, model: str, copy: Path) -> Retraining:
        """Nothing is to be done, but for what a run that was killed, or was refused, has left undone."""
        version = next((v for v in versions(top(copy), model) if v.commit == record.commit), None)
        if record.passed and not was_registered(top(copy), model, record.commit):
            self.log(f"{record.name} had passed the gate, and was not registered yet.")
            return self._register(record, model, copy)
        if version is not None:
            self._share(version, record, copy)
        how = f"registered as {version.tag}" if version else "which did not pass the gate"
        if record.passed and version is None:
            how = "whose version was taken back"
        reason = f"nothing has changed since {record.name}, {how}"
        return Retraining(RetrainingState.UP_TO_DATE, reason, record.name, version.name if version else None)

    def _register(self, record: Past, model: str, copy: Path) -> Retraining:
        """Push what was made to DVC's remote, and tag its commit as the model's next version."""
        if has_remote(copy):
            self._push(record, copy)
        else:
            self.log("Nothing is pushed: DVC has no default remote (`dvc remote add --default`).")
        version = register(top(copy), model, record.commit, f"{record.name} passed the gate of {self.target}")
        self._share(version, record, copy)
        reason = f"{record.name} passed the gate, and is {version.tag}"
        return Retraining(RetrainingState.REGISTERED, reason, record.name, version.name, record.checks)

    def _share(self, version: Version, record: Past, copy: Path) -> None:
        """Bring a version's tag, and its experiment, to the git remote, and the tag to the repository."""
        tag = f"{TAGS}{version.tag}"
        if self.remote is not None:
            try:
                url = self._url("get-url", "--push", self.remote)
                there = git(copy, "ls-remote", url, tag, record.ref).split()
                if missing := [f"{ref}:{ref}" for ref in (tag, record.ref) if ref not in there]:
                    git(copy, "push", "--quiet", "--atomic", url, *missing)
            except GitError as error:
                raise UserError(
                    f"{record.name} passed the gate, but the git remote '{self.remote}' does not take {version.tag}, "
                    f"so that it is not registered: {error}"
                ) from None
        git(self.root, "fetch", "--quiet", "--no-write-fetch-head", top(copy), f"{tag}:{tag}")

    def _push(self, record: Past, copy: Path) -> None:
        """Push what an experiment holds: what its stages have made, and what DVC tracks of what they read."""
        names = [name for name, stage in self._stages_at(copy, record).items() if any(out.cached for out in stage.outs)]
        dvc(copy, "push", *names)
        self.log("Pushed to DVC's remote.")

    def _stages_at(self, copy: Path, record: Past) -> dict[str, Stage]:
        """Check the experiment out in the clone, as far as it is not what lies there: its stages."""
        git(copy, "checkout", "--quiet", "--force", "--detach", record.commit)
        with Pipeline(copy) as pipeline:
            return select(pipeline.stages, [self.target])


def _likely(stages: Mapping[str, Stage]) -> str:
    """The output that looks most like a model."""
    outs = [out.path for stage in stages.values() if stage.is_run for out in stage.outs]
    return next((path for path in reversed(outs) if path.endswith(MODELS)), "model.safetensors")


def _end_strays(folder: Path) -> None:
    """Kill what a run that was killed has left at work in its clone, such as `dvc push`; not somebody's shell."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(folder) and os.getsid(process.pid) != process.pid:
                process.kill()
                process.wait(STRAY_SECONDS)
