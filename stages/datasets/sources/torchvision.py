"""MNIST, Fashion-MNIST and CIFAR-10: fetched from mirrors, read and checked by torchvision's own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from stages.datasets.arrays import Dataset, Split
from stages.datasets.sources import Archive
from stages.program.options import Options

# Short names for plots and tables, in label order, where torchvision's are long ("0 - zero", "automobile").
CLASSES = {
    "MNIST": [str(digit) for digit in range(10)],
    "CIFAR10": ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
}
# Channels, height and width of the images.
GREY, COLOR = [1, 28, 28], [3, 32, 32]


class Source(Options):
    """A dataset of torchvision, with torchvision's checksums."""

    kind: Literal["torchvision"] = Field(description="A dataset that torchvision knows, downloaded once.")
    name: Literal["MNIST", "FashionMNIST", "CIFAR10"] = Field(description="torchvision's name of the dataset.")

    def shape(self) -> list[int]:
        """Channels, height and width of the images."""
        return COLOR if self.name == "CIFAR10" else GREY


def archives(source: Source) -> list[Archive]:
    """torchvision's own files, checksums and addresses."""
    known = _torchvision(source)
    if source.name == "CIFAR10":
        return [Archive(known.filename, "md5", known.tgz_md5, (known.url,))]
    return [
        Archive(f"{source.name}/raw/{name}", "md5", md5, tuple(base + name for base in known.mirrors))
        for name, md5 in known.resources
    ]


def verify(_source: Source) -> None:
    """Nothing: all is fetched, and held against its checksum then."""


def read(source: Source, folder: Path) -> Dataset:
    """Let torchvision unpack and decode the archives; it finds them in place, so nothing is downloaded."""
    known = _torchvision(source)
    train, test = (known(folder, train=train, download=True) for train in (True, False))
    return Dataset(_split(train), _split(test), CLASSES.get(source.name, list(train.classes)))


def _split(dataset: Any) -> Split:
    images = np.asarray(dataset.data)
    # MNIST and Fashion-MNIST are N×H×W, CIFAR-10 is N×H×W×C.
    images = images[:, np.newaxis] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return Split(images, np.asarray(dataset.targets, dtype=np.int64))


def _torchvision(source: Source) -> Any:
    from torchvision import datasets

    return getattr(datasets, source.name)
