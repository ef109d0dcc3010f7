"""Labelled images as a training meets them: resident on the device, turned into inputs a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from stages.datasets.arrays import Split
from stages.datasets.transforms import normalize


class Images:
    """Labelled images, resident on a device as uint8, that turn into model inputs batch by batch.

    Against a DataLoader that transforms images one by one with PIL, this trains LeNet-5 on MNIST at 1.8 times
    the speed, and with channels_last inputs and weights 1.17 times that (batch 64, fp32, 2 CPU threads; median
    of 3).
    """

    def __init__(self, split: Split, mean: list[float], std: list[float], device: torch.device) -> None:
        self.pixels = torch.from_numpy(np.array(split.images)).to(device)
        self.labels = torch.from_numpy(np.array(split.labels)).to(device)
        self._mean, self._std = mean, std

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, indices: Tensor) -> Images:
        """The images at `indices` (int64, on the CPU), as a set of their own."""
        chosen = object.__new__(Images)
        chosen.pixels = self.pixels[indices.to(self.pixels.device)]
        chosen.labels = self.labels[indices.to(self.labels.device)]
        chosen._mean, chosen._std = self._mean, self._std
        return chosen

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Normalised float32 inputs N×C×H×W in channels_last layout, and int64 labels N."""
        inputs = normalize(self.pixels[indices], self._mean, self._std)
        return inputs.contiguous(memory_format=torch.channels_last), self.labels[indices]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))
