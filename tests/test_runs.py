"""Whole runs of `labdag`, against a real Prefect server: several at once, cut short, cancelled, told beforehand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from uuid import uuid4

import pytest

from labdag.errors import UserError
from labdag.execution.journal import Journal, Run
from labdag.pipeline.graph import Pipeline
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


@pytest.mark.usefixtures("server")
def test_whose_parent_it_is_stays_with_the_run(toy: Callable[..., Path]) -> None:
    """A `labdag run` in a stage's command would end at once: its parent is the stage."""
    folder = toy("stages:\n  inner: {cmd: 'echo parent $LABDAG_PARENT > out', outs: [out]}\n")
    run("labdag", "run", cwd=folder, LABDAG_PARENT=str(os.getpid()))
    assert (folder / "out").read_text() == "parent\n"


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
    """What changes each time, the command writes itself; so it edits one thing, and then another."""
    edits = "path=more; test -e again || path=data; touch again; echo >> $path; cp data out"
    folder = toy(f"stages: {{edits: {{cmd: '{edits}', deps: [data, more], outs: [out]}}}}", more="1")
    (folder / "data").write_text("1")
    run("dvc", "add", "--quiet", "data", cwd=folder)
    (folder / "data").write_text("2")
    done = run("labdag", "run", cwd=folder, check=False)
    assert server.states() == {"data.dvc": "Recorded", "edits": "Tainted"}
    assert server.tasks()["edits"]["state"]["type"] == "FAILED"
    assert "edits failed: edited while it ran: more; the first time it was edited while it ran: data." in done.stderr


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
    hint = "What does not depend on that was not started either; `--keep-going` goes on with it.\n"
    done = run("labdag", "run", "--jobs", "1", cwd=folder, check=False)
    assert done.stderr.endswith(hint)
    assert server.states() == {"bad": "Failed", "next": "Skipped", "last": "Skipped", "good": "Skipped"}
    assert server.tasks()["good"]["state"]["message"] == "not started, for bad failed"
    done = run("labdag", "run", "--jobs", "1", "--keep-going", cwd=folder, check=False)
    assert hint not in done.stderr
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
    done = run("labdag", "run", "--slots", "toool=1", cwd=folder, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: No stage's meta.slots has 'toool', so it can't be limited; there are cpu, gpu, tool.\n"
    )


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
    except UserError as error:
        return str(error)


def test_a_spoilt_dvc_lock_of_a_folder_below_gets_the_same_sentence(toy: Callable[..., Path]) -> None:
    folder = toy("stages: {top: {cmd: echo > top, outs: [top]}}")
    (folder / "sub").mkdir()
    (folder / "sub" / "dvc.yaml").write_text("stages: {low: {cmd: echo > low, outs: [low]}}")
    (folder / "sub" / "dvc.lock").write_text("schema: '2.0'\nstages:\n  a: [")
    done = run("labdag", "plan", cwd=folder, check=False)
    assert done.stderr.startswith("Error: sub/dvc.lock is not as DVC has written it")


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


def test_doctor_says_where_the_remote_is(toy: Callable[..., Path]) -> None:
    folder = toy("stages:\n  a: {cmd: touch a, outs: [a]}\n")
    run("dvc", "remote", "add", "--quiet", "--default", "store", "../a folder that is deep/store", cwd=folder)
    place = folder.parent / "a folder that is deep" / "store"

    def remote(is_well: bool = True) -> str:
        done = run("labdag", "doctor", cwd=folder, check=False)
        assert done.returncode == (0 if is_well else 1)
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(" remote")]
        return " ".join(line.split())

    advice = "The first `dvc push` makes it; if it was there before, mount its disk."
    assert remote() == f"remote note store: {place} is not there {advice}"
    place.mkdir(parents=True)
    assert remote() == f"remote ok store: {place} -"
    place.rmdir()
    place.touch()
    assert remote(is_well=False) == f"remote bad store: {place} is no folder Give the remote another address."
    run("dvc", "remote", "modify", "--quiet", "store", "url", "s3://bucket/labs", cwd=folder)
    assert remote() == "remote ok store -"


def test_a_second_run_does_not_wait_with_what_is_fresh_though_another_reads_it(slow: Path) -> None:
    (slow / "dvc.yaml").write_text(
        "stages:\n"
        "  data: {cmd: cp in a, deps: [in], outs: [a]}\n"
        '  slow: {cmd: "echo slow >> ../ran; while ! test -e ../go; do sleep 1; done; cp a b", deps: [a], outs: [b]}\n'
        '  quick: {cmd: "echo quick >> ../ran; cp a c", deps: [a], outs: [c]}\n'
    )
    run("dvc", "repro", "--quiet", "data", cwd=slow)
    one = start(slow, "slow")
    wait_for(lambda: ran(slow) == ["slow"])
    run("labdag", "run", "quick", cwd=slow)
    assert ran(slow) == ["quick", "slow"]
    assert one.poll() is None
    (slow / "in").write_text("2")  # now the stage is stale: it must wait, and run once the other has read its output
    two = start(slow, "quick")
    assert two.stderr is not None
    wait_for(lambda: "Waiting for another run" in two.stderr.readline())  # type: ignore[union-attr]
    (slow.parent / "go").touch()
    assert (one.wait(60), two.wait(60)) == (0, 0)
    one.communicate()
    two.communicate()
    assert {name: (slow / name).read_text() for name in "abc"} == {"a": "2", "b": "1", "c": "2"}


def test_a_copy_of_the_repository_knows_nothing_of_the_runs_in_the_original(slow: Path, server: Server) -> None:
    process = start(slow, "first")
    wait_for(lambda: ran(slow) == ["first"])
    original = server.flow_run()["id"]
    copy = Path(shutil.copytree(slow, slow.parent / "copy"))
    said = run("labdag", "run", "other", cwd=copy).stderr
    assert "died" not in said
    assert list((copy / ".dvc/tmp/labdag/runs").iterdir()) == []
    assert process.poll() is None
    (slow.parent / "go").touch()
    assert process.wait(30) == 0
    process.communicate()
    names = [each["name"] for each in server.get(f"flow_run_states/?flow_run_id={original}")]
    assert "Crashed" not in names
    assert names[-1] == "Completed"


def test_commands_that_are_gone_are_left_on_dvcs_list_of_files_in_use(pipeline: Path) -> None:
    """They may live in another container, and DVC itself takes off what is in its way."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead, alive = {"pid": gone.pid, "cmd": "dvc killed"}, {"pid": os.getpid(), "cmd": "dvc alive"}
    path = pipeline / ".dvc/tmp/rwlock"
    path.parent.mkdir(exist_ok=True)
    users = {"write": {"/x": dead}, "read": {"/y": [dead, alive], "/z": [dead]}}
    path.write_text(json.dumps(users))
    assert re.search(r"^ locks +note ", run("labdag", "doctor", cwd=pipeline).stdout, re.MULTILINE)
    run("labdag", "run", "get@m", cwd=pipeline)
    assert json.loads(path.read_text()) == users
    path.write_text(json.dumps({"read": {"/z": [dead]}}))
    assert re.search(r"^ locks +ok +none", run("labdag", "doctor", cwd=pipeline).stdout, re.MULTILINE)


def test_who_is_waited_for_is_told(slow: Path) -> None:
    theirs = subprocess.Popen(["dvc", "repro", "--quiet", "first"], cwd=slow)
    wait_for(lambda: ran(slow) == ["first"])
    ours = start(slow, "first")
    said = ""
    assert ours.stderr is not None
    while "Waiting for another DVC command" not in said:
        said = ours.stderr.readline()
    assert f"is busy, it is being blocked by: (PID {theirs.pid}): " in said
    assert "dvc repro --quiet first" in said
    (slow.parent / "go").touch()
    assert (theirs.wait(60), ours.wait(60)) == (0, 0)
    ours.communicate()


def test_a_run_that_lives_elsewhere_is_not_dead_in_a_snapshot_that_has_its_file_and_not_its_lock(
    pipeline: Path,
) -> None:
    journal = Journal(pipeline)
    mine = Run.of_this_process("a" * 32, "", str(uuid4()))
    path, part = (journal.folder / "runs" / name for name in ("x.json", "y.part"))
    for run_, is_dead in (
        (mine, False),
        (replace(mine, started=mine.started - 60), True),
        (replace(mine, world="another machine"), True),
    ):
        path.write_text(json.dumps(asdict(run_)))
        assert [dead.id for dead in journal.dead()] == [run_.id] * is_dead
        journal.drop_scraps()
        assert path.exists() == is_dead
    for content in ("", "{}", "3"):
        path.write_text(content)
        assert journal.dead() == []
        journal.drop_scraps()
        assert not path.exists()
    part.touch()
    journal.drop_scraps()
    assert part.exists()
    os.utime(part, (0, 0))
    journal.drop_scraps()
    assert not part.exists()


@pytest.mark.parametrize("thaw", [False, True])
def test_what_is_imported_from_another_repository_is_fetched_again(thaw: bool, toy: Callable[..., Path]) -> None:
    folder = toy("stages: {use: {cmd: cp got used, deps: [got], outs: [used]}}")
    source = folder.parent / "source"
    source.mkdir()
    (source / "dvc.yaml").write_text("stages: {make: {cmd: echo 1 > out, outs: [out]}}")
    for command in (["git", "init", "--quiet"], ["dvc", "init", "--quiet"], ["dvc", "repro", "--quiet"]):
        run(*command, cwd=source)
    run("git", "add", "--all", cwd=source)
    run("git", "commit", "--quiet", "--message", "Made", cwd=source)
    run("dvc", "import", "--quiet", str(source), "out", "--out", "got", cwd=folder)
    if thaw:
        run("dvc", "unfreeze", "got.dvc", cwd=folder)
    run("labdag", "run", cwd=folder)
    (folder / "got").unlink()
    shutil.rmtree(folder / ".dvc" / "cache")
    run("labdag", "run", "--pull", cwd=folder)
    assert (folder / "got").read_text() == (folder / "used").read_text() == "1\n"


def test_what_a_stage_says_of_a_dvc_of_its_own_stays_in_its_log(toy: Callable[..., Path]) -> None:
    own = "Task run failed with state: mine"
    folder = toy(f"stages: {{outer: {{cmd: '(cd sub && dvc repro); echo \"{own}\"; exit $(cat code)'}}}}")
    (folder / "sub").mkdir()
    (folder / "sub" / "dvc.yaml").write_text("stages: {inner: {cmd: exit 3}}")
    for code in (0, 4):
        (folder / "code").write_text(f"{code}")
        said = run("labdag", "run", "outer", cwd=folder, check=code == 0).stderr
        assert "ERROR: failed to reproduce 'inner'" in said
        assert own in said
    assert "outer failed: failed to reproduce 'inner'" in said


def test_what_is_missing_is_told_alike_by_plan_and_run(toy: Callable[..., Path]) -> None:
    folder = toy("stages: {a: {cmd: cp in a, deps: [in], outs: [a]}}", **{"in": "1"})
    for _ in range(2):  # before it has ever run, and afterwards
        (folder / "in").unlink(missing_ok=True)
        assert planned(folder)["a"][0] == "will fail"
        said = run("labdag", "run", cwd=folder, check=False).stderr
        assert re.search(r"Error: a failed: (.*/)?in is missing, and no stage makes it\. Put it back", said), said
        (folder / "in").write_text("1")
        run("labdag", "run", cwd=folder)


def test_a_failure_is_told_by_its_task_and_at_the_end_and_no_more(toy: Callable[..., Path]) -> None:
    folder = toy("stages: {bad: {cmd: exit 3}}")
    said = run("labdag", "run", cwd=folder, check=False).stderr
    assert "failed to reproduce" not in said
    assert said.count("its command exited with 3") == 2


def test_what_dvc_finds_amiss_is_the_reason_though_the_command_spoke_of_errors_before(toy: Callable[..., Path]) -> None:
    folder = toy("stages: {a: {cmd: 'echo \"Error: retry 1 failed, trying again\"', outs: [out]}}")
    said = run("labdag", "run", cwd=folder, check=False).stderr
    assert re.search(r"^Error: a failed: .*output 'out' does not exist", said, re.MULTILINE), said


def test_a_command_goes_on_being_heard_after_a_dvc_of_its_own_failed_at_a_stage_of_that_name(
    toy: Callable[..., Path],
) -> None:
    folder = toy("stages: {a: {cmd: '(cd sub && dvc repro a) || echo so what; echo 1 > out', outs: [out]}}")
    (folder / "sub").mkdir()
    (folder / "sub" / "dvc.yaml").write_text("stages: {a: {cmd: exit 3}}")
    said = run("labdag", "run", "--keep-going", "a", cwd=folder, check=False).stderr
    assert "failed to reproduce 'a'" in said
    assert "so what" in said
    assert "To track the changes" not in said


def test_what_is_missing_and_is_no_data_is_told_as_it_is(toy: Callable[..., Path]) -> None:
    folder = toy("stages: {a: {cmd: echo 1 > out, outs: [out]}}")
    said = run("labdag", "run", cwd=folder, check=False, SHELL="/bin/nope").stderr
    assert "/bin/nope" in said
    assert "dvc checkout" not in said


def test_an_entry_that_is_none_is_told_though_no_stage_asks_for_it(pipeline: Path) -> None:
    run("dvc", "repro", "--quiet", "get@m", cwd=pipeline)
    with (pipeline / "dvc.lock").open("a") as lock:
        lock.write("  zold:\n    outs: 3\n")
    done = run("labdag", "run", "get@m", cwd=pipeline, check=False)
    assert done.stderr.startswith("Error: dvc.lock is not as DVC has written it")


def test_a_param_that_is_no_number_is_not_taken_for_edited(toy: Callable[..., Path]) -> None:
    folder = toy(
        "stages: {a: {cmd: echo 1 > out, params: [x], outs: [out]}}", **{"params.yaml": "x: {y: .nan, z: [.inf]}"}
    )
    assert "1 run, 0 reused" in run("labdag", "run", cwd=folder).stdout
