"""Prefect's server and a worker on this machine, in the background, as one thing to start and to end."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from flows import files
from flows.graph import GraphError

START_SECONDS = 120.0  # for the server to answer, and for the worker to be there
END_SECONDS = 20.0  # for one to end by itself
POLL_SECONDS = 5  # between two looks of the worker at what there is to run
STATE = "state.json"


@dataclass(frozen=True)
class Process:
    """A process that was started.

    Attributes:
        pid: its number.
        birth: when it was started, and on which start of the machine: another one may get the number later.
    """

    pid: int
    birth: str

    def alive(self) -> psutil.Process | None:
        """The process, if it still runs."""
        with suppress(psutil.NoSuchProcess, OSError):
            process = psutil.Process(self.pid)
            if _birth(self.pid) == self.birth and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


@dataclass(frozen=True)
class Services:
    """What runs in the background.

    Attributes:
        url: of the UI.
        server: its process.
        worker: that of the worker.
        database: a sign of the address that the server's database was given.
    """

    url: str
    server: Process
    worker: Process | None = None
    database: str = ""

    @property
    def api(self) -> str:
        """The address of the server's API, from this machine."""
        return f"{self.near}/api"

    @property
    def near(self) -> str:
        """The server's address from this machine: one that listens at all of its addresses listens here, too."""
        return self.url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def place(root: Path) -> Path:
    """Where a project's services keep their logs, and what they are."""
    return root / ".dvc" / "tmp" / "labdag" / "server"


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Wait until no other process starts or ends the project's services."""
    place(root).mkdir(parents=True, exist_ok=True)
    with (place(root) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def running(root: Path) -> Services | None:
    """The services that `start_server` has started for the project, if their server still runs."""
    found = _noted(root)
    return found if found is not None and found.server.alive() else None


def _noted(root: Path) -> Services | None:
    """What was started last, whether it still runs or not."""
    try:
        told = json.loads((place(root) / STATE).read_text(encoding="utf-8"))
        worker = told["worker"] and Process(**told["worker"])
        return Services(told["url"], Process(**told["server"]), worker, told["database"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_same(found: Services, host: str | None, port: int | None, database: str | None) -> None:
    """See to it that nothing else is asked for than what runs already.

    Raises:
        GraphError: it is.
    """
    asked = urlsplit(found.url)
    if (host or asked.hostname, port or asked.port) != (asked.hostname, asked.port):
        raise GraphError(
            f"The server is up at {found.url} already; `labdag down` ends it, so that it can be elsewhere."
        )
    if database is not None and _sign(database) != found.database:
        raise GraphError(
            f"The server at {found.url} has another database; `labdag down` ends it, so that it can change."
        )


def start_server(root: Path, host: str, port: int, database: str | None) -> Services:
    """Start a server, and wait until it answers.

    Args:
        root: of the project.
        host: the address to listen at.
        port: the port there.
        database: its database's address; None takes the one that Prefect is set to, or an SQLite of the project's own.

    Raises:
        GraphError: the port is taken, or the server does not start.
    """
    import httpx  # here, for `running` is asked by every command

    folder = place(root)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise GraphError(
                f"No server can be started at {host}, port {port}: {error.strerror}. {_way_out(error, host, port)}"
            ) from None
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    env = {
        # What the server keeps is the project's own: with another project's server it would share runs and their ends.
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_PROFILES_PATH": os.environ.get("PREFECT_PROFILES_PATH", str(home / "profiles.toml")),
        # Where the UI's pages, in a browser, look for the API: at the address that they came from.
        "PREFECT_UI_API_URL": os.environ.get("PREFECT_UI_API_URL", "/api"),
        # A run holds its deployment's concurrency slot by a lease. In memory, Prefect's default, leases are lost with
        # the server, and the slot of a run that died is never free again.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_ANALYTICS_ENABLED": os.environ.get("PREFECT_SERVER_ANALYTICS_ENABLED", "false"),
    }
    if database is not None:
        env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = _async(database)
    before = _noted(root)
    worker = before.worker if before else None
    if before is not None and worker is not None and before.url != url:  # it has lost its server
        _end(worker)
        worker = None
    log = folder / "server.log"
    process = _started(["server", "start", "--host", host, "--port", str(port)], root, log, env)
    services = Services(url, process, worker, _sign(database))
    _write(folder, services)

    def answers() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{services.near}/api/health", timeout=5).status_code == httpx.codes.OK
        return False

    _await(process, answers, "server", log)
    return services


def _way_out(error: OSError, host: str, port: int) -> str:
    """What to do if a server can't listen at an address."""
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return "Name an address of this machine with --host; 127.0.0.1 is for this machine alone, 0.0.0.0 for all."
    holder = _holder(host, port) if error.errno == errno.EADDRINUSE else ""
    return f"{holder}Name another port with --port."


def _holder(host: str, port: int) -> str:
    """Which process listens at a port of an address, as far as this user may know."""
    everywhere = ("0.0.0.0", "::")
    near = {host, "127.0.0.1" if host == "localhost" else host, *everywhere}
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            address, held = connection.laddr or ("", 0)
            is_there = held == port and (address in near or host in everywhere)
            if is_there and connection.status == psutil.CONN_LISTEN and connection.pid is not None:
                process = psutil.Process(connection.pid)
                if (other := running(Path(process.cwd()))) is not None and other.server.pid == process.pid:
                    return f"The project in {process.cwd()} has its server there; `labdag down`, there, ends it. "
                return f"The process {process.pid} ({process.name()}) has it. "
    return ""


def start_worker(root: Path, services: Services, pool: str) -> Services:
    """Start a worker that runs what the pool gets; after `use`.

    Raises:
        GraphError: it does not start.
    """
    folder = place(root)
    log = folder / "worker.log"
    env = {"PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", str(POLL_SECONDS))}
    process = _started(["worker", "start", "--pool", pool, "--type", "process"], root, log, env)
    services = replace(services, worker=process)
    _write(folder, services)
    _await(process, lambda: "started!" in log.read_text(encoding="utf-8", errors="replace"), "worker", log)
    return services


def _await(process: Process, is_there: Callable[[], bool], name: str, log: Path) -> None:
    """Wait until what was started is ready; end it if it does not become so, or if nobody waits any more."""
    deadline = time.monotonic() + START_SECONDS
    try:
        while time.monotonic() < deadline and process.alive():
            if is_there():
                return
            time.sleep(0.2)
    except BaseException:
        _end(process)
        raise
    _end(process)
    raise GraphError(f"The {name} did not start; {log} ends with: {_last(log)}")


def stop(root: Path, tell: Callable[[str], None]) -> bool:
    """End the worker with the runs that it has, and then the server; tells whether there was any."""
    services, any_ended = _noted(root), False
    if services is not None:
        for name, process in (("worker", services.worker), ("server", services.server)):
            if process is not None and process.alive():
                _end(process)
                tell(f"ended the {name} (process {process.pid})")
                any_ended = True
    (place(root) / STATE).unlink(missing_ok=True)
    return any_ended


def use(services: Services) -> None:
    """Have Prefect, which must not have been imported yet, and all that this process starts, talk to the server."""
    os.environ["PREFECT_API_URL"] = services.api
    if secret := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        os.environ.setdefault("PREFECT_API_AUTH_STRING", secret)


def _started(arguments: list[str], root: Path, log: Path, env: dict[str, str]) -> Process:
    """Start a Prefect command in the background, out of reach of the terminal."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=root,
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Process(process.pid, _birth(process.pid))


def _birth(pid: int) -> str:
    """When a process was started, as the kernel counts it, and when the machine was.

    Raises:
        OSError: there is no such process.
    """
    ticks = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text(encoding='utf-8').strip()} {ticks}"


def _sign(database: str | None) -> str:
    return hashlib.sha256(database.encode()).hexdigest() if database else ""


def _end(process: Process) -> None:
    """End a process and all that it has started: kindly first."""
    found = process.alive()
    if found is None:
        return
    with suppress(psutil.NoSuchProcess):
        family = [*found.children(recursive=True), found]
        for each in (*found.children(), found):  # runs that a worker has end as they do by `kill`
            with suppress(psutil.NoSuchProcess):
                each.terminate()
        _, left = psutil.wait_procs(family, timeout=END_SECONDS)
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def _write(folder: Path, services: Services) -> None:
    files.replace(folder / STATE, json.dumps(asdict(services)), folder)


def _async(database: str) -> str:
    """The address of a database with the driver that Prefect takes."""
    for plain, driver in (("postgresql://", "postgresql+asyncpg://"), ("postgres://", "postgresql+asyncpg://")):
        if database.startswith(plain):
            return driver + database.removeprefix(plain)
    return database


def _last(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"
