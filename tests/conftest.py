"""Real parts for the tests: copies of the project, toy pipelines, a Prefect server, a server that misbehaves."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ruamel.yaml import YAML

from labdag.orchestration import password, services
from tests.prefect_api import SignedIn

ROOT = Path(__file__).parents[1]
MIRRORS = os.environ.get("LABDAG_MIRRORS")  # where true archives are at hand, some tests take them
# What copies of the project keep of params.yaml: few labs are quicker, and enough.
KEPT = {
    "datasets": ("digits", "mnist", "fashion_mnist", "cifar10"),
    "labs": ("lenet_digits", "lenet_mnist"),
    "compare": (),
}
# What a server does by itself for schedules, late runs and the like, some of it every few seconds; a flow that is run
# from the terminal needs none of it.
SERVICES = ("CANCELLATION_CLEANUP", "CLEANUP_RECONCILER", "FOREMAN", "LATE_RUNS", "PAUSE_EXPIRATIONS", "REPOSSESSOR",
            "SCHEDULER", "TRIGGERS")  # fmt: skip
IDLE = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in SERVICES}
Run = Callable[..., "subprocess.CompletedProcess[str]"]
STRESS = bool(os.environ.get("LABDAG_STRESS"))  # whether to try often what is tried once or twice otherwise
LONGEST = 3600 if STRESS else 280  # seconds of a command


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the workers of one run of the suite share: the first one that wants it makes it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(folder / name, ignore_errors=True)
            make(folder / name)
            (folder / "done").touch()
    return folder / name


@pytest.fixture(autouse=True, scope="session")
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the user's own settings, and nothing left in the user's home."""
    # A shell that starts the suite in its background has Ctrl-C ignored, by whatever the tests start, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("LABDAG_", "PREFECT_", "GIT_", "DVC_")):
                patch.delenv(name)
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        # Each of DVC's commands would start a process to tell of it, which takes longer than many a command.
        patch.setenv("DVC_NO_ANALYTICS", "1")
        patch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        patch.setenv("COLUMNS", "200")
        patch.setenv("LABDAG_DEVICE", "cpu")
        # It is read once, with the first product on a GPU, which need not be in a test that computes deterministically.
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "test")
            patch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
        yield


def run(*command: str | Path, cwd: Path, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `dvc`, `python` and `labdag` are those of this environment."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=LONGEST
    )
    if check and done.returncode != 0:
        pytest.fail(f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def _copy_project(folder: Path) -> None:
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout
    for name in filter(None, listed.split("\0")):
        # What has been run in this checkout is no part of a fresh clone.
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    _keep_few_blocks(folder)
    run("python", "-m", "compileall", "-q", "stages", cwd=folder)  # or each copy would be compiled anew
    run("git", "init", "--quiet", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    run("git", "commit", "--quiet", "--message", "Start", cwd=folder)


def _keep_few_blocks(folder: Path) -> None:
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    for group, kept in KEPT.items():
        for name in [name for name in params[group] if name not in kept]:
            del params[group][name]
    yaml.dump(params, folder / "params.yaml")
    write_dag(folder)


def write_dag(folder: Path) -> None:
    """Tell dvc.yaml of the comparisons in params.yaml, as `make dag` does."""
    run("python", "-m", "stages.params", "dag", cwd=folder)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project as a fresh clone would be, with uncommitted changes, as its own git repository. Not to be changed.

    Of the labs it has a few only, and no comparison.
    """
    return made_once(tmp_path_factory, "pristine", _copy_project)


@pytest.fixture
def project(pristine: Path, prefect_home: Path, tmp_path: Path) -> Path:
    """A fresh copy of this project, in a folder whose name has a space."""
    folder = Path(shutil.copytree(pristine, tmp_path / "my labs", symlinks=True))
    give_database(prefect_home, folder)
    return folder


@pytest.fixture(scope="session")
def finished(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this project in which lenet_digits has been reproduced by plain DVC. Not to be changed."""

    def make(folder: Path) -> None:
        shutil.copytree(pristine, folder, symlinks=True)
        run("dvc", "repro", "plot@lenet_digits", cwd=folder)

    return made_once(tmp_path_factory, "finished", make)


@pytest.fixture
def finished_copy(finished: Path, prefect_home: Path, tmp_path: Path) -> Path:
    """A copy of the finished project, to be changed at will."""
    folder = Path(shutil.copytree(finished, tmp_path / "finished", symlinks=True))
    give_database(prefect_home, folder)
    return folder


@pytest.fixture(scope="session")
def empty_repository(prefect_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository with nothing in it, to be copied, which takes a fraction of a second less than a new one."""
    folder = tmp_path_factory.mktemp("empty")
    run("git", "init", "--quiet", cwd=folder)
    run("dvc", "init", "--quiet", cwd=folder)
    give_database(prefect_home, folder)
    return folder


def give_database(prefect_home: Path, folder: Path) -> None:
    """Spare a project's first run the many seconds that a new database of Prefect's takes."""
    place = services.home_of(folder)
    place.mkdir(parents=True)
    shutil.copy(prefect_home / "prefect.db", place)


@pytest.fixture
def toy(tmp_path: Path, empty_repository: Path) -> Callable[[str], Path]:
    """Make a DVC repository with the given dvc.yaml."""

    def make(dvc_yaml: str, **files: str) -> Path:
        folder = tmp_path / "toy"
        shutil.copytree(empty_repository, folder, symlinks=True)
        (folder / "dvc.yaml").write_text(dvc_yaml)
        for name, text in files.items():
            (folder / name).write_text(text)
        run("git", "add", "--all", cwd=folder)
        run("git", "commit", "--quiet", "--message", "Start", cwd=folder)
        return folder

    return make


def edit_params(folder: Path, **changes: Any) -> None:
    """Set dotted keys of params.yaml, `__` standing for the dot; None removes a key."""
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        block = params
        for key in parents:
            block = block[key]
        if value is None:
            del block[last]
        else:
            block[last] = value
    yaml.dump(params, folder / "params.yaml")


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Wait until something holds; fail if it does not for so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; it may stay as a zombie where nobody asks for its end."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PREFECT_HOME with an empty database, which takes long to make. Not to be changed, but to be copied."""

    def make(home: Path) -> None:
        run("prefect", "server", "database", "upgrade", "--yes", cwd=ROOT, PREFECT_HOME=str(home))

    return made_once(tmp_path_factory, "prefect", make)


@pytest.fixture(scope="session")
def prefect_server(prefect_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API address of a real Prefect server with a password, which PREFECT_API_AUTH_STRING has from then on."""
    port, home = free_port(), tmp_path_factory.mktemp("server")
    shutil.copytree(prefect_home, home, dirs_exist_ok=True)
    api = f"http://127.0.0.1:{port}/api"
    secret = password.ensure(home / "private")
    with (home / "log").open("w") as log, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_AUTH_STRING", secret)
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "labdag.orchestration.local_server", "127.0.0.1", str(port),
             f"--password-folder={home / 'private'}"],
            env=os.environ | {"PREFECT_HOME": str(home)} | IDLE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            for _ in range(600):
                try:
                    if httpx.get(f"{api}/health").status_code == httpx.codes.OK:
                        break
                except httpx.TransportError:
                    time.sleep(0.2)
            else:
                pytest.fail(f"the server did not start:\n{(home / 'log').read_text()}")
            yield api
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:  # it is busy with what is of no use any more
                server.kill()
                server.wait()


def signed_in() -> SignedIn:
    """What requests to `prefect_server` need."""
    return SignedIn(os.environ["PREFECT_API_AUTH_STRING"])
