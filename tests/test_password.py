"""The password's file, what is lent to processes, and what is recorded of deployments."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from labdag.environment import lend, without_lent
from labdag.errors import UserError
from labdag.orchestration import password, services
from labdag.orchestration.deployed import Deployed, Record
from tests.conftest import free_port, run


def test_a_password_is_made_once_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir(mode=0o755)
    previous = os.umask(0)  # which would leave every file to everybody
    try:
        first = password.ensure(folder)
    finally:
        os.umask(previous)
    assert re.fullmatch(r"labdag:[\w-]{43}", first)
    assert (folder.stat().st_mode & 0o777, (folder / "password").stat().st_mode & 0o777) == (0o700, 0o600)
    assert password.ensure(folder) == password.read(folder) == first
    assert password.new() != first
    (folder / "password").chmod(0o644)  # nobody else gets into the folder
    assert not password.is_exposed(folder)
    assert password.ensure(folder) == first
    assert (folder / "password").stat().st_mode & 0o777 == 0o600
    (folder / "password").chmod(0o640)
    folder.chmod(0o750)
    assert password.is_exposed(folder)
    assert password.ensure(folder) != first, "somebody may have read it"
    (folder / "password").write_text("")  # the disk was full
    known = password.ensure(folder)
    assert known
    assert password.renew(folder) != known


def test_a_folder_that_can_not_be_private_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be made a private folder: Not a directory"):
        password.make_private(tmp_path / "file" / "server")
    if os.geteuid() == 0:
        (tmp_path / "theirs").mkdir()
        os.chown(tmp_path / "theirs", 65534, 65534)
        with pytest.raises(UserError, match="belongs to another account: each account needs a clone of its own"):
            password.make_private(tmp_path / "theirs")
    assert password.read(tmp_path / "nowhere") is None
    assert not password.is_exposed(tmp_path / "nowhere")


def test_what_is_lent_does_not_reach_a_stage() -> None:
    environment = {"PATH": "/bin", "PREFECT_HOME": "/home", "B": "mine"}
    lend(environment, A="1", B="2")
    lend(environment, A="3", C="4")
    assert environment["A"] == "3"
    assert without_lent(environment) == {"PATH": "/bin", "PREFECT_HOME": "/home", "B": "mine"}
    assert without_lent({"A": "1"}) == {"A": "1"}


def test_deployments_are_recorded_by_database(tmp_path: Path) -> None:
    record = Record(tmp_path)
    assert record.of("") == {}
    assert record.find("None") is None
    (tmp_path / "deployed.json").write_text(json.dumps({"": ["reproduce/lab"]}))  # as older versions did
    assert record.of("") == {"reproduce/lab": Deployed()}
    assert record.find("") is None
    mine = Deployed("7", "labdag.flows.reproduce.reproduce", None, [{"step": {"directory": "/x"}}], {"env": {"A": "1"}})
    record.write("postgresql", {"reproduce/lab": mine})
    assert record.of("postgresql") == {"reproduce/lab": mine}
    assert record.of("") == {"reproduce/lab": Deployed()}
    assert record.find("7") == mine
    for broken in ("", "[1]", '{"a": {"b": {"unknown": 1}}}'):
        (tmp_path / "deployed.json").write_text(broken)
        assert record.find("7") is None


CALL = """
import os, psutil
from labdag.flows.reproduce import reproduce
done = reproduce(targets=["one"])
print(done.outcomes["one"].ending)
servers = [" ".join(each.cmdline()) for each in psutil.Process().children(recursive=True)]
assert sum("labdag.orchestration.temporary_server" in line for line in servers) == TEMPORARY, servers
assert not any("prefect.server.api.server" in line for line in servers), "Prefect's own, which is open"
reproduce(targets=["one"])
"""


@pytest.mark.timeout(600)
def test_flows_that_python_calls_have_a_server_with_a_password(toy: Callable[..., Path]) -> None:
    folder = toy("stages:\n  one: {cmd: echo 1 > one, outs: [one]}\n")
    done = run("python", "-c", CALL.replace("TEMPORARY", "1"), cwd=folder)
    assert "Completed" in done.stdout
    assert "the UI" not in done.stderr
    run("labdag", "up", "--port", str(free_port()), cwd=folder)
    try:
        found = services.running(folder)
        assert found is not None
        done = run("python", "-c", CALL.replace("TEMPORARY", "0"), cwd=folder)
        assert f"View at {found.url}/runs/flow-run/" in done.stderr

        # The password was changed under a server that runs.
        file = services.password_file(folder)
        known = file.read_text()
        file.write_text("labdag:another\n")
        refused = run("labdag", "run", cwd=folder, check=False)
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[-1] == (
            f"Error: The Prefect server at {found.api} does not take the password in {file}, which was changed after "
            "it was started: `labdag down`, then `labdag up` starts it with that."
        )
        assert "Traceback" not in refused.stderr
        file.unlink()
        assert f"wants the password that was in {file}" in run("labdag", "run", cwd=folder, check=False).stderr
        file.write_text(known)
        assert "1 stage: 0 run, 1 reused" in run("labdag", "run", cwd=folder).stdout
    finally:
        run("labdag", "down", cwd=folder)
    assert not psutil.pid_exists(found.server.pid) or not found.server.alive()
