"""One DVC stage, run as a supervised `dvc repro --single-item`, with nothing lost and nothing false however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labdag.dvc_internals.notes import NOTE, ORDER, SUSPECTS, TAINTED, WRITES
from labdag.environment import search_path, without_lent
from labdag.errors import UserError
from labdag.execution.journal import Journal
from labdag.execution.outcome import Outcome, StageState
from labdag.execution.output import Lines, Throttle
from labdag.execution.supervisor import MARK, MESSAGE_BYTES, sweep
from labdag.files import exists, remove
from labdag.pipeline.graph import UNCHANGED, Pipeline, Stage, told

CANCELLED = 130  # the exit code of what was not even started
CLAIMS = "LABDAG_CLAIMS"  # in the environment: the folder where runs that share a cache claim what they make
CLAIM_SECONDS = 0.2  # between two tries to
BUSY_SECONDS = 0.5  # between two tries where another DVC command uses the same files
HINTS = (
    "To track the changes",
    "git add",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
    "Data and pipelines are up to date",
)
CLOSING = ("Updating lock file", "Generating lock file", "Stage '", "Running stage '", "Verifying data sources")
NOT_REPRODUCED = "ERROR: failed to reproduce"  # as DVC's last words begin
# What a signal did to a command, and what is most often behind it.
SIGNALS: dict[int, str] = {
    signal.SIGKILL: "was killed (SIGKILL; most often the memory ran out)",
    signal.SIGSEGV: "crashed (SIGSEGV; it accessed memory that is not its own)",
    signal.SIGBUS: "crashed (SIGBUS; most often a disk is full, or a file that it had mapped was truncated)",
    signal.SIGABRT: "aborted (SIGABRT)",
    signal.SIGTERM: "was told to end (SIGTERM)",
}
EXITS = {126: " (a program in it can't be executed)", 127: " (a program in it was not found)"}  # of a shell
LINES = 1000  # of a stage's output that are kept to tell why it failed: of more, so many at each end
BLOCKED = ("is busy, it is being blocked by", "RWLock-file", "Unable to acquire lock")
# What keeps DVC from saving outputs that are there and sound: the machine, not the stage.
UNSAVED = ("[Errno", "database or disk is full", "disk I/O error", "readonly database", "failed to link", *BLOCKED)


@dataclass
class _Process:
    """A DVC process of the supervisor's.

    Attributes:
        code: its exit code, once it has ended; negative for a signal.
        stage: what it is at work on, as DVC calls it.
        lines: what it printed.
        held: what it has printed since it has begun to say that it failed; if so, that is told as the stage's reason.
        why: why it was told to stop, if it was.
        is_spared: whether it puts things in order, and so is not stopped with the run.
    """

    stage: str
    is_spared: bool = False
    code: Future[tuple[int, list[str]]] = field(default_factory=Future)
    lines: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    why: StageState | None = None


_ahead: list[tuple[subprocess.Popen[bytes], socket.socket]] = []  # supervisors that nobody uses yet


def prepare() -> None:
    """Start the next Executor's supervisor now: it loads DVC while its user is still importing Prefect."""
    _ahead.append(_start_supervisor())


def _start_supervisor() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The process, and the socket to talk to it."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        # -P: the user's project may have a package of that name, too.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "labdag.execution.supervisor", str(theirs.fileno())],
            env=without_lent(os.environ),
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return process, mine


class Executor:
    """Runs stages of a pipeline, each in a session of its own, none of which outlives this process.

    Args:
        pipeline: the stages.
        journal: where they are noted.
        run: the run's name in the journal.
        names: of the stages that it may be asked to run.
        options: of `dvc repro`, which each stage is run with.
    """

    def __init__(
        self, pipeline: Pipeline, journal: Journal, run: str, names: Collection[str], options: Sequence[str] = ()
    ) -> None:
        self.pipeline, self.journal, self.run_id, self._options = pipeline, journal, run, [*options]
        self.root, self._names = pipeline.root, names
        self._mutex = threading.Lock()
        self._control: socket.socket | None = None
        self._processes: dict[int, _Process] = {}
        self._stopped = threading.Event()
        self._count = 0

    def __enter__(self) -> Executor:
        self._order_of_entries = self.journal.note_order(self.run_id, self.pipeline.order(self._names))
        with self._mutex:
            self._take_supervisor()
        return self

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            control = self._control
        if control is not None:
            control.shutdown(socket.SHUT_RDWR)
            self._listener.join()

    def stop(self) -> None:
        """End every running stage with all its processes, first politely, and start no more."""
        self._stopped.set()
        with self._mutex:
            running = [n for n, process in self._processes.items() if not (process.is_spared or process.code.done())]
        for number in running:
            self._stop(number, StageState.CANCELLED)

    def run(
        self, stage: Stage, *, force: bool = False, remark: str = "", log: Callable[[str], None] = print
    ) -> Outcome:
        """Bring `stage`, which the caller has claimed, up to date, its upstream stages taken as they are.

        Args:
            stage: what to run.
            force: run its command even if nothing changed.
            remark: what to tell if it is not fresh; may be empty.
            log: takes lines of output as they come.
        """
        started = time.monotonic()
        with self._alone(stage):
            outcome = self._run(stage, force, remark, log)
        return replace(outcome, seconds=time.monotonic() - started)

    def _run(self, stage: Stage, force: bool, remark: str, log: Callable[[str], None]) -> Outcome:
        outcome = self._recover(stage, force, log) or self._reproduce(stage, force, remark, log)
        tries = 0
        while outcome.ending is StageState.FAILED and tries < stage.meta.retries:
            tries += 1
            log(f"It failed: {outcome.reason}")
            log(f"Try {tries + 1} of {stage.meta.retries + 1} comes in {stage.meta.retry_delay:g} s.")
            if self._stopped.wait(stage.meta.retry_delay):
                outcome = Outcome(stage.name, StageState.CANCELLED, f"cancelled before its next try; {outcome.reason}")
                break
            outcome = self._recover(stage, force, log) or self._reproduce(stage, force, remark, log)
        return outcome

    @contextmanager
    def _alone(self, stage: Stage) -> Iterator[None]:
        """Where runs of several copies share a cache, wait until no other one makes the same.

        DVC's run-cache has it then. Without that, a stage that two copies have in common would be run in both.
        """
        folder = os.environ.get(CLAIMS)
        key = self.pipeline.cache_key(stage.name) if folder and self.pipeline.changes(stage.name) else None
        if not folder or key is None:
            yield
            return
        with (Path(folder) / key).open("w") as claim:
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if self._stopped.wait(CLAIM_SECONDS):
                    break
            yield

    def clean(self, stage: Stage, log: Callable[[str], None]) -> str | None:
        """Tidy up after a stage, claimed by the caller, that a dead run had begun; tells what was done, if anything."""
        if not self.journal.note(stage.name).exists():
            return None
        if not self.pipeline.changes(stage.name):
            self.journal.end(stage.name)
            return None
        if self._note(stage).get("made") is not None:
            return f"{stage.name} had finished but was not recorded; running it will record it"
        return f"{stage.name} was cut short{self._restore(stage, log)}"

    def _recover(self, stage: Stage, force: bool, log: Callable[[str], None]) -> Outcome | None:
        """Record what an earlier try had finished and could not record, or tidy up after it."""
        if not self.journal.note(stage.name).exists():
            return None
        if force or not self._is_untouched(stage):
            (self._restore if force else self.clean)(stage, log)
            return None
        log("Its command had finished, but DVC had not recorded it; recording it now.")
        return self._commit(stage, log, self.journal.writes(stage.name, self.pipeline.command(stage.name)))

    def _is_untouched(self, stage: Stage) -> bool:
        """Whether all outputs are there, finished, and as the command left them."""
        made = self._note(stage).get("made")
        if made is None or not all(exists(self.root / out.path) for out in stage.outs):
            return False
        with suppress(OSError):
            stats = {path: (self.root / path).stat() for path in made}
            return all([stats[path].st_size, stats[path].st_mtime_ns] == sign for path, sign in made.items())
        return False

    def _commit(self, stage: Stage, log: Callable[[str], None], writes: list[str]) -> Outcome | None:
        process = self._dvc(["commit", "--force"], stage, log, writes=writes)
        if process.why is StageState.CANCELLED:
            return Outcome(stage.name, StageState.CANCELLED, "cancelled while it was being recorded")
        if process.code.result()[0] == 0:
            self.journal.end(stage.name)
            reason = "its command had finished before; recorded without running it"
            return Outcome(stage.name, StageState.RECOVERED, reason)
        said = "\n".join(process.lines)
        if any(sign in said for sign in UNSAVED):
            return Outcome(stage.name, StageState.FAILED, self._unsaved(stage, process.lines))
        self._restore(stage, log)
        return None

    def _reproduce(self, stage: Stage, force: bool, remark: str, log: Callable[[str], None]) -> Outcome:
        taint, suspects = None, list[str]()
        known = self.journal.writes(stage.name, self.pipeline.command(stage.name))
        while True:
            reason = "it was told to run" if force else told(self.pipeline.changes(stage.name))
            if reason is None and taint is None:
                return Outcome(stage.name, StageState.UNCHANGED, UNCHANGED)
            if taint is None:
                self.journal.log(stage.name).unlink(missing_ok=True)
                if remark:
                    log(remark)
            # What is written in both tries, its command writes itself.
            outcome, wrote = self._attempt(stage, force, reason, log, known, suspects)
            if outcome.ending is not StageState.TAINTED:
                if outcome.ending is StageState.COMPLETED and wrote:
                    self._note_writes(stage, known, wrote, log)
                if taint and outcome.ending in (StageState.COMPLETED, StageState.CACHED):
                    return replace(outcome, reason=f"{outcome.reason}; run twice, for it was {taint}")
                return outcome
            if taint is not None:
                both = f"{outcome.reason}; the first time it was {taint}. Leave what it reads alone, and run it again."
                return replace(outcome, reason=both)
            taint, suspects = outcome.reason, [key for key in wrote if key not in known]
            log(f"Tainted: it was {taint}. Nothing of it is recorded; it runs again.")

    def _note_writes(self, stage: Stage, known: list[str], wrote: list[str], log: Callable[[str], None]) -> None:
        """Remember what a stage's command has written of what it reads and does not declare, and warn of it."""
        remembered = list(dict.fromkeys([*known, *wrote]))
        if remembered != known:
            self.journal.note_writes(stage.name, self.pipeline.command(stage.name), remembered)
        names = ", ".join(wrote)
        quoted = ", ".join(json.dumps(key, ensure_ascii=False) if ":" in key else key for key in wrote)
        log(
            f"Warning: its command writes {names}, which it reads. That is recorded as the command has left it. "
            f"Have it write elsewhere, or declare it: `meta: {{writes_inputs: [{quoted}]}}`."
        )

    def _attempt(
        self,
        stage: Stage,
        force: bool,
        reason: str | None,
        log: Callable[[str], None],
        known: list[str],
        suspects: list[str],
    ) -> tuple[Outcome, list[str]]:
        """Run DVC on the stage once, but for waits for other DVC commands.

        Gives what became of it, and what was written meanwhile of what it reads and does not declare. Of that, `known`
        is its command's own doing, and `suspects` if it is written this time, too.
        """
        argv = ["repro", "--single-item", *["--force"] * force, *self._options]
        waited = False
        while True:
            self.journal.begin(stage, self.root, self.pipeline.lost(stage.name))
            process = self._dvc(argv, stage, log, writes=known, suspects=suspects)
            code, left = process.code.result()
            if left:
                log(f"Its command left processes running, which were ended: {', '.join(left)}.")
            said = "\n".join(process.lines)
            note = self._note(stage)
            if code == 0:
                self.journal.end(stage.name)
                return self._ended_well(stage, process.lines, reason), note.get("wrote", [])
            is_blocked = any(sign in said for sign in BLOCKED)
            if process.why is not None or TAINTED in said or not (is_blocked or (code < 0 and "made" in note)):
                break
            if self.pipeline.mend_locks():
                log("DVC's list of files in use was broken off; it is mended.")
            if "made" in note and self._is_untouched(stage):
                log("Its command has finished, but DVC could not record it; recording it again.")
                recorded = self._commit(stage, log, [*known, *suspects])
                return recorded or Outcome(stage.name, StageState.FAILED, _error(process.lines, code)), []
            if not waited:
                waited = True
                blockers = _error(process.lines, code).partition("If there are no processes")[0]
                log(f"Waiting for another DVC command: {' '.join(blockers.split())}")
            self.journal.end(stage.name)
            if self._stopped.wait(BUSY_SECONDS):
                process.why = StageState.CANCELLED
                break
        return self._ended_badly(stage, process, note, log), note.get("wrote", [])

    def _ended_well(self, stage: Stage, lines: list[str], reason: str | None) -> Outcome:
        because = f": {reason}" if reason else ""
        if any(line.startswith(f"Running stage '{_said_name(stage)}'") for line in lines):
            return Outcome(stage.name, StageState.COMPLETED, f"its command ran{because}")
        if any("is cached - skipping run" in line for line in lines):
            return Outcome(stage.name, StageState.CACHED, f"restored from DVC's cache{because}")
        if any(line.startswith("Pulling data for") for line in lines):
            return Outcome(stage.name, StageState.CACHED, f"restored from DVC's cache or its remote{because}")
        if any("didn't change, skipping" in line for line in lines):
            return Outcome(stage.name, StageState.UNCHANGED, UNCHANGED)
        return Outcome(stage.name, StageState.RECORDED, f"no command of it was to be run; recorded as it is{because}")

    def _ended_badly(
        self, stage: Stage, process: _Process, note: dict[str, Any], log: Callable[[str], None]
    ) -> Outcome:
        code, said = process.code.result()[0], "\n".join(process.lines)
        made_all = "made" in note and self._is_untouched(stage)
        if process.why is None and made_all and TAINTED not in said and any(sign in said for sign in UNSAVED):
            return Outcome(stage.name, StageState.FAILED, self._unsaved(stage, process.lines))
        state = self._restore(stage, log)
        if process.why is StageState.CANCELLED:
            return Outcome(stage.name, StageState.CANCELLED, f"cancelled{state}")
        if process.why is StageState.FAILED:
            reason = f"it took longer than its timeout of {stage.meta.timeout:g} s"
            return Outcome(stage.name, StageState.FAILED, reason)
        if TAINTED in said:
            edits = said.rpartition(TAINTED)[2].splitlines()[0]
            return Outcome(stage.name, StageState.TAINTED, f"{TAINTED}{edits}")
        return Outcome(stage.name, StageState.FAILED, self._missing(stage) or _error(process.lines, code))

    def _missing(self, stage: Stage) -> str | None:
        """What the stage reads that nothing will make, in the words of a plan."""
        with suppress(UserError):
            lost = told(change for change in self.pipeline.changes(stage.name) if change.is_fatal)
            if lost and "is missing" not in lost:
                return lost
            return lost and (
                f"{lost}, and no stage makes it. Put it back: if DVC tracks it, `dvc checkout` does from the cache, "
                "`labdag run --pull` from the remote"
            )
        return None

    def _unsaved(self, stage: Stage, lines: list[str]) -> str:
        return (
            f"its command finished, but DVC could not save what it made: {_error(lines, 1)}. It is all left in place: "
            f"mend that and run again, which saves it without running `{stage.name}` anew"
        )

    def _restore(self, stage: Stage, log: Callable[[str], None]) -> str:
        """Give a stage its last good outputs back; of those that it never had, remove what there is.

        What DVC has not removed to make it anew is not touched: it may be all there is of a user's work.
        Tells what was done, as the rest of a sentence.
        """
        if not stage.is_run:
            self.journal.end(stage.name)
            return ""
        recorded = self.pipeline.recorded(stage.name)
        wanted = [out.path for out in stage.outs if out.cached and not out.persist]
        had_begun = "read" in self._note(stage)  # its command
        back: list[str] = []
        if had_begun:
            back = self.journal.put_back(stage, self.root)
            for path in wanted:
                if path not in recorded:
                    remove(self.root / path)
        missing = [path for path in wanted if path in recorded and path not in back]
        paths = [path for path in missing if had_begun or not exists(self.root / path)]
        told = "; its last good outputs are back" if paths or any(path in back for path in wanted) else ""
        if paths:
            argv = ["checkout", "--force", "--quiet"]
            process = self._dvc(argv, stage, log, paths, despite_stop=True)
            if process.code.result()[0] != 0:
                lost = self.pipeline.lost(stage.name)
                reason = f"DVC's cache has lost {', '.join(lost)}" if lost else _error(process.lines, 1)
                log(f"Its last good outputs could not be put back: {reason}")
                told = ""
        self.journal.end(stage.name)
        return told

    def _note(self, stage: Stage) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            note = json.loads(self.journal.note(stage.name).read_text(encoding="utf-8"))
            if isinstance(note, dict):
                return note
        return {}

    def _dvc(
        self,
        argv: list[str],
        stage: Stage,
        log: Callable[[str], None],
        paths: Sequence[str] = (),
        *,
        despite_stop: bool = False,
        writes: Sequence[str] = (),
        suspects: Sequence[str] = (),
    ) -> _Process:
        """Run a DVC command on a stage, or on some paths from the root, to its end."""
        folder, target = ("", "") if paths else stage.address
        process = _Process(_said_name(stage), despite_stop)
        with self._mutex:
            if self._stopped.is_set() and not despite_stop:
                process.why = StageState.CANCELLED
                process.code.set_result((CANCELLED, []))
                return process
            if self._control is None:
                self._take_supervisor()
            self._count += 1
            number = self._count
            self._processes[number] = process
        reading, writing = os.pipe()
        self._order(
            {
                "do": "start",
                "id": number,
                "argv": ["--wait-for-lock", *argv, *(paths or [target])],
                "cwd": str(self.root / folder),
                "env": self._environment(stage, f"{self.run_id}/{number}")
                | {WRITES: json.dumps(writes), SUSPECTS: json.dumps(suspects)},
            },
            writing,
        )
        os.close(writing)
        timer = threading.Timer(stage.meta.timeout or 0, self._stop, (number, StageState.FAILED))
        timer.daemon = True
        throttle = Throttle(log, str(self.journal.log(stage.name)))
        splitter = Lines()
        with os.fdopen(reading, "rb", buffering=0) as output, self.journal.log(stage.name).open("ab") as kept:
            while data := output.read(1 << 16):
                kept.write(data)
                self._pass_on(splitter.feed(data), process, throttle)
                if stage.meta.timeout and timer.ident is None and _is_running(process.lines):
                    timer.start()
            self._pass_on(splitter.feed(b""), process, throttle)
        if process.code.result()[0] == 0:  # it was a command's own DVC that failed
            self._let_go(process, throttle)
        throttle.close()
        timer.cancel()
        with self._mutex:
            del self._processes[number]
        return process

    @staticmethod
    def _pass_on(lines: Iterator[str], process: _Process, log: Throttle) -> None:
        for line in lines:
            process.lines.append(line)
            if len(process.lines) > 3 * LINES:
                del process.lines[LINES:-LINES]
            is_end = line.startswith(f"{NOT_REPRODUCED} '{process.stage}'")
            if is_end:
                Executor._let_go(process, log)
            if not line or _is_hint(process.lines):
                continue
            if is_end or process.held:
                process.held.append(line)
                if len(process.held) > LINES:  # DVC does not say so much
                    Executor._let_go(process, log)
            else:
                log(line)

    @staticmethod
    def _let_go(process: _Process, log: Throttle) -> None:
        for line in process.held:
            log(line)
        process.held.clear()

    def _environment(self, stage: Stage, mark: str) -> dict[str, str]:
        return {
            "PATH": search_path(os.environ),
            "PYTHONUNBUFFERED": "1",
            "DVC_NO_ANALYTICS": "1",  # once for each stage would be a lot to report
            NOTE: str(self.journal.note(stage.name)),
            ORDER: str(self._order_of_entries),
            MARK: mark,
        }

    def _stop(self, number: int, why: StageState) -> None:
        with self._mutex:
            process = self._processes.get(number)
            if process is None or process.why is not None:
                return
            process.why = why
        with suppress(OSError):
            self._order({"do": "stop", "id": number})

    def _order(self, order: dict[str, object], *files: int) -> None:
        assert self._control is not None
        socket.send_fds(self._control, [json.dumps(order).encode()], files)

    def _take_supervisor(self) -> None:
        self._supervisor, self._control = _ahead.pop() if _ahead else _start_supervisor()
        self._listener = threading.Thread(target=self._listen, args=(self._control,), name="supervisor", daemon=True)
        self._listener.start()

    def _listen(self, control: socket.socket) -> None:
        """Take the supervisor's answers until it, or this executor, is gone."""
        while True:
            try:
                message = control.recv(MESSAGE_BYTES)
            except OSError:
                message = b""
            if not message:
                break
            answer = json.loads(message)
            if "code" in answer:
                with self._mutex:
                    process = self._processes[answer["id"]]
                process.code.set_result((answer["code"], answer["left"]))
        with self._mutex:
            if self._control is control:
                self._control = None
            control.close()
            self._supervisor.wait()
            if self._processes:  # the supervisor was killed
                sweep(self.run_id)
            for process in self._processes.values():
                if not process.code.done():
                    process.code.set_result((-signal.SIGKILL, []))


def _said_name(stage: Stage) -> str:
    """What the stage is called in what DVC prints, where it stands in the stage's own folder or in the root."""
    folder, _ = stage.address
    return stage.inner if folder else stage.name


def _is_running(lines: list[str]) -> bool:
    return any(line.startswith("Running stage '") for line in lines)


def _is_hint(lines: list[str]) -> bool:
    """Whether the last line is DVC's closing advice on git and pushing, the same after every stage."""
    closing = any(line.startswith(CLOSING) for line in lines)
    return closing and lines[-1].lstrip().startswith(HINTS)


def _error(lines: list[str], code: int) -> str:
    """Why the stage failed: its own last words, or else DVC's."""
    if code < 0:
        return f"DVC {exit_of(code)}"
    said = [line for line in lines if line.strip()]
    dvc_from = max((i for i, line in enumerate(said) if line.startswith(NOT_REPRODUCED)), default=len(said))
    own = [line for line in said[:dvc_from] if not line.startswith(("Running stage", "> "))]
    exited = next((int(found[1]) for line in said[dvc_from:] if (found := _EXITED.search(line))), None)
    is_signal = exited is not None and exited < 0
    if (exited or dvc_from == len(said)) and not is_signal:
        for index in range(len(own) - 1, -1, -1):
            if own[index].startswith(("Error: ", "ERROR: ")):
                return "\n".join(own[index:]).split(": ", 1)[1]
    if exited:
        return f"its command {exit_of(exited)}" + (f", last saying: {own[-1].strip()}" if own else "")
    told_by_dvc = "\n".join(said[dvc_from:]).removeprefix("ERROR: ")
    return _PREFIX.sub("", told_by_dvc) or f"DVC exited with {code} and said nothing"


_EXITED = re.compile(r"exited with (-?\d+)")
_PREFIX = re.compile(r"^failed to reproduce '[^']*': ")


def exit_of(code: int) -> str:
    """What became of a command that ended with an exit code other than 0, as the rest of a sentence.

    Args:
        code: the exit code; negative for a signal. A shell tells a signal of its commands by a code above 128.
    """
    if code < 0:
        return _ended_by(-code) or f"was ended by signal {-code}"
    if ended := _ended_by(code - 128) if code > 128 else "":
        return f"exited with {code}, as a shell does when something in it {ended}"
    return f"exited with {code}{EXITS.get(code, '')}"


def _ended_by(number: int) -> str:
    """What a signal did to a process; empty if the number has no name."""
    try:
        return SIGNALS.get(number) or f"was ended by {signal.Signals(number).name}"
    except ValueError:
        return ""
