"""Datasets that do not fit in memory: read from disk batch by batch, with the same result."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stages.datasets import arrays
from stages.datasets.arrays import Dataset, Split
from stages.datasets.statistics import Statistics
from stages.datasets.transforms import Pipeline, Transform
from stages.learning.images import Images
from stages.program.options import UserError
from tests.conftest import edit_params, run, write_dag

CPU = torch.device("cpu")
TRANSFORM = Transform.model_validate(
    {"random_crop": {"padding": 2}, "normalize": {"by": "values", "mean": [0.5] * 3, "std": [0.2] * 3}}
)
PIPELINE = Pipeline(TRANSFORM, Statistics(mean=[0.5] * 3, std=[0.2] * 3, train=1, test=1, classes={"a": 1}))


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Split:
    """Images of a dataset on disk."""
    chance = np.random.default_rng(0)
    pixels, labels = chance.integers(0, 256, (200, 3, 8, 8), np.uint8), chance.integers(0, 4, 200)
    monkeypatch.chdir(tmp_path)
    (arrays.ROOT / "some").mkdir(parents=True)
    arrays.save(Dataset(Split(pixels, labels), Split(pixels[:9], labels[:9]), list("abcd")), arrays.ROOT / "some")
    return arrays.load("some").train


def read(images: Images, random: torch.Generator) -> list[tuple[torch.Tensor, torch.Tensor]]:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    return [*images.batches(torch.split(order, 16), random), *images.in_order(33)]


def test_batches_from_disk_are_those_from_memory(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for limit in ("0", "1"):
        monkeypatch.setenv("LABDAG_RESIDENT_MIB", limit)
        images = Images(split, PIPELINE, CPU)
        assert images.is_resident == (limit == "1")
        some = images.part(torch.tensor([5, 3, 199, 3, 7]))
        random = torch.Generator().manual_seed(2)
        found.append([*read(images, random), *read(some, random)])
    assert len(found[0]) == len(found[1]) == 13 + 7 + 1 + 1
    for one, other in zip(*found, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        assert one[0].stride() == other[0].stride()


def test_a_part_of_a_mapped_array_is_not_taken_for_the_file(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABDAG_RESIDENT_MIB", "0")
    rest = Split(split.images[40:], split.labels[40:])
    assert Images(rest, PIPELINE, CPU).is_resident
    assert all((one == other).all() for one, other in zip(arrays.blocks(rest.images, 1), rest.images, strict=True))


def test_a_reader_that_stops_early_leaves_no_thread(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABDAG_RESIDENT_MIB", "0")
    batches = Images(split, PIPELINE, CPU).in_order(4)
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_a_file_cut_short_meanwhile_gets_a_sentence(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABDAG_RESIDENT_MIB", "0")
    images = Images(split, PIPELINE, CPU)
    with (arrays.ROOT / "some" / "train_images.npy").open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(UserError, match=re.escape("train_images.npy was cut short while it was read")):
        list(images.in_order(50))


@pytest.mark.parametrize("limit", ["-1", "1.5", "much"])
def test_the_limit_is_a_whole_number(limit: str, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABDAG_RESIDENT_MIB", limit)
    with pytest.raises(UserError, match=f"LABDAG_RESIDENT_MIB is '{limit}', but should be a whole number of MiB"):
        Images(split, PIPELINE, CPU)


def test_a_lab_from_disk_gives_the_same_bytes(finished_copy: Path) -> None:
    results = finished_copy / "results/lenet_digits"
    names = ("best.safetensors", "history.csv", "metrics.json", "predictions.csv")
    before = {name: (results / name).read_bytes() for name in names}
    for stage in ("train", "evaluate"):
        run("python", "-m", f"stages.{stage}", "lenet_digits", cwd=finished_copy, LABDAG_RESIDENT_MIB="0")
    assert {name: (results / name).read_bytes() for name in names} == before


PEAK = """
import importlib, resource, sys
import matplotlib.figure, numpy, sklearn.metrics, torch, torchvision.transforms.v2
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
torch.nn.Conv2d(1, 1, 3)(torch.zeros(1, 1, 8, 8)).sum().backward()
stage = importlib.import_module(f"stages.{sys.argv[1]}")
before = peak()
stage.main(sys.argv[2])
print("MiB more:", peak() - before)
"""


def lab(dataset: str, model: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """A lab's block: one epoch, in batches of `batch_size` throughout."""
    return {
        "about": "-", "dataset": dataset, "seed": 1, "compute": {"threads": 1, "precision": "fp32"}, "model": model,
        "transform": {"normalize": {"by": "dataset"}},
        "train": {
            "epochs": 1, "batch_size": batch_size, "test_batch_size": batch_size, "shuffle": True, "select_on": "test",
            "optimizer": {"name": "sgd", "lr": 0.01},
        },
        "evaluate": {"batch_size": batch_size}, "plot": {"dpi": 60}, "expect": {},
    }  # fmt: skip


def mib_more(project: Path, stage: str, name: str) -> int:
    """MiB that a stage takes beside what its libraries take, where 50 may be taken by images."""
    done = run(sys.executable, "-c", PEAK, stage, name, cwd=project, LABDAG_RESIDENT_MIB="50")
    return int(done.stdout.rpartition("MiB more: ")[2])


def test_no_stage_needs_the_memory_of_a_whole_dataset(project: Path) -> None:
    """A folder of images that come to 225 MiB is fetched, looked at, trained on and evaluated in 160 MiB."""
    chance = np.random.default_rng(0)
    for label in ("a", "b"):
        (project / "photos" / label).mkdir(parents=True)
        for number in range(150):
            picture = Image.fromarray(chance.integers(0, 256, (4, 4, 3), np.uint8))
            picture.save(project / "photos" / label / f"{number}.png")
    block = {"kind": "image_folder", "path": "photos", "size": [512, 512], "color": "rgb", "test_fraction": 0.5}
    model = {
        "name": "vgg", "input_shape": [3, 512, 512], "classes": 2, "layers": [1, "M", "M", "M", "M", "M"],
        "batch_norm": False, "classifier": {"inputs": 256, "hidden": []},
    }  # fmt: skip
    edit_params(project, datasets__large=block, labs__lab_large=lab("large", model, 4))
    write_dag(project)
    said = run("python", "-m", "stages.download", "large", cwd=project, check=False).stderr
    edit_params(project, datasets__large__sha256=said.split("sha256: ")[1].split()[0])
    for stage in ("download", "stats", "build", "train", "evaluate"):
        more = mib_more(project, stage, "large" if stage in ("download", "stats") else "lab_large")
        assert more < 160, f"{stage} took {more} MiB"


def test_the_memory_of_a_test_does_not_grow_with_images_times_classes(project: Path) -> None:
    """Logits of all test images would come to 38 MiB here, and three times that when they are joined and scored."""
    classes, images = 1000, 10_000
    block = {"kind": "image_folder", "path": "photos", "size": [4, 4], "color": "grey", "test_fraction": 0.5}
    model = {"name": "mlp", "input_shape": [1, 4, 4], "classes": classes, "hidden": [8], "output": "logits"}
    edit_params(project, datasets__many=block, labs__lab_many=lab("many", model, 100))
    write_dag(project)
    chance = np.random.default_rng(0)
    pixels, labels = chance.integers(0, 256, (images, 1, 4, 4), np.uint8), np.arange(images) % classes
    folder = project / arrays.ROOT / "many"
    folder.mkdir(parents=True)
    names = [f"class {number}" for number in range(classes)]
    arrays.save(Dataset(Split(pixels[:classes], labels[:classes]), Split(pixels, labels), names), folder)
    for stage in ("stats", "build"):
        run("python", "-m", f"stages.{stage}", "many" if stage == "stats" else "lab_many", cwd=project)
    for stage in ("train", "evaluate"):
        more = mib_more(project, stage, "lab_many")
        assert more < 60, f"{stage} took {more} MiB"
