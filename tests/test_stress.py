"""What must hold however often it is tried, as `make stress` does: nothing lost, nothing false, nobody left behind."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from labdag.execution.supervisor import MARK
from tests.conftest import STRESS, run, wait_for

REPETITIONS = 20 if STRESS else 1
FILES = 10_000 if STRESS else 200
KILLS = 50 if STRESS else 4
EDITS = 50 if STRESS else 3

pytestmark = [pytest.mark.usefixtures("server"), pytest.mark.timeout(3600 if STRESS else 300)]

SIXTEEN = """
stages:
  s:
    foreach: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    do:
      cmd: mkdir o${item} && for i in $(seq 50); do echo "$(cat in) ${item} $i" > o${item}/$i; done
      deps: [in]
      outs: ["o${item}"]
"""
MANY_FILES = """
stages:
  s:
    foreach: [0, 1, 2, 3, 4, 5, 6, 7]
    do:
      cmd: echo ${item} >> ../ran && mkdir o${item} && seq FILES | split -l 1 -a 4 - o${item}/
      deps: [in]
      outs: ["o${item}"]
"""
# Each stage writes part of what it makes at once and the rest later, and has a child meanwhile.
STEPS = """
stages:
  a: {cmd: python step.py a.txt in, deps: [step.py, in], params: [x], outs: [a.txt]}
  b: {cmd: python step.py b a.txt, deps: [step.py, a.txt], params: [x], outs: [b]}
  c: {cmd: python step.py c.json in, deps: [step.py, in], params: [x], metrics: [c.json]}
  d: {cmd: python step.py d.txt b/all c.json, deps: [step.py, b, c.json], params: [x], outs: [d.txt: {cache: false}]}
  e: {cmd: python step.py e.txt in, deps: [step.py, in], params: [x], outs: [e.txt]}
"""
STEP = """
import json, pathlib, subprocess, sys, time
out, *reads = sys.argv[1:]
with open("../ran", "a") as file:
    file.write(out[0] + chr(10))
target = pathlib.Path(out) / "all" if "." not in out else pathlib.Path(out)
target.parent.mkdir(exist_ok=True)
begun = {path: pathlib.Path(path).read_text() for path in reads}
target.write_text("begun")
subprocess.run(["sleep", "0.3"], check=True)
x = json.loads(pathlib.Path("params.yaml").read_text())["x"]
target.write_text(json.dumps({"x": x, "of": begun}))
"""


@pytest.fixture
def server(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)


@pytest.fixture
def steps(toy: Callable[..., Path]) -> Path:
    return toy(STEPS, **{"step.py": STEP, "in": "0", "params.yaml": '{"x": 0}', ".gitignore": "/d.txt\n"})


@pytest.fixture
def chance() -> random.Random:
    """Another one each time where much is tried; what it was stands in the report of a failure."""
    seed = random.randrange(1 << 32) if STRESS else 0
    print(f"seed {seed}")
    return random.Random(seed)


def lock(folder: Path) -> dict[str, Any]:
    """The entries of dvc.lock."""
    path = folder / "dvc.lock"
    return dict(YAML(typ="safe").load(path)["stages"]) if path.exists() else {}


def ran(folder: Path) -> Counter[str]:
    """How often each stage has begun since it was last asked."""
    path = folder.parent / "ran"
    found = Counter(path.read_text().split()) if path.exists() else Counter[str]()
    path.unlink(missing_ok=True)
    return found


def contents(folder: Path) -> dict[str, str]:
    outs = [path for name in ("a.txt", "b/all", "c.json", "d.txt", "e.txt") if (path := folder / name).exists()]
    return {str(path.relative_to(folder)): path.read_text() for path in outs}


def copied(folder: Path) -> Path:
    """A copy for plain DVC, in a folder of its own, so that what it runs is counted apart."""
    copy = folder.parent / "by dvc" / folder.name
    shutil.copytree(folder, copy)
    return copy


def test_sixteen_stages_at_once_leave_what_one_after_the_other_leaves(toy: Callable[..., Path]) -> None:
    folder = toy(SIXTEEN, **{"in": "0"})
    serial = copied(folder)
    for repetition in range(REPETITIONS):
        for each in (folder, serial):
            (each / "in").write_text(str(repetition))
        done = run("labdag", "run", "--jobs", "16", cwd=folder)
        assert "16 stages: 16 run, 0 reused" in done.stdout
        run("dvc", "repro", "--quiet", cwd=serial)
        assert lock(folder) == lock(serial)
        assert run("dvc", "status", cwd=folder).stdout.strip() == "Data and pipelines are up to date."


def test_folders_of_many_files_at_once_are_all_recorded_and_none_is_made_twice(toy: Callable[..., Path]) -> None:
    folder = toy(MANY_FILES.replace("FILES", str(FILES)), **{"in": "0"})
    done = run("labdag", "run", "--jobs", "8", cwd=folder)
    assert "8 stages: 8 run, 0 reused" in done.stdout
    assert ran(folder) == Counter(map(str, range(8)))
    assert {entry["outs"][0]["nfiles"] for entry in lock(folder).values()} == {FILES}
    assert len(lock(folder)) == 8
    assert run("dvc", "status", cwd=folder).stdout.strip() == "Data and pipelines are up to date."


def test_a_killed_run_is_taken_up_and_ends_as_if_it_had_not_been_killed(steps: Path, chance: random.Random) -> None:
    by_dvc = copied(steps)
    for number in range(1, KILLS + 1):
        for folder in (steps, by_dvc):
            (folder / "params.yaml").write_text(json.dumps({"x": number}))
        victim = ("flow", "dvc", "command", "supervisor")[number % 4]
        process = subprocess.Popen(
            ["labdag", "run", "--jobs", "3"], cwd=steps, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(0.2, 3.5))
        kill(psutil.Process(process.pid), victim, chance)
        process.wait(60)
        wait_for(lambda: not left_behind(steps), seconds=5)
        recorded = [name for name, entry in lock(steps).items() if entry["params"]["params.yaml"]["x"] == number]
        run("labdag", "run", "--jobs", "3", cwd=steps)
        counts = ran(steps)
        assert {name: counts[name] for name in recorded} == dict.fromkeys(recorded, 1), (number, victim)
        run("dvc", "repro", "--quiet", cwd=by_dvc)
        assert contents(steps) == contents(by_dvc), (number, victim)
        assert lock(steps) == lock(by_dvc), (number, victim)
        assert not left_behind(steps)


def kill(flow: psutil.Process, victim: str, chance: random.Random) -> None:
    """Kill the victim, or if it is not there, as it is before and after the stages, the flow itself."""
    family = [child for child in flow.children(recursive=True) if not is_flows_server(child)]
    depth = {flow.pid: 0}
    for child in family:
        depth[child.pid] = depth.get(child.ppid(), 0) + 1
    level = {"supervisor": 1, "dvc": 2, "command": 3}.get(victim, 0)
    candidates = [child for child in family if depth[child.pid] >= level and (level == 3 or depth[child.pid] == level)]
    found = chance.choice(candidates) if level and candidates else flow
    try:
        found.kill()
    except psutil.NoSuchProcess:
        flow.kill()


def is_flows_server(process: psutil.Process) -> bool:
    try:
        return process.name() in ("git", "nvidia-smi")
    except psutil.NoSuchProcess:
        return True


def left_behind(folder: Path) -> list[str]:
    """Processes of stages in that folder."""
    found = []
    for process in psutil.process_iter():
        try:
            is_there = process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == folder
            if is_there and MARK in process.environ():
                found.append(process.name())
        except psutil.Error:
            continue
    return found


def test_what_is_edited_at_any_moment_leaves_no_false_entry(steps: Path, chance: random.Random) -> None:
    states = [("0", 0)]
    for value in range(1, EDITS + 1):
        process = subprocess.Popen(
            ["labdag", "run", "--jobs", "3"], cwd=steps, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        time.sleep(chance.uniform(0.5, 3))
        dep, x = states[-1]
        states.append((str(value), x) if chance.random() < 0.5 else (dep, value))
        put(steps, *states[-1])
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
    clone = steps.parent / "clone"
    run("git", "clone", "--quiet", steps, clone, cwd=steps)
    run("dvc", "cache", "dir", "--local", steps / ".dvc" / "cache", cwd=clone)
    restored = 0
    for dep, x in states:
        put(clone, dep, x)
        said = run("dvc", "repro", cwd=clone).stdout
        restored += said.count("is cached - skipping run")
        assert contents(clone) == expected(dep, x), (dep, x, said)
    assert restored >= EDITS


def put(folder: Path, dep: str, x: int) -> None:
    for name, text in (("in", dep), ("params.yaml", json.dumps({"x": x}))):
        if (folder / name).read_text() != text:
            (folder / "new").write_text(text)
            (folder / "new").replace(folder / name)


def expected(dep: str, x: int) -> dict[str, str]:
    """What the stages make of their inputs."""
    made = {name: json.dumps({"x": x, "of": {"in": dep}}) for name in ("a.txt", "c.json", "e.txt")}
    made["b/all"] = json.dumps({"x": x, "of": {"a.txt": made["a.txt"]}})
    made["d.txt"] = json.dumps({"x": x, "of": {"b/all": made["b/all"], "c.json": made["c.json"]}})
    return made


BIG = """
stages:
  big:
    cmd: echo big >> COUNT && head -c 6000000 /dev/zero > big
    deps: [in]
    outs: [big]
  next: {cmd: wc -c < big > next, deps: [big], outs: [next]}
"""


class Disk:
    """A small file system that is mounted and grows on request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, *options: str) -> None:
        done = subprocess.run(["mount", *options, self.folder], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"file systems can't be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    disk.folder.mkdir()
    disk.mount("-t", "tmpfs", "-o", "size=10m", "tmpfs")
    yield disk
    subprocess.run(["umount", "--lazy", disk.folder], check=True)


@pytest.fixture
def on_disk(disk: Disk, tmp_path: Path) -> Path:
    """A project that fits the disk, as long as it has not run."""
    folder = disk.folder / "project"
    folder.mkdir()
    (folder / "dvc.yaml").write_text(BIG.replace("COUNT", str(tmp_path / "ran")))
    (folder / "in").write_text("1")
    run("git", "init", "--quiet", cwd=folder)
    run("dvc", "init", "--quiet", cwd=folder)
    return folder


def test_on_a_full_disk_nothing_is_lost_and_once_there_is_room_nothing_runs_again(on_disk: Path, disk: Disk) -> None:
    done = run("labdag", "run", cwd=on_disk, check=False)
    assert done.returncode == 1
    error = done.stderr[done.stderr.index("Error: ") :]
    assert "No space left on device" in error
    assert "It is all left in place" in error
    assert (on_disk / "big").stat().st_size == 6_000_000
    disk.mount("-o", "remount,size=64m")
    done = run("labdag", "run", cwd=on_disk)
    assert "2 stages: 1 run, 1 reused" in done.stdout
    assert (disk.folder.parent / "ran").read_text().split() == ["big"]
    assert run("dvc", "status", cwd=on_disk).stdout.strip() == "Data and pipelines are up to date."


def test_with_a_cache_that_can_only_be_read_nothing_is_lost(on_disk: Path, disk: Disk) -> None:
    disk.mount("-o", "remount,size=64m")
    (on_disk / ".dvc" / "cache").mkdir()
    cache = Disk(on_disk / ".dvc" / "cache")
    cache.mount("--bind", str(cache.folder))
    cache.mount("-o", "remount,ro,bind")
    done = run("labdag", "run", cwd=on_disk, check=False)
    assert done.returncode == 1
    error = done.stderr[done.stderr.index("Error: ") :]
    assert "Read-only file system" in error
    assert "It is all left in place" in error
    subprocess.run(["umount", cache.folder], check=True)
    assert "2 stages: 1 run, 1 reused" in run("labdag", "run", cwd=on_disk).stdout
    assert (disk.folder.parent / "ran").read_text().split() == ["big"]
