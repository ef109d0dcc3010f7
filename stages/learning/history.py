"""A training's history: one row an epoch, and which epoch was the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.program.files import read_csv, write_csv

COLUMNS = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
VALIDATION_COLUMNS = ("validation_loss", "validation_accuracy")


@dataclass(frozen=True)
class Epoch:
    """Losses (mean over the images) and accuracies (fractions of 1) of one epoch.

    Attributes:
        epoch: number, from 1.
        train_loss: over the epoch's batches, as they were trained on.
        train_accuracy: likewise.
        test_loss: on the test images, after the epoch.
        test_accuracy: likewise.
        validation_loss: on the held-out part of the training images, where there is one.
        validation_accuracy: likewise.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None

    @property
    def selecting_accuracy(self) -> float:
        """The accuracy by which the best epoch is picked: on validation images where there are some."""
        return self.test_accuracy if self.validation_accuracy is None else self.validation_accuracy


def best(history: Sequence[Epoch]) -> Epoch:
    """The epoch of highest selecting accuracy; the first of equals."""
    return max(history, key=lambda epoch: (epoch.selecting_accuracy, -epoch.epoch))


def save(history: Sequence[Epoch], path: Path) -> None:
    """Write history.csv; the columns on validation are there only where a part was held out."""
    held_out = history[0].validation_accuracy is not None
    columns = COLUMNS + VALIDATION_COLUMNS if held_out else COLUMNS
    write_csv(path, columns, [[getattr(epoch, column) for column in columns] for epoch in history])


def load(path: Path) -> list[Epoch]:
    """Read history.csv."""
    return [
        Epoch(int(row.pop("epoch")), **{column: float(value) for column, value in row.items()})
        for row in read_csv(path)
    ]
