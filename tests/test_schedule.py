"""In which order stages start, and how much room they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from labdag.execution.schedule import Schedule, chains, detected
from labdag.meta import Meta
from labdag.pipeline.graph import Stage


def stage(name: str, *upstream: str, **slots: int) -> Stage:
    return Stage(name, upstream, Meta(slots=slots))


def by_name(*stages: Stage) -> dict[str, Stage]:
    return {each.name: each for each in stages}


def test_the_longest_chain_starts_first() -> None:
    stages = by_name(stage("a"), stage("b"), stage("c", "b"), stage("d", "c"), stage("e"), stage("f", "e"))
    assert chains(stages) == {"a": 1, "b": 3, "c": 2, "d": 1, "e": 2, "f": 1}
    assert [each.name for each in Schedule(stages, 9, {}).startable()] == ["b", "e", "a"]


def test_a_stage_starts_when_all_that_it_depends_on_has_ended_and_jobs_allow() -> None:
    stages = by_name(stage("a"), stage("b"), stage("c", "a", "b", "elsewhere"))
    order = Schedule(stages, 1, {})
    seen = []
    while order.waiting:
        started = []
        for each in order.startable():
            order.start(each)
            started.append(each.name)
        assert len(started) == 1
        order.end(started[0])
        seen += started
    assert seen == ["a", "b", "c"]


def test_stages_run_within_slots_and_smaller_ones_fill_the_gaps() -> None:
    stages = by_name(stage("a", gpu=1), stage("b", gpu=1), stage("c", cpu=1), stage("d", cpu=2))
    order = Schedule(stages, 9, {"cpu": 2, "gpu": 1})
    for each in order.startable():
        order.start(each)
    assert order.running == {"a", "c"}
    order.end("a")
    for each in order.startable():
        order.start(each)
    assert order.running == {"b", "c"}
    order.end("c")
    assert [each.name for each in order.startable()] == ["d"]


def test_who_wants_more_than_there_is_gets_all_of_it() -> None:
    stages = by_name(stage("a", cpu=8, gpu=1), stage("b", cpu=1))
    order = Schedule(stages, 9, {"cpu": 2, "gpu": 0})
    assert order.shortage(stages["a"]) == "8 cpu, of which there are 2 and 1 gpu, of which there are 0"
    assert order.shortage(stages["b"]) is None
    for each in order.startable():
        order.start(each)
    assert order.running == {"a"}


@pytest.mark.parametrize(("visible", "count"), [(None, 2), ("", 0), ("-1", 0), ("1", 1), ("0,1,2", 2)])
def test_gpus_are_counted_as_far_as_they_are_visible(
    visible: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [Path(f"/dev/nvidia{name}") for name in ("0", "1", "ctl", "-uvm")]
    monkeypatch.setattr(Path, "glob", lambda *_: devices)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert detected()["gpu"] == count
