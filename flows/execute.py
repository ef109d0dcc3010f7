"""One DVC stage, run as a supervised subprocess of `dvc repro --single-item`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

GRACE_SECONDS = 5.0
HINTS = (
    "To track the changes",
    "git add",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
    "Data and pipelines are up to date",
)


class Ending(StrEnum):
    """How a stage ended."""

    UNCHANGED = "Unchanged"  # nothing that it reads changed
    CACHED = "Cached"  # restored from DVC's run-cache
    COMPLETED = "Completed"  # its command ran
    FAILED = "Failed"
    SKIPPED = "Skipped"  # something upstream failed


@dataclass(frozen=True)
class Outcome:
    """What became of a stage.

    Attributes:
        stage: its name.
        ending: how it ended.
        reason: one sentence about it, or the error in the stage's own words.
        seconds: wall-clock time.
    """

    stage: str
    ending: Ending
    reason: str
    seconds: float = 0.0


class Executor:
    """Runs stages of the repository at `root`, each in a process group of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, stage: str, *, force: bool = False, log: Callable[[str], None] = print) -> Outcome:
        """Bring `stage` up to date, its upstream stages taken as they are.

        Args:
            stage: its name.
            force: run its command even if nothing changed.
            log: takes each line of output as it comes.
        """
        # --wait-for-lock: stages run side by side, and DVC takes its lock for moments before and after each.
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
        if force:
            command.append("--force")
        started = time.monotonic()
        lines: list[str] = []
        with self._start(command) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    lines.append(line.rstrip("\n"))
                    if lines[-1] and not _is_hint(lines):
                        log(lines[-1])
                code = process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
        ending, reason = _read(stage, lines, code)
        return Outcome(stage, ending, reason, time.monotonic() - started)

    def stop(self) -> None:
        """End every running stage with all its processes, first politely, and start no more."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            _signal_group(process, signal.SIGINT)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            # Whatever of the group did not listen, background processes of the command among them.
            _signal_group(process, signal.SIGKILL)

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        # Stage commands say `python`: this interpreter's folder comes first, activated or not.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        with self._lock:
            if self._stopped:
                raise InterruptedError("no stage is started any more")
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
        return process


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _is_hint(lines: list[str]) -> bool:
    """Whether the last line is DVC's closing advice on git and pushing, the same after every stage."""
    closing = any(line.startswith(("Updating lock file", "Stage '")) for line in lines)
    return closing and lines[-1].lstrip().startswith(HINTS)


def _read(stage: str, lines: list[str], code: int) -> tuple[Ending, str]:
    """Tell from DVC's output what it did."""
    if code != 0:
        return Ending.FAILED, _error(lines, code)
    if any(line.startswith(f"Running stage '{stage}'") for line in lines):
        return Ending.COMPLETED, "its command ran"
    if any("is cached - skipping run" in line for line in lines):
        return Ending.CACHED, "the same inputs ran before; outputs restored from the run-cache"
    return Ending.UNCHANGED, "nothing that it reads or writes changed"


def _error(lines: list[str], code: int) -> str:
    """Why the stage failed: its own last words, or else DVC's."""
    said = [line for line in lines if line.strip()]
    dvc_from = next((i for i, line in enumerate(said) if line.startswith("ERROR: failed to reproduce")), len(said))
    own = [line for line in said[:dvc_from] if not line.startswith(("Running stage", "> "))]
    for index in range(len(own) - 1, -1, -1):
        if own[index].startswith(("Error: ", "ERROR: ")):
            return "\n".join(own[index:]).split(": ", 1)[1]
    exited = next(
        (f"exited with {line.rsplit('exited with ', 1)[1]}" for line in said[dvc_from:] if "exited with " in line),
        None,
    )
    if exited:
        return f"its command {exited}" + (f", last saying: {own[-1].strip()}" if own else "")
    return "\n".join(said[dvc_from:]).removeprefix("ERROR: ") or f"dvc repro exited with {code} and said nothing"
