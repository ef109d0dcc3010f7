"""Prefect's server and a worker on this machine, in the background, as one thing to start and to end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from flows.files import replace
from flows.graph import GraphError

START_SECONDS = 120.0  # for the server to answer, and for the worker to be there
END_SECONDS = 20.0  # for one to end by itself
SAME_SECONDS = 5.0  # between what two looks at a process tell of its start
POLL_SECONDS = 5  # between two looks of the worker at what there is to run
STATE = "state.json"


@dataclass(frozen=True)
class Process:
    """A process that was started.

    Attributes:
        pid: its number.
        started: when, in seconds since 1970: another one may get the number later.
    """

    pid: int
    started: float

    def alive(self) -> psutil.Process | None:
        """The process, if it still runs."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started) < SAME_SECONDS and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


@dataclass(frozen=True)
class Services:
    """What runs in the background.

    Attributes:
        url: of the UI.
        server: its process.
        worker: that of the worker.
    """

    url: str
    server: Process
    worker: Process | None = None

    @property
    def api(self) -> str:
        """The address of the server's API."""
        return f"{self.url}/api"


def place(root: Path) -> Path:
    """Where a project's services keep their logs, and what they are."""
    return root / ".dvc" / "tmp" / "labdag" / "server"


def running(root: Path) -> Services | None:
    """The services that `start` has started for the project, if their server still runs."""
    try:
        told = json.loads((place(root) / STATE).read_text(encoding="utf-8"))
        worker = told["worker"] and Process(**told["worker"])
        found = Services(told["url"], Process(**told["server"]), worker)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.server.alive() else None


def start_server(root: Path, host: str, port: int, database: str | None) -> Services:
    """Start a server, and wait until it answers.

    Args:
        root: of the project.
        host: the address to listen at.
        port: the port there.
        database: its database's address; None takes the one that Prefect is set to, or its own SQLite.

    Raises:
        GraphError: the port is taken, or the server does not start.
    """
    import httpx  # here, for `running` is asked by every command

    folder = place(root)
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise GraphError(
                f"No server can be started at {host}, port {port} ({error.strerror}); name another with --port."
            ) from None
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    env = {
        # Where the UI's pages, in a browser, look for the API; whoever puts a proxy in front sets another address.
        "PREFECT_UI_API_URL": os.environ.get("PREFECT_UI_API_URL", f"{url}/api"),
        # A run holds its deployment's concurrency slot by a lease. In memory, Prefect's default, leases are lost with
        # the server, and the slot of a run that died is never free again.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_ANALYTICS_ENABLED": os.environ.get("PREFECT_SERVER_ANALYTICS_ENABLED", "false"),
    }
    if database is not None:
        env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = _async(database)
    log = folder / "server.log"
    process = _started(["server", "start", "--host", host, "--port", str(port)], root, log, env)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.alive():
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/api/health", timeout=5).status_code == httpx.codes.OK:
                services = Services(url, process)
                _write(folder, services)
                return services
        time.sleep(0.2)
    _end(process)
    raise GraphError(f"The server did not start; {log} ends with: {_last(log)}")


def start_worker(root: Path, services: Services, pool: str) -> Services:
    """Start a worker that runs what the pool gets; after `use`.

    Raises:
        GraphError: it does not start.
    """
    folder = place(root)
    log = folder / "worker.log"
    env = {"PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", str(POLL_SECONDS))}
    process = _started(["worker", "start", "--pool", pool, "--type", "process"], root, log, env)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.alive():
        if "started!" in log.read_text(encoding="utf-8", errors="replace"):
            services = Services(services.url, services.server, process)
            _write(folder, services)
            return services
        time.sleep(0.2)
    _end(process)
    raise GraphError(f"The worker did not start; {log} ends with: {_last(log)}")


def stop(root: Path, tell: Callable[[str], None]) -> bool:
    """End the worker with the runs that it has, and then the server; tells whether there was any."""
    folder = place(root)
    services = running(root)
    if services is not None:
        for name, process in (("worker", services.worker), ("server", services.server)):
            if process is not None and process.alive():
                _end(process)
                tell(f"ended the {name} (process {process.pid})")
    (folder / STATE).unlink(missing_ok=True)
    return services is not None


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
    return Process(process.pid, psutil.Process(process.pid).create_time())


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
    replace(folder / STATE, json.dumps(asdict(services)), folder)


def _async(database: str) -> str:
    """The address of a database with the driver that Prefect takes."""
    for plain, driver in (("postgresql://", "postgresql+asyncpg://"), ("postgres://", "postgresql+asyncpg://")):
        if database.startswith(plain):
            return driver + database.removeprefix(plain)
    return database


def _last(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"
