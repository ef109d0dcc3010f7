"""Charts of a lab: how training went, and where the trained model is right and wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from stages.learning.history import Epoch, best
from stages.show.grids import BLUE, GREEN, GREY, VERMILLION, house_style, shortened

WIDTH = 8.4  # inches
MOST_BARS = 50
MOST_COUNTS = 20  # classes of a confusion matrix whose cells are still wide enough for a number
MOST_NAMES = 60  # and whose rows are still high enough for a name

# Line and marker differ as well as colour.
CURVES = (("train", BLUE, "-", "o"), ("validation", GREEN, ":", "^"), ("test", VERMILLION, "--", "s"))


@house_style()
def curves(epochs: Sequence[Epoch]) -> Figure:
    """Draw loss and accuracy by epoch in two panels, the best epoch marked."""
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    chosen = best(epochs).epoch
    for axes, measure in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, color, line, marker in CURVES:
            values = [getattr(epoch, f"{part}_{measure}") for epoch in epochs]
            if values[0] is None:
                continue
            numbers = [epoch.epoch for epoch in epochs]
            every = max(1, len(epochs) // 20)
            axes.plot(numbers, values, line, color=color, marker=marker, markersize=4, markevery=every, label=part)
        axes.axvline(
            chosen, color="black", linewidth=1, linestyle=(0, (1, 2)), label=f"best epoch ({chosen})", zorder=1
        )
        axes.set(xlabel="epoch", title=measure)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y", color=GREY, alpha=0.25)
        if measure == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


@house_style()
def per_class(accuracies: Mapping[str, float], overall: float) -> Figure:
    """Draw the accuracy of each class as a bar, the lowest one hatched; of many classes only the lowest.

    Args:
        accuracies: class name → part of the class's test images that were recognised, in label order.
        overall: accuracy on all test images.
    """
    names, what = list(accuracies), "accuracy"
    if len(names) > MOST_BARS:
        names = sorted(names, key=lambda name: accuracies[name])[:MOST_BARS]
        what = f"accuracy of the {MOST_BARS} classes where it is lowest"
    values = [accuracies[name] for name in names]
    lowest = values.index(min(values))

    figure = Figure(figsize=(WIDTH, 0.9 + 0.27 * len(names)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(names)), values, color=BLUE, height=0.7)
    if values[lowest] < 1:
        bars[lowest].set(facecolor="white", edgecolor=VERMILLION, hatch="////")
    axes.axvline(overall, color="black", linewidth=1, linestyle="--")
    for place, value in enumerate(values):
        axes.annotate(f"{value:.2%}", (1.015, place), va="center", annotation_clip=False)
    axes.set_yticks(range(len(names)), [shortened(name, 24) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set(
        xlim=(0, 1.1),
        xticks=np.linspace(0, 1, 5),
        ylim=(len(names) - 0.4, -0.6),
        xlabel=f"{what} (dashed line: all test images, {overall:.2%})",
    )
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.spines["bottom"].set_bounds(0, 1)
    return figure


@house_style()
def confusion(matrix: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Draw a confusion matrix; colour says which part of its row a cell is, so that mistakes show up.

    Args:
        matrix: counts, classes×classes: row = the true class, column = the predicted one.
        names: of the classes.
    """
    classes = len(names)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(8.0, max(4.0, 1.4 + 0.56 * classes))
    figure = Figure(figsize=(side + 0.5, side - 0.3), layout="constrained")
    axes = figure.subplots()
    # Of the whole range of colours, the power gives one half to shares below 15 %.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.37, vmin=0, vmax=1))
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.02, label="part of the true class")
    bar.set_ticks([0, 0.01, 0.1, 0.5, 1], labels=["0%", "1%", "10%", "50%", "100%"])
    axes.set(xlabel="predicted", ylabel="true")
    if classes <= MOST_COUNTS:
        _counts(axes, matrix, np.asarray(image.norm(shares)))
    if classes <= MOST_NAMES:
        ticks = [shortened(name, 14) for name in names]
        size = min(9.5, 400 / classes)
        upright = max(len(name) for name in ticks) <= 3
        axes.set_xticks(range(classes), ticks, rotation=0 if upright else 90, fontsize=size)
        axes.set_yticks(range(classes), ticks, fontsize=size)
    for spine in axes.spines.values():
        spine.set_visible(True)
    axes.tick_params(length=0)
    return figure


def _counts(axes: Axes, matrix: NDArray[np.int64], shades: NDArray[Any]) -> None:
    """Write the counts into the cells, white on dark shades and black on light ones; zeros stay empty."""
    size = min(9.5, 110 / len(matrix))
    for row, column in np.argwhere(matrix).tolist():
        color = "white" if shades[row, column] > 0.6 else "black"
        axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", color=color, fontsize=size)
