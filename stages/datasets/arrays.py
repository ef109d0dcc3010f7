"""A dataset as arrays, the one form in which every other stage meets it: uint8 images and their labels."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.program.files import write_json
from stages.program.options import UserError

ROOT = Path("data/raw")


@dataclass(frozen=True)
class Split:
    """Images and labels that belong together.

    Attributes:
        images: uint8, N×C×H×W.
        labels: int64, N, each an index into the dataset's class names.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[1] not in (1, 3):
            raise ValueError(f"images must be uint8 N×C×H×W, not {self.images.dtype} {self.images.shape}")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels must be int64, one an image, not {self.labels.dtype} {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Training and test images with the names of their classes, in label order."""

    train: Split
    test: Split
    classes: list[str]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: channels, height, width."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def save(dataset: Dataset, folder: Path) -> None:
    """Write a dataset as .npy files and classes.json into an existing folder; the same bytes every time.

    Images that `stored` has written are moved there.
    """
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        _save(folder / f"{name}_images.npy", split.images)
        _save(folder / f"{name}_labels.npy", split.labels)
    write_json(folder / "classes.json", dataset.classes)


def load(name: str) -> Dataset:
    """Open dataset `name` as download left it. Images are memory-mapped: read when they are looked at.

    Raises:
        FileNotFoundError: the dataset has not been downloaded.
        UserError: its files are damaged.
    """
    folder = ROOT / name

    def split(part: str) -> Split:
        try:
            images: Any = np.load(folder / f"{part}_images.npy", mmap_mode="r", allow_pickle=False)
            return Split(images, np.load(folder / f"{part}_labels.npy", allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise UserError(f"the arrays in {folder} are damaged; run download again: {error}") from None

    classes = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
    return Dataset(split("train"), split("test"), classes)


def stored(path: Path, images: Iterable[NDArray[np.uint8]], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Write images one by one into a .npy file, and open it: of a set that may not fit in memory.

    Args:
        path: of the new file; `save` moves it to where it belongs.
        images: uint8, C×H×W each.
        shape: of all of them, N×C×H×W.

    Returns:
        uint8, N×C×H×W, memory-mapped.

    Raises:
        OSError: the disk is full, or the folder can't be written.
    """
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for image in images:
            file.write(np.ascontiguousarray(image).data)
    return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def place(images: NDArray[np.uint8]) -> tuple[Path, int] | None:
    """The file of images that `load` or `stored` has mapped, and where in it they begin; None of any others."""
    if isinstance(images, np.memmap) and isinstance(images.base, mmap.mmap):  # and not a part of such
        return Path(str(images.filename)), images.offset
    return None


def blocks(images: NDArray[np.uint8], pixels: int) -> Iterator[NDArray[np.uint8]]:
    """All images in order, N×C×H×W, as many at a time as have so many pixels, or one.

    Those of a mapped file are read and not mapped: its pages would count as this process's memory.
    """
    size = math.prod(images.shape[1:])
    many, file = max(1, pixels // size), place(images)
    for start in range(0, len(images), many):
        if file is None:
            yield images[start : start + many]
        else:
            count = min(many, len(images) - start) * size
            part = np.fromfile(file[0], np.uint8, count, offset=file[1] + start * size)
            yield part.reshape(-1, *images.shape[1:])


def _save(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file as np.save does, which on a full disk would raise an OSError that does not say so."""
    if written := place(array):  # by `stored`
        written[0].replace(path)
        return
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(array.data)
