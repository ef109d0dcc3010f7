"""Which stages may start: those whose upstream has ended, longest chain first, as long as there is room."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from labdag.errors import UserError
from labdag.pipeline.graph import Stage

CPU, GPU = "cpu", "gpu"


def detected() -> dict[str, int]:
    """The slots that this machine has: its CPU cores, as far as this process may use them, and NVIDIA GPUs."""
    gpus = [path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = gpus[: len([name for name in visible.split(",") if name.strip() not in ("", "-1")])]
    return {CPU: len(os.sched_getaffinity(0)), GPU: len(gpus)}


def sizes(stages: Mapping[str, Stage], told: Mapping[str, int]) -> dict[str, int]:
    """How much there is of each resource: what this machine has, but for what is `told` otherwise.

    Args:
        stages: all of the pipeline.
        told: by the user.

    Raises:
        UserError: a resource of that name is unknown.
    """
    there = detected()
    known = {*there, *(name for stage in stages.values() for name in stage.meta.slots)}
    if strange := [name for name in told if name not in known]:
        raise UserError(
            f"No stage's meta.slots has '{strange[0]}', so it can't be limited; there are {', '.join(sorted(known))}."
        )
    return {**there, **told}


def chains(stages: Mapping[str, Stage]) -> dict[str, int]:
    """For each stage, how many stages the longest chain has that begins with it.

    Args:
        stages: each after those that it depends on.
    """
    longest = dict.fromkeys(stages, 1)
    for stage in reversed(list(stages.values())):
        for up in stage.upstream:
            if up in longest:
                longest[up] = max(longest[up], longest[stage.name] + 1)
    return longest


class Schedule:
    """The order in which stages start.

    Args:
        stages: what is to be run, each after those that it depends on.
        jobs: how many may run at once.
        slots: how much there is of each resource.

    Attributes:
        running: names of the stages that run.
        waiting: names of the stages that have not started.
    """

    def __init__(self, stages: Mapping[str, Stage], jobs: int, slots: Mapping[str, int]) -> None:
        self.jobs, self.slots = jobs, dict(slots)
        longest = chains(stages)
        self._stages = dict(sorted(stages.items(), key=lambda item: -longest[item[0]]))
        self._missing = {name: {up for up in stage.upstream if up in stages} for name, stage in stages.items()}
        self._readers: dict[str, list[str]] = {name: [] for name in stages}
        for name, upstream in self._missing.items():
            for up in upstream:
                self._readers[up].append(name)
        self._taken: Counter[str] = Counter()
        self._ready = {name for name, missing in self._missing.items() if not missing}
        self.running: set[str] = set()
        self.waiting = set(stages)

    def startable(self) -> Iterator[Stage]:
        """Stages for which there is room, best first; the caller may `start` each as it comes."""
        for name, stage in self._stages.items():
            if len(self.running) >= self.jobs:
                return
            if name in self._ready and self._has_room(stage):
                yield stage

    def start(self, stage: Stage) -> None:
        """Count the stage as running."""
        self.waiting.remove(stage.name)
        self._ready.remove(stage.name)
        self.running.add(stage.name)
        self._taken.update(self._wanted(stage))

    def end(self, name: str) -> None:
        """Count the stage as ended, which makes room, and makes others ready."""
        self.running.remove(name)
        self._taken.subtract(self._wanted(self._stages[name]))
        for reader in self._readers[name]:
            self._missing[reader].discard(name)
            if not self._missing[reader]:
                self._ready.add(reader)

    def shortage(self, stage: Stage) -> str | None:
        """What the stage wants more of than there is at all, if so; it then runs with all there is."""
        short = [
            f"{size} {name}, of which there are {self.slots.get(name, 0)}"
            for name, size in stage.meta.slots.items()
            if size > self.slots.get(name, 0)
        ]
        return " and ".join(short) or None

    def _wanted(self, stage: Stage) -> dict[str, int]:
        return {name: min(size, self.slots.get(name, 0)) for name, size in stage.meta.slots.items()}

    def _has_room(self, stage: Stage) -> bool:
        return all(self._taken[name] + size <= self.slots.get(name, 0) for name, size in self._wanted(stage).items())
