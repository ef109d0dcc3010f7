"""A training that was killed goes on from its last checkpoint, and ends with the bytes of one that was not."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.datasets.arrays import Split
from stages.datasets.statistics import Statistics
from stages.datasets.transforms import Pipeline, Transform
from stages.learning import checkpoint, loop
from stages.learning.checkpoint import Checkpoint
from stages.learning.history import Epoch
from stages.learning.images import Images
from stages.learning.recipe import Compute, Recipe
from stages.models import build_model, model_options
from stages.program.options import UserError
from tests.conftest import STRESS, edit_params, run, wait_for

# A bit of everything that has a state: batch normalisation, dropout, crops and flips, a schedule, validation images.
# On a CPU its convolutions are computed in each `Way`, and as Conv2d does.
MODEL = {
    "name": "vgg", "input_shape": [3, 8, 8], "classes": 4, "layers": [8, 8, "M", 128, "M", 128], "batch_norm": True,
    "classifier": {"inputs": 512, "hidden": [16], "dropout": 0.5},
}  # fmt: skip
RECIPE = {
    "epochs": 4, "batch_size": 16, "test_batch_size": 50, "shuffle": True, "select_on": "validation",
    "optimizer": {"name": "adam", "lr": 3e-3}, "schedule": {"name": "cosine", "warmup_epochs": 1}, "clip_norm": 1.0,
    "early_stopping": {"patience": 3},
}  # fmt: skip
TRANSFORM = {
    "random_crop": {"padding": 1}, "horizontal_flip": 0.5,
    "normalize": {"by": "values", "mean": [0.5] * 3, "std": [0.2] * 3},
}  # fmt: skip
BATCHES = 9  # of an epoch: 160 images less 16 of validation


class Killed(BaseException):
    """As if the process had been killed just after it had saved its state."""


class Deadly(Checkpoint):
    """A checkpoint that is saved after each batch; the process dies with the nth."""

    def __init__(self, lives: int) -> None:
        super().__init__("lab", "key")
        self._lives = lives

    def is_due(self) -> bool:
        return True

    def save(self, state: Any) -> None:
        super().save(state)
        self._lives -= 1
        if self._lives == 0:
            raise Killed


def trained(
    precision: str, state: Checkpoint | None, device: str = "cpu", **options: Any
) -> tuple[dict[str, Tensor], list[Epoch]]:
    chance = np.random.default_rng(0)
    pixels, labels = chance.integers(0, 256, (160, 3, 8, 8), np.uint8), chance.integers(0, 4, 160)
    known = Statistics(mean=[0.5] * 3, std=[0.2] * 3, train=160, test=160, classes={"a": 1})
    pipeline = Pipeline(Transform.model_validate(TRANSFORM), known)
    images = Images(Split(pixels, labels), pipeline, torch.device(device))
    torch.manual_seed(0)
    model = build_model(model_options(MODEL, "model")).to(device)
    compute = Compute.model_validate({"threads": 1, "precision": precision})
    return loop.train(model, images, images, Recipe.model_validate(RECIPE | options), compute, 1, state)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lives", [1, 4, BATCHES, BATCHES + 1, BATCHES + 2, 3 * (BATCHES + 1) + 5])
def test_a_training_broken_off_anywhere_ends_the_same(
    precision: str, lives: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state, history = trained(precision, None)
    with pytest.raises(Killed):
        trained(precision, Deadly(lives))
    torch.rand(7)  # whatever else has happened to the global generator
    capsys.readouterr()
    again, later = trained(precision, Checkpoint("lab", "key"))
    assert capsys.readouterr().out.startswith("going on from a checkpoint: ")
    assert later == history
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)


def test_a_training_killed_after_its_last_epoch_has_nothing_left_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state, history = trained("fp32", None)
    with pytest.raises(Killed):
        trained("fp32", Deadly(len(history) * (BATCHES + 1)))
    monkeypatch.setattr(loop, "_train_epoch", None)
    again, later = trained("fp32", Checkpoint("lab", "key"))
    assert later == history
    assert all(torch.equal(state[name], again[name]) for name in state)


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("spoil", [lambda _: b"", lambda content: content[:-300], flipped])
def test_a_damaged_checkpoint_is_told_and_the_training_starts_afresh(
    spoil: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state, history = trained("fp32", None)
    with pytest.raises(Killed):
        trained("fp32", Deadly(4))
    path = Checkpoint("lab", "key").path
    path.write_bytes(spoil(path.read_bytes()))
    capsys.readouterr()
    again, later = trained("fp32", Checkpoint("lab", "key"))
    assert f"the checkpoint {path} is damaged; starting afresh" in capsys.readouterr().out
    assert later == history
    assert all(torch.equal(state[name], again[name]) for name in state)


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / checkpoint.ROOT).symlink_to("/proc")  # where nobody can write
    assert trained("fp32", Checkpoint("lab", "key"))[1] == trained("fp32", None)[1]
    assert "no checkpoint saved (" in capsys.readouterr().out


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_costs_that_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = trained("fp32", None)[1]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        assert trained("fp32", Checkpoint("lab", "key"))[1] == expected
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "no checkpoint saved (" in capsys.readouterr().out
    assert [*(tmp_path / checkpoint.ROOT).rglob("*.*")] == []


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "inf", "nan"])
def test_how_often_to_save_is_a_number_of_minutes(minutes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABDAG_CHECKPOINT_MINUTES", minutes)
    with pytest.raises(UserError, match=f"LABDAG_CHECKPOINT_MINUTES is '{minutes}', but should be a number"):
        Checkpoint("lab", "key")


def test_a_checkpoint_within_an_epoch_is_due_after_so_many_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setenv("LABDAG_CHECKPOINT_MINUTES", "2")
    state = Checkpoint("lab", "key")
    now += 119
    assert not state.is_due()
    now += 1
    assert state.is_due()


# The stage itself, in a process that is killed.
OUTS = ("best.safetensors", "history.csv")


def stage(folder: Path) -> subprocess.Popen[str]:
    """The train stage of lenet_digits, saving its state after each batch."""
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train", "lenet_digits"],
        cwd=folder,
        env=os.environ | {"LABDAG_CHECKPOINT_MINUTES": "1e-9"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def saved(folder: Path) -> list[int]:
    """When the checkpoint was saved, if there is one."""
    return [path.stat().st_mtime_ns for path in (folder / checkpoint.ROOT).rglob("*.pt")]


def is_saved_since(folder: Path, before: list[int]) -> bool:
    return saved(folder) != before


def remade(folder: Path) -> dict[str, bytes]:
    """Make the outputs of the train stage anew; tells their bytes."""
    found = {name: (folder / "results/lenet_digits" / name).read_bytes() for name in OUTS}
    for name in OUTS:
        (folder / "results/lenet_digits" / name).unlink()
    return found


@pytest.mark.timeout(3600 if STRESS else 300)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_trainings_killed_at_random_moments_end_with_the_same_bytes(finished_copy: Path, precision: str) -> None:
    folder, chance = finished_copy, random.Random(7)
    small = MODEL | {"input_shape": [1, 28, 28], "classes": 10, "layers": [8, "M", 16, "M", "M", "M"]}
    edit_params(
        folder,
        labs__lenet_digits__compute__precision=precision,
        labs__lenet_digits__model=small | {"classifier": {"inputs": 16, "hidden": [16], "dropout": 0.5}},
        labs__lenet_digits__train__epochs=20,
        labs__lenet_digits__train__schedule={"name": "cosine"},
        labs__lenet_digits__transform__random_crop={"padding": 2},
    )
    run("python", "-m", "stages.build", "lenet_digits", cwd=folder)
    undisturbed = stage(folder)
    undisturbed.communicate()
    expected = remade(folder)
    for _ in range(10 if STRESS else 1):
        for _ in range(3 if STRESS else 1):
            before, killed = saved(folder), stage(folder)
            wait_for(partial(is_saved_since, folder, before))
            time.sleep(chance.random())
            killed.kill()
            killed.communicate()
        said, _ = stage(folder).communicate()
        assert "going on from a checkpoint" in said
        assert remade(folder) == expected
        assert not list((folder / checkpoint.ROOT).rglob("*.pt"))


@pytest.mark.parametrize("what", ["param", "code"])
def test_a_changed_input_starts_afresh(finished_copy: Path, what: str) -> None:
    process = stage(finished_copy)
    states = finished_copy / checkpoint.ROOT / "lenet_digits"
    wait_for(lambda: list(states.glob("*.pt")))
    process.kill()
    process.communicate()
    if what == "param":
        edit_params(finished_copy, labs__lenet_digits__train__epochs=2)
    else:
        with (finished_copy / "stages" / "train.py").open("a") as program:
            program.write("# edited\n")
    said = run("python", "-m", "stages.train", "lenet_digits", cwd=finished_copy).stdout
    assert "going on" not in said
    assert not states.exists()
