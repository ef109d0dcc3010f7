"""Mean and standard deviation of a dataset's channels, and how many images it has of each class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.datasets.arrays import Dataset, blocks
from stages.program.options import Options

ROOT = Path("data/stats")
LEVELS = 256
PIXELS_AT_ONCE = 1 << 22


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
    moments = [_moments(histogram) for histogram in _histograms(dataset.train.images)]
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


def _histograms(images: NDArray[np.uint8]) -> list[list[int]]:
    """For each channel, how many of its pixels have each level; few images at a time, for all may not fit in memory."""
    counts = np.zeros((images.shape[1], LEVELS), np.int64)
    for part in blocks(images, PIXELS_AT_ONCE):
        for channel in range(images.shape[1]):
            counts[channel] += np.bincount(part[:, channel].ravel(), minlength=LEVELS)
    return [[int(count) for count in channel] for channel in counts]


def _moments(counts: list[int]) -> tuple[float, float]:
    """Mean and std on the 0-1 scale, from a histogram: sums of whole numbers, so no rounding on the way."""
    pixels = sum(counts)
    total = sum(level * count for level, count in enumerate(counts))
    squares = sum(level * level * count for level, count in enumerate(counts))
    variance = (squares * pixels - total * total) / (pixels * pixels)
    return total / pixels / (LEVELS - 1), variance**0.5 / (LEVELS - 1)
