"""Predictions class by class: which are right, and which class is taken for which."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def confusion_matrix(actual: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts, classes×classes: row = the true class, column = the predicted one."""
    return np.bincount(actual * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def per_class(
    actual: NDArray[np.int64], predicted: NDArray[np.int64], names: list[str]
) -> dict[str, dict[str, float | int]]:
    """Accuracy, precision, recall, F1 and count of each class.

    A class's accuracy is the part of its images that were recognised, which is its recall. Where a class was
    never predicted its precision and F1 are 0; where it has no test image, its accuracy and recall are 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        actual, predicted, labels=np.arange(len(names)), average=None, zero_division=0.0
    )
    return {
        name: {
            "accuracy": float(recall),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "count": int(count),
        }
        for name, precision, recall, f1, count in zip(names, *columns, strict=True)
    }
