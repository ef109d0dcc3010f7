"""Stage evaluate@<lab>: test the best weights once more, image by image and class by class.

Reads   params.yaml: labs.<lab>.{dataset,compute,model,transform,evaluate}
        data/raw/<dataset>/, data/stats/<dataset>.json
        results/<lab>/best.safetensors, results/<lab>/history.csv
Writes  results/<lab>/metrics.json: accuracy, loss, best_epoch, final_accuracy, and per class accuracy,
        precision, recall, f1 and count
        results/<lab>/predictions.csv: for each test image its actual and predicted class and the confidence
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.datasets import arrays, statistics
from stages.datasets.transforms import Pipeline, Transform
from stages.learning import history, weights
from stages.learning.classes import confusion_matrix, per_class
from stages.learning.device import choose_device, memory_format
from stages.learning.evaluation import Evaluation
from stages.learning.images import Images
from stages.learning.recipe import Compute
from stages.learning.scoring import predict
from stages.models import build_model, model_options
from stages.program.command import command
from stages.program.files import write_csv, write_json
from stages.program.options import DatasetName, Options, blame, read_section


class Section(Options):
    """What this stage reads of a lab's block."""

    dataset: DatasetName
    compute: Compute
    model: dict[str, Any]
    transform: Transform
    evaluate: Evaluation


def main(lab: str) -> None:
    """Evaluate lab `lab`."""
    where, results = f"labs.{lab}", Path("results") / lab
    section = read_section("labs", lab, Section)
    options = model_options(section.model, f"{where}.model")
    with blame(where):
        device = choose_device(section.compute)

    dataset = arrays.load(section.dataset)
    with blame(where):
        model = build_model(options)
        pipeline = Pipeline(section.transform, statistics.load(section.dataset))
    weights.load(model, results / "best.safetensors")
    layout = memory_format(section.compute)
    model.to(device).to(memory_format=layout)
    images = Images(dataset.test, pipeline, device, layout)
    made = predict(model, images, section.evaluate.batch_size, section.compute)
    scored = made.score(images.labels)

    epochs = history.load(results / "history.csv")
    best = history.best(epochs)
    confidence, predicted, actual = made.confidence.cpu().numpy(), made.classes.cpu().numpy(), dataset.test.labels
    metrics = {
        "accuracy": scored.accuracy,
        "loss": scored.loss,
        "best_epoch": best.epoch,
        "final_accuracy": epochs[-1].test_accuracy,
        "per_class": per_class(actual, predicted, dataset.classes),
    }
    names = dataset.classes
    rows = (
        (index, names[a], names[p], f"{c:.6f}")
        for index, (a, p, c) in enumerate(zip(actual, predicted, confidence, strict=True))
    )
    write_csv(results / "predictions.csv", ("index", "actual", "predicted", "confidence"), rows)
    write_json(results / "metrics.json", metrics)

    _print_confusion(confusion_matrix(actual, predicted, len(names)), names)
    print(f"{lab}: test accuracy {scored.accuracy:.2%}, loss {scored.loss:.4f} (epoch {best.epoch})")
    if scored.accuracy != best.test_accuracy:
        print(f"{lab}: training saw {best.test_accuracy:.2%}; the batch size or the device differs from training's")


def _print_confusion(matrix: NDArray[np.int64], names: list[str]) -> None:
    width = max(6, *(len(name) + 1 for name in names))
    print("confusion matrix (rows: true class, columns: predicted)")
    print(" " * width + "".join(name.rjust(width) for name in names))
    for name, row in zip(names, matrix, strict=True):
        print(name.rjust(width) + "".join(str(count).rjust(width) for count in row))


if __name__ == "__main__":
    command(main, "LAB", __doc__)
