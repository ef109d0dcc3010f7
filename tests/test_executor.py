"""One stage at a time: whatever goes wrong, nothing is lost, nothing false is recorded, and nobody is left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from ruamel.yaml import YAML

from labdag.dvc_internals import recording
from labdag.execution.execute import Executor
from labdag.execution.journal import Journal
from labdag.execution.outcome import Outcome, StageState
from labdag.files import remove
from labdag.pipeline.graph import Pipeline
from tests.conftest import is_gone, run, wait_for

# One stage with an output of each kind, which goes wrong as `mood` says; it leaves what it has begun.
ONE = """
stages:
  make:
    cmd: python make.py
    deps: [make.py, data.txt]
    params: [mood, x]
    outs: [out.txt, folder]
    metrics: [score.json, plain.txt: {cache: false}]
"""
MAKE = """
import json, os, pathlib, subprocess, sys, time
from ruamel.yaml import YAML
params = YAML(typ="safe").load(open("params.yaml"))
pathlib.Path("folder").mkdir()
for name in ("out.txt", "folder/one.txt", "plain.txt"):
    open(name, "w").write(f"{params['x']} {open('data.txt').read()}")
with open("../count", "a") as file:
    file.write("x")
mood = params["mood"]
if mood == "sleep":
    child = subprocess.Popen(["sleep", "1000"])
    daemon = subprocess.Popen(["sleep", "1001"], start_new_session=True)
    open("../pids.part", "w").write(f"{os.getpid()} {child.pid} {daemon.pid}")
    os.replace("../pids.part", "../pids")
    time.sleep(1000)
if mood == "wait":
    open("../begun", "w").close()
    while not os.path.exists("../go"):
        time.sleep(0.01)
if mood == "leave":
    subprocess.Popen(["sleep", "1002"], start_new_session=True)
if mood == "fail" or mood == "twice" and len(open("../count").read()) < 3:
    sys.exit("Error: no luck")
json.dump({"score": params["x"]}, open("score.json", "w"))
"""


class Bench:
    """A repository and an executor for its stages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []

    @contextmanager
    def executor(self) -> Iterator[Executor]:
        with (
            Pipeline(self.folder) as pipeline,
            Executor(pipeline, Journal(self.folder), uuid4().hex, pipeline.stages) as executor,
        ):
            self.running = executor
            yield executor

    def run(self, stage: str = "make", *, force: bool = False) -> Outcome:
        with self.executor() as executor:
            return executor.run(executor.pipeline.stages[stage], force=force, log=self.lines.append)

    def start(self, stage: str = "make") -> tuple[threading.Thread, list[Outcome]]:
        """Run a stage in the background, until it has begun."""
        outcomes: list[Outcome] = []
        thread = threading.Thread(target=lambda: outcomes.append(self.run(stage)))
        thread.start()
        wait_for(lambda: (self.folder.parent / "begun").exists() or (self.folder.parent / "pids").exists())
        return thread, outcomes

    def set(self, **params: Any) -> None:
        path = self.folder / "params.yaml"
        path.write_text(json.dumps(json.loads(path.read_text()) | params))

    def count(self) -> int:
        """How often the command has begun."""
        return len((self.folder.parent / "count").read_text())

    def outs(self) -> dict[str, str]:
        names = ("out.txt", "folder/one.txt", "plain.txt", "score.json")
        return {name: (self.folder / name).read_text() for name in names if (self.folder / name).exists()}

    def entry(self) -> Any:
        return YAML(typ="safe").load(self.folder / "dvc.lock")["stages"]["make"]

    def pids(self) -> list[int]:
        return [int(pid) for pid in (self.folder.parent / "pids").read_text().split()]


@pytest.fixture
def bench(toy: Callable[..., Path]) -> Bench:
    files = {"make.py": MAKE, "data.txt": "data", "params.yaml": json.dumps({"mood": "well", "x": 1, "other": 1})}
    return Bench(toy(ONE, **files))


@pytest.fixture
def made(bench: Bench) -> Bench:
    """A bench whose stage has been run once, well."""
    assert bench.run().ending is StageState.COMPLETED
    return bench


def test_a_stage_runs_is_left_alone_and_is_restored(bench: Bench) -> None:
    first = bench.run()
    assert (first.ending, first.reason) == (StageState.COMPLETED, "its command ran: never run")
    assert bench.run().ending is StageState.UNCHANGED
    bench.set(other=2)
    assert bench.run().ending is StageState.UNCHANGED
    bench.set(x=2)
    second = bench.run()
    assert (second.ending, second.reason) == (StageState.COMPLETED, "its command ran: params.yaml: x 1 → 2")
    assert bench.run(force=True).ending is StageState.COMPLETED
    assert bench.count() == 3
    assert run("dvc", "status", cwd=bench.folder).stdout.strip() == "Data and pipelines are up to date."


def test_what_dvc_records_under_labdag_is_what_it_records_itself(made: Bench) -> None:
    by_labdag = (made.folder / "dvc.lock").read_bytes()
    run("dvc", "repro", "--force", cwd=made.folder)
    assert (made.folder / "dvc.lock").read_bytes() == by_labdag


@pytest.mark.parametrize("mood", ["fail", "sleep"])
def test_a_stage_that_fails_or_takes_too_long_gets_its_last_good_outputs_back(made: Bench, mood: str) -> None:
    before, lock = made.outs(), (made.folder / "dvc.lock").read_text()
    text = (made.folder / "dvc.yaml").read_text()
    (made.folder / "dvc.yaml").write_text(text + "    meta: {timeout: 2}\n")
    made.set(mood=mood, x=2)
    outcome = made.run()
    assert outcome.ending is StageState.FAILED
    assert outcome.reason == ("no luck" if mood == "fail" else "it took longer than its timeout of 2 s")
    assert made.outs() == before
    assert (made.folder / "dvc.lock").read_text() == lock
    assert Journal(made.folder).unfinished() == []
    made.set(mood="well", x=1)
    assert made.run().ending is StageState.UNCHANGED
    if mood == "sleep":
        assert all(map(is_gone, made.pids()))


def test_an_output_that_persists_is_left_to_its_stage(toy: Callable[..., Path]) -> None:
    command = "echo more >> log.txt; test $(wc -l < log.txt) -lt 2"
    bench = Bench(
        toy(f"stages:\n  make: {{cmd: {command}, deps: [data], outs: [log.txt: {{persist: true}}]}}\n", data="1")
    )
    assert bench.run().ending is StageState.COMPLETED
    (bench.folder / "data").write_text("2")
    assert bench.run().ending is StageState.FAILED
    assert (bench.folder / "log.txt").read_text() == "more\nmore\n"


def test_of_a_stage_that_never_succeeded_nothing_half_written_is_left(bench: Bench) -> None:
    bench.set(mood="fail")
    assert bench.run().ending is StageState.FAILED
    assert bench.outs() == {}


def test_a_stop_ends_a_stage_with_all_its_processes_within_five_seconds(made: Bench) -> None:
    before = made.outs()
    made.set(mood="sleep")
    thread, outcomes = made.start()
    asked = time.monotonic()
    made.running.stop()
    wait_for(lambda: all(map(is_gone, made.pids())))
    assert time.monotonic() - asked < 5
    thread.join()
    assert [outcome.ending for outcome in outcomes] == [StageState.CANCELLED]
    assert made.outs() == before


def test_who_stops_a_run_twice_gets_the_last_good_outputs_back_too(made: Bench) -> None:
    before = made.outs()
    made.set(mood="sleep", x=2)
    thread, outcomes = made.start()
    (first,) = made.running._processes
    made.running.stop()
    wait_for(lambda: {*made.running._processes} - {first})  # it puts them back
    time.sleep(0.1)
    made.running.stop()
    thread.join()
    assert [outcome.ending for outcome in outcomes] == [StageState.CANCELLED]
    assert made.outs() == before


@pytest.mark.parametrize("victim", ["dvc", "supervisor", "command"])
def test_whoever_is_killed_takes_the_stage_along_and_it_can_run_again(made: Bench, victim: str) -> None:
    before = made.outs()
    made.set(mood="sleep", x=2)
    thread, outcomes = made.start()
    command = psutil.Process(made.pids()[0])
    (made.folder.parent / "pids").rename(made.folder.parent / "killed")
    dvc = next(parent for parent in command.parents() if parent.name().startswith("python"))
    supervisor = psutil.Process(dvc.ppid())
    {"dvc": dvc, "supervisor": supervisor, "command": command}[victim].kill()
    thread.join(30)
    assert [outcome.ending for outcome in outcomes] == [StageState.FAILED]
    wait_for(lambda: all(is_gone(int(pid)) for pid in (made.folder.parent / "killed").read_text().split()))
    assert made.outs() == before
    made.set(mood="well")
    assert made.run().ending is StageState.COMPLETED


def test_processes_that_a_command_leaves_behind_are_ended(bench: Bench) -> None:
    bench.set(mood="leave")
    assert bench.run().ending is StageState.COMPLETED
    assert "Its command left processes running, which were ended: sleep." in bench.lines
    assert not [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == ["sleep", "1002"]]


def test_a_failed_stage_is_tried_again_as_often_as_it_says(bench: Bench) -> None:
    (bench.folder / "dvc.yaml").write_text(ONE + "    meta: {retries: 2, retry_delay: 0.1}\n")
    bench.set(mood="twice")
    assert bench.run().ending is StageState.COMPLETED
    assert bench.count() == 3
    assert "Try 2 of 3 comes in 0.1 s." in bench.lines


@pytest.mark.parametrize("edit", ["param", "dep"])
def test_a_stage_whose_inputs_are_edited_while_it_runs_is_not_recorded_but_runs_again(made: Bench, edit: str) -> None:
    made.set(mood="wait", x=2)
    thread, outcomes = made.start()
    if edit == "param":
        made.set(x=3)
    else:
        (made.folder / "data.txt").write_text("edited")
    (made.folder.parent / "go").touch()
    thread.join()
    edited = "x of params.yaml" if edit == "param" else "data.txt"
    assert [outcome.ending for outcome in outcomes] == [StageState.COMPLETED]
    assert outcomes[0].reason.endswith(f"run twice, for it was edited while it ran: {edited}")
    assert f"Tainted: it was edited while it ran: {edited}. Nothing of it is recorded; it runs again." in made.lines
    assert made.count() == 3
    assert made.outs()["out.txt"] == ("3 data" if edit == "param" else "2 edited")
    check_run_cache(made.folder)


def check_run_cache(folder: Path) -> None:
    """Every entry of the run-cache tells the truth: the outputs are what the command makes of such inputs."""
    entries = [path for path in (folder / ".dvc/cache/runs").rglob("*") if path.is_file()]
    assert entries
    for path in entries:
        entry = YAML(typ="safe").load(path)
        data = next(dep["md5"] for dep in entry["deps"] if dep["path"] == "data.txt")
        made_of = f"{entry['params']['params.yaml']['x']} {cached(folder, data)}"
        assert made_of == cached(folder, next(out["md5"] for out in entry["outs"] if out["path"] == "out.txt"))


def cached(folder: Path, md5: str) -> str:
    path = folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    texts = [path.read_text()] if path.exists() else ["data", "edited"]  # a dep is in no cache
    return next(text for text in texts if len(texts) == 1 or md5_of(text) == md5)


def md5_of(text: str) -> str:
    import hashlib

    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def test_a_stage_whose_inputs_are_edited_twice_fails_and_says_why(made: Bench) -> None:
    """Not the same input: what changes each time, the command changes itself."""
    before, lock = made.outs(), (made.folder / "dvc.lock").read_text()
    edits = "import os; path = 'make.py' if os.path.exists('again') else 'data.txt'; open('again', 'w')\n"
    (made.folder / "make.py").write_text(f"{MAKE}{edits}open(path, 'a').write('#')\n")
    outcome = made.run()
    assert outcome.ending is StageState.TAINTED
    assert outcome.reason == (
        "edited while it ran: make.py; the first time it was edited while it ran: data.txt. "
        "Leave what it reads alone, and run it again."
    )
    assert made.outs() == before
    assert (made.folder / "dvc.lock").read_text() == lock


def test_what_was_finished_but_not_recorded_is_recorded_and_not_run_again(made: Bench) -> None:
    """DVC is killed while it saves what the command has made."""
    note = Journal(made.folder).note("make")
    (made.folder / "make.py").write_text(MAKE + "open('folder/large', 'wb').write(bytes(300_000_000))\n")
    made.set(x=2)
    with made.executor() as executor:
        stage = executor.pipeline.stages["make"]
        outcomes: list[Outcome] = []
        thread = threading.Thread(target=lambda: outcomes.append(executor.run(stage, log=made.lines.append)))
        thread.start()
        wait_for(lambda: note.exists() and '"made"' in note.read_text(), 120)
        psutil.Process(executor._supervisor.pid).children()[0].kill()
        thread.join()
    assert [outcome.ending for outcome in outcomes] == [StageState.RECOVERED]
    assert made.run().ending is StageState.UNCHANGED
    assert made.count() == 2
    assert made.outs()["out.txt"] == "2 data"
    assert run("dvc", "status", cwd=made.folder).stdout.strip() == "Data and pipelines are up to date."


def test_what_was_finished_but_not_recorded_is_looked_for_in_a_copy_of_the_repository_itself(made: Bench) -> None:
    outs = [str(made.folder / name) for name in ("out.txt", "folder", "score.json", "plain.txt")]
    note = {"definition": {}, "read": {}, "made": recording.made(outs, str(made.folder))}
    Journal(made.folder).note("make").write_text(json.dumps(note))
    copy = Bench(Path(shutil.copytree(made.folder, made.folder.parent / "copy")))
    remove(copy.folder / "out.txt")
    (copy.folder / "out.txt").write_text("MINE")
    assert copy.run().ending is StageState.CACHED
    assert copy.outs() == made.outs()


@pytest.mark.parametrize("out", ["out.txt", "folder"])
def test_a_spoilt_object_in_the_cache_is_dropped_and_what_it_was_is_made_anew(made: Bench, out: str) -> None:
    before, lock = made.outs(), (made.folder / "dvc.lock").read_bytes()
    content = (made.folder / ("folder/one.txt" if out == "folder" else out)).read_text()
    name = md5_of(content)
    spoilt = made.folder / ".dvc/cache/files/md5" / name[:2] / name[2:]
    spoilt.chmod(0o644)
    spoilt.write_text("spoilt")
    spoilt.chmod(0o444)
    remove(made.folder / out)
    assert made.run().ending is StageState.COMPLETED
    assert any("is spoilt; it is dropped." in line for line in made.lines)
    assert made.outs() == before
    assert (made.folder / "dvc.lock").read_bytes() == lock
    assert spoilt.read_text() == content


def test_the_lock_file_of_files_in_use_broken_off_is_mended(made: Bench) -> None:
    made.set(mood="wait", x=2)
    thread, outcomes = made.start()
    (made.folder / ".dvc/tmp/rwlock").write_text('{"write": {')
    (made.folder.parent / "go").touch()
    thread.join()
    assert [outcome.ending for outcome in outcomes] == [StageState.RECOVERED]
    assert made.count() == 2
    assert run("dvc", "status", cwd=made.folder).stdout.strip() == "Data and pipelines are up to date."


def test_a_stage_waits_for_another_dvc_command_on_its_files(made: Bench) -> None:
    made.set(mood="wait", x=2)
    other = subprocess.Popen(["dvc", "repro", "--quiet"], cwd=made.folder)
    wait_for(lambda: (made.folder.parent / "begun").exists())
    thread, outcomes = made.start()
    wait_for(lambda: any(line.startswith("Waiting for another DVC command: ") for line in made.lines))
    (made.folder.parent / "go").touch()
    thread.join()
    assert other.wait() == 0
    assert [outcome.ending for outcome in outcomes] == [StageState.UNCHANGED]
    assert made.count() == 2


def test_progress_bars_arrive_now_and_then_and_floods_are_dammed(toy: Callable[..., Path]) -> None:
    script = (
        "import sys\nfor n in range(5000): print(f'\\r{n}/5000', end='', flush=True)\n"
        "print('\\rdone')\nfor n in range(5000): print('line', n)\nopen('out', 'w')"
    )
    bench = Bench(toy("stages:\n  make: {cmd: python s.py, deps: [s.py], outs: [out]}\n", **{"s.py": script}))
    assert bench.run().ending is StageState.COMPLETED
    assert "done" in bench.lines
    assert len([line for line in bench.lines if line.endswith("/5000")]) <= 2
    assert len(bench.lines) < 1000
    assert any(line.startswith("… ") and "lines more, in " in line for line in bench.lines)
    kept = Journal(bench.folder).log("make").read_text()
    assert "line 4999" in kept
    assert "4999/5000" in kept


@pytest.mark.parametrize("kind", ["data", "frozen"])
def test_what_dvc_does_not_make_is_never_touched(made: Bench, kind: str) -> None:
    """It may be all there is of a user's work."""
    if kind == "data":
        name, path = "mine.txt.dvc", made.folder / "mine.txt"
        path.write_text("mine")
        run("dvc", "add", "--quiet", path, cwd=made.folder)
    else:
        (made.folder / "dvc.yaml").write_text(ONE + "    frozen: true\n")
        name, path = "make", made.folder / "out.txt"
    path.write_text("edited by hand")
    with made.executor() as executor:
        stage = executor.pipeline.stages[name]
        executor.journal.begin(stage, made.folder)  # a run before died here
        executor.clean(stage, made.lines.append)
        executor.stop()
        outcome = executor.run(stage, log=made.lines.append)
    assert (outcome.ending, outcome.reason) == (StageState.CANCELLED, "cancelled")
    assert path.read_text() == "edited by hand"
    path.unlink()
    outcome = made.run(name)
    assert outcome.ending is StageState.FAILED
    assert not path.exists()


def test_of_a_stage_that_was_not_begun_only_what_dvc_has_removed_comes_back(made: Bench) -> None:
    (made.folder / "out.txt").write_text("edited by hand")
    (made.folder / "score.json").unlink()
    with made.executor() as executor:
        executor.journal.begin(executor.pipeline.stages["make"], made.folder)
        told = executor.clean(executor.pipeline.stages["make"], made.lines.append)
    assert told == "make was cut short; its last good outputs are back"
    assert made.outs()["out.txt"] == "edited by hand"
    assert "score.json" in made.outs()


def test_a_stage_cancelled_between_two_tries_is_cancelled(bench: Bench) -> None:
    (bench.folder / "dvc.yaml").write_text(ONE + "    meta: {retries: 2, retry_delay: 1000}\n")
    bench.set(mood="fail")
    with bench.executor() as executor:
        stage = executor.pipeline.stages["make"]
        outcomes: list[Outcome] = []
        thread = threading.Thread(target=lambda: outcomes.append(executor.run(stage, log=bench.lines.append)))
        thread.start()
        wait_for(lambda: any("comes in 1000 s" in line for line in bench.lines))
        executor.stop()
        thread.join(5)
    assert [outcome.ending for outcome in outcomes] == [StageState.CANCELLED]


def test_a_frozen_stage_is_recorded_as_it_is_and_not_said_to_have_run(made: Bench) -> None:
    (made.folder / "dvc.yaml").write_text(ONE + "    frozen: true\n")
    (made.folder / "out.txt").write_text("mine")
    outcome = made.run()
    assert (outcome.ending, made.count()) == (StageState.RECORDED, 1)
    assert outcome.reason == "no command of it was to be run; recorded as it is: out.txt is not what it made"
    assert run("dvc", "status", cwd=made.folder).stdout.strip() == "Data and pipelines are up to date."
