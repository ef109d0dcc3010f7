"""Handwritten digits that ship inside scikit-learn: real images, no download.

1,797 images of 8×8 pixels with 17 grey levels, by 43 writers: the test part of "Optical Recognition of
Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from stages.datasets.arrays import Dataset, Split
from stages.datasets.sources import Archive
from stages.program.options import Options

GREY_LEVELS = 16


class Source(Options):
    """scikit-learn's bundled digits, brought to a square size and split into training and test images."""

    kind: Literal["digits"] = Field(description="Handwritten digits that ship inside scikit-learn; no download.")
    size: int = Field(ge=8, le=512, description="Height and width to which the 8×8 images are brought, in pixels.")
    test_fraction: float = Field(
        gt=0, lt=1, description="Part of the images kept for testing, the same for every class."
    )
    seed: int = Field(ge=0, le=2**32 - 1, description="Seed of the split into training and test images.")

    def shape(self) -> list[int]:
        """Channels, height and width of the images."""
        return [1, self.size, self.size]


def archives(_source: Source) -> list[Archive]:
    """Nothing to fetch: the images come with scikit-learn."""
    return []


def verify(_source: Source) -> None:
    """Nothing: scikit-learn's version is pinned."""


def read(source: Source, _folder: Path) -> Dataset:
    """Scale the grey levels to 0-255, resize bilinearly and split by class with a fixed seed."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = np.round(digits.images * (255 / GREY_LEVELS)).astype(np.uint8)
    images = np.stack([_resized(image, source.size) for image in grey])[:, np.newaxis]
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=source.test_fraction, stratify=labels, random_state=source.seed
    )
    names = [str(name) for name in digits.target_names]
    return Dataset(Split(images[train], labels[train]), Split(images[test], labels[test]), names)


def _resized(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
