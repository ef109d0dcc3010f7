"""Whole runs of `labdag`, against a real Prefect server: several at once, cut short, cancelled, told beforehand."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update
from ruamel.yaml import YAML

from flows.graph import GraphError, Pipeline
from flows.journal import Journal
from flows.recording import with_entry
from tests.conftest import edit_params, is_gone, run, wait_for
from tests.test_flow import FIT, PARAMS, TOY, Server

pytestmark = pytest.mark.usefixtures("server")

SLOW = """
stages:
  first: {cmd: "echo first >> ../ran; while ! test -e ../go; do sleep 0.05; done; cp in a", deps: [in], outs: [a]}
  second: {cmd: "echo second >> ../ran; cp a b", deps: [a], outs: [b]}
  other: {cmd: "echo other >> ../ran; cp in c", deps: [in], outs: [c]}
"""


@pytest.fixture
def server(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    return Server(prefect_server)


@pytest.fixture
def pipeline(toy: Callable[..., Path]) -> Path:
    return toy(TOY, **{"params.yaml": PARAMS, "fit.py": FIT})


@pytest.fixture
def slow(toy: Callable[..., Path]) -> Path:
    return toy(SLOW, **{"in": "1"})


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["labdag", "run", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ran(folder: Path) -> list[str]:
    return sorted((folder.parent / "ran").read_text().split()) if (folder.parent / "ran").exists() else []


def test_two_runs_at_once_share_the_work_and_neither_fails(slow: Path) -> None:
    one = start(slow, "second")
    wait_for(lambda: ran(slow) == ["first"])
    two = start(slow)
    wait_for(lambda: ran(slow) == ["first", "other"])  # the second run does not wait with what the first has not
    (slow.parent / "go").touch()
    for process in (one, two):
        assert process.wait(60) == 0
    assert ran(slow) == ["first", "other", "second"]
    said = two.communicate()
    assert "first: Waiting for another run, which has this stage or reads its outputs." in said[1]
    assert run("dvc", "status", cwd=slow).stdout.strip() == "Data and pipelines are up to date."
    one.communicate()


def test_after_a_kill_of_everything_the_next_run_tidies_up_and_goes_on(slow: Path, server: Server) -> None:
    (slow.parent / "go").touch()
    run("labdag", "run", cwd=slow)
    (slow.parent / "go").unlink()
    (slow / "in").write_text("2")
    killed = start(slow)
    wait_for(lambda: ran(slow).count("first") == 2)
    wait_for(lambda: (slow / "c").exists() and (slow / "c").read_text() == "2")
    time.sleep(1)
    children = [int(pid) for pid in subprocess.check_output(["pgrep", "-f", "while ! test -e ../go"]).split()]
    killed.kill()
    killed.communicate()
    wait_for(lambda: all(map(is_gone, children)), seconds=5)
    assert not (slow / "a").exists()
    dead = server.flow_run()
    (slow.parent / "go").touch()
    done = run("labdag", "run", cwd=slow)
    assert f"(process {killed.pid}) died without a word." in done.stderr
    assert "first was cut short; its last good outputs are back." in done.stderr
    assert "3 stages: 2 run, 1 reused" in done.stdout
    state = server.get(f"flow_runs/{dead['id']}")["state"]
    assert (state["type"], state["message"]) == ("CRASHED", "its process died")
    tasks = server.post("task_runs/filter", flow_runs={"id": {"any_": [dead["id"]]}})
    assert {task["name"]: task["state"]["name"] for task in tasks} == {"first": "Crashed", "other": "Completed"}
    assert {name: (slow / name).read_text() for name in "abc"} == dict.fromkeys("abc", "2")
    assert ran(slow).count("other") == 2


def test_a_run_gives_signs_of_life(slow: Path, server: Server) -> None:
    process = start(slow, "first")
    wait_for(lambda: ran(slow) == ["first"])
    (beat,) = server.events("prefect.flow-run.heartbeat")
    assert beat["resource"]["prefect.resource.id"] == f"prefect.flow-run.{server.flow_run()['id']}"
    assert "reproduce" in {each.get("prefect.resource.name") for each in beat["related"]}
    (slow.parent / "go").touch()
    assert process.wait(30) == 0
    process.communicate()


def test_metrics_and_what_became_of_them_since_the_last_commit_are_artifacts(pipeline: Path, server: Server) -> None:
    run("labdag", "run", cwd=pipeline)
    found = server.artifacts()
    assert json.loads(found["metrics"]["data"]) == [
        {"metrics": "a.json", "score": 0.1},
        {"metrics": "b.json", "score": 0.2},
    ]
    assert "metrics-diff" in found  # the commit has no dvc.lock yet
    run("git", "add", "--all", cwd=pipeline)
    run("git", "commit", "--quiet", "--message", "Run", cwd=pipeline)
    run("labdag", "run", cwd=pipeline)
    assert set(server.artifacts()) == {"summary", "metrics"}
    edit_params(pipeline, fits__a__x=12)
    run("labdag", "run", cwd=pipeline)
    (row,) = json.loads(server.artifacts()["metrics-diff"]["data"])
    assert row == {"metrics": "a.json", "metric": "score", "HEAD": 0.1, "now": 0.12, "change": pytest.approx(0.02)}


@pytest.mark.parametrize("edit", ["nothing", "command", "dependency", "force"])
def test_what_had_finished_when_its_run_was_killed_is_recorded_only_if_it_is_still_that(
    edit: str, toy: Callable[..., Path], server: Server
) -> None:
    dvc_yaml = 'stages: {make: {cmd: "echo 1 > out; head -c 300000000 /dev/zero >> out", deps: [in], outs: [out]}}'
    folder = toy(dvc_yaml, **{"in": "1", "in2": "1"})
    process = start(folder)
    note = Journal(folder).note("make")
    wait_for(lambda: note.exists() and "made" in note.read_text())
    process.kill()
    process.communicate()
    if edit == "command":
        (folder / "dvc.yaml").write_text(dvc_yaml.replace("echo 1", "echo 2"))
    if edit == "dependency":
        (folder / "dvc.yaml").write_text(dvc_yaml.replace("[in]", "[in, in2]"))
    if edit == "nothing":
        why = "its command has finished, and DVC has not recorded it yet"
        assert planned(folder) == {"make": ("will be recorded", why)}
    run("labdag", "run", *(["--force"] if edit == "force" else []), cwd=folder)
    assert server.states() == {"make": "Recovered" if edit == "nothing" else "Completed"}
    with (folder / "out").open("rb") as file:
        assert file.read(1) == (b"2" if edit == "command" else b"1")
    assert run("dvc", "status", cwd=folder).stdout.strip() == "Data and pipelines are up to date."


def test_what_is_recorded_or_tainted_has_states_of_its_own(toy: Callable[..., Path], server: Server) -> None:
    folder = toy("stages: {edits: {cmd: echo >> data; cp data out, deps: [data], outs: [out]}}")
    (folder / "data").write_text("1")
    run("dvc", "add", "--quiet", "data", cwd=folder)
    (folder / "data").write_text("2")
    done = run("labdag", "run", cwd=folder, check=False)
    assert server.states() == {"data.dvc": "Recorded", "edits": "Tainted"}
    assert server.tasks()["edits"]["state"]["type"] == "FAILED"
    assert "edits failed: edited while it ran: data; and so the first time." in done.stderr


def test_a_run_that_died_before_it_had_written_what_it_is_is_forgotten(pipeline: Path) -> None:
    for text in ("", "[1]", '{"name": 1}'):
        path = Journal(pipeline).folder / "runs" / "x.json"
        path.write_text(text)
        run("labdag", "run", "get", cwd=pipeline)
        assert not path.exists()


def test_a_cancel_in_the_ui_ends_the_stages_and_says_so(slow: Path, server: Server) -> None:
    process = start(slow, "second")
    wait_for(lambda: ran(slow) == ["first"])
    child = int(subprocess.check_output(["pgrep", "-f", "while ! test -e ../go"]).split()[0])
    asked = time.monotonic()
    server.post(f"flow_runs/{server.flow_run()['id']}/set_state", state={"type": "CANCELLING"})
    wait_for(lambda: is_gone(child))
    assert time.monotonic() - asked < 5
    assert process.wait(30) == 130
    process.communicate()
    assert server.states() == {"first": "Cancelled", "second": "Cancelled"}
    assert server.flow_run()["state"]["type"] == "CANCELLED"


def test_keep_going_and_its_opposite(toy: Callable[..., Path], server: Server) -> None:
    folder = toy(
        "stages:\n"
        "  bad: {cmd: 'false', outs: [x]}\n"
        "  next: {cmd: cp x y, deps: [x], outs: [y]}\n"
        "  last: {cmd: cp y z, deps: [y], outs: [z]}\n"
        "  good: {cmd: echo > g, outs: [g]}\n"
    )
    run("labdag", "run", "--jobs", "1", cwd=folder, check=False)
    assert server.states() == {"bad": "Failed", "next": "Skipped", "last": "Skipped", "good": "Skipped"}
    assert server.tasks()["good"]["state"]["message"] == "not started, for bad failed"
    run("labdag", "run", "--jobs", "1", "--keep-going", cwd=folder, check=False)
    assert server.states() == {"bad": "Failed", "next": "Skipped", "last": "Skipped", "good": "Completed"}


def test_downstream_takes_what_depends_on_the_targets(pipeline: Path, server: Server) -> None:
    run("labdag", "run", cwd=pipeline)
    run("labdag", "run", "--downstream", "fit@a", cwd=pipeline)
    assert server.states() == {"fit@a": "Unchanged", "show@a": "Unchanged"}


def test_a_run_is_named_and_tagged_and_tells_when_all_was_up_to_date(pipeline: Path, server: Server) -> None:
    run("labdag", "run", "a", cwd=pipeline)
    found = server.flow_run()
    head = run("git", "rev-parse", "--short", "HEAD", cwd=pipeline).stdout.strip()
    assert found["name"] == "reproduce a"
    assert set(found["tags"]) == {"a", f"git {head}", "clean"}
    assert found["state"]["name"] == "Completed"
    edit_params(pipeline, fits__b__x=21)
    run("labdag", "run", "a", cwd=pipeline)
    found = server.flow_run()
    assert "dirty" in found["tags"]
    assert (found["state"]["name"], found["state"]["type"]) == ("UpToDate", "COMPLETED")


def test_the_reason_stands_on_the_task(pipeline: Path, server: Server) -> None:
    run("labdag", "run", "a", cwd=pipeline)
    edit_params(pipeline, fits__a__x=12)
    run("labdag", "run", "a", cwd=pipeline)
    messages = {name: task["state"]["message"] for name, task in server.tasks().items()}
    assert messages == {
        "get@m": "nothing that it reads or writes changed",
        "fit@a": "its command ran: params.yaml: fits.a.x 10 → 12",
        "show@a": "its command ran: a.json changed",
    }


def test_what_the_remote_has_is_pulled(pipeline: Path, server: Server, tmp_path: Path) -> None:
    run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"), cwd=pipeline)
    run("labdag", "run", cwd=pipeline)
    run("dvc", "push", "--run-cache", cwd=pipeline)
    run("git", "add", "--all", cwd=pipeline)
    run("git", "commit", "--quiet", "--message", "Done", cwd=pipeline)
    other = tmp_path / "other"
    run("git", "clone", "--quiet", str(pipeline), str(other), cwd=tmp_path)
    (other / "dvc.lock").unlink()
    run("labdag", "run", "--pull", "a", cwd=other)
    assert server.states() == dict.fromkeys(("get@m", "fit@a", "show@a"), "Cached")


def test_slots_given_on_the_command_line(toy: Callable[..., Path]) -> None:
    command = "mkdir busy && sleep 0.3 && rmdir busy && echo > ${item}.txt"
    stages = "stages:\n  s:\n    foreach: [a, b, c]\n    do:\n      meta: {slots: {tool: 1}}\n"
    text = f'{stages}      cmd: "{command}"\n      outs: ["${{item}}.txt"]\n'
    folder = toy(text)
    assert "3 run" in run("labdag", "run", "--jobs", "3", "--slots", "tool=1", cwd=folder).stdout
    done = run("labdag", "run", "--slots", "tool", cwd=folder, check=False)
    assert done.stderr == "Error: --slots tool should be a name and a whole number, such as gpu=1.\n"


def planned(folder: Path, *arguments: str) -> dict[str, tuple[str, str]]:
    lines = run("labdag", "plan", *arguments, cwd=folder).stdout.splitlines()
    rows = [re.split(r" {2,}", line.strip()) for line in lines if line.startswith(" ") and line.strip()][2:]
    return {name: (what, why) for name, what, why in rows}


def test_a_plan_tells_what_will_happen_and_why_and_runs_nothing(pipeline: Path) -> None:
    assert planned(pipeline) == dict.fromkeys(
        ("get@m", "get@n", "fit@a", "fit@b", "show@a", "show@b"), ("will run", "never run")
    )
    assert not (pipeline / "dvc.lock").exists()
    run("dvc", "repro", "--quiet", cwd=pipeline)
    assert planned(pipeline) == {}
    edit_params(pipeline, fits__a__x=11)
    assert planned(pipeline) == {
        "fit@a": ("will run", "params.yaml: fits.a.x 10 → 11"),
        "show@a": ("may run", "if what fit@a makes is different from before"),
    }
    run("dvc", "repro", "--quiet", cwd=pipeline)
    edit_params(pipeline, fits__a__x=10)
    assert planned(pipeline) == {
        "fit@a": ("will be restored", "params.yaml: fits.a.x 11 → 10"),
        "show@a": ("will be restored", "fit@a is restored"),
    }
    run("dvc", "repro", "--quiet", cwd=pipeline)
    (pipeline / "m.txt").unlink()
    assert planned(pipeline) == {"get@m": ("will be restored", "m.txt is missing")}
    (pipeline / "n.txt").write_text("9\n")
    (pipeline / "fit.py").unlink()
    assert planned(pipeline, "b")["get@n"] == ("will be restored", "n.txt is not what it made")
    assert planned(pipeline, "b")["fit@b"] == ("will fail", "fit.py is missing")
    assert planned(pipeline, "b")["show@b"] == ("will be skipped", "fit@b can't be brought up to date")
    assert planned(pipeline, "--force", "get@n")["get@n"] == ("will run", "it is told to")
    assert set(planned(pipeline, "--downstream", "fit@a")) == {"fit@a", "show@a"}


def test_a_plan_knows_data_callbacks_params_and_outputs_elsewhere(toy: Callable[..., Path], tmp_path: Path) -> None:
    folder = toy(
        f"""
stages:
  always: {{cmd: echo}}
  metric: {{cmd: "echo '{{}}' > {tmp_path}/m.json", deps: [data], metrics: [{tmp_path}/m.json: {{cache: false}}]}}
  lost: {{cmd: echo > lost, deps: [nowhere], outs: [lost]}}
  param: {{cmd: echo > param, params: [unknown], outs: [param]}}
  read: {{cmd: cp data read, deps: [data], outs: [read]}}
""",
        **{"params.yaml": "known: 1"},
    )
    (folder / "data").write_text("1")
    run("dvc", "add", "--quiet", "data", cwd=folder)
    expected = {
        "always": ("will run", "it always runs"),
        "metric": ("will run", "never run"),
        "lost": ("will fail", "nowhere is missing"),
        "param": ("will fail", "params.yaml: unknown is missing"),
        "read": ("will run", "never run"),
    }
    assert planned(folder) == expected
    run("labdag", "run", "metric", "read", cwd=folder)
    assert set(planned(folder)) == {"always", "lost", "param"}
    (folder / "data").write_text("2")
    assert planned(folder, "read", "metric") == {
        "data.dvc": ("will be recorded", "data is not what it made"),
        "metric": ("may run", "if what data.dvc makes is different from before"),
        "read": ("may run", "if what data.dvc makes is different from before"),
    }
    (folder / "data").unlink()
    assert planned(folder, "read") == {
        "data.dvc": ("will fail", "data is missing"),
        "read": ("will be skipped", "data.dvc can't be brought up to date"),
    }


def test_a_dependency_that_was_edited_and_comes_back_is_looked_up_as_it_is(toy: Callable[..., Path]) -> None:
    folder = toy(
        "stages:\n  a: {cmd: cat x > a, deps: [x], outs: [a]}\n  b: {cmd: cat a > b, deps: [a], outs: [b]}\n", x="1"
    )
    run("dvc", "repro", "--quiet", cwd=folder)
    (folder / "x").write_text("2")
    assert planned(folder) == {
        "a": ("will run", "x changed"),
        "b": ("may run", "if what a makes is different from before"),
    }
    run("dvc", "repro", "--quiet", cwd=folder)
    (folder / "x").write_text("1")
    assert planned(folder) == {"a": ("will be restored", "x changed"), "b": ("will be restored", "a is restored")}


def test_a_merge_conflict_in_dvc_lock_gets_a_sentence_and_nothing_is_lost(pipeline: Path) -> None:
    run("dvc", "repro", "--quiet", cwd=pipeline)
    lock = pipeline / "dvc.lock"
    conflict = lock.read_text().replace("stages:\n", "stages:\n<<<<<<< HEAD\n", 1) + "=======\n>>>>>>> other\n"
    lock.write_text(conflict)
    done = run("labdag", "run", cwd=pipeline, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: dvc.lock has conflicts of a merge, first in line 3;")
    assert lock.read_text() == conflict
    lock.write_text("schema: '2.0'\nstages:\n  a: [")
    done = run("labdag", "run", cwd=pipeline, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: dvc.lock is not as DVC has written it")
    assert "Traceback" not in done.stderr


def test_of_a_dvc_lock_broken_off_anywhere_nothing_is_taken_for_true(toy: Callable[..., Path]) -> None:
    folder = toy("stages: {a: {cmd: cp in a, deps: [in], outs: [a]}}", **{"in": "1"})
    run("dvc", "repro", "--quiet", cwd=folder)
    whole = (folder / "dvc.lock").read_text()
    for length in range(0, len(whole) - len("\n      size: 1\n"), 2):
        (folder / "dvc.lock").write_text(whole[:length])
        assert troubles(folder) != "[]", length


def troubles(folder: Path) -> str:
    """What `labdag plan` would say of the stage `a`."""
    try:
        with Pipeline(folder) as pipeline:
            return str(pipeline.changes("a"))
    except GraphError as error:
        return str(error)


def test_a_spoilt_dvc_lock_of_a_folder_below_gets_the_same_sentence(toy: Callable[..., Path]) -> None:
    folder = toy("stages: {top: {cmd: echo > top, outs: [top]}}")
    (folder / "sub").mkdir()
    (folder / "sub" / "dvc.yaml").write_text("stages: {low: {cmd: echo > low, outs: [low]}}")
    (folder / "sub" / "dvc.lock").write_text("schema: '2.0'\nstages:\n  a: [")
    done = run("labdag", "plan", cwd=folder, check=False)
    assert done.stderr.startswith("Error: sub/dvc.lock is not as DVC has written it")


def test_an_entry_is_put_into_dvc_lock_as_dvc_itself_would() -> None:
    names = ["plain", "with space", "1", "a@x: y", "true", "ünïcode", "q'uote"]
    entry: dict[str, Any] = {
        "cmd": "echo a very long command line " * 8,
        "params": {"params.yaml": {"a.b": [1, {"c": None}], "text": "two\nlines\n", "empty": {}}},
        "outs": [{"path": "x", "hash": "md5", "md5": "0" * 32, "size": 1}],
    }
    text = ""
    for number, name in enumerate([*names, "plain", "1"]):
        text = with_entry(text, name, entry | {"cmd": f"{entry['cmd']} {number}"}, "dvc.lock")
        assert dumps_yaml(parse_yaml_for_update(text, "dvc.lock")) == text
    assert list(YAML(typ="safe").load(text)["stages"]) == names


def test_a_lock_file_with_comments_keeps_them() -> None:
    text = "schema: '2.0'\n# mine\nstages:\n  a:\n    cmd: ls  # so\n  b:\n    cmd: {}\n"
    assert with_entry(text.format("ls"), "b", {"cmd": "cat"}, "dvc.lock") == text.format("cat")


def test_doctor_says_what_is_amiss(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("labdag", "doctor", cwd=pipeline)
    assert re.search(r"^ Prefect server +ok +3\.", done.stdout, re.MULTILINE)
    assert re.search(r"^ pipeline +ok +6 stages", done.stdout, re.MULTILINE)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    (pipeline / ".dvc/tmp").mkdir(exist_ok=True)
    (pipeline / ".dvc/tmp/rwlock").write_text("{")
    (pipeline / "params.yaml").unlink()
    run("dvc", "config", "core.remote", "nowhere", cwd=pipeline)
    done = run("labdag", "doctor", cwd=pipeline, check=False)
    assert done.returncode == 1
    for what in ("Prefect server", "locks", "pipeline", "remote"):
        assert re.search(rf"^ {what} +bad ", done.stdout, re.MULTILINE), done.stdout
