"""Commands of this environment in forks of one process that has loaded their libraries.

Python, DVC and what Prefect consists of take a second to load, which a suite of hundreds of commands notices. A fork
has its own arguments, environment, folder and end, as if it had been started; the modules of Prefect and of this
project, which read settings when they are imported, are loaded by each command itself.

`python -m tests.forks SOCKET NAMES` is that process: it listens at SOCKET, has the modules that the file NAMES lists,
and ends when its standard input does.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = ("dvc", "labdag")
OWN = ("__", "flows", "prefect", "stages", "tests")  # how the names begin of modules that are not loaded ahead
MESSAGE_BYTES = 1 << 20
LOAD_SECONDS = 120
# What the programs load sooner or later.
LOADED = """
import sys
import flows.cli, flows.recording, flows.retrain, flows.sweep, flows.supervisor
flows.supervisor.load()
print("\\n".join(sys.modules))
"""


def write_names(path: Path) -> None:
    """Write the names of the modules that a process is to have which commands are forked from."""
    told = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()
    path.write_text("\n".join(name for name in told if not name.startswith(OWN)))


class Forks:
    """Runs commands in forks of a process, which is started by `serving`."""

    def __init__(self, address: Path) -> None:
        self._address = str(address)

    def run(
        self, command: list[str], cwd: Path, env: Mapping[str, str], seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end.

        Raises:
            subprocess.TimeoutExpired: it takes longer than so many seconds; it was killed.
        """
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            control.connect(self._address)
            order = json.dumps({"command": command, "cwd": str(cwd), "env": dict(env)}).encode()
            socket.send_fds(control, [order], [out.fileno(), err.fileno()])
            pid = int(control.recv(MESSAGE_BYTES))
            control.settimeout(seconds)
            try:
                code = int(control.recv(MESSAGE_BYTES))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(command, seconds) from None
            for file in (out, err):
                file.seek(0)
            return subprocess.CompletedProcess(command, code, out.read().decode(), err.read().decode())


@contextmanager
def serving(folder: Path, names: Path) -> Iterator[Forks]:
    """Start a process to fork commands from; it ends afterwards."""
    address = folder / "forks"
    command = [sys.executable, "-m", "tests.forks", str(address), str(names)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + LOAD_SECONDS
        while not address.exists():
            assert process.poll() is None, "the process to fork commands from has ended"
            assert time.monotonic() < deadline, "the process to fork commands from takes too long to load"
            time.sleep(0.02)
        yield Forks(address)


def main() -> None:
    """Fork until told to end; returns in a fork, which has become what it is to be, for its command to be run."""
    for name in Path(sys.argv[2]).read_text().split():
        with suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening, selectors.DefaultSelector() as selector:
        part = Path(f"{sys.argv[1]}.part")
        listening.bind(str(part))
        listening.listen()
        part.rename(sys.argv[1])
        selector.register(listening, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    os._exit(0)
                control, _ = listening.accept()
                with control:
                    if os.fork() == 0 and _has_become(control):
                        return
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _has_become(control: socket.socket) -> bool:
    """In a fork: fork once more, and wait there for what becomes of that; True in the one that is to be the command."""
    message, files, *_ = socket.recv_fds(control, MESSAGE_BYTES, 2)
    if (pid := os.fork()) != 0:
        control.send(str(pid).encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(OSError):  # nobody waits any more
            control.send(str(code).encode())
        os._exit(0)
    order = json.loads(message)
    for target, source in enumerate((os.open(os.devnull, os.O_RDONLY), *files)):
        os.dup2(source, target)
        os.close(source)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    time.tzset()
    tempfile.tempdir = None
    program, *arguments = order["command"]
    script = Path(sys.executable).parent / program
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.parent)
    importlib.invalidate_caches()
    return True


if __name__ == "__main__":
    main()
    runpy.run_path(sys.argv[0], run_name="__main__")
