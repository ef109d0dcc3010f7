"""The process above all stages of a run: starts DVC for each, and sees to it that nothing outlives anything.

It is started once for a run (`python -m labdag.execution.supervisor FD`), loads DVC once, and forks for each stage,
which spares each of them half a second. A stage leads a session of its own. The supervisor adopts its orphans, so it
loses sight of no process, and ends them all when DVC ends, on request, or as soon as the process that asked for the
stage is gone, for whatever reason. If the supervisor itself is killed, the kernel kills DVC, and `sweep` finds what DVC
started.

It talks over a socket, in JSON:

    {"do": "start", "id": 7, "argv": ["repro", …], "env": {…}, "cwd": …} and a file descriptor for the output
    {"do": "stop", "id": 7}: interrupt it, and kill what has not listened after GRACE_SECONDS
    {"id": 7, "pid": 4711}, then {"id": 7, "code": 0, "left": ["sleep"]}: the answers
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import psutil

from labdag.processes import adopt_orphans, end_with_parent

GRACE_SECONDS = 3.0
MARK = "LABDAG_STAGE"  # in the environment of all processes of a stage
MESSAGE_BYTES = 1 << 17
CRASHED = 255
ROUNDS = 10  # of looking for processes to kill: one that is just being killed may have had a child

# What DVC imports only once it runs a stage, or at its command line.
NEEDED = (
    "dulwich.ignore",
    "dulwich.index",
    "dulwich.repo",
    "dulwich.worktree",
    "dvc.cachemgr",
    "dvc.cli.parser",
    "dvc.commands.commit",
    "dvc.commands.repro",
    "configobj",
    "dvc.compare",
    "dvc.data_cloud",
    "dvc.dirs",
    "dvc.repo.artifacts",
    "dvc.repo.commit",
    "dvc.repo.datasets",
    "dvc.repo.metrics",
    "dvc.repo.open_repo",
    "dvc.repo.params",
    "dvc.repo.plots",
    "dvc.repo.reproduce",
    "dvc.repo.stage",
    "dvc.scm",
    "dvc.stage.cache",
    "dvc.stage.run",
    "dvc.utils.strictyaml",
    "dvc_data.hashfile._progress",
    "dvc_data.hashfile.db.local",
    "dvc_data.hashfile.status",
    "flufl.lock",
    "fsspec.implementations.memory",
    "platformdirs.unix",
    "pyparsing",
    "ruamel.yaml",
    "scmrepo.git",
    "zc.lockfile",
)


@dataclass
class _Child:
    """DVC at work on one stage.

    Attributes:
        id: how the asking process calls it.
        mark: what MARK is in its environment.
        kill_at: when its time to listen is over; 0 while nobody has asked it to stop.
    """

    id: int
    mark: str
    kill_at: float = 0.0


def main() -> None:
    """Serve the process at the other end of the socket until it is gone."""
    control = socket.socket(fileno=int(sys.argv[1]))
    # Ctrl-C and a closed terminal are for the asking process to act on.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    adopt_orphans()
    _load()
    Supervisor(control).serve()
    os._exit(0)  # there is nothing to tidy up in this process, and whoever asked may be waiting


class Supervisor:
    """Starts, watches and ends DVC's processes, as told over `control`."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.children: dict[int, _Child] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(control, selectors.EVENT_READ)
        # Python writes a byte into `alarm` whenever a child has died, which wakes the selector.
        self.death, self.alarm = socket.socketpair()
        for end in (self.death, self.alarm):
            end.setblocking(False)
        signal.set_wakeup_fd(self.alarm.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.selector.register(self.death, selectors.EVENT_READ)

    def serve(self) -> None:
        """Do as told, until nobody is there to tell."""
        while True:
            for key, _ in self.selector.select(self._patience()):
                if key.fileobj is self.death:
                    self.death.recv(4096)
                elif not self._obey():
                    return self._end_everything()
            self._reap()
            for pid, child in self.children.items():
                if 0 < child.kill_at <= time.monotonic():
                    _end(pid, child.mark)

    def _obey(self) -> bool:
        try:
            message, files, *_ = socket.recv_fds(self.control, MESSAGE_BYTES, 1)
        except ConnectionError:
            return False
        if not message:
            return False
        order = json.loads(message)
        match order["do"]:
            case "start":
                self._start(order, files[0])
                os.close(files[0])
            case "stop":
                for pid, child in self.children.items():
                    if child.id == order["id"] and not child.kill_at:
                        child.kill_at = time.monotonic() + GRACE_SECONDS
                        with suppress(ProcessLookupError):
                            os.killpg(pid, signal.SIGINT)
        return True

    def _start(self, order: dict[str, Any], output: int) -> None:
        importlib.import_module("labdag.dvc_internals.texts").read_ahead(order["cwd"])
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_dvc(order, output, supervisor)
        self.children[pid] = _Child(order["id"], order["env"][MARK])
        self._tell({"id": order["id"], "pid": pid})

    def _patience(self) -> float | None:
        """Seconds until the next child's time is over."""
        times = [child.kill_at for child in self.children.values() if child.kill_at]
        return max(0.01, min(times) - time.monotonic()) if times else None

    def _reap(self) -> None:
        """Bury who has died, and end all that is left of a stage whose DVC has."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                child = self.children.pop(pid, None)
                if child is not None:
                    left = _end(pid, child.mark)
                    self._tell({"id": child.id, "code": os.waitstatus_to_exitcode(status), "left": left})

    def _tell(self, answer: dict[str, Any]) -> None:
        with suppress(OSError):  # nobody is there any more: serve will see
            self.control.send(json.dumps(answer).encode())

    def _end_everything(self) -> None:
        for pid, child in self.children.items():
            _end(pid, child.mark)


def _become_dvc(order: dict[str, Any], output: int, supervisor: int) -> NoReturn:
    """In the forked child: be `dvc`, with this order's arguments."""
    code = CRASHED
    try:
        os.setsid()
        end_with_parent(supervisor, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, output), (2, output)):
            os.dup2(source, target)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        os.environ.update(order["env"])
        os.chdir(order["cwd"])
        sys.argv = ["dvc", *order["argv"]]
        from dvc.cli import main as dvc

        code = dvc(order["argv"])
    except SystemExit as end:  # how argparse says that it does not understand
        code = end.code if isinstance(end.code, int) else CRASHED
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _load() -> None:
    """Import what DVC imports on its way to running a stage, so that the children have it."""
    for name in NEEDED:
        importlib.import_module(name)
    importlib.import_module("dvc.cli.parser").get_main_parser()  # which DVC keeps, once it is made
    importlib.import_module("labdag.dvc_internals.recording").install()
    gc.collect()
    gc.freeze()  # shared with the children, untouched


def _end(leader: int, mark: str) -> list[str]:
    """Kill all processes of a stage, those in its session and those that have left it; tells their names."""
    names: dict[int, str] = {}
    for _ in range(ROUNDS):
        members = [process for process in psutil.process_iter() if _is_member(process, leader, mark)]
        if not members:
            break
        names |= _kill(members)  # some of them again, that have not died yet
    return list(names.values())


def _is_member(process: psutil.Process, leader: int, mark: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return os.getsid(process.pid) == leader or process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False


def _kill(processes: list[psutil.Process]) -> dict[int, str]:
    """Kill them, and tell their names."""
    names = {}
    for process in processes:
        with suppress(psutil.Error):
            names[process.pid] = process.name()
            process.kill()
    return names


def sweep(run: str) -> list[str]:
    """Kill all processes of a run's stages whose supervisor is gone; tells their names.

    Args:
        run: what all marks of the run begin with.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK, "").startswith(f"{run}/"):
                found.append(process)
    return list(_kill(found).values())


if __name__ == "__main__":
    main()
