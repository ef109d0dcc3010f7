"""What the flow costs and saves beside plain `dvc repro`, in one run, as a table in Markdown.

    python -m benchmarks.orchestration              # all three, 3 rounds: half an hour
    python -m benchmarks.orchestration sleep --rounds 1

sleep: 8 independent stages that sleep for 4 s each.
nothing: 10, 50 and 200 stages with nothing to do.
course: labdag's own course, with commands that write a few bytes in the place of its trainings: nothing to do, and all
restored from DVC's cache after `results/` and `data/` were deleted.

`labdag run` is timed as a user has it, from the shell, against a Prefect server that runs already. Figures are medians
over rounds, in each of which everything runs once, in turn. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.projects import copy_project, run, server
from benchmarks.results import machine

ROOT = Path(__file__).parents[1]
JOBS = (1, 2, 4, 8)
SLEEPING = 8
SECONDS = 4
SIZES = (10, 50, 200)
DVC = "dvc repro"
# Writes each output that it is told: of folders, one file.
WRITE = """for out in "$@"; do
  case $out in
    data/raw/*) mkdir -p "$out" && echo "$out" > "$out/images" ;;
    *) mkdir -p "$(dirname "$out")" && echo '{"accuracy": 0.5}' > "$out" ;;
  esac
done
"""

Times = dict[str, list[float]]


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[[], *MEASUREMENTS], help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="how often (default: 3)")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds should be 1 or more")
    print(f"{machine()}, median of {options.rounds}\n")
    with tempfile.TemporaryDirectory() as folder, server(Path(folder) / "prefect") as api:
        os.environ["PREFECT_API_URL"] = api
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        for name in options.what or MEASUREMENTS:
            MEASUREMENTS[name](Path(folder), options.rounds)


def sleep(folder: Path, rounds: int) -> None:
    """Time stages that sleep."""
    stages = {f"s{n}": {"cmd": f"sleep {SECONDS} && echo {n} > {n}", "outs": [str(n)]} for n in range(SLEEPING)}
    project = _project(folder / "sleep", stages)

    def forget() -> None:
        for path in [project / "dvc.lock", project / ".dvc" / "cache", *(project / str(n) for n in range(SLEEPING))]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    times = _times(project, rounds, forget)
    print(f"| {SLEEPING} stages of {SECONDS} s | seconds | times as fast |\n| :--- | ---: | ---: |")
    rival = statistics.median(times[DVC])
    for what, seconds in times.items():
        print(f"| `{what}` | {statistics.median(seconds):.1f} | {rival / statistics.median(seconds):.2f} |")
    print(flush=True)


def nothing(folder: Path, rounds: int) -> None:
    """Time pipelines in which nothing is to be done."""
    found = {}
    for size in SIZES:
        stages = {f"s{n}": {"cmd": f"echo {n} > {n}", "deps": ["data"], "outs": [str(n)]} for n in range(size)}
        project = _project(folder / f"nothing{size}", stages)
        run(project, "labdag", "run")
        found[size] = _times(project, rounds)
    print(f"| nothing to do, seconds | {' | '.join(f'{size} stages' for size in SIZES)} | ms a stage | over DVC's |")
    print("| :--- |" + " ---: |" * (len(SIZES) + 2))
    each = {what: _slope([statistics.median(found[size][what]) for size in SIZES]) for what in found[SIZES[0]]}
    for what, milliseconds in each.items():
        row = " | ".join(f"{statistics.median(found[size][what]):.1f}" for size in SIZES)
        print(f"| `{what}` | {row} | {milliseconds:.1f} | {milliseconds - each[DVC]:+.1f} |")
    print(flush=True)


def _slope(seconds: list[float]) -> float:
    """Milliseconds that a stage takes, from the smallest pipeline and the largest."""
    return 1000 * (seconds[-1] - seconds[0]) / (SIZES[-1] - SIZES[0])


def course(folder: Path, rounds: int) -> None:
    """Time labdag's own course, without its trainings."""
    project = folder / "course"
    copy_project(project)
    (project / "write.sh").write_text(WRITE)
    text = (project / "dvc.yaml").read_text()
    for stage in YAML(typ="safe").load(text)["stages"].values():
        outs = [out for kind in ("outs", "metrics", "plots") for out in stage["do"].get(kind, [])]
        names = " ".join(out if isinstance(out, str) else next(iter(out)) for out in outs)
        command = str(stage["do"]["cmd"])
        text = text.replace(f"cmd: {command}\n", f"cmd: sh write.sh {names}\n")
    (project / "dvc.yaml").write_text(text)
    done = run(project, "labdag", "run", "--jobs", str(JOBS[-1]))
    count = re.search(r"^(\d+) stages: \1 run", done, re.MULTILINE)
    assert count, done

    def delete() -> None:
        for name in ("data", "results"):
            shutil.rmtree(project / name)

    print(f"| the course, {count[1]} stages, seconds | nothing to do | restored from the cache, once |")
    print("| :--- | ---: | ---: |")
    unchanged, restored = _times(project, rounds), _times(project, 1, delete)
    for what in unchanged:
        row = (statistics.median(unchanged[what]), statistics.median(restored[what]))
        print(f"| `{what}` | {row[0]:.1f} | {row[1]:.1f} |")
    print(flush=True)


MEASUREMENTS: dict[str, Callable[[Path, int], None]] = {"sleep": sleep, "nothing": nothing, "course": course}


def _project(folder: Path, stages: Mapping[str, object]) -> Path:
    folder.mkdir()
    (folder / "data").write_text("data\n")
    YAML().dump({"stages": stages}, folder / "dvc.yaml")
    run(folder, "git", "init", "--quiet")
    run(folder, "dvc", "init", "--quiet")
    return folder


def _times(project: Path, rounds: int, prepare: Callable[[], None] = lambda: None) -> Times:
    """Seconds that each command takes, in each round, after `prepare`."""
    commands = {DVC: ["dvc", "repro"]} | {
        f"labdag run --jobs {jobs}": ["labdag", "run", "--jobs", str(jobs)] for jobs in JOBS
    }
    times: Times = {what: [] for what in commands}
    for _ in range(rounds):
        for what, command in commands.items():
            prepare()
            started = time.perf_counter()
            run(project, *command)
            times[what].append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main()
