"""`labdag up`: a server with SQLite and one with PostgreSQL, a worker, schedules, and the end of dead runs."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from labdag.errors import UserError
from labdag.orchestration import password, services
from labdag.orchestration.deployments import read
from tests.conftest import STRESS, free_port, is_gone, run, signed_in, wait_for
from tests.prefect_api import SignedIn
from tests.test_retrain import state_of

TOY = """
stages:
  slow: {cmd: 'echo at work > begun; sleep 8; echo 1 > slow.txt', outs: [slow.txt]}
  last: {cmd: cat slow.txt > last.txt, deps: [slow.txt], outs: [last.txt]}
"""
FLOW = "deployments: [{name: a, entrypoint: labdag.flows.reproduce.reproduce"


def need(program: str) -> str:
    """Where a program is that the project does not install; without it, the test is skipped, but not where all run."""
    found = shutil.which(program) or next(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{program}")), None)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {program}")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real PostgreSQL."""
    initdb, server = need("initdb"), need("postgres")
    folder = Path(f"/tmp/labdag-postgres-{os.getpid()}")
    folder.mkdir()
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        shutil.chown(folder, "nobody")
        user = {"user": "nobody"}
    try:
        subprocess.run(
            [initdb, "--username=labdag", "--auth=trust", "--no-sync", "--encoding=UTF8", folder / "data"],
            check=True, stdout=subprocess.DEVNULL, cwd="/", **user,
        )  # fmt: skip
        port = free_port()
        command = [server, "-D", str(folder / "data"), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1", "-F"]
        with (tmp_path_factory.mktemp("postgres") / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd="/", **user)
        try:
            wait_for(lambda: (folder / f".s.PGSQL.{port}").exists())
            yield f"postgresql://labdag@127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def postgres(postgres_server: str, tmp_path: Path) -> str:
    """The address of an empty database of a real PostgreSQL: deployments of another test would be in the way."""
    name = f"prefect_{secrets.token_hex(4)}"
    run(need("createdb"), f"--maintenance-db={postgres_server}/postgres", name, cwd=tmp_path)
    return f"{postgres_server}/{name}"


def with_database(usual: str) -> pytest.MarkDecorator:
    """Try a test with one database, or with each where there is time for that."""
    return pytest.mark.parametrize("database", ["sqlite", "postgresql"] if STRESS else [usual], indirect=True)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> list[str]:
    """What tells `labdag up` which database to take."""
    return [] if request.param == "sqlite" else ["--database", request.getfixturevalue("postgres")]


class Up:
    """The services of a folder, and its server's API."""

    def __init__(self, folder: Path) -> None:
        found = services.running(folder)
        assert found is not None
        self.folder, self.services, self.api = folder, found, found.api
        secret = password.read(services.place(folder))
        self.auth = SignedIn(secret) if secret else None

    def request(self, method: str, path: str, **how: Any) -> httpx.Response:
        while True:
            answer = httpx.request(method, f"{self.api}/{path}", timeout=60, auth=self.auth, **how)
            if (
                answer.status_code != httpx.codes.SERVICE_UNAVAILABLE
            ):  # SQLite is locked: Prefect's client tries again, too
                return answer.raise_for_status()
            time.sleep(0.5)

    def get(self, path: str) -> Any:
        return self.request("GET", path).json()

    def post(self, path: str, **body: Any) -> Any:
        return self.request("POST", path, json=body).json()

    def runs(self, flow: str) -> list[dict[str, Any]]:
        """All runs of a flow that have begun, the first one first."""
        found = self.post("flow_runs/filter", sort="EXPECTED_START_TIME_ASC", flows={"name": {"any_": [flow]}})
        return [each for each in found if each["state"]["type"] != "SCHEDULED"]

    def start(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment; its id."""
        return str(self.post(f"deployments/{self.deployment(deployment)}/create_flow_run", parameters=parameters)["id"])

    def deployment(self, name: str) -> str:
        """A deployment's id."""
        return str(self.get(f"deployments/name/{name}")["id"])

    def has_ended(self, flow_run: str) -> bool:
        return self.state(flow_run)["type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")

    def state(self, flow_run: str) -> dict[str, Any]:
        return dict(self.get(f"flow_runs/{flow_run}")["state"])


@pytest.fixture
def up(prefect_home: Path, tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start the services of a folder; they are ended afterwards."""
    started: list[Path] = []

    def start(folder: Path, *options: str) -> Up:
        port = () if folder in started else ("--port", str(free_port()))
        if not (home := services.place(folder) / "prefect").exists():
            shutil.copytree(prefect_home, home)  # as if it had been up before, and nothing been run
        started.append(folder)
        run("labdag", "up", *port, *options, cwd=folder, PREFECT_HOME=str(tmp_path / "prefect"))
        return Up(folder)

    yield start
    for folder in started:
        run("labdag", "down", cwd=folder)


@pytest.mark.timeout(600)
@with_database("sqlite")
def test_a_schedule_retrains_registers_and_leaves_alone_what_is_unchanged(
    up: Callable[..., Up], database: list[str], project: Path
) -> None:
    folder = project
    path = folder / "prefect.yaml"
    path.write_text(path.read_text().replace('"0 3 * * *"', '"* * * * *"'))
    run("git", "commit", "--quiet", "--all", "--message", "Retrain every minute", cwd=folder)
    before = state_of(folder)
    site = up(folder, *database)

    def ended() -> list[dict[str, Any]]:
        return [each for each in site.runs("retrain") if each["state"]["type"] == "COMPLETED"]

    wait_for(ended, 200)
    first = ended()[0]["state"]
    assert first["name"] == "Registered", first
    assert first["message"] == "lenet_digits-retrain-1 passed the gate, and is lenet_digits@v0.0.1"
    seed = run("git", "show", "lenet_digits@v0.0.1:params.yaml", cwd=folder).stdout
    assert int(re.findall(r"seed: (\d+)", seed.partition("lenet_digits:")[2])[0]) > 1
    wait_for(lambda: len(ended()) > 1, 150)
    second = ended()[1]["state"]
    assert second["name"] == "UpToDate"
    assert second["message"] == "nothing has changed since lenet_digits-retrain-1, registered as lenet_digits@v0.0.1"

    # A bad override fails with the reason, and leaves the workspace as it was.
    # (It is cancelled if the schedule's own is at work just then.)
    for _ in range(5):
        bad = site.start("retrain/lenet_digits", values=["train.epochs=-1"])
        wait_for(partial(site.has_ended, bad), 120)
        if site.state(bad)["type"] == "FAILED":
            break
    assert "labs.lenet_digits.train.epochs" in site.state(bad)["message"]
    assert state_of(folder) == before


@pytest.mark.timeout(600)
@with_database("postgresql")
def test_a_deployment_runs_and_what_died_is_ended(
    up: Callable[..., Up], database: list[str], toy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABDAG_HEARTBEAT_SECONDS", "1")
    folder = toy(TOY)
    site = up(folder, *database)
    lost = site.start("reproduce/pipeline")
    wait_for((folder / "begun").exists, 90)
    worker = site.services.worker
    assert worker is not None
    family = psutil.Process(worker.pid)
    for process in [family, *family.children(recursive=True)]:  # the machine is switched off, as it were
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait_for(lambda: site.state(lost)["name"] == "Crashed", 90)
    assert site.state(lost)["message"] == "it gave no sign of life any more"

    site = up(folder, *database)  # which starts the worker anew, and nothing else
    whole = site.start("reproduce/pipeline", targets=["last"])
    wait_for(lambda: site.state(whole)["type"] == "COMPLETED", 120)
    assert (folder / "last.txt").read_text() == "1\n"
    tasks = site.post("task_runs/filter", flow_runs={"id": {"any_": [whole]}})
    assert {task["name"]: task["state"]["name"] for task in tasks} == {"slow": "Completed", "last": "Completed"}

    # The worker ends just as it has taken a run: that would hold its deployment's slot for ever.
    worker = site.services.worker
    assert worker is not None
    psutil.Process(worker.pid).kill()
    pending = site.start("reproduce/pipeline")
    site.post(f"flow_runs/{pending}/set_state", state={"type": "PENDING"}, force=True)
    up(folder, *database)
    assert site.state(pending)["message"] == "its worker had ended"

    # A run from the terminal is told to the same server; when that is gone, it goes on.
    (folder / "begun").unlink()
    known = len(site.runs("reproduce"))
    with subprocess.Popen(["labdag", "run", "--force"], cwd=folder, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as mine:  # fmt: skip
        wait_for((folder / "begun").exists, 60)
        assert len(site.runs("reproduce")) == known + 1
        run("labdag", "down", cwd=folder)
        said, _ = mine.communicate(timeout=120)
    assert mine.returncode == 0, said
    assert said.count("does not answer") == 1
    assert "The run goes on and is recorded in DVC; the UI lags behind." in said
    assert "2 stages: 2 run, 0 reused" in said
    assert "Traceback" not in said
    assert run("dvc", "status", cwd=folder).stdout == "Data and pipelines are up to date.\n"


def test_up_and_down(up: Callable[..., Up], toy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "teacher:secret")
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    folder = toy(TOY)
    site = up(folder)
    said = run("labdag", "up", cwd=folder).stdout
    assert "sign in      with the password of PREFECT_SERVER_API_AUTH_STRING\n" in said
    version = f"{site.api}/admin/version"
    assert httpx.get(version).status_code == httpx.codes.UNAUTHORIZED
    own = password.read(services.place(folder))
    assert own is not None
    assert httpx.get(version, auth=SignedIn(own)).status_code == httpx.codes.UNAUTHORIZED
    assert httpx.get(version, auth=SignedIn("teacher:secret")).is_success
    again = run("labdag", "up", cwd=folder)
    assert site.services.url in again.stdout
    assert "starting" not in again.stdout
    for wrong, sentence in (
        (("--port", "1"), f"The server is up at {site.services.url} already; `labdag down` ends it"),
        (("--host", "0.0.0.0"), f"The server is up at {site.services.url} already; `labdag down` ends it"),
        (("--database", "sqlite+aiosqlite:////tmp/a.db"), f"The server at {site.services.url} has another database"),
    ):
        assert f"Error: {sentence}" in run("labdag", "up", *wrong, cwd=folder, check=False).stderr
    (folder / "prefect.yaml").write_text("deployments: [{name: a}]")  # what is up stays up
    assert "entrypoint is missing" in run("labdag", "up", cwd=folder, check=False).stderr
    build = "{prefect.deployments.steps.run_shell_script: {script: 'sh -c \"echo no space left >&2; exit 3\"'}}"
    (folder / "prefect.yaml").write_text(f"build: [{build}]\n{FLOW}, work_pool: {{name: labdag}}}}]")
    said = run("labdag", "up", cwd=folder, check=False).stderr
    assert said.endswith(
        "StepExecutionError: Encountered error while running prefect.deployments.steps.run_shell_script, for "
        "RuntimeError: `run_shell_script` failed with error code 3: no space left\n"
    )
    assert services.running(folder) == site.services
    told = "Error: `labdag up` has a worker for these deployments already"
    (folder / "prefect.yaml").unlink()
    assert told in run("labdag", "serve", cwd=folder, check=False).stderr
    assert re.search(r"Prefect server +ok", run("labdag", "doctor", cwd=folder).stdout)
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING")
    assert "lets nobody in: Client error '401 Unauthorized'" in run("labdag", "doctor", cwd=folder, check=False).stdout
    for command in ("run", "up"):
        refused = run("labdag", command, cwd=folder, check=False)
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[-1] == (
            f"Error: The Prefect server at {site.api} wants a password: set PREFECT_API_AUTH_STRING=user:password."
        )
        assert "Traceback" not in refused.stderr
    processes = [site.services.server, site.services.worker]
    listening = [each.laddr for process in processes if process
                 for each in psutil.Process(process.pid).net_connections() if each.status == "LISTEN"]  # fmt: skip
    assert {address.ip for address in listening} == {"127.0.0.1"}
    psutil.Process(site.services.server.pid).kill()  # the worker is ended all the same
    wait_for(lambda: services.running(folder) is None)
    run("labdag", "down", cwd=folder)
    assert all(is_gone(process.pid) for process in processes if process)
    assert run("labdag", "down", cwd=folder).stdout == "Nothing is up here.\n"


def test_an_up_that_is_interrupted_leaves_nothing(toy: Callable[..., Path]) -> None:
    folder = toy(TOY)
    command = ["labdag", "up", "--port", str(free_port())]
    note = services.place(folder) / services.STATE
    for is_begun in (note.exists, lambda: note.exists() and '"worker": {' in note.read_text()):
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as starting:
            wait_for(is_begun, 90)
            told = json.loads(note.read_text())
            starting.send_signal(signal.SIGINT)
            starting.wait(60)
        for process in (told["server"], told["worker"]):
            assert process is None or is_gone(process["pid"])
        assert not note.exists()


def test_projects_keep_out_of_each_others_way(
    up: Callable[..., Up], toy: Callable[..., Path], postgres: str, tmp_path: Path
) -> None:
    folder = toy(TOY)
    one = up(folder, "--database", postgres)
    entry = "{name: %s, entrypoint: labdag.flows.reproduce.reproduce, work_pool: {name: labdag}, schedules: [{%s}]}"
    for name, schedule in (("daily", "interval: 86400, active: false"), ("weekly", "rrule: FREQ=WEEKLY")):
        (folder / "prefect.yaml").write_text(f"deployments: [{entry % (name, schedule)}]")
        said = run("labdag", "up", cwd=folder).stdout
    assert "deployment   reproduce/weekly (FREQ=WEEKLY UTC)" in said
    known = [each["name"] for each in one.post("deployments/filter")]
    assert "weekly" in known
    assert not {"daily", "pipeline"} & {*known}  # what is not declared any more is not deployed

    other = tmp_path / "other"
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("tmp"))
    services.place(other).mkdir(parents=True)  # of its own database
    (services.place(other) / "deployed.json").write_text(json.dumps({"": ["reproduce/weekly"]}))
    port = one.api.removesuffix("/api").rpartition(":")[2]
    said = run("labdag", "up", "--port", port, cwd=other, check=False).stderr
    assert f"The project in {folder} has its server there; `labdag down`, there, ends it." in said
    command = ("labdag", "up", "--port", str(free_port()))
    refused = run(*command, "--database", postgres, cwd=other, check=False)
    assert "has a deployment reproduce/weekly already, of the project in" in refused.stderr
    assert services.running(other) is None
    assert services.running(folder) == one.services
    (other / "prefect.yaml").unlink()
    two = up(other)  # with a database of its own
    assert [each["name"] for each in two.post("deployments/filter")] == ["pipeline"]
    assert "weekly" in [each["name"] for each in one.post("deployments/filter")]


ENTRY = "{name: %s, entrypoint: labdag.flows.reproduce.reproduce, work_pool: {name: labdag%s}}"


@pytest.mark.timeout(600)
def test_queues_that_are_named_are_looked_into_also_where_they_come_later(
    up: Callable[..., Up], toy: Callable[..., Path]
) -> None:
    folder = toy("stages:\n  a: {cmd: echo 1 > a, outs: [a]}\n")
    declared = [ENTRY % ("first", ", work_queue_name: gpu")]
    for name, queue in (("first", ""), ("second", ", work_queue_name: big"), ("third", "")):
        if name != "first":
            declared.append(ENTRY % (name, queue))
        (folder / "prefect.yaml").write_text(f"deployments: [{', '.join(declared)}]")
        site = up(folder)
        mine = site.start(f"reproduce/{name}")
        wait_for(partial(site.has_ended, mine), 120)
        assert site.state(mine)["type"] == "COMPLETED", name


@pytest.mark.timeout(600)
def test_a_run_that_starts_while_its_deployment_is_changed_is_run(
    up: Callable[..., Up], toy: Callable[..., Path]
) -> None:
    folder = toy("stages:\n  a: {cmd: echo 1 > a, outs: [a]}\n")
    pool = "{name: labdag, job_variables: {env: {X: '%s'}}}"
    entry = f"name: a, entrypoint: labdag.flows.reproduce.reproduce, work_pool: {pool}"
    (folder / "prefect.yaml").write_text(f"deployments: [{{{entry % 1}}}]")
    site = up(folder)
    started = []
    (folder / "prefect.yaml").write_text(f"deployments: [{{{entry % 2}}}]")
    with subprocess.Popen(["labdag", "up"], cwd=folder, stdout=subprocess.DEVNULL) as changing:
        while changing.poll() is None:
            with suppress(httpx.HTTPStatusError):
                started.append(site.start("reproduce/a"))
            time.sleep(1.5)
    assert changing.returncode == 0
    for each in started:
        wait_for(partial(site.has_ended, each), 120)
        assert site.state(each)["type"] == "COMPLETED", site.state(each)


@pytest.mark.timeout(600)
def test_projects_with_one_database_leave_each_others_runs_alone(
    up: Callable[..., Up], toy: Callable[..., Path], postgres: str, tmp_path: Path
) -> None:
    folder = toy("stages:\n  a: {cmd: echo 1 > a, outs: [a]}\n")
    other = Path(shutil.copytree(folder, tmp_path / "other", symlinks=True))
    sites = []
    for project, name in ((folder, "one"), (other, "two")):
        (project / "prefect.yaml").write_text(f"deployments: [{ENTRY % (name, ', work_queue_name: shared')}]")
        sites.append(up(project, "--database", postgres))
    runs = [site.start(f"reproduce/{name}") for _ in range(2) for site in sites for name in ("one", "two")]
    for each in runs:
        wait_for(partial(sites[0].has_ended, each), 180)
        assert sites[0].state(each)["type"] == "COMPLETED", sites[0].state(each)
    assert all((project / "a").exists() for project in (folder, other))


def test_an_own_flow_is_deployed_by_its_file_or_its_module(tmp_path: Path) -> None:
    name = f"night_{os.getpid()}"
    (tmp_path / f"{name}.py").write_text("from prefect import flow\n\n@flow\ndef all_labs(): ...\n")
    for entrypoint in (f"{name}.py:all_labs", f"{name}.all_labs"):
        (tmp_path / "prefect.yaml").write_text(f"deployments: [{{name: a, entrypoint: '{entrypoint}'}}]")
        assert [each.name for each in read(tmp_path)] == ["all-labs/a"]


def test_a_password_that_prefect_does_not_take_is_told(toy: Callable[..., Path]) -> None:
    folder = toy("stages:\n  a: {cmd: ls}\n")
    done = run("labdag", "up", cwd=folder, check=False, PREFECT_SERVER_API_AUTH_STRING="tä:ß")
    assert done.returncode == 1
    assert done.stderr == (
        "Error: PREFECT_SERVER_API_AUTH_STRING has letters outside ASCII, which Prefect does not take; choose others.\n"
    )


def test_where_no_server_can_listen_is_told(toy: Callable[..., Path]) -> None:
    folder = toy(TOY)
    elsewhere = (
        "import socket, sys; s = socket.create_server(('127.0.0.2', int(sys.argv[1]))); print(flush=True); input()"
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        # The port of another address is another's, and of no concern.
        with subprocess.Popen(
            [sys.executable, "-c", elsewhere, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            done = run("labdag", "up", "--port", str(port), cwd=folder, check=False)
            other.kill()
    assert done.returncode == 1
    name = psutil.Process().name()
    assert done.stderr == (
        f"Error: No server can be started at 127.0.0.1, port {port}: Address already in use. "
        f"The process {os.getpid()} ({name}) has it. Name another port with --port.\n"
    )
    for host in ("no.such.host.example", "192.0.2.1"):  # no name, and nobody's address
        done = run("labdag", "up", "--host", host, "--port", str(port), cwd=folder, check=False)
        assert done.returncode == 1
        assert re.fullmatch(
            rf"Error: No server can be started at {host}, port {port}: .*\. Name an address of this machine with "
            r"--host; 127\.0\.0\.1 is for this machine alone, 0\.0\.0\.0 for all\.\n",
            done.stderr,
        )


def test_serve_runs_deployments_without_a_worker(
    toy: Callable[..., Path], prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy(TOY.replace("sleep 8", "sleep 0"))
    assert "Error: There is no server to serve for" in run("labdag", "serve", cwd=folder, check=False).stderr
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    with subprocess.Popen(["labdag", "serve"], cwd=folder, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as serving:  # fmt: skip
        try:
            request = partial(httpx.request, auth=signed_in(), timeout=60)
            address = f"{prefect_server}/deployments/name/reproduce/pipeline"
            wait_for(lambda: request("GET", address).is_success, 60)
            deployment = request("GET", address).json()["id"]
            made = request("POST", f"{prefect_server}/deployments/{deployment}/create_flow_run", json={}).json()["id"]
            address = f"{prefect_server}/flow_runs/{made}"
            wait_for(lambda: request("GET", address).json()["state"]["type"] == "COMPLETED", 120)
        finally:
            serving.send_signal(signal.SIGINT)
            serving.wait(60)
    assert (folder / "last.txt").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("deployments: []", "has no deployments"),
        ("a: [", "is no YAML"),
        ("deployments: [{name: a}]", "deployments[0].entrypoint is missing"),
        ("deployments: [{name: a, entrypoint: labdag.flows.retrain.nothing}]", "should be a module and the flow in it"),
        ("deployments: [{name: a, entrypoint: nothing}]", "should be a module and the flow in it"),
        ("deployments: [{name: a, entrypoint: tests.nothing.flow}]", "can't be loaded: No module named"),
        (f"{FLOW}, schedules: [{{timezone: UTC}}]}}]", "schedules[0] has none of cron, interval, rrule"),
        (f"{FLOW}, schedules: [{{cron: at noon}}]}}]", "schedules[0]: Invalid cron"),
        (f"{FLOW}, schedules: [{{cron: 0 3 * * *, zone: UTC}}]}}]", "unexpected keyword argument 'zone'"),
    ],
)
def test_a_prefect_yaml_that_is_wrong_is_told(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(sentence)):
        read(tmp_path)


def test_every_parameter_of_a_flow_is_described() -> None:
    from prefect.utilities.callables import parameter_schema

    from labdag.flows.reproduce import reproduce
    from labdag.flows.retrain import retrain
    from labdag.flows.sweep import sweep

    for flow in (reproduce, retrain, sweep):
        schema = parameter_schema(flow.fn).properties
        assert all(entry.get("description", "").endswith(".") for entry in schema.values()), json.dumps(schema)
