"""Labelled images as a training meets them: turned into inputs a batch at a time, resident where they fit."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.datasets.arrays import Split, place
from stages.datasets.transforms import Pipeline
from stages.program.options import UserError

AHEAD = 2  # batches that are read from disk while one is trained on
ALIGNED = 64  # bytes; what begins elsewhere than at a multiple a library may compute otherwise, in other bits
TOGETHER = 1 << 22  # bytes of inputs that are made in one go, if a batch is less
PART_OF_MEMORY = 0.4  # of what is available, that one split may take up


class Images:
    """Labelled images that turn into model inputs batch by batch.

    They are resident on the device, as uint8, if they fit there; otherwise each batch is read from the dataset's file
    when its turn comes, two ahead, which takes 24 bytes an image (its label, its row, its place in the order)
    beside `split`'s label, and the memory of three batches. The inputs are the same, bit for bit.

    Args:
        split: the images.
        pipeline: makes inputs of them.
        device: where they are wanted.
        layout: of the inputs; the model's weights should have the same.

    Attributes:
        labels: int64, N, on the device.
        is_resident: whether all images are on the device.

    Raises:
        UserError: LABDAG_RESIDENT_MIB is no whole number.
    """

    def __init__(
        self,
        split: Split,
        pipeline: Pipeline,
        device: torch.device,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.labels = torch.from_numpy(np.array(split.labels)).to(device)
        self._pixels: _Pixels = _OnDisk.of(split.images, device) or _Resident(split.images, device)
        self._pipeline, self._layout = pipeline, layout

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_resident(self) -> bool:
        """Whether all images are on the device."""
        return isinstance(self._pixels, _Resident)

    def part(self, indices: Tensor) -> Images:
        """The images at `indices` (int64, on the CPU), as a set of their own."""
        chosen = object.__new__(Images)
        chosen.labels = self.labels[indices.to(self.labels.device)]
        chosen._pixels = self._pixels.part(indices)
        chosen._pipeline, chosen._layout = self._pipeline, self._layout
        return chosen

    def batches(
        self, batches: Sequence[Tensor | slice], random: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Float32 inputs N×C×H×W and int64 labels N, batch by batch.

        Args:
            batches: which images, in which order.
            random: of the crops and flips that the transform asks for in training; without it there are none.
        """
        groups = self._groups(batches, random)
        joined = [group[0] if len(group) == 1 else torch.cat(group) for group in groups]  # type: ignore[arg-type]
        for group, indices, pixels in zip(groups, joined, self._pixels.batches(joined), strict=True):
            inputs = self._pipeline(pixels, random).contiguous(memory_format=self._layout)
            labels = self.labels[indices]
            if len(group) == 1:
                yield inputs, labels
            else:
                sizes = [len(batch) for batch in group]  # type: ignore[arg-type]
                yield from zip(torch.split(inputs, sizes), torch.split(labels, sizes), strict=True)

    def _groups(
        self, batches: Sequence[Tensor | slice], random: torch.Generator | None
    ) -> list[Sequence[Tensor | slice]]:
        """The batches, as many together as are worth being made into inputs in one go.

        With LeNet-5 on MNIST, where each operation on a batch of 64 costs more to begin than to do, it gives 1.05 times
        the speed (fp32, 2 CPU threads with AVX-512, median of 5; with AVX2 1.02). Where crops and flips are drawn, each
        batch is made when its turn comes, for then the generator stands after each step where a checkpoint would find
        it.
        """
        count = 1
        if batches and isinstance(batches[0], Tensor) and self.is_resident and not self._pipeline.draws(random):
            size = 4 * len(batches[0]) * math.prod(self._pipeline.shape(self._pixels.shape))
            count = max(1, TOGETHER // size) if size % ALIGNED == 0 else 1
        return [batches[start : start + count] for start in range(0, len(batches), count)]

    def in_order(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, `size` at a time."""
        return self.batches([slice(start, start + size) for start in range(0, len(self), size)])


class _Pixels(Protocol):
    """The images of a set, uint8.

    Attributes:
        shape: C×H×W of an image.
    """

    shape: tuple[int, ...]

    def part(self, indices: Tensor) -> _Pixels:
        """Those at `indices`, as a set of their own."""

    def batches(self, batches: Iterable[Tensor | slice]) -> Iterator[Tensor]:
        """Some at a time, N×C×H×W, on the device."""


class _Resident:
    """All images on the device.

    Against a plain loop, with a DataLoader that transforms images one by one with PIL, this trains LeNet-5 on MNIST at
    1.8 times the speed, and with channels_last inputs and weights 1.17 times that (batch 64, fp32, 2 CPU threads with
    AVX-512; median of 3).
    """

    def __init__(self, images: NDArray[np.uint8], device: torch.device) -> None:
        self.shape = images.shape[1:]
        self._images = torch.from_numpy(np.array(images)).to(device)
        self._rows: Tensor | None = None  # those of the set, if not all

    def part(self, indices: Tensor) -> _Resident:
        chosen = object.__new__(_Resident)
        chosen.shape, chosen._images = self.shape, self._images  # and no copy of them
        indices = indices.to(self._images.device)
        chosen._rows = indices if self._rows is None else self._rows[indices]
        return chosen

    def batches(self, batches: Iterable[Tensor | slice]) -> Iterator[Tensor]:
        return (self._images[indices if self._rows is None else self._rows[indices]] for indices in batches)


class _OnDisk:
    """Images that stay in their file, from which each batch is read.

    They are read and not mapped: pages of a mapped file would count as this process's memory. From a file that the
    system keeps in memory LeNet-5 trains at 0.93 times the speed of resident images; there two batches ahead are worth
    1.01 (batch 64, fp32, 2 CPU threads), and more where there is a disk to wait for.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], rows: Tensor, device: torch.device) -> None:
        self._path, self._offset, self.shape, self._rows, self._device = path, offset, shape, rows, device

    @classmethod
    def of(cls, images: NDArray[np.uint8], device: torch.device) -> _OnDisk | None:
        """None where the images are in memory already, or fit."""
        file = place(images)
        if file is None or images.nbytes <= _room(device):
            return None
        return cls(*file, images.shape[1:], torch.arange(len(images)), device)

    def part(self, indices: Tensor) -> _OnDisk:
        return _OnDisk(self._path, self._offset, self.shape, self._rows[indices], self._device)

    def batches(self, batches: Iterable[Tensor | slice]) -> Iterator[Tensor]:
        coming: deque[Future[Tensor]] = deque()
        # Brought here at once: each time the GPU would have to be waited for.
        places = [indices if isinstance(indices, slice) else indices.cpu() for indices in batches]
        with self._path.open("rb") as file, ThreadPoolExecutor(1) as reader:
            for indices in places:
                coming.append(reader.submit(self._read, file.fileno(), indices))
                if len(coming) > AHEAD:
                    yield coming.popleft().result().to(self._device, non_blocking=True)
            while coming:
                yield coming.popleft().result().to(self._device, non_blocking=True)

    def _read(self, file: int, indices: Tensor | slice) -> Tensor:
        rows = self._rows[indices].tolist()
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        flat = images.view(len(rows), -1).numpy()
        for number in np.argsort(rows):  # as they lie in the file
            if os.preadv(file, [flat[number]], self._offset + rows[number] * flat.shape[1]) != flat.shape[1]:
                raise UserError(f"{self._path} was cut short while it was read; run download again.")
        return images


def _room(device: torch.device) -> float:
    """How many bytes of images may be resident on a device."""
    if (limit := os.environ.get("LABDAG_RESIDENT_MIB")) is not None:
        if not limit.isdecimal():
            raise UserError(f"LABDAG_RESIDENT_MIB is {limit!r}, but should be a whole number of MiB, such as 4096.")
        return float(int(limit) << 20)
    if device.type == "cuda":
        return PART_OF_MEMORY * torch.cuda.mem_get_info(device)[0]
    return PART_OF_MEMORY * min(psutil.virtual_memory().available, _left_to_container())


def _left_to_container() -> float:
    """How many bytes the limit of this process's container leaves, if there is one."""
    group = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # there is none of this version, or its limit is "max"
            return float(int((group / limit).read_text()) - int((group / used).read_text()))
    return math.inf
