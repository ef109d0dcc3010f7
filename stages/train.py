"""Stage train@<lab>: train a lab's model by its recipe and keep the weights of the best epoch.

Reads   params.yaml: labs.<lab>.{dataset,seed,compute,model,transform,train}
        data/raw/<dataset>/, data/stats/<dataset>.json, results/<lab>/init.safetensors
Writes  results/<lab>/best.safetensors, results/<lab>/history.csv
        .checkpoints/<lab>/: the state of the training, until it has succeeded
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from stages.datasets import arrays, statistics
from stages.datasets.transforms import Pipeline, Transform
from stages.learning import checkpoint, history, loop, weights
from stages.learning.device import choose_device, emulates_bf16, memory_format
from stages.learning.images import Images
from stages.learning.recipe import Compute, Recipe
from stages.models import build_model, model_options
from stages.program.command import command
from stages.program.options import PARAMS_FILE, DatasetName, Options, Seed, UserError, blame, read_section


class Section(Options):
    """What this stage reads of a lab's block."""

    dataset: DatasetName
    seed: Seed
    compute: Compute
    model: dict[str, Any]
    transform: Transform
    train: Recipe


def main(lab: str) -> None:
    """Train lab `lab`."""
    where, results = f"labs.{lab}", Path("results") / lab
    section = read_section("labs", lab, Section)
    options = model_options(section.model, f"{where}.model")
    with blame(where):
        device = choose_device(section.compute)
    if emulates_bf16(section.compute, device):
        print(
            f"{PARAMS_FILE}: {where}.compute.precision is bf16, for which this processor has no instructions: "
            "it takes several times as long as fp32",
            flush=True,
        )

    dataset = arrays.load(section.dataset)
    _check_fit(section, options, dataset, where)
    with blame(where):
        model = build_model(options)
        weights.load(model, results / "init.safetensors")
        model.to(device)
        pipeline = Pipeline(section.transform, statistics.load(section.dataset))
        training, test = (
            Images(split, pipeline, device, memory_format(section.compute)) for split in (dataset.train, dataset.test)
        )
        state = checkpoint.Checkpoint(lab, _key(section, results, device))
        clock = time.perf_counter()
        best_state, epochs = loop.train(model, training, test, section.train, section.compute, section.seed, state)
        seconds = time.perf_counter() - clock

    weights.save(best_state, results / "best.safetensors")
    history.save(epochs, results / "history.csv")
    state.clear()
    best = history.best(epochs)
    print(
        f"{lab}: best epoch {best.epoch} of {len(epochs)} by {section.train.select_on} accuracy; "
        f"test accuracy {best.test_accuracy:.2%}, loss {best.test_loss:.4f}; {seconds:.1f} s of training"
    )


def _key(section: Section, results: Path, device: torch.device) -> str:
    """Hash of all that this stage reads."""
    images = [path for path in (arrays.ROOT / section.dataset).rglob("*") if path.is_file()]
    files = [*images, statistics.ROOT / f"{section.dataset}.json", results / "init.safetensors"]
    return checkpoint.key(section.model_dump(), files, device)


def _check_fit(section: Section, options: Any, dataset: arrays.Dataset, where: str) -> None:
    """Hold the lab's options against its dataset; a line for each that does not fit."""
    misfit = section.transform.misfit(options.input_shape, section.dataset, dataset.shape)
    classes = len(dataset.classes)
    images = len(dataset.train) - section.train.held_out(len(dataset.train))
    faults = [misfit] if misfit else []
    if options.classes != classes:
        faults.append(f"model.classes is {options.classes}, but {section.dataset} has {classes} classes.")
    if (batch := section.train.batch_size) > images:
        faults.append(f"train.batch_size is {batch}, but there are only {images} images to train on.")
    if faults:
        raise UserError("\n".join(f"{PARAMS_FILE}: {where}.{fault}" for fault in faults))


if __name__ == "__main__":
    command(main, "LAB", __doc__)
