"""The flow over toy pipelines that know nothing of labs, against a real Prefect server, and over the first lab."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from labdag.errors import UserError
from labdag.meta import Meta
from labdag.pipeline.graph import Pipeline, Stage
from labdag.pipeline.settings import cache_of, has_remote, near_remotes, share
from labdag.pipeline.targets import results, select
from labdag.results.summary import figures, rows
from tests.conftest import edit_params, is_gone, run, signed_in, wait_for

TOY = """
stages:
  get:
    foreach: ${sets}
    do:
      cmd: echo getting ${key} && echo ${item} > ${key}.txt
      params: ["sets.${key}"]
      outs: ["${key}.txt"]
  fit:
    foreach: ${fits}
    do:
      cmd: python fit.py ${key}
      deps: ["${item.set}.txt", fit.py]
      params: ["fits.${key}"]
      metrics: ["${key}.json"]
      meta: {summary: {score: ".1%"}}
  show:
    foreach: ${fits}
    do:
      cmd: cp ${key}.json ${key}.html
      deps: ["${key}.json"]
      outs: ["${key}.html"]
      meta: {report: "${key}.html"}
"""
PARAMS = "sets: {m: 1, n: 2}\nfits:\n  a: {set: m, x: 10}\n  b: {set: n, x: 20}\n"
FIT = """
import json, sys, time
from ruamel.yaml import YAML
x = YAML(typ="safe").load(open("params.yaml"))["fits"][sys.argv[1]]["x"]
print("fitting", sys.argv[1], flush=True)
if x < 0:
    sys.exit("Error: x is negative; it should not be")
json.dump({"score": x / 100}, open(sys.argv[1] + ".json", "w"))
"""


@pytest.fixture
def pipeline(toy: Callable[..., Path]) -> Path:
    return toy(TOY, **{"params.yaml": PARAMS, "fit.py": FIT})


class Server:
    """What the Prefect server knows of the newest flow run."""

    def __init__(self, api: str) -> None:
        self.api = api

    def post(self, path: str, **body: Any) -> Any:
        answer = httpx.post(f"{self.api}/{path}", json=body, auth=signed_in())
        answer.raise_for_status()
        return answer.json()

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.api}/{path}", auth=signed_in())
        answer.raise_for_status()
        return answer.json()

    def flow_run(self) -> dict[str, Any]:
        found: dict[str, Any] = self.post("flow_runs/filter", sort="START_TIME_DESC", limit=1)[0]
        return found

    def _of_run(self, path: str) -> list[dict[str, Any]]:
        only = {"flow_runs": {"id": {"any_": [self.flow_run()["id"]]}}}
        found: list[dict[str, Any]] = self.post(path, **only)
        return found

    def tasks(self) -> dict[str, dict[str, Any]]:
        """Task runs by name; the server records them in the background, so wait until all have ended."""
        for _ in range(100):
            found = {task["name"]: task for task in self._of_run("task_runs/filter")}
            states = [task["state"]["type"] for task in found.values() if task["state"]]
            if states and len(states) == len(found) and {"COMPLETED", "FAILED", "CANCELLED"}.issuperset(states):
                return found
            time.sleep(0.1)
        raise AssertionError(f"task runs did not end: {found}")

    def states(self) -> dict[str, str]:
        return {name: task["state"]["name"] for name, task in self.tasks().items()}

    def events(self, name: str) -> list[dict[str, Any]]:
        """Events about the run, once there are any; the server records them in the background."""
        related = {"id": [f"prefect.flow-run.{self.flow_run()['id']}"]}
        for _ in range(100):
            only = {"event": {"name": [name]}, "any_resource": related}
            if found := self.post("events/filter", filter=only)["events"]:
                return list(found)
            time.sleep(0.1)
        raise AssertionError(f"there is no event {name}")

    def artifacts(self) -> dict[str, Any]:
        run_id = self.flow_run()["id"]
        found = self.post("artifacts/filter", artifacts={"flow_run_id": {"any_": [run_id]}})
        return {artifact["key"]: artifact for artifact in found}

    def logs(self) -> list[str]:
        run_id = self.flow_run()["id"]
        for _ in range(50):
            found = self.post("logs/filter", logs={"flow_run_id": {"any_": [run_id]}}, limit=200)
            lines = [entry["message"] for entry in found]
            if any(line.startswith("Finished in state") and "stages:" in line for line in lines):
                break
            time.sleep(0.2)
        return lines


@pytest.fixture
def server(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    return Server(prefect_server)


def all_of(state: str) -> dict[str, str]:
    return {f"{group}@{key}": state for group, keys in (("get", "mn"), ("fit", "ab"), ("show", "ab")) for key in keys}


def test_each_stage_is_a_task_with_its_name_its_edges_and_its_state(pipeline: Path, server: Server) -> None:
    done = run("labdag", "run", cwd=pipeline)
    assert server.states() == all_of("Completed")
    tasks = server.tasks()
    by_id = {task["id"]: name for name, task in tasks.items()}
    upstream = {
        name: {by_id[edge["id"]] for edge in task["task_inputs"].get("wait_for", [])} for name, task in tasks.items()
    }
    assert upstream == {
        "get@m": set(),
        "get@n": set(),
        "fit@a": {"get@m"},
        "fit@b": {"get@n"},
        "show@a": {"fit@a"},
        "show@b": {"fit@b"},
    }
    assert server.flow_run()["name"] == "reproduce everything"
    table = json.loads(server.artifacts()["summary"]["data"])
    assert {row["target"]: (row["run"], row["reused"], row["score"], row["report"]) for row in table} == {
        "a": ("3", "0", "10.0%", "a.html"),
        "b": ("3", "0", "20.0%", "b.html"),
    }
    assert re.search(r"a +3 +0 +10\.0% +\d+\.\d +a\.html", done.stdout)
    assert "6 stages: 6 run, 0 reused" in done.stdout
    assert "fitting a" in server.logs()
    assert not any("To track the changes with git" in line for line in server.logs())

    run("labdag", "run", cwd=pipeline)
    assert server.states() == all_of("Unchanged")


def test_what_ran_before_with_the_same_inputs_is_restored(pipeline: Path, server: Server) -> None:
    run("labdag", "run", cwd=pipeline)
    edit_params(pipeline, fits__a__x=30)
    run("labdag", "run", "a", cwd=pipeline)
    assert server.states() == {"get@m": "Unchanged", "fit@a": "Completed", "show@a": "Completed"}
    edit_params(pipeline, fits__a__x=10)
    run("labdag", "run", "a", cwd=pipeline)
    assert server.states() == {"get@m": "Unchanged", "fit@a": "Cached", "show@a": "Cached"}
    assert "10" in (pipeline / "a.html").read_text() or "0.1" in (pipeline / "a.html").read_text()
    assert run("dvc", "status", cwd=pipeline).stdout.strip() == "Data and pipelines are up to date."


def test_force_runs_every_selected_stage(pipeline: Path, server: Server) -> None:
    run("labdag", "run", cwd=pipeline)
    run("labdag", "run", "--force", "a", cwd=pipeline)
    assert server.states() == {"get@m": "Completed", "fit@a": "Completed", "show@a": "Completed"}


def test_what_depends_on_a_failure_is_skipped_however_far_away(toy: Callable[..., Path], server: Server) -> None:
    chain = [("b", "a"), ("c", "b"), ("d", "c")]
    stages = "".join(f"  {name}: {{cmd: cp {dep} {name}, deps: [{dep}], outs: [{name}]}}\n" for name, dep in chain)
    folder = toy(f'stages:\n  a: {{cmd: "echo >&2 Error: no luck; false", outs: [a]}}\n{stages}')
    done = run("labdag", "run", cwd=folder, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: a failed: no luck"
    assert "4 stages: 0 run, 0 reused, 1 failed, 3 skipped" in done.stdout
    assert server.states() == {"a": "Failed", "b": "Skipped", "c": "Skipped", "d": "Skipped"}
    assert server.tasks()["d"]["state"]["message"] == "c, which it depends on, was skipped"


def test_many_stages_many_at_once(
    toy: Callable[..., Path], prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler alone, with stages that end at once: 200 in chains of two, 16 at a time."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from labdag.execution.execute import Executor
    from labdag.execution.outcome import Outcome, StageState
    from labdag.flows import reproduce as flow

    folder = toy("stages: {}\n")
    stages = {f"s@{n}": Stage(f"s@{n}") for n in range(100)}
    stages |= {f"t@{n}": Stage(f"t@{n}", (f"s@{n}",)) for n in range(100)}
    monkeypatch.setattr("labdag.pipeline.graph.stages_of", lambda _: stages)
    monkeypatch.setattr(Executor, "run", lambda _, stage, **__: Outcome(stage.name, StageState.COMPLETED, "it ran"))
    # In this process the environment was read long ago.
    settings = {PREFECT_API_URL: prefect_server, PREFECT_API_AUTH_STRING: os.environ["PREFECT_API_AUTH_STRING"]}
    with temporary_settings(settings):
        done = flow.reproduce(jobs=16, root=str(folder))
    assert isinstance(done, flow.Reproduction)
    assert [outcome.ending for outcome in done.outcomes.values()] == [StageState.COMPLETED] * 200


def test_a_failed_stage_stops_what_depends_on_it_and_nothing_else(pipeline: Path, server: Server) -> None:
    edit_params(pipeline, fits__a__x=-1)
    done = run("labdag", "run", "--keep-going", cwd=pipeline, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: fit@a failed: x is negative; it should not be"
    assert server.states() == all_of("Completed") | {"fit@a": "Failed", "show@a": "Skipped"}
    assert server.tasks()["fit@a"]["state"]["message"] == "x is negative; it should not be"
    assert server.tasks()["show@a"]["state"]["message"] == "fit@a, which it depends on, failed"
    assert server.flow_run()["state"]["name"] == "Failed"
    assert "6 stages: 4 run, 0 reused, 1 failed, 1 skipped" in done.stdout
    assert re.search(r"a +1 +0 +- +\d+\.\d +failed: fit@a", done.stdout)
    assert "Traceback" not in done.stdout + done.stderr
    assert "NoneType" not in done.stdout + done.stderr


MEET = """
stages:
  meet:
    foreach: [one, two]
    do:
      cmd: >-
        touch ${item}.here; for i in $(seq 200); do
        test -e one.here -a -e two.here && echo met > ${item}.txt && exit 0; sleep 0.1; done; exit 1
      outs: ["${item}.txt"]
"""


def test_independent_stages_run_at_once_up_to_jobs(toy: Callable[..., Path], server: Server) -> None:
    folder = toy(MEET)
    run("labdag", "run", "--jobs", "2", cwd=folder)
    assert server.states() == {"meet@one": "Completed", "meet@two": "Completed"}


def test_one_job_runs_one_stage_at_a_time(toy: Callable[..., Path]) -> None:
    command = "mkdir busy && sleep 0.3 && rmdir busy && echo > ${item}.txt"
    stages = f'stages:\n  s:\n    foreach: [a, b, c]\n    do: {{cmd: "{command}", outs: ["${{item}}.txt"]}}\n'
    assert "3 run" in run("labdag", "run", "--jobs", "1", cwd=toy(stages)).stdout


def test_several_dvc_yaml_files_and_data_files_are_one_pipeline(toy: Callable[..., Path], server: Server) -> None:
    folder = toy("stages:\n  top: {cmd: cp sub/low.txt top.txt, deps: [sub/low.txt], outs: [top.txt]}\n")
    (folder / "sub").mkdir()
    (folder / "sub/dvc.yaml").write_text(
        "stages:\n  low: {cmd: cp data.txt low.txt, deps: [data.txt], outs: [low.txt]}\n"
    )
    (folder / "sub/data.txt").write_text("data")
    run("dvc", "add", "--quiet", "sub/data.txt", cwd=folder)
    run("labdag", "run", "top", cwd=folder)
    assert server.states() == {
        "sub/data.txt.dvc": "Unchanged",
        "sub/dvc.yaml:low": "Completed",
        "top": "Completed",
    }
    run("labdag", "run", cwd=folder / "sub")
    assert set(server.states().values()) == {"Unchanged"}


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("prep", {"prep"}),
        ("dvc.yaml:prep", {"prep"}),
        ("./dvc.yaml:prep", {"prep"}),
        ("sub/dvc.yaml:prep", {"sub/dvc.yaml:prep"}),
        ("./sub/dvc.yaml:prep", {"sub/dvc.yaml:prep"}),
        ("sub", {"sub/dvc.yaml:prep", "sub/dvc.yaml:low"}),
        ("low", {"sub/dvc.yaml:low"}),
        ("*prep", {"prep", "sub/dvc.yaml:prep"}),
    ],
)
def test_a_stage_is_named_as_dvc_names_it(target: str, named: set[str]) -> None:
    stages = {name: Stage(name) for name in ("prep", "sub/dvc.yaml:prep", "sub/dvc.yaml:low", "sub/a.dvc")}
    assert set(select(stages, [target])) == named


def test_ctrl_c_at_a_terminal_ends_a_run_that_has_a_temporary_server(toy: Callable[..., Path]) -> None:
    """A terminal sends Ctrl-C to all that stands in its foreground, Prefect's temporary server included."""
    folder = toy('stages:\n  long: {cmd: "echo $$ > pid; sleep 1000; touch out", outs: [out]}\n')
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execvp("labdag", ["labdag", "run"])
    try:
        for _ in range(600):
            if (folder / "pid").exists():
                break
            time.sleep(0.1)
        os.write(terminal, b"\x03")
        said = b""
        with suppress(OSError):  # the terminal closes with its last process
            while part := os.read(terminal, 4096):
                said += part
        _, status = os.waitpid(child, 0)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130, said.decode()
    assert b"Interrupted; the stages that were running left nothing half-written." in said
    assert b"Traceback" not in said
    assert is_gone(int((folder / "pid").read_text()))


def test_no_progress_bar_lies_over_the_log_in_a_terminal(toy: Callable[..., Path], prefect_server: str) -> None:
    folder = toy("stages:\n  a: {cmd: ls data > a, deps: [data], outs: [a]}\n")
    (folder / "data").mkdir()
    for number in range(10):
        (folder / "data" / str(number)).write_text(str(number))
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execvpe("labdag", ["labdag", "run"], os.environ | {"PREFECT_API_URL": prefect_server})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    said = b""
    with suppress(OSError):  # the terminal closes with its last process
        while part := os.read(terminal, 4096):
            said += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, said.decode()
    assert b"1 stage: 1 run" in said
    assert b"Collecting" not in said
    assert not re.search(rb"\r[^\n]", said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_ends_its_stages_with_all_their_processes(
    number: signal.Signals, toy: Callable[..., Path], server: Server
) -> None:
    folder = toy(
        'stages:\n  long: {cmd: "sleep 1000 & echo $! > pid; wait; touch out", outs: [out]}\n'
        "  next: {cmd: cp out next, deps: [out], outs: [next]}\n"
    )
    labdag = subprocess.Popen(["labdag", "run"], cwd=folder, stderr=subprocess.PIPE, text=True)
    for _ in range(300):
        if (folder / "pid").exists() and (folder / "pid").read_text().strip():
            break
        time.sleep(0.1)
    labdag.send_signal(number)
    _, errors = labdag.communicate(timeout=60)
    assert labdag.returncode == 130, errors
    assert "Interrupted" in errors
    assert is_gone(int((folder / "pid").read_text()))
    assert not (folder / "out").exists()
    assert server.flow_run()["state"]["type"] == "CANCELLED"
    assert server.states() == {"long": "Cancelled", "next": "Cancelled"}


def test_a_killed_run_takes_its_temporary_server_along(toy: Callable[..., Path]) -> None:
    folder = toy('stages:\n  long: {cmd: "echo $$ > pid; sleep 1000; touch out", outs: [out]}\n')
    labdag = subprocess.Popen(["labdag", "run"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: (folder / "pid").exists(), seconds=120)
    family = psutil.Process(labdag.pid).children(recursive=True)
    assert any("labdag.orchestration.temporary_server" in part for process in family for part in process.cmdline())
    labdag.kill()
    labdag.wait()
    wait_for(lambda: all(is_gone(process.pid) for process in family), seconds=30)


def test_an_unknown_target_suggests_the_nearest(pipeline: Path) -> None:
    done = run("labdag", "run", "shwo", cwd=pipeline, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: Nothing is called 'shwo'. Did you mean 'show'? `labdag list` and `dvc stage list` show what there is.\n"
    )


def test_a_temporary_server_that_does_not_start_gets_a_sentence(pipeline: Path) -> None:
    late = run("labdag", "run", cwd=pipeline, check=False, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="0")
    assert late.returncode == 1
    assert "Error: Prefect's temporary server did not start in time" in late.stderr
    nowhere = f"sqlite+aiosqlite:///{pipeline}/nowhere/prefect.db"
    ended = run("labdag", "run", cwd=pipeline, check=False, PREFECT_API_DATABASE_CONNECTION_URL=nowhere)
    assert ended.returncode == 1
    assert "unable to open database file" in ended.stderr
    assert ended.stderr.endswith(
        "Error: Prefect's temporary server could not start; what it said of it stands above.\n"
    )


def test_a_server_that_a_profile_names_is_taken(pipeline: Path, prefect_server: str, tmp_path: Path) -> None:
    """A temporary one is begun to be started before Prefect's settings are known."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "profiles.toml").write_text(f'active = "own"\n[profiles.own]\nPREFECT_API_URL = "{prefect_server}"\n')
    done = run("labdag", "run", "get@m", cwd=pipeline, PREFECT_HOME=str(home))
    assert "1 stage: 1 run, 0 reused" in done.stdout
    assert "temporary server" not in done.stderr
    assert Server(prefect_server).states() == {"get@m": "Completed"}
    assert not (home / "prefect.db").exists()


@pytest.mark.parametrize(
    ("file", "text", "env", "what"),
    [
        ("none", "", {"PREFECT_LOGGING_LEVEL": "loud"}, "level of LoggingSettings: Input should be 'DEBUG', "),
        ("prefect.toml", "[logging\n", {}, "Failed to load Prefect settings from prefect.toml: invalid TOML"),
    ],
)
def test_settings_that_prefect_can_not_read_get_a_sentence(
    file: str, text: str, env: dict[str, str], what: str, pipeline: Path
) -> None:
    (pipeline / file).write_text(text)
    done = run("labdag", "run", cwd=pipeline, check=False, **env)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Failed to initialize plugins") <= 1, "so Prefect tells of some of them itself"
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"Error: Prefect can't read its settings: {what}")
    assert line.endswith("and in the profiles.toml of Prefect's home.")
    assert not (pipeline / "dvc.lock").exists()


def test_a_server_that_does_not_answer_gets_a_sentence(pipeline: Path) -> None:
    done = run("labdag", "run", cwd=pipeline, check=False, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 1
    assert "Error: No Prefect server answers at http://127.0.0.1:9/api." in done.stderr
    assert "Traceback" not in done.stderr


def test_outside_a_dvc_repository_one_sentence(tmp_path: Path) -> None:
    done = run("labdag", "list", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: There is no DVC repository in ")


def test_a_broken_dvc_yaml_gets_dvcs_own_sentence(pipeline: Path) -> None:
    (pipeline / "dvc.yaml").write_text("stages:\n  a: {command: ls}\n")
    done = run("labdag", "run", cwd=pipeline, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: DVC can't read the pipeline: ")
    assert "Traceback" not in done.stderr
    (pipeline / "params.yaml").write_text("when: 2024-01-01\n")
    (pipeline / "dvc.yaml").write_text("stages:\n  a: {cmd: ls}\n")
    sentence = "Unsupported value of type 'date' in 'params.yaml:when'; write it as text, in quotes."
    assert sentence in run("labdag", "list", cwd=pipeline, check=False).stderr.splitlines()[0]


def test_list_tells_fresh_from_stale_from_never_run(pipeline: Path) -> None:
    def states() -> dict[str, str]:
        lines = run("labdag", "list", cwd=pipeline).stdout.splitlines()
        rows = [re.split(r" {2,}", line.strip()) for line in lines if line.strip()]
        return {row[0]: row[rows[0].index("state")] for row in rows[2:]}

    assert states() == {"a": "never run", "b": "never run"}
    run("dvc", "repro", "--quiet", "fit@a", cwd=pipeline)
    assert states() == {"a": "unfinished: show@a has never run", "b": "never run"}
    edit_params(pipeline, fits__a__x=11)
    assert states() == {"a": "stale: fit@a: params.yaml: fits.a.x 10 → 11", "b": "never run"}
    edit_params(pipeline, fits__a__x=10)
    run("dvc", "repro", "--quiet", cwd=pipeline)
    assert states() == {"a": "fresh", "b": "fresh"}
    edit_params(pipeline, fits__a__x=11)
    assert states() == {"a": "stale: fit@a: params.yaml: fits.a.x 10 → 11", "b": "fresh"}


STAGES = {
    stage.name: stage
    for stage in (
        Stage("get@m"),
        Stage("fit@a", ("get@m",)),
        Stage("fit@ab", ("get@m",)),
        Stage("show@a", ("fit@a",)),
        Stage("alone"),
    )
}


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        ([], set(STAGES)),
        (["a"], {"get@m", "fit@a", "show@a"}),
        (["fit"], {"get@m", "fit@a", "fit@ab"}),
        (["fit@ab"], {"get@m", "fit@ab"}),
        (["*@a*"], {"get@m", "fit@a", "fit@ab", "show@a"}),
        (["alone", "m"], {"alone", "get@m"}),
    ],
)
def test_targets_select_stages_with_all_upstream(targets: list[str], chosen: set[str]) -> None:
    selected = select(STAGES, targets)
    assert set(selected) == chosen
    assert list(selected) == [name for name in STAGES if name in chosen], "upstream first"


def test_a_target_of_no_stage_is_an_error() -> None:
    with pytest.raises(UserError, match=r"'fitt'\. Did you mean 'fit'\?"):
        select(STAGES, ["fitt"])


def test_a_name_with_the_signs_of_a_glob_names_itself() -> None:
    assert list(select({"train[1]": Stage("train[1]"), "train1": Stage("train1")}, ["train[1]"])) == ["train[1]"]


def test_without_stages_one_sentence(toy: Callable[..., Path]) -> None:
    folder = toy("{}")
    for command in ("run", "plan", "list"):
        done = run("labdag", command, cwd=folder)
        assert (done.stdout, done.stderr) == (
            "There are no stages here: dvc.yaml defines them, and `dvc stage add` writes it.\n",
            "",
        )
    assert "Nothing is called 'train'" in run("labdag", "run", "train", cwd=folder, check=False).stderr


def test_results_are_the_keys_that_nothing_else_builds_on() -> None:
    assert {key: set(stages) for key, stages in results(STAGES).items()} == {
        "a": {"get@m", "fit@a", "show@a"},
        "ab": {"get@m", "fit@ab"},
        "alone": {"alone"},
    }


def test_results_are_the_keys_with_a_summary_or_a_report_and_those_that_nothing_else_builds_on() -> None:
    shown = Meta(summary={"score": ".1%"})
    toy = (
        Stage("prepare"),
        Stage("evaluate", ("prepare",), shown),
        Stage("deploy", ("evaluate",)),
        Stage("docs"),
        Stage("get@m"),
        Stage("fit@a", ("get@m",), shown),
        Stage("show@a", ("fit@a",), Meta(report="a.html")),
        Stage("compare@both", ("fit@a", "evaluate"), Meta(report="both.html")),
        Stage("get@unused"),
    )
    found = results({stage.name: stage for stage in toy})
    assert {key: list(stages) for key, stages in found.items()} == {
        "evaluate": ["prepare", "evaluate"],
        "deploy": ["deploy"],
        "docs": ["docs"],
        "a": ["get@m", "fit@a", "show@a"],
        "both": ["compare@both"],
        "unused": ["get@unused"],
    }


def rows_of(listed: str) -> dict[str, str]:
    """Lines of `labdag list` by their first column."""
    return {line.split()[0]: line for line in listed.splitlines() if line.strip()}


def test_a_value_that_its_format_does_not_fit_is_shown_as_it_is(toy: Callable[..., Path]) -> None:
    formats = "{word: .2%, none: .2%, list: d, half: d, fine: .1%}"
    folder = toy(f"stages:\n  a:\n    cmd: ls\n    metrics: [a.json]\n    meta: {{summary: {formats}}}\n")
    values = {"word": "high", "none": None, "list": [1], "half": 0.5, "fine": 0.125}
    (folder / "a.json").write_text(json.dumps(values))
    row = rows_of(run("labdag", "list", cwd=folder).stdout)["a"]
    assert row.split()[1:6] == ["high", "null", "[1]", "0.5", "12.5%"]

    (folder / "a.json").write_text(json.dumps({"score": 10**400}))  # more than a floating-point number can hold
    assert figures(folder, [Stage("a", (), Meta(summary={"score": ".1%"}), ("a.json",))]) == {"score": str(10**400)}


def test_a_report_that_is_not_there_is_told(tmp_path: Path) -> None:
    stages = {"a": Stage("a", (), Meta(report="a.html")), "b": Stage("b", (), Meta(report="b.html"))}
    (tmp_path / "a.html").touch()
    stages["c"] = Stage("c", (), Meta(report="https://example.org/c"))
    told = [row["report"] for row in rows(tmp_path, stages, {})]
    assert told == ["a.html", "b.html is not there", "https://example.org/c"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("cache = x", "expected a dictionary"),
        ("[cache]\ndir = a, b", "expected string"),
        ("[cache]\ndir = /tmp/%(x)s", 'missing option "x"'),
        ("[core]\nblah = 1", "extra keys not allowed"),
        ("[core", "Invalid line"),
    ],
)
def test_settings_that_dvc_cannot_read_are_told(settings: str, said: str, toy: Callable[..., Path]) -> None:
    folder = toy("stages:\n  a: {cmd: touch x, outs: [x]}\n")
    (folder / ".dvc/config").write_text(settings)
    with pytest.raises(UserError, match=rf"^DVC can't read its settings, in .*/\.dvc/config or config.local: {said}"):
        Pipeline(folder)


def test_a_copy_gets_the_cache_and_the_remotes_for_itself_alone(toy: Callable[..., Path]) -> None:
    folder = toy("stages:\n  a: {cmd: touch x, outs: [x]}\n")
    run("dvc", "cache", "dir", "--local", "../kept", cwd=folder)
    run("dvc", "remote", "add", "--local", "--default", "store", "../store", cwd=folder)
    assert cache_of(folder) == folder.parent / "kept"
    assert has_remote(folder)
    assert near_remotes(folder) == {"store": folder.parent / "store"}
    before = (folder / ".dvc/config").read_text()
    share(folder, folder / "other", {"store": "/elsewhere"})
    assert run("dvc", "cache", "dir", cwd=folder).stdout.strip() == str(folder / "other")
    assert run("dvc", "remote", "list", cwd=folder).stdout.split() == ["store", "/elsewhere", "(default)"]
    assert (folder / ".dvc/config").read_text() == before


def test_the_first_lab_runs_without_a_server_then_runs_nothing(project: Path, prefect_server: str) -> None:
    """What a newcomer does first, with Prefect's ephemeral server, in a folder whose name has a space."""
    first = run("labdag", "run", "lenet_digits", cwd=project)
    row = re.search(
        r"lenet_digits +6 +0 +61,706 +(\d+\.\d+)% +(\d+) +[\d.]+ +results/lenet_digits/report.html", first.stdout
    )
    assert row, first.stdout
    assert float(row.group(1)) >= 97
    assert "6 stages: 6 run, 0 reused" in first.stdout
    assert "epoch 20/20" in first.stderr, "the stage's lines, as they come"
    assert (project / "results/lenet_digits/report.html").is_file()
    assert run("git", "status", "--porcelain", cwd=project).stdout == "?? dvc.lock\n"

    second = run("labdag", "run", "lenet_digits", cwd=project)
    assert "6 stages: 0 run, 6 reused" in second.stdout
    listed = run("labdag", "list", cwd=project).stdout
    assert re.search(r"lenet_digits +fresh|lenet_digits +digits +lenet +61,706 +[\d.]+% +\d+ +fresh", listed)
    assert re.search(r"lenet_mnist +mnist +lenet +- +- +- +never run", listed)

    edit_params(project, labs__lenet_digits__plot__dpi=72)
    third = run("labdag", "run", "lenet_digits", cwd=project, PREFECT_API_URL=prefect_server)
    assert "6 stages: 1 run, 5 reused" in third.stdout


def test_a_mistake_in_params_yaml_is_told_before_anything_starts(project: Path) -> None:
    edit_params(project, labs__lenet_digits__train__epocs=3)
    for command in (["labdag", "run", "lenet_digits"], ["labdag", "list"]):
        done = run(*command, cwd=project, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("Error: params.yaml: labs.lenet_digits.train.epocs: there is no key 'epocs'")
    assert not (project / "dvc.lock").exists()
