"""Mean and standard deviation of a dataset's channels, and how many images it has of each class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.datasets.arrays import Dataset
from stages.program.options import Options

ROOT = Path("data/stats")
LEVELS = 256


class Statistics(Options):
    """Content of `data/stats/<dataset>.json`.

    Attributes:
        mean: of each channel of the training images, on the scale where pixels run from 0 to 1.
        std: likewise, the population's standard deviation.
        train: number of training images.
        test: number of test images.
        classes: class name → number of training images.
    """

    mean: list[float]
    std: list[float]
    train: int
    test: int
    classes: dict[str, int]


def compute(dataset: Dataset) -> Statistics:
    """Compute a dataset's statistics; mean and std are exact up to the last rounding to float64."""
    moments = [_moments(dataset.train.images[:, channel]) for channel in range(dataset.shape[0])]
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.classes))
    return Statistics(
        mean=[mean for mean, _ in moments],
        std=[std for _, std in moments],
        train=len(dataset.train),
        test=len(dataset.test),
        classes={name: int(count) for name, count in zip(dataset.classes, counts, strict=True)},
    )


def load(name: str) -> Statistics:
    """Read the statistics that the stats stage wrote for dataset `name`.

    Raises:
        FileNotFoundError: the stats stage has not run.
    """
    return Statistics.model_validate(json.loads((ROOT / f"{name}.json").read_text(encoding="utf-8")))


def _moments(channel: NDArray[np.uint8]) -> tuple[float, float]:
    """Mean and std on the 0-1 scale, from a histogram: sums of whole numbers, so no rounding on the way."""
    histogram = sum(np.bincount(part.ravel(), minlength=LEVELS) for part in np.array_split(channel, 64))
    levels, counts = range(LEVELS), [int(count) for count in np.asarray(histogram)]
    pixels = sum(counts)
    total = sum(level * count for level, count in zip(levels, counts, strict=True))
    squares = sum(level * level * count for level, count in zip(levels, counts, strict=True))
    variance = (squares * pixels - total * total) / (pixels * pixels)
    return total / pixels / (LEVELS - 1), variance**0.5 / (LEVELS - 1)
