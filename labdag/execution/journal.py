"""What runs write down of themselves, so that others know what is being done, or what was when one died.

.dvc/tmp/labdag/
    runs/<id>.json      a run, locked by its process as long as that lives
    runs/<id>.order     in which order its new entries come in lock files
    stages/<stage>.lock locked by the run that brings the stage up to date, and shared by those that read its outputs
    stages/<stage>.json what the stage read and made, from its start until it is recorded by DVC
    stages/<stage>.writes what its command writes of what it reads
    kept/<stage>/       outputs of the stage that DVC has no copy of, while it runs
    logs/<stage>.log    what it last printed
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psutil

from labdag.files import exists, file_name, remove, replace
from labdag.pipeline.graph import Stage

YOUNG_SECONDS = 60.0  # that a run may take to write what it is
WRITES, ORDER = ".writes", ".order"
SAME_SECONDS = 5.0  # between what two looks at a process tell of its start, where the clock was set meanwhile


@dataclass(frozen=True)
class Run:
    """A run of the flow.

    Attributes:
        id: its name in the journal.
        pid: its process.
        api: where its Prefect server listens; empty for a temporary one.
        flow_run: its id on that server.
        started: when its process did, in seconds since 1970.
        world: the machine's start and the container in which the process has its number.
    """

    id: str
    pid: int
    api: str
    flow_run: str
    started: float
    world: str

    @classmethod
    def of_this_process(cls, name: str, api: str, flow_run: str) -> Run:
        """The run that this process is about to do."""
        return cls(name, os.getpid(), api, flow_run, psutil.Process().create_time(), _world())

    def lives(self) -> bool:
        """Whether its very process is there to be seen: the one of a run in a repository that this one is a copy of."""
        if self.world != _world():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < SAME_SECONDS
        except psutil.NoSuchProcess:
            return False


class Journal:
    """The journal of the repository at `root`."""

    def __init__(self, root: Path) -> None:
        self.folder = root / ".dvc" / "tmp" / "labdag"
        for name in ("runs", "stages", "kept", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def open(self, run: Run) -> ExitStack:
        """Enter a run; it counts as alive until what this returns is closed or the process dies."""
        path = self._run(run.id)
        held = ExitStack()
        part = path.with_suffix(".part")  # not to be seen before it is locked and whole
        file = held.enter_context(part.open("w"))
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump(asdict(run), file)
        file.flush()
        part.replace(path)
        held.callback(path.unlink, missing_ok=True)
        held.callback(path.with_suffix(ORDER).unlink, missing_ok=True)
        return held

    def note_order(self, run: str, order: Mapping[str, list[str]]) -> Path:
        """Note in which order a run's new entries come in lock files, until the run ends; gives the file."""
        path = self._run(run).with_suffix(ORDER)
        replace(path, json.dumps(order), path.parent)
        return path

    def dead(self) -> list[Run]:
        """Runs that ended without a word."""
        return [run for _, run in self._left() if run is not None and not run.lives()]

    def drop_scraps(self) -> None:
        """Remove what tells of no run here, such as what was left by one that died before it had written what it is."""
        for path, run in self._left():
            if run is None or run.lives():  # that is in another repository, of which this one is a copy
                path.unlink(missing_ok=True)
                path.with_suffix(ORDER).unlink(missing_ok=True)
        for path in (self.folder / "runs").glob("*.part"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > YOUNG_SECONDS:
                    path.unlink()

    def _left(self) -> Iterator[tuple[Path, Run | None]]:
        """Files of runs that nobody holds, and the run that each tells of."""
        for path in sorted((self.folder / "runs").glob("*.json")):
            with suppress(OSError), path.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # else it lives
                run = None
                with suppress(ValueError, TypeError):
                    run = Run(**json.load(file))
                yield path, run

    def bury(self, run: Run) -> None:
        """Take a dead run off the books."""
        self._run(run.id).unlink(missing_ok=True)
        self._run(run.id).with_suffix(ORDER).unlink(missing_ok=True)

    def claim(self, stage: Stage, *, shared: bool = False) -> ExitStack | None:
        """Take the stage, and have all that it reads from stay as it is, until what this returns is closed.

        Args:
            stage: what to take.
            shared: have the stage itself only stay as it is, too, as others that read its outputs do.

        Returns:
            None if another run is in the way.
        """
        own = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        with ExitStack() as held:
            for name, how in ((stage.name, own), *((up, fcntl.LOCK_SH) for up in stage.upstream)):
                file = held.enter_context(self._path("stages", name, ".lock").open("a"))
                try:
                    fcntl.flock(file, how | fcntl.LOCK_NB)
                except BlockingIOError:
                    return None
            return held.pop_all()

    def note(self, stage: str) -> Path:
        """Where the stage notes what it reads and makes."""
        return self._path("stages", stage, ".json")

    def writes(self, stage: str, command: str) -> list[str]:
        """What a stage's command is known to write of what it reads.

        Args:
            stage: its name.
            command: the command; of another one nothing is known.
        """
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(self._path("stages", stage, WRITES).read_text(encoding="utf-8"))
            if known["command"] == command:
                return list(known["names"])
        return []

    def note_writes(self, stage: str, command: str, names: list[str]) -> None:
        """Note what the command of a stage writes of what it reads."""
        path = self._path("stages", stage, WRITES)
        replace(path, json.dumps({"command": command, "names": names}), path.parent)

    def log(self, stage: str) -> Path:
        """Where the stage's output goes."""
        return self._path("logs", stage, ".log")

    def unfinished(self) -> list[str]:
        """Stages that were begun and neither finished nor cleaned up."""
        return [name for name, _ in self._notes()]

    def finished(self) -> set[str]:
        """Those of them whose command had ended well."""
        return {name for name, note in self._notes() if "made" in note}

    def _notes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The note of each stage that has one, by the stage's name."""
        for path in sorted((self.folder / "stages").glob("*.json")):
            note: dict[str, Any] = {}
            with suppress(OSError, ValueError, TypeError):
                note = dict(json.loads(path.read_text(encoding="utf-8")))
            yield note.get("stage") or unquote(path.stem), note

    def begin(self, stage: Stage, root: Path, lost: Container[str] = ()) -> None:
        """Note that the stage is being run, and keep those of its outputs that DVC's cache does not.

        Args:
            stage: that is being run.
            root: of the repository.
            lost: paths of outputs that should be in the cache, but are not.
        """
        self.note(stage.name).write_text(json.dumps({"stage": stage.name}), encoding="utf-8")
        for number, out in enumerate(stage.outs):
            path = root / out.path
            if not out.persist and (not out.cached or out.path in lost) and exists(path):
                kept = self._path("kept", stage.name) / str(number)
                kept.parent.mkdir(exist_ok=True)
                # A stage gets its outputs removed and makes new ones, so links to the old ones keep these.
                _link(path, kept)

    def end(self, stage: str) -> None:
        """Note that all is well with the stage."""
        shutil.rmtree(self._path("kept", stage), ignore_errors=True)
        self.note(stage).unlink(missing_ok=True)

    def put_back(self, stage: Stage, root: Path) -> list[str]:
        """Put back what `begin` kept, and return the paths of these outputs."""
        found = []
        for number, out in enumerate(stage.outs):
            path, kept = root / out.path, self._path("kept", stage.name) / str(number)
            if kept.exists() or not (out.cached or out.persist):
                remove(path)
            if kept.exists():
                _link(kept, path)
                found.append(out.path)
        return found

    def _run(self, name: str) -> Path:
        return self.folder / "runs" / f"{name}.json"

    def _path(self, kind: str, stage: str, suffix: str = "") -> Path:
        return self.folder / kind / f"{file_name(stage)}{suffix}"


def _world() -> str:
    """What else has other processes under the same numbers: this machine since its start, and this container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _link(source: Path, target: Path) -> None:
    remove(target)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=os.link, symlinks=True)
    else:
        os.link(source, target)
