"""What runs write down of themselves, so that others know what is being done, or what was when one died.

.dvc/tmp/labdag/
    runs/<id>.json      a run, locked by its process as long as that lives
    stages/<stage>.lock locked by the run that brings the stage up to date, and shared by those that read its outputs
    stages/<stage>.json what the stage read and made, from its start until it is recorded by DVC
    kept/<stage>/       outputs of the stage that DVC has no copy of, while it runs
    logs/<stage>.log    what it last printed
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from flows.graph import Stage


@dataclass(frozen=True)
class Run:
    """A run of the flow.

    Attributes:
        id: its name in the journal.
        pid: its process.
        api: where its Prefect server listens; empty for a temporary one.
        flow_run: its id on that server.
    """

    id: str
    pid: int
    api: str
    flow_run: str


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
        file = held.enter_context(path.open("w"))
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump(asdict(run), file)
        file.flush()
        held.callback(path.unlink, missing_ok=True)
        return held

    def dead(self) -> list[Run]:
        """Runs that ended without a word."""
        found = []
        for path in sorted((self.folder / "runs").glob("*.json")):
            with suppress(OSError), path.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # else it lives
                try:
                    found.append(Run(**json.load(file)))
                except (ValueError, TypeError):  # it died before it had written what it is
                    path.unlink()
        return found

    def bury(self, run: Run) -> None:
        """Take a dead run off the books."""
        self._run(run.id).unlink(missing_ok=True)

    def claim(self, stage: Stage) -> ExitStack | None:
        """Take the stage, and have all that it reads from stay as it is, until what this returns is closed.

        None if another run is in the way.
        """
        with ExitStack() as held:
            for name, how in ((stage.name, fcntl.LOCK_EX), *((up, fcntl.LOCK_SH) for up in stage.upstream)):
                file = held.enter_context(self._path("stages", name, ".lock").open("a"))
                try:
                    fcntl.flock(file, how | fcntl.LOCK_NB)
                except BlockingIOError:
                    return None
            return held.pop_all()

    def note(self, stage: str) -> Path:
        """Where the stage notes what it reads and makes."""
        return self._path("stages", stage, ".json")

    def log(self, stage: str) -> Path:
        """Where the stage's output goes."""
        return self._path("logs", stage, ".log")

    def unfinished(self) -> list[str]:
        """Stages that were begun and neither finished nor cleaned up."""
        return [unquote(path.stem) for path in sorted((self.folder / "stages").glob("*.json"))]

    def finished(self) -> set[str]:
        """Those of them whose command had ended well."""
        found = set()
        for name in self.unfinished():
            with suppress(OSError, ValueError):
                if "made" in json.loads(self.note(name).read_text(encoding="utf-8")):
                    found.add(name)
        return found

    def begin(self, stage: Stage, root: Path) -> None:
        """Note that the stage is being run, and keep those of its outputs that DVC's cache does not."""
        self.note(stage.name).write_text("{}")
        for number, path in self._uncached(stage, root):
            if path.exists():
                kept = self._path("kept", stage.name) / str(number)
                kept.parent.mkdir(exist_ok=True)
                # A stage gets its outputs removed and makes new ones, so links to the old ones keep these.
                _link(path, kept)

    def end(self, stage: str) -> None:
        """Note that all is well with the stage."""
        shutil.rmtree(self._path("kept", stage), ignore_errors=True)
        self.note(stage).unlink(missing_ok=True)

    def put_back(self, stage: Stage, root: Path) -> None:
        """Put back what `begin` kept."""
        for number, path in self._uncached(stage, root):
            kept = self._path("kept", stage.name) / str(number)
            remove(path)
            if kept.exists():
                _link(kept, path)

    @staticmethod
    def _uncached(stage: Stage, root: Path) -> Iterator[tuple[int, Path]]:
        for number, out in enumerate(stage.outs):
            if not out.cached and not out.persist:
                yield number, root / out.path

    def _run(self, name: str) -> Path:
        return self.folder / "runs" / f"{name}.json"

    def _path(self, kind: str, stage: str, suffix: str = "") -> Path:
        return self.folder / kind / f"{quote(stage, safe='@ ')}{suffix}"


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    remove(target)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=os.link, symlinks=True)
    else:
        os.link(source, target)
