"""Attacks on the server of `labdag up`, over real HTTP: nothing is run or read, and its user goes on working."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from labdag.orchestration import password, services
from tests.conftest import free_port, run, wait_for
from tests.prefect_api import SignedIn
from tests.test_services import Up, need
from tests.test_ui import LOADED, sign_in

MARK = f"mark-{secrets.token_hex(8)}"  # what a run logs, and what nobody else may read
PIPELINE = f"""
stages:
  tell:
    cmd: echo {MARK}; env > env.txt; env; sleep $(cat hold 2> /dev/null || echo 0); echo 1 > told
    params: [why]
    outs: [told, env.txt]
"""
WRONG = "labdag:wrong"
PREFECT = Subprotocol("prefect")
EVIL = "http://evil.example"
SHELL = "prefect.deployments.steps.run_shell_script"
REFUSED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
# What tells something of the project, and how to ask for it.
READS: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "flow_runs/filter", {}),
    ("POST", "task_runs/filter", {}),
    ("POST", "flows/filter", {}),
    ("POST", "logs/filter", {}),
    ("POST", "artifacts/filter", {}),
    ("POST", "deployments/filter", {}),
    ("POST", "events/filter", {}),
    ("POST", "work_pools/filter", {}),
    ("GET", "deployments/name/reproduce/pipeline", None),
    ("GET", "work_pools/labdag", None),
    ("GET", "admin/settings", None),
    ("GET", "admin/version", None),
    ("GET", "csrf-token?client=evil", None),
]


@pytest.fixture(scope="module")
def folder(empty_repository: Path) -> Iterator[Path]:
    """A project that every account of the machine may look into."""
    place = Path(tempfile.mkdtemp(prefix="labdag-attack-", dir="/tmp"))
    place.chmod(0o755)
    folder = place / "project"
    shutil.copytree(empty_repository, folder, symlinks=True)
    folder.chmod(0o755)
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "params.yaml").write_text("why: because\n")
    run("git", "add", "--all", cwd=folder)
    run("git", "commit", "--quiet", "--message", "Start", cwd=folder)
    yield folder
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Up]:
    """Its services, with a run to be read."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PREFECT_API_AUTH_STRING", "PREFECT_API_URL"):
            patch.delenv(name, raising=False)
        (folder / ".said").write_text(run("labdag", "up", "--port", str(free_port()), cwd=folder).stdout)
        try:
            done = run("labdag", "run", cwd=folder)
            (folder / ".ran").write_text(done.stdout + done.stderr)
            yield Up(folder)
        finally:
            run("labdag", "down", cwd=folder)


def deployment(flow: str) -> dict[str, Any]:
    """A deployment whose run is a shell command."""
    return {
        "name": "evil",
        "flow_id": flow,
        "entrypoint": "labdag.flows.reproduce.reproduce",
        "work_pool_name": "labdag",
        "pull_steps": [{SHELL: {"script": "touch /tmp/labdag-was-attacked"}}],
    }


def attack(api: str, flow: str, **how: Any) -> None:
    """Try to read and to run, and expect that each request is refused and tells nothing."""
    for method, path, body in [
        *READS,
        ("POST", "deployments/", deployment(flow)),
        ("DELETE", "work_pools/labdag", None),
    ]:
        answer = httpx.request(method, f"{api}/{path}", json=body, timeout=60, trust_env=False, **how)
        assert answer.status_code in REFUSED, (method, path, answer.text)
        assert "access-control-allow-origin" not in answer.headers
        assert MARK not in answer.text
        assert len(answer.text) < 300


def untouched(site: Up) -> None:
    """Nothing was made or run by anyone but the user."""
    assert [each["name"] for each in site.post("deployments/filter")] == ["pipeline"]
    assert not Path("/tmp/labdag-was-attacked").exists()


def known_password(folder: Path) -> str:
    found = password.read(services.place(folder))
    assert found is not None
    return found


def flow_of(site: Up) -> str:
    return str(site.post("flows/filter")[0]["id"])


def own_work(site: Up) -> None:
    """What the user does: a run from the terminal, and one of a deployment."""
    before = len(site.runs("reproduce"))
    assert "1 stage: 1 run, 0 reused" in run("labdag", "run", "--force", cwd=site.folder).stdout
    mine = site.start("reproduce/pipeline", force=True)
    wait_for(partial(site.has_ended, mine), 120)
    assert site.state(mine)["type"] == "COMPLETED"
    assert len(site.runs("reproduce")) == before + 2


@pytest.mark.timeout(600)
def test_nobody_comes_in_before_and_after_down_and_up(site: Up, folder: Path) -> None:
    port = site.api.removesuffix("/api").rpartition(":")[2]
    for round_ in range(2):
        flow, right = flow_of(site), site.auth
        attack(site.api, flow)
        attack(site.api, flow, auth=SignedIn(WRONG))
        attack(site.api, flow, headers={"Authorization": "Bearer x"})
        # With the password, as if a page had got hold of it: from elsewhere, and by a name that was made to point here.
        attack(site.api, flow, auth=right, headers={"Origin": EVIL})
        attack(site.api, flow, auth=right, headers={"Origin": "null"})
        attack(site.api, flow, auth=right, headers={"Origin": f"http://127.0.0.1:{free_port()}"})
        attack(site.api, flow, auth=right, headers={"Host": f"evil.example:{port}", "Origin": f"{EVIL}:{port}"})
        attack(site.api, flow, auth=right, headers={"Host": "evil.example"})
        for path in ("", "flows/filter", "deployments/"):
            asked = {"Origin": EVIL, "Access-Control-Request-Method": "POST",
                     "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
            preflight = httpx.request("OPTIONS", f"{site.api}/{path}", headers=asked, trust_env=False)
            assert preflight.status_code == httpx.codes.FORBIDDEN
            assert "access-control-allow-origin" not in preflight.headers
        assert hears(f"{site.api.replace('http:', 'ws:')}/events/out", known_password(folder), None)
        listen(site, None, None)
        listen(site, WRONG, None)
        listen(site, known_password(folder), EVIL)
        untouched(site)
        own_work(site)
        if round_ == 0:
            known = known_password(folder)
            run("labdag", "down", cwd=folder)
            assert password.read(services.place(folder)) is None
            run("labdag", "up", "--port", port, cwd=folder)
            again = Up(folder)
            site.services, site.auth = again.services, again.auth
            assert known_password(folder) != known, "whoever listened at the port meanwhile may know it"
            attack(site.api, flow, auth=SignedIn(known))


def listen(site: Up, secret: str | None, origin: str | None) -> None:
    """Try to hear what happens, over each of Prefect's websockets."""
    for path in ("events/out", "events/in", "logs/out", "work_pools/labdag/workers/connect"):
        url = f"{site.api.replace('http:', 'ws:')}/{path}"
        assert not hears(url, secret, origin), path


def hears(url: str, secret: str | None, origin: str | None) -> bool:
    """Whether a websocket lets somebody in."""
    try:
        with connect(url, subprotocols=[PREFECT], origin=Origin(origin) if origin else None, proxy=None) as listening:
            listening.send(json.dumps({"type": "auth", "token": secret}))
            return bool(json.loads(listening.recv(timeout=30)).get("type") == "auth_success")
    except WebSocketException:
        return False


def test_another_account_of_the_machine_neither_reads_nor_runs(site: Up, folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make an account")
    name = f"labdag-{os.getpid()}"
    run(need("useradd"), "--no-create-home", "--system", name, cwd=folder)
    try:
        account = pwd.getpwnam(name)
        found = as_account(account, partial(look_around, folder, site, flow_of(site)))
    finally:
        run(need("userdel"), name, cwd=folder)
    assert found["params.yaml"] == "why: because\n", "the project itself is there to be read"
    assert {each for each, text in found.items() if text is not None} == {"params.yaml", "command lines"}
    assert known_password(folder) not in found["command lines"]
    untouched(site)


def look_around(folder: Path, site: Up, flow: str) -> dict[str, str | None]:
    """What an account finds: files by name, what processes tell, and what the server answers if not a refusal."""
    place = services.place(folder)
    files = ["params.yaml", *(f".dvc/tmp/labdag/server/{name}" for name in (
        "password", "state.json", "deployed.json", "worker.log", "server.log", "prefect/prefect.db"))]  # fmt: skip
    found: dict[str, str | None] = {name: text_of(folder / name) for name in files}
    with suppress(PermissionError):
        found["listing"] = str(list(place.iterdir()))
    worker = site.services.worker
    assert worker is not None
    for process in (site.services.server, worker):
        found[f"environment of {process.pid}"] = text_of(Path(f"/proc/{process.pid}/environ"))
    found["command lines"] = "\n".join(
        text_of(each / "cmdline") or "" for each in Path("/proc").iterdir() if each.name.isdigit()
    )
    port = int(site.api.removesuffix("/api").rpartition(":")[2])
    for method, path, body in [*READS, ("POST", "deployments/", deployment(flow))]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(method, f"/api/{path}", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status not in REFUSED:
            found[f"{method} {path}"] = answer.read().decode()
    return found


def text_of(path: Path) -> str | None:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return None


def as_account(account: pwd.struct_passwd, function: Callable[[], Any]) -> Any:
    """What a function returns in a process of another account."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            os.write(writing, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        told = file.read()
    os.waitpid(child, 0)
    return json.loads(told)


def test_the_password_stands_in_its_file_and_nowhere_else(site: Up, folder: Path) -> None:
    secret = known_password(folder)
    mine = site.start("reproduce/pipeline", force=True)
    wait_for(partial(site.has_ended, mine), 120)
    place = services.place(folder)
    assert place.stat().st_mode & 0o777 == 0o700
    assert (place / "password").stat().st_mode & 0o777 == 0o600
    token = secret.partition(":")[2].encode()
    holders = [path for path in folder.rglob("*") if path.is_file() and token in path.read_bytes()]
    assert holders == [place / "password"]
    assert "PATH=" in (folder / "env.txt").read_text()
    assert not re.search(r"PREFECT_API_|LABDAG_LENT", (folder / "env.txt").read_text()), "as under `dvc repro`"
    for path in ("logs/filter", "artifacts/filter", "events/filter", "flow_runs/filter"):
        assert token.decode() not in json.dumps(site.post(path))
    lines = [" ".join(process.cmdline()) for process in psutil.process_iter() if is_readable(process)]
    assert any("labdag.orchestration.local_server" in line for line in lines)
    assert not any(token.decode() in line for line in lines)
    assert f"sign in      with what `cat {place / 'password'}` prints\n" in (folder / ".said").read_text()
    (folder / ".dvc" / ".gitignore").rename(folder / "ignore")  # as after `dvc init --no-scm`
    try:
        assert "password" not in run("git", "add", "--all", "--dry-run", ".dvc", cwd=folder).stdout
    finally:
        (folder / "ignore").rename(folder / ".dvc" / ".gitignore")


def is_readable(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.cmdline())
    return False


@pytest.mark.timeout(600)
def test_the_worker_runs_only_what_the_project_has_deployed(site: Up, folder: Path) -> None:
    """Whoever has the password, or shares the database, may put on the pool what he likes: it is not run."""
    flow = flow_of(site)

    def refused(run_: str) -> str:
        wait_for(partial(site.has_ended, run_), 60)
        state = site.state(run_)
        assert state["type"] == "FAILED"
        log = (services.place(folder) / "worker.log").read_text()
        assert log.count(state["message"]) == 1
        return str(state["message"])

    def started(id_: str, **body: Any) -> str:
        return str(site.post(f"deployments/{id_}/create_flow_run", **body)["id"])

    own = site.deployment("reproduce/pipeline")
    queue = site.get("deployments/name/reproduce/pipeline")["work_queue_name"]
    for name, extra in (("evil", {}), ("evil too", {"work_queue_name": queue})):
        made = site.post("deployments/", **deployment(flow) | {"name": name} | extra)["id"]
        assert f"Refused: the deployment '{name}' was not made by `labdag up` in {folder}" in refused(started(made))
        site.request("DELETE", f"deployments/{made}")
    touch = {"command": "touch /tmp/labdag-was-attacked"}
    assert "the run has job variables of its own (command)" in refused(started(own, job_variables=touch))
    assert "its parameter root is /tmp" in refused(started(own, parameters={"root": "/tmp"}))
    assert site.post("deployments/", **deployment(flow) | {"name": "pipeline"})["id"] == own
    assert "the deployment was changed on the server after `labdag up`" in refused(started(own))
    pool = site.get("work_pools/labdag")
    pool["base_job_template"]["job_configuration"]["command"] = touch["command"]
    site.request("PATCH", "work_pools/labdag", json={"base_job_template": pool["base_job_template"]})
    run("labdag", "up", cwd=folder)
    own_work(site)
    untouched(site)


def test_what_the_users_profile_says_reaches_no_stage(toy: Callable[..., Path], tmp_path: Path) -> None:
    """Prefect's own worker puts all that a profile says into the environment of a run, passwords too."""
    folder = toy(PIPELINE, **{"params.yaml": "why: because\n"})
    profiles = tmp_path / "profiles.toml"
    names = ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING")
    lines = "".join(f'{name} = "teacher:secret-of-a-profile"\n' for name in names)
    profiles.write_text(f'active = "mine"\n[profiles.mine]\n{lines}')
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_AUTH_STRING", raising=False)
        patch.setenv("PREFECT_PROFILES_PATH", str(profiles))
        try:
            run("labdag", "up", "--port", str(free_port()), cwd=folder)
            site = Up(folder)
            site.auth = SignedIn("teacher:secret-of-a-profile")
            mine = site.start("reproduce/pipeline")
            wait_for(partial(site.has_ended, mine), 120)
            assert site.state(mine)["type"] == "COMPLETED"
            assert "secret-of-a-profile" not in (folder / "env.txt").read_text()
        finally:
            run("labdag", "down", cwd=folder)


def test_a_temporary_server_has_a_password_too(toy: Callable[..., Path]) -> None:
    folder = toy(f'stages:\n  long: {{cmd: "echo {MARK}; echo $$ > pid; sleep 1000", outs: [out]}}\n')
    with subprocess.Popen(
        ["labdag", "run"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as labdag:
        try:
            wait_for((folder / "pid").exists, 120)
            family = psutil.Process(labdag.pid).children(recursive=True)
            (server,) = (each for each in family if "labdag.orchestration.temporary_server" in each.cmdline())
            (port,) = (each.laddr.port for each in server.net_connections() if each.status == psutil.CONN_LISTEN)
            api = f"http://127.0.0.1:{port}/api"
            attack(api, "0" * 32)
            attack(api, "0" * 32, auth=SignedIn(WRONG))
            right = SignedIn(server.environ()["PREFECT_SERVER_API_AUTH_STRING"])
            assert httpx.post(f"{api}/flow_runs/count", json={}, auth=right, trust_env=False).json() == 1
            attack(api, "0" * 32, auth=right, headers={"Origin": EVIL})
            attack(api, "0" * 32, auth=right, headers={"Host": "evil.example"})
            assert not any("PREFECT_SERVER_API_AUTH_STRING" in each.environ() for each in family if each != server)
        finally:
            labdag.terminate()


@pytest.mark.timeout(600)
def test_without_a_password_pages_are_kept_out_all_the_same(toy: Callable[..., Path]) -> None:
    folder = toy(PIPELINE, **{"params.yaml": "why: because\n"})
    port = str(free_port())
    refused = run("labdag", "up", "--no-password", "--host", "0.0.0.0", "--port", port, cwd=folder, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: --host 0.0.0.0 lets other machines in, and without a password whoever")
    said = run("labdag", "up", "--no-password", "--port", port, cwd=folder).stdout
    try:
        assert "sign in      without a password: every account of this machine can run commands as you\n" in said
        assert not password.read(services.place(folder))
        site = Up(folder)
        site.auth = SignedIn("nobody:at all")  # for the token; the password is not looked at
        run("labdag", "run", cwd=folder)
        flow = flow_of(site)
        attack(site.api, flow, headers={"Origin": EVIL})
        attack(site.api, flow, headers={"Host": f"evil.example:{port}", "Origin": f"{EVIL}:{port}"})
        attack(site.api, flow, headers={"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"})
        listen(site, None, EVIL)
        untouched(site)
        doctor = " ".join(run("labdag", "doctor", cwd=folder).stdout.split())
        assert f"open server note {site.api} (process {site.services.server.pid}) asks for no password: who" in doctor
        # A program of another account comes in, but has the worker run nothing but the project.
        made = site.post("deployments/", **deployment(flow))["id"]
        evil = str(site.post(f"deployments/{made}/create_flow_run")["id"])
        wait_for(partial(site.has_ended, evil), 60)
        assert site.state(evil)["type"] == "FAILED"
        assert not Path("/tmp/labdag-was-attacked").exists()
        again = run("labdag", "up", cwd=folder).stdout
        assert "without a password" in again
    finally:
        run("labdag", "down", cwd=folder)


def test_what_an_older_version_has_started_is_told_and_ended(toy: Callable[..., Path]) -> None:
    folder = toy(PIPELINE, **{"params.yaml": "why: because\n"})
    port = free_port()
    place = services.place(folder)
    place.chmod(0o755)
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    env = os.environ | {"PREFECT_HOME": str(place / "prefect")}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as older:
        api = f"http://127.0.0.1:{port}/api"

        def answers() -> bool:
            with suppress(httpx.TransportError):
                return httpx.get(f"{api}/health", trust_env=False).is_success
            return False

        wait_for(answers, 120)
        identity = {"pid": older.pid, "birth": services._birth(older.pid)}
        (place / "state.json").write_text(
            json.dumps({"url": f"http://127.0.0.1:{port}", "server": identity, "worker": None, "database": ""})
        )
        told = run("labdag", "run", cwd=folder).stderr
        assert f"Warning: the server at http://127.0.0.1:{port} was started by an older labdag" in told
        doctor = " ".join(run("labdag", "doctor", cwd=folder, check=False).stdout.split())
        assert f"open server bad {api} (process {older.pid}) asks for no password and answers every web page" in doctor
        flow = httpx.post(f"{api}/flows/filter", json={}, trust_env=False).json()[0]["id"]
        state = {"type": "RUNNING"}
        at_work = httpx.post(f"{api}/flow_runs/", json={"flow_id": flow, "state": state}, trust_env=False).json()["id"]
        refused = run("labdag", "up", "--port", str(port), cwd=folder, check=False)
        assert refused.returncode == 1
        assert "Error: A new server would cut off 1 run that is at work." in refused.stderr
        assert older.poll() is None
        httpx.delete(f"{api}/flow_runs/{at_work}", trust_env=False).raise_for_status()
        try:
            said = run("labdag", "up", "--port", str(port), cwd=folder).stdout
            assert "was started by an older labdag, and may let any web page and account in." in said
            assert f"ended the server (process {older.pid})" in said
            assert older.wait(30) is not None
            site = Up(folder)
            attack(site.api, flow)
            assert flow_of(site) == flow, "what it knew is still there"
            assert f"open server bad {api}" not in " ".join(run("labdag", "doctor", cwd=folder).stdout.split())
            assert place.stat().st_mode & 0o777 == 0o700
        finally:
            run("labdag", "down", cwd=folder)


@pytest.mark.usefixtures("site")
def test_a_program_that_takes_the_port_of_a_server_that_is_gone_gets_no_password(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as impostor:
        note = services.place(folder) / services.STATE
        known = note.read_text()
        told = json.loads(known)
        port = impostor.getsockname()[1]
        told |= {"url": f"http://127.0.0.1:{port}", "server": told["server"] | {"birth": "of another process"}}
        note.write_text(json.dumps(told))
        try:
            impostor.settimeout(0.2)
            run("labdag", "run", cwd=folder)
            with pytest.raises(TimeoutError):
                impostor.accept()
        finally:
            note.write_text(known)


def test_nobody_can_take_the_port_while_the_server_loads(toy: Callable[..., Path]) -> None:
    """It loads for seconds, and then is sent the password, to see whether it takes it."""
    folder, port = toy(PIPELINE, **{"params.yaml": "why: because\n"}), free_port()

    def loads() -> bool:
        commands = (each.info["cmdline"] or () for each in psutil.process_iter(["cmdline"]))
        return any("labdag.orchestration.local_server" in command and str(port) in command for command in commands)

    with subprocess.Popen(["labdag", "up", "--port", str(port)], cwd=folder, stdout=subprocess.DEVNULL) as up:
        try:
            wait_for(loads, 60)
            while up.poll() is None:
                with pytest.raises(OSError, match="Address already in use"):
                    socket.create_server(("127.0.0.1", port))
        finally:
            up.wait(180)
            run("labdag", "down", cwd=folder)
    assert up.returncode == 0


# A page of another port that tries to read and to run; it notes what it could do.
PAGE = """<!doctype html><title>evil</title><iframe name=hidden></iframe><iframe id=ui src="@UI"></iframe>
<form id=form method=post target=hidden action="@API/deployments/" enctype="text/plain">
<input name='{"name": "evil", "flow_id": "@FLOW", "x": "' value='"}'></form>
<script>
const API = "@API", done = {}
const json = {method: "POST", headers: {"Content-Type": "application/json", "Authorization": "Basic eA=="}, body: "{}"}
const attempts = {
  read: () => fetch(API + "/flow_runs/filter", json).then(answer => answer.text()),
  get: () => fetch(API + "/admin/version").then(answer => answer.text()),
  plain: () => fetch(API + "/flow_runs/filter", {method: "POST", body: "{}"}).then(answer => answer.text()),
  image: () => new Promise((good, bad) => {
    const image = document.body.appendChild(new Image())
    Object.assign(image, {onload: good, onerror: bad, src: "@UI/decorative_iso-pixel-grid_dark.svg"}) }),
  script: () => new Promise((good, bad) => {
    const script = document.createElement("script")
    document.body.appendChild(Object.assign(script, {onload: good, onerror: bad, src: API + "/admin/version"})) }),
  socket: () => new Promise((good, bad) => {
    const socket = new WebSocket(API.replace("http", "ws") + "/events/out", ["prefect"])
    Object.assign(socket, {onopen: good, onerror: bad}) }),
}
document.getElementById("form").submit()
Promise.all(Object.entries(attempts).map(([name, attempt]) =>
  attempt().then(() => { done[name] = "came in" }, () => { done[name] = "refused" })))
  .then(() => { window.done = done })
</script>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser to which evil.example is this machine, as after DNS rebinding."""
    rules = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    with sync_playwright() as playwright:
        options: dict[str, Any] = {"executable_path": need("chromium"), "args": ["--no-sandbox", rules]}
        with playwright.chromium.launch(**options) as browser:
            yield browser


@contextmanager
def evil_page(site: Up) -> Iterator[int]:
    """Serve the page on a port of its own."""
    text = PAGE.replace("@API", site.api).replace("@UI", site.services.url).replace("@FLOW", flow_of(site))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.timeout(600)
def test_pages_in_a_browser_are_refused_while_its_user_works_in_the_ui(
    site: Up, folder: Path, browser: Browser
) -> None:
    context = browser.new_context()
    ui = context.new_page()
    ui.goto(site.services.url)
    sign_in(ui, site)
    with evil_page(site) as port:
        for name in ("127.0.0.1", "localhost", "evil.example"):  # in the browser that is signed in
            page = context.new_page()
            page.goto(f"http://{name}:{port}/")
            done = page.wait_for_function("window.done", timeout=LOADED).json_value()
            assert done == dict.fromkeys(("read", "get", "plain", "image", "script", "socket"), "refused"), name
            assert "Prefect" not in page.frames[-1].content(), "the UI can't be framed"
            page.close()
    rebound = context.new_page()
    rebound.goto(site.services.url.replace("127.0.0.1", "evil.example"))
    assert rebound.locator("body").inner_text().startswith("This server does not answer to evil.example")
    rebound.close()
    untouched(site)

    first = site.runs("reproduce")[0]
    ui.goto(f"{site.services.url}/runs/flow-run/{first['id']}")
    expect(ui.get_by_text(MARK, exact=True).first).to_be_visible(timeout=LOADED)
    (folder / "hold").write_text("300")
    (folder / "params.yaml").write_text(f"why: another {secrets.token_hex(4)}\n")
    known = {each["id"] for each in site.runs("reproduce")}
    try:
        ui.goto(f"{site.services.url}/deployments/deployment/{site.deployment('reproduce/pipeline')}")
        ui.get_by_role("button", name="Run", exact=True).first.click()
        ui.get_by_text("Quick run", exact=False).first.click()

        def is_at_work() -> Any:
            return [each["id"] for each in site.runs("reproduce")
                    if each["id"] not in known and each["state"]["type"] == "RUNNING"]  # fmt: skip

        wait_for(is_at_work, 120)
        (mine,) = is_at_work()
        ui.goto(f"{site.services.url}/runs/flow-run/{mine}")
        ui.get_by_role("button", name="Cancel").first.click()
        ui.get_by_role("button", name="Confirm").click()
        wait_for(partial(site.has_ended, mine), 60)
        assert site.state(mine)["type"] == "CANCELLED"
    finally:
        (folder / "hold").unlink()
        (folder / "params.yaml").write_text("why: because\n")
