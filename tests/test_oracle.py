"""Plain DVC as the oracle: on random pipelines with random edits, labdag runs the same stages and leaves the same."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from labdag.execution.plan import Will, plan
from labdag.pipeline.graph import Pipeline
from tests.conftest import STRESS, run

EXAMPLES = int(os.environ.get("LABDAG_STRESS_DAGS", 200 if STRESS else 4))
SOURCES = ("x.txt", "y.txt", "sub/z.txt")
PARAMS = ("p", "q", "group.r")
# Sums up all numbers that it is given, and halves the sum: what changes upstream may make no difference downstream.
COMMAND = "echo {name} >> $RAN && cat {reads} /dev/null | awk '{{s+=$1}} END {{print int((s+{constant})/2)}}' > {first}"


@dataclass
class Step:
    """One stage of a random pipeline; `reads` are numbers of earlier steps, sources and params."""

    number: int
    steps: list[int]
    sources: list[str]
    params: list[str]
    constant: int
    out: str  # file, folder, uncached, metric or two
    inside: bool  # whether sub/dvc.yaml has it
    frozen: bool

    @property
    def name(self) -> str:
        return f"s{self.number}"

    @property
    def outs(self) -> list[str]:
        """Paths from the root."""
        return {
            "folder": [f"o{self.number}"],
            "two": [f"o{self.number}.txt", f"o{self.number}b.txt"],
        }.get(self.out, [f"o{self.number}.txt"])

    def block(self, steps: list[Step]) -> dict[str, Any]:
        folder = Path("sub" if self.inside else ".")
        read = [*self.sources, *(out for number in self.steps for out in steps[number].outs)]
        made = [os.path.relpath(out, folder) for out in self.outs]
        deps = [os.path.relpath(path, folder) for path in read]
        files = " ".join(f"{dep}/*" if Path(dep).suffix == "" else dep for dep in deps)
        first = f"{made[0]}/n" if self.out == "folder" else made[0]
        command = COMMAND.format(name=self.name, reads=files, constant=self.constant, first=first)
        if self.out == "folder":
            command = f"mkdir -p {made[0]} && {command} && cp {first} {made[0]}/m"
        elif self.out == "two":
            command += f" && cp {first} {made[1]}"
        block: dict[str, Any] = {"cmd": command}
        if self.out == "uncached":
            block["outs"] = [{made[0]: {"cache": False}}]
        else:
            block["metrics" if self.out == "metric" else "outs"] = made
        if deps:
            block["deps"] = deps
        if self.params:
            block["params"] = [{os.path.relpath("params.yaml", folder): list(self.params)}]
        return block | ({"frozen": True} if self.frozen else {})


@dataclass
class World:
    """A pipeline and what it reads."""

    steps: list[Step]
    sources: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SOURCES, 1))
    params: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARAMS, 1))

    def write(self, folder: Path) -> None:
        yaml = YAML()
        (folder / "sub").mkdir(exist_ok=True)
        for inside, path in ((False, "dvc.yaml"), (True, "sub/dvc.yaml")):
            stages = {step.name: step.block(self.steps) for step in self.steps if step.inside is inside}
            yaml.dump({"stages": stages}, folder / path)
        values = {key: value for key, value in self.params.items() if "." not in key}
        yaml.dump(values | {"group": {"r": self.params["group.r"]}}, folder / "params.yaml")
        for path, value in self.sources.items():
            (folder / path).write_text(f"{value}\n")


@st.composite
def worlds(draw: st.DrawFn) -> World:
    steps: list[Step] = []
    for number in range(draw(st.integers(1, 6))):
        earlier = [] if number == 0 else draw(st.lists(st.integers(0, number - 1), unique=True, max_size=3))
        sources = draw(st.lists(st.sampled_from(SOURCES), unique=True, max_size=2))
        steps.append(
            Step(
                number,
                earlier,
                sources,
                draw(st.lists(st.sampled_from(PARAMS), unique=True, max_size=2)),
                draw(st.integers(0, 1)),
                draw(st.sampled_from(("file", "file", "folder", "two", "uncached", "metric"))),
                draw(st.booleans()),
                frozen=False,
            )
        )
    return World(steps)


SMALL = st.integers(1, 3)  # so few values that what was there before comes back
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("source"), st.sampled_from(SOURCES), SMALL),
        st.tuples(st.just("param"), st.sampled_from(PARAMS), SMALL),
        st.tuples(st.just("command"), st.integers(0, 5), st.integers(0, 1)),
        st.tuples(st.just("delete"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("spoil"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("freeze"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("forget"), st.just(0), st.just(0)),
    ),
    max_size=3,
)


def edit(world: World, folders: tuple[Path, Path], how: str, what: Any, value: Any) -> None:
    if how == "source":
        world.sources[what] = value
    elif how == "param":
        world.params[what] = value
    elif how == "forget":
        for folder in folders:
            for lock in folder.rglob("dvc.lock"):
                lock.unlink()
    elif what < len(world.steps):
        step = world.steps[what]
        if how == "command":
            step.constant = value
        elif how == "freeze":
            step.frozen = value
        else:
            for path in (folder / out for folder in folders for out in step.outs):
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.exists():
                    path.unlink()
                if how == "spoil" and step.out != "folder":
                    path.write_text("9\n")


def state(folder: Path, world: World) -> dict[str, Any]:
    """What a run leaves: outputs, dvc.lock, and the run-cache."""
    outs = [
        path for step in world.steps for out in step.outs for path in sorted([folder / out, *(folder / out).glob("*")])
    ]
    runs = folder / ".dvc" / "cache" / "runs"
    return {
        "outs": {str(path.relative_to(folder)): path.read_text() for path in outs if path.is_file()},
        "locks": {str(lock.relative_to(folder)): lock.read_text() for lock in sorted(folder.rglob("dvc.lock"))},
        "runs": sorted(str(path.relative_to(runs)) for path in runs.rglob("*") if path.is_file()),
    }


def ran(folder: Path) -> Counter[str]:
    path = folder.with_suffix(".ran")
    found = Counter(path.read_text().split()) if path.exists() else Counter[str]()
    path.unlink(missing_ok=True)
    return found


# What may come of what `labdag plan` says.
MEANT = {
    Will.UNCHANGED: {"unchanged"},
    Will.RECORD: {"recorded"},
    Will.RESTORE: {"restored"},
    Will.RUN: {"run", "restored"},
    Will.MAYBE: {"unchanged", "run", "restored", "recorded"},
    Will.FAIL: set[str](),
    Will.SKIP: set[str](),
}


# The same, where nothing upstream runs: then all is known before.
EXACT = MEANT | {Will.RUN: {"run"}, Will.MAYBE: set[str]()}


def is_known(name: str, stages: dict[str, Any], steps: dict[str, Any]) -> bool:
    """Whether nothing upstream of a stage will run, or may."""
    return all(
        steps[up].will not in (Will.RUN, Will.MAYBE) and is_known(up, stages, steps) for up in stages[name].upstream
    )


def told_by_dvc(name: str, said: str) -> str:
    """What `dvc repro` did to a stage."""
    signs = {"Running stage '{}'": "run", "Stage '{}' is cached": "restored", "Stage '{}' didn't change": "unchanged"}
    return next((what for sign, what in signs.items() if sign.format(name) in said), "recorded")


@pytest.mark.timeout(7200)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES < 50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(world=worlds(), rounds=st.lists(EDITS, min_size=1, max_size=3), jobs=st.sampled_from("14"))
def test_the_same_stages_run_and_leave_the_same(
    world: World,
    rounds: list[list[tuple[str, Any, Any]]],
    jobs: str,
    tmp_path: Path,
    empty_repository: Path,
    prefect_server: str,
) -> None:
    folders = (tmp_path / "dvc", tmp_path / "labdag")
    by_dvc, by_labdag = folders
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        ran(folder)
        shutil.copytree(empty_repository, folder, symlinks=True)
    for edits in [[], *rounds]:
        for how, what, value in edits:
            edit(world, folders, how, what, value)
        for folder in folders:
            world.write(folder)
        with Pipeline(by_labdag) as pipeline:
            stages = pipeline.stages
            steps = {step.stage: step for step in plan(pipeline, stages)}
        oracle = ("dvc", "repro", "--all-pipelines")
        done = run(*oracle, cwd=by_dvc, check=False, RAN=str(by_dvc.with_suffix(".ran")), DVC_NO_ANALYTICS="1")
        environment = {"RAN": str(by_labdag.with_suffix(".ran")), "PREFECT_API_URL": prefect_server}
        ours = run("labdag", "run", "--jobs", jobs, cwd=by_labdag, check=False, **environment)
        if done.returncode != 0:
            assert {Will.FAIL, Will.MAYBE}.intersection(step.will for step in steps.values()), (steps, done.stderr)
            event("DVC failed")
            assert ours.returncode != 0, done.stderr
            return
        assert ours.returncode == 0, ours.stdout + ours.stderr
        expected, found = ran(by_dvc), ran(by_labdag)
        assert expected == found, done.stdout + ours.stderr
        assert f" {len(found)} run, " in ours.stdout
        assert state(by_dvc, world) == state(by_labdag, world), done.stdout + ours.stderr
        for name, step in steps.items():
            meant = EXACT if is_known(name, stages, steps) else MEANT
            assert told_by_dvc(name, done.stdout) in meant[step.will], (step, done.stdout)
        event(f"{len(expected)} of {len(world.steps)} stages ran")
