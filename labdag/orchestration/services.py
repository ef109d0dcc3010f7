"""Prefect's server and a worker on this machine, in the background, as one thing to start and to end."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from labdag import files
from labdag.environment import lend
from labdag.errors import UserError
from labdag.orchestration import database as databases
from labdag.orchestration import password as passwords
from labdag.orchestration import proxies
from labdag.orchestration.guard import is_loopback

START_SECONDS = 120.0  # for the server to answer, and for the worker to be there
END_SECONDS = 20.0  # for one to end by itself
POLL_SECONDS = 5  # between two looks of the worker at what there is to run
STATE = "state.json"
HOST, PORT = "127.0.0.1", 4200
SERVER_AUTH = "PREFECT_SERVER_API_AUTH_STRING"  # the user's own password for the server


@dataclass(frozen=True)
class Wanted:
    """What a server is to be like.

    Attributes:
        host: the address to listen at; None takes HOST, or that of the server that runs.
        port: the port there; None takes PORT, or that of the server that runs.
        database: its database's address; None takes the one that Prefect is set to, or an SQLite of the project's own.
        no_password: whether to let programs in without a password.
        public_urls: the addresses that others use, in front of a reverse proxy.
    """

    host: str | None = None
    port: int | None = None
    database: str | None = None
    no_password: bool = False
    public_urls: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what would let others in.

        Raises:
            UserError: they would need no password.
        """
        if not os.environ.get(SERVER_AUTH, "").isascii():
            raise UserError(f"{SERVER_AUTH} has letters outside ASCII, which Prefect does not take; choose others.")
        if self.no_password and os.environ.get(SERVER_AUTH):
            raise UserError(f"{SERVER_AUTH} names a password: unset it, or leave out --no-password.")
        if self.no_password and not is_loopback(self.host or HOST):
            raise UserError(
                f"--host {self.host} lets other machines in, and without a password whoever comes in can run commands "
                "as you: leave out --no-password."
            )
        if self.no_password and self.public_urls:
            raise UserError(
                f"--public-url {self.public_urls[0]} lets others in, and without a password whoever comes in can run "
                "commands as you: leave out --no-password."
            )


def public_url(text: str) -> str:
    """A public URL as browsers tell the origin of a page: without a slash at its end or the scheme's own port.

    Raises:
        UserError: it is no URL, or has a path.
    """
    found = re.fullmatch(r"(https?)://([^/?#@:\s]+|\[[0-9a-f:]+\])(:\d+)?/?", text.lower())
    if found is None:
        raise UserError(
            f"--public-url {text} should be a scheme and a host, such as https://labs.example.org; the UI can't be "
            "served below a path."
        )
    scheme, host, port = found.groups()
    return f"{scheme}://{host}{'' if port in (None, {'http': ':80', 'https': ':443'}[scheme]) else port}"


@dataclass(frozen=True)
class Process:
    """A process that was started.

    Attributes:
        pid: its number.
        birth: when it was started, and on which start of the machine: another one may get the number later.
    """

    pid: int
    birth: str

    def is_of_this_boot(self) -> bool:
        """Whether the machine has not been started since."""
        return self.birth.partition(" ")[0] == _boot()

    def alive(self) -> psutil.Process | None:
        """The process, if it still runs."""
        with suppress(psutil.NoSuchProcess, OSError):
            process = psutil.Process(self.pid)
            if _birth(self.pid) == self.birth and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


class Password(StrEnum):
    """Whose password a server asks for."""

    OWN = "own"  # the one that labdag has made for the project
    SET = "set"  # the user's, of PREFECT_SERVER_API_AUTH_STRING
    NONE = "none"  # it asks for none


@dataclass(frozen=True)
class Services:
    """What runs in the background.

    Attributes:
        url: of the UI.
        server: its process.
        worker: that of the worker.
        database: a sign of the address that the server's database was given.
        password: whose password the server asks for; None for a server of an older version, which asks for none.
        public_urls: the addresses that others use, in front of a reverse proxy.
    """

    url: str
    server: Process
    worker: Process | None = None
    database: str = ""
    password: Password | None = None
    public_urls: tuple[str, ...] = ()

    @property
    def is_guarded(self) -> bool:
        """Whether the server was started by a version that keeps web pages out."""
        return self.password is not None

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


def home_of(root: Path) -> Path:
    """Where a project's Prefect server, a lasting or a temporary one, keeps its runs."""
    return place(root) / "prefect"


def password_file(root: Path) -> Path:
    """Where the password of a project's server stands."""
    return place(root) / passwords.FILE


def password_of(root: Path) -> str | None:
    """The password that labdag has made for a project's server; None if there is none."""
    return passwords.read(place(root))


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Wait until no other process starts or ends the project's services.

    Raises:
        UserError: their folder can't be kept from other accounts.
    """
    passwords.make_private(place(root))
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
        password = Password(told["password"]) if "password" in told else None
        public_urls = tuple(told.get("public_urls", ()))
        return Services(told["url"], Process(**told["server"]), worker, told["database"], password, public_urls)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_same(found: Services, wanted: Wanted) -> None:
    """See to it that nothing else is asked for than what runs already.

    Raises:
        UserError: it is.
    """
    asked = urlsplit(found.url)
    if (wanted.host or asked.hostname, wanted.port or asked.port) != (asked.hostname, asked.port):
        raise UserError(f"The server is up at {found.url} already; `labdag down` ends it, so that it can be elsewhere.")
    if wanted.database is not None and _sign(wanted.database) != found.database:
        raise UserError(
            f"The server at {found.url} has another database; `labdag down` ends it, so that it can change."
        )
    set_here = bool(os.environ.get(SERVER_AUTH))
    if (wanted.no_password and found.password is not Password.NONE) or (set_here and found.password is Password.OWN):
        raise UserError(
            f"The server at {found.url} has another password; `labdag down` ends it, so that it can change."
        )
    if wanted.public_urls and set(wanted.public_urls) != set(found.public_urls):
        raise UserError(
            f"The server at {found.url} is up with {', '.join(found.public_urls) or 'no public URL'}; `labdag down` "
            "ends it, so that this can change."
        )


def start_server(root: Path, wanted: Wanted, tell: Callable[[str], None]) -> Services:
    """Start a server, and wait until it answers.

    Args:
        root: of the project.
        wanted: what it is to be like.
        tell: takes what the user should know besides.

    Raises:
        UserError: the port is taken, or the server does not start.
    """
    import httpx  # here, for `running` is asked by every command

    host, port, database = wanted.host or HOST, wanted.port or PORT, wanted.database
    folder = place(root)
    # The server inherits a socket that listens already: until it is loaded, nobody else can take the port, and be told
    # the password.
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise UserError(
            f"No server can be started at {host}, port {port}: {error.strerror}. {_way_out(error, host, port)}"
        ) from None
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    env: dict[str, str | None] = {
        SERVER_AUTH: os.environ.get(SERVER_AUTH) or None,  # empty, Prefect would take it for a password
        **databases.environment(home_of(root)),
        # Where the UI's pages, in a browser, look for the API: at the address that they came from.
        "PREFECT_UI_API_URL": os.environ.get("PREFECT_UI_API_URL", "/api"),
        # A run holds its deployment's concurrency slot by a lease. In memory, Prefect's default, leases are lost with
        # the server, and the slot of a run that died is never free again.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    if database is None and (moved := databases.put_aside(home_of(root))):
        tell(moved)
    if database is not None:
        env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = _async(database)
    before = _noted(root)
    worker = before.worker if before else None
    if before is not None and worker is not None and before.url != url:  # it has lost its server
        _end(worker)
        worker = None
    log = folder / "server.log"
    arguments = [
        host,
        str(port),
        f"--fd={listening.fileno()}",
        *(f"--public-url={each}" for each in wanted.public_urls),
    ]
    own = None
    if not wanted.no_password:
        # What a server that crashed has left goes on with its password. Otherwise a new one is made: since the server
        # ended, somebody else may have listened at its port, and was told the old one by an open page of the UI.
        own = (
            passwords.ensure(folder)
            if before is not None and before.server.is_of_this_boot()
            else passwords.renew(folder)
        )
        arguments.append(f"--password-folder={folder}")
    with listening:
        process = _started(["labdag.orchestration.local_server", *arguments], root, log, env, listening.fileno())
    password = Password.NONE if own is None else Password.OWN
    services = Services(url, process, worker, _sign(database), password, wanted.public_urls)
    _write(folder, services)

    def answers() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{services.near}/api/health", timeout=5, trust_env=False).is_success
        return False

    _await(process, answers, "server", log)
    if own is not None:
        # It takes a password that Prefect's settings name, wherever they do, before the project's own.
        auth = httpx.BasicAuth(*own.split(":", 1))
        response = httpx.get(f"{services.near}/api/admin/version", auth=auth, timeout=START_SECONDS, trust_env=False)
        services = replace(services, password=Password.OWN if response.is_success else Password.SET)
        _write(folder, services)
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


def is_changing(root: Path) -> bool:
    """Whether another process starts or ends the project's services right now."""
    with suppress(OSError), (place(root) / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def start_worker(root: Path, services: Services, pool: str) -> Services:
    """Start a worker that runs what the project has deployed in a work pool; after `use`.

    Raises:
        UserError: it does not start.
    """
    folder = place(root)
    log = folder / "worker.log"
    # The password is not for the stages, which get the worker's environment; the worker has the one that `use` lends.
    env = {
        SERVER_AUTH: None,
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", str(POLL_SECONDS)),
    }
    process = _started(["labdag.orchestration.worker", str(root), pool, services.database], root, log, env)
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
    raise UserError(f"The {name} did not start; {log} ends with: {_last(log)}")


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
    password_file(root).unlink(missing_ok=True)  # whoever listens at the port next may be told it by a page of the UI
    return any_ended


def use(root: Path, services: Services) -> None:
    """Have Prefect, which must not have been imported yet, and all that this process starts, talk to the server."""
    lend(os.environ, PREFECT_API_URL=services.api)
    proxies.settle(os.environ, services.api)
    if services.password is Password.OWN:
        if (own := password_of(root)) is not None:
            lend(os.environ, PREFECT_API_AUTH_STRING=own)
    elif (secret := os.environ.get(SERVER_AUTH)) and "PREFECT_API_AUTH_STRING" not in os.environ:
        lend(os.environ, PREFECT_API_AUTH_STRING=secret)


def _started(module: list[str], root: Path, log: Path, env: Mapping[str, str | None], *inherited: int) -> Process:
    """Start a module, with its arguments, in the background, out of reach of the terminal.

    Args:
        module: its name, and its arguments.
        root: where it works.
        log: takes what it prints.
        env: what its environment has besides this process's; None takes a variable away.
        inherited: file descriptors that it gets.
    """
    environment = {name: value for name, value in (os.environ | env).items() if value is not None}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", *module],  # -P: the user's project may have a package of that name, too
            cwd=root,
            env=environment,
            pass_fds=inherited,
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
    return f"{_boot()} {ticks}"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


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


def at_work(services: Services) -> int:
    """How many flow runs of a server of an older version have begun and not ended.

    Prefect's client is not asked: it would take this server's settings for the rest of the process.

    Raises:
        UserError: the server does not say.
    """
    import httpx

    unended = {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}
    secret = os.environ.get("PREFECT_API_AUTH_STRING") or os.environ.get(SERVER_AUTH)
    auth = httpx.BasicAuth(*secret.split(":", 1)) if secret and ":" in secret else None
    try:
        asked = {"flow_runs": {"state": unended}}
        answer = httpx.post(f"{services.api}/flow_runs/count", json=asked, auth=auth, timeout=60, trust_env=False)
        return int(answer.raise_for_status().json())
    except (httpx.HTTPError, ValueError) as error:
        raise UserError(
            f"The server at {services.url} does not say whether runs are at work there ({error}); `labdag down` ends "
            "it, and the runs that its worker has."
        ) from None


def _async(database: str) -> str:
    """The address of a database with the driver that Prefect takes."""
    for plain, driver in (("postgresql://", "postgresql+asyncpg://"), ("postgres://", "postgresql+asyncpg://")):
        if database.startswith(plain):
            return driver + database.removeprefix(plain)
    return database


def _last(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"
