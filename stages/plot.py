"""Stage plot@<lab>: a lab in pictures, and one page that holds all there is to see of it.

Reads   params.yaml: labs.<lab>.{about,dataset,seed,compute,model,transform,train,plot,expect}
        data/raw/<dataset>/, data/stats/<dataset>.json, data/stats/<dataset>_4x5.png, <dataset>_8x5.png
        results/<lab>/: model.txt, model.json, best.safetensors, history.csv, metrics.json, predictions.csv
Writes  results/<lab>/plots/: curves, per_class, confusion and predictions.png; mistakes.png where there are
        any; transform.png where the transform does more than normalise; filters.png and feature_maps.png
        where the model has convolutions or poolings
        results/<lab>/report.html: one page with everything inside
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from stages.datasets import arrays, statistics
from stages.datasets.statistics import Statistics
from stages.datasets.transforms import Pipeline, Transform, normalization
from stages.learning import history, weights
from stages.learning.classes import confusion_matrix
from stages.learning.expectation import Expectation, judge
from stages.learning.recipe import Compute, Recipe
from stages.learning.scoring import autocast
from stages.models import build_model, model_options
from stages.program.command import command
from stages.program.files import new_folder, read_csv, write_bytes, write_text
from stages.program.options import DatasetName, Options, Seed, blame, read_section
from stages.show import figures, page, pictures
from stages.show.grids import png, spread
from stages.show.layers import Layer, trace
from stages.show.page import Plot

SHOWN = 20
TRANSFORMED, AUGMENTED, DRAWS = 12, 8, 3


class Section(Options):
    """What this stage reads of a lab's block."""

    about: str
    dataset: DatasetName
    seed: Seed
    compute: Compute
    model: dict[str, Any]
    transform: Transform
    train: Recipe
    plot: Plot
    expect: Expectation


class Eyes:
    """What a model sees of the images of one dataset.

    Args:
        transform: of the lab.
        statistics: of the dataset.

    Raises:
        OptionError: the normalisation does not fit the dataset.
    """

    def __init__(self, transform: Transform, statistics: Statistics) -> None:
        self._pipeline = Pipeline(transform, statistics)
        self._mean, self._std = (torch.tensor(v).view(-1, 1, 1) for v in normalization(transform, statistics))

    def inputs(self, images: NDArray[np.uint8], random: torch.Generator | None = None) -> Tensor:
        """Float32 inputs N×C×H'×W' of images N×C×H×W; with `random`, as in training."""
        return self._pipeline(torch.from_numpy(np.array(images)), random)

    def see(self, images: NDArray[np.uint8], random: torch.Generator | None = None) -> NDArray[np.uint8]:
        """The same inputs as images one can look at: uint8, their normalisation undone."""
        scaled = self.inputs(images, random) * self._std + self._mean
        seen: NDArray[np.uint8] = (scaled * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        return seen


def main(lab: str) -> None:
    """Draw lab `lab` and write its page."""
    where, results = f"labs.{lab}", Path("results") / lab
    section = read_section("labs", lab, Section)
    options = model_options(section.model, f"{where}.model")
    dataset, numbers = arrays.load(section.dataset), statistics.load(section.dataset)
    epochs = history.load(results / "history.csv")
    metrics = json.loads((results / "metrics.json").read_text(encoding="utf-8"))
    actual, predicted, confidence = _predictions(results / "predictions.csv", dataset.classes)
    matrix = confusion_matrix(actual, predicted, len(dataset.classes))
    wrong = np.flatnonzero(actual != predicted)

    drawn = {
        "curves": figures.curves(epochs),
        "per_class": figures.per_class(_accuracies(metrics, dataset.classes), metrics["accuracy"]),
        "confusion": figures.confusion(matrix, dataset.classes),
    }
    images, names = dataset.test.images, dataset.classes
    some = spread(actual, SHOWN)
    drawn["predictions"] = pictures.predictions(images[some], actual[some], predicted[some], names)
    if len(wrong):
        worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN]
        drawn["mistakes"] = pictures.mistakes(images[worst], actual[worst], predicted[worst], confidence[worst], names)
    with blame(where):
        eyes = Eyes(section.transform, numbers)
        layers = _layers(options, results, eyes.inputs(images[:1]), section.compute)
    if (changes := _transformed(dataset.train, eyes, section)) is not None:
        drawn["transform"] = changes
    drawn |= _layer_figures(eyes.see(images[:1])[0], layers)

    drawings = {name: png(figure, section.plot.dpi) for name, figure in drawn.items()}
    report = page.Report(
        lab=lab,
        about=section.about,
        dataset=section.dataset,
        classes=names,
        statistics=numbers,
        size=json.loads((results / "model.json").read_text(encoding="utf-8")),
        layers=(results / "model.txt").read_text(encoding="utf-8"),
        model=page.settings(options, list(type(options).model_fields)),
        recipe=page.settings(section, ("seed", "train", "transform", "compute")),
        transform=section.transform,
        planned=section.train.epochs,
        epochs=epochs,
        expect=section.expect,
        metrics=metrics,
        mistakes=len(wrong),
        commonest=_commonest(matrix, names),
        samples=(_sample(section.dataset, "4x5"), _sample(section.dataset, "8x5")),
        pictures=drawings,
    )
    text = page.render(report)
    with new_folder(results / "plots") as folder:
        for name, drawing in drawings.items():
            write_bytes(folder / f"{name}.png", drawing)
    write_text(results / "report.html", text)
    print(f"{lab}: {len(drawings)} pictures, all on one page: {results / 'report.html'}")
    print(f"{lab}: {judge(section.expect, metrics['accuracy']).sentence}")


def _predictions(path: Path, classes: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Actual classes, predicted classes and confidences of the test images, in their order."""
    number = {name: label for label, name in enumerate(classes)}
    rows = np.fromiter(
        ((number[row["actual"]], number[row["predicted"]], float(row["confidence"])) for row in read_csv(path)),
        [("actual", np.int64), ("predicted", np.int64), ("confidence", np.float64)],
    )
    return rows["actual"], rows["predicted"], rows["confidence"]


def _accuracies(metrics: dict[str, Any], classes: list[str]) -> dict[str, float]:
    """Accuracy of each class that has test images, in label order."""
    scores = metrics["per_class"]
    return {name: scores[name]["accuracy"] for name in classes if scores[name]["count"]}


def _transformed(training: arrays.Split, eyes: Eyes, section: Section) -> Figure | None:
    """Training images before and after the lab's transform, where it does more than normalise."""
    options = section.transform
    augments = options.random_crop is not None or options.horizontal_flip is not None
    if not (augments or options.resize or options.permute):
        return None
    before = training.images[spread(training.labels, AUGMENTED if augments else TRANSFORMED)]
    random = torch.Generator().manual_seed(section.seed) if augments else None
    draws = [eyes.see(before, random) for _ in range(DRAWS if augments else 1)]
    return pictures.transformed(before, np.stack(draws, axis=1))


def _layers(options: Any, results: Path, inputs: Tensor, compute: Compute) -> list[Layer]:
    """Convolutions and poolings of the trained model, as they run on the input 1×C×H×W.

    They run on the CPU whatever there is: one image is no work, and so the pictures have the same bytes.
    """
    torch.set_num_threads(compute.threads)
    model = build_model(options)
    weights.load(model, results / "best.safetensors")
    with autocast(compute, torch.device("cpu")):
        return trace(model, inputs.contiguous(memory_format=torch.channels_last))


def _layer_figures(image: NDArray[np.uint8], layers: list[Layer]) -> dict[str, Figure]:
    drawn = {}
    kernels = [layer.weight for layer in layers if layer.weight is not None]
    if kernels and kernels[0].shape[1] in (1, 3):
        drawn["filters"] = pictures.filters(kernels[0])
    if layers:
        drawn["feature_maps"] = pictures.feature_maps(image, layers)
    return drawn


def _commonest(matrix: NDArray[np.int64], names: list[str]) -> tuple[str, str, int] | None:
    """The commonest mistake: true class, predicted class, count; the first of equals."""
    off = matrix - np.diag(np.diag(matrix))
    if not off.any():
        return None
    row, column = divmod(int(off.argmax()), len(names))
    return names[row], names[column], int(off[row, column])


def _sample(dataset: str, grid: str) -> bytes:
    return (statistics.ROOT / f"{dataset}_{grid}.png").read_bytes()


if __name__ == "__main__":
    command(main, "LAB", __doc__)
