"""Pictures of a lab: test images with what the model made of them, its filters and its feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stages.show.grids import CELL, GAP, GREEN, TITLE_LINE, VERMILLION, displayed, gallery, house_style, shortened, show

if TYPE_CHECKING:
    from stages.show.layers import Layer

GALLERY_COLUMNS = 5
MOST_FILTERS = 64
FILTER_COLUMNS = 8
MOST_LAYERS = 8
MOST_MAPS = 8
LEAST_MAPS = 6  # columns that a row's caption needs
ARROW = 0.3  # inches between an image and what becomes of it


@house_style()
def predictions(
    images: NDArray[np.uint8],
    actual: NDArray[np.int64],
    predicted: NDArray[np.int64],
    names: Sequence[str],
) -> Figure:
    """Draw test images with true and predicted names; a frame, its dashes and a sign tell right from wrong.

    Args:
        images: N×C×H×W, at least one.
        actual: true classes, N.
        predicted: predicted classes, N.
        names: of the classes.
    """
    right = (actual == predicted).tolist()
    titles = [
        f"{'✓' if good else '✗'} true: {shortened(names[a], 11)}\npredicted: {shortened(names[p], 11)}"
        for good, a, p in zip(right, actual, predicted, strict=True)
    ]
    figure = gallery(images, titles, GALLERY_COLUMNS)
    for axes, good in zip(figure.axes, right, strict=True):
        _frame(axes, GREEN if good else VERMILLION, "-" if good else (0, (3, 1.5)), 2 if good else 4)
    return figure


@house_style()
def mistakes(
    images: NDArray[np.uint8],
    actual: NDArray[np.int64],
    predicted: NDArray[np.int64],
    confidences: NDArray[np.float64],
    names: Sequence[str],
) -> Figure:
    """Draw wrongly recognised images, each under `true → predicted` and the model's confidence.

    Args:
        images: N×C×H×W, at least one.
        actual: true classes, N.
        predicted: predicted classes, N.
        confidences: probabilities of the predicted classes, N, as fractions of 1.
        names: of the classes.
    """
    arrow = " → " if max(len(name) for name in names) <= 7 else "\n→ "
    titles = [
        f"{shortened(names[a])}{arrow}{shortened(names[p])}\n{confidence:.2%}"
        for a, p, confidence in zip(actual, predicted, confidences, strict=True)
    ]
    return gallery(images, titles, GALLERY_COLUMNS)


@house_style()
def transformed(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Figure:
    """Draw images, and beside each what a transform makes of it.

    Args:
        before: N×C×H×W.
        after: N×draws×C×H'×W', one draw or more of each image.
    """
    draws = after.shape[1]
    groups = 3 if draws == 1 else 2  # side by side
    side, rows = 0.8 * CELL - GAP, -(-len(before) // groups)
    group = (1 + draws) * side + ARROW + draws * GAP + 2 * GAP
    tall = side * max(1.0, after.shape[3] / after.shape[4])
    width, height = groups * group, rows * (tall + GAP) + 2 * TITLE_LINE
    figure = Figure(figsize=(width, height))
    for place, (image, becomes) in enumerate(zip(before, after, strict=True)):
        row, column = divmod(place, groups)
        left, bottom = column * group + GAP, height - 2 * TITLE_LINE - (row + 1) * (tall + GAP) + GAP
        lefts = [left, *(left + side + ARROW + draw * (side + GAP) for draw in range(draws))]
        cells = []
        for start, shown in zip(lefts, (image, *becomes), strict=True):
            cells.append(figure.add_axes((start / width, bottom / height, side / width, tall / height)))
            show(cells[-1], shown)
        middle = (left + side + ARROW / 2) / width
        figure.text(middle, (bottom + tall / 2) / height, "→", ha="center", va="center", fontsize="x-large")
        if row == 0:
            cells[0].set_title("before", fontsize="small", pad=4)
            cells[(1 + draws) // 2].set_title(
                "after" if draws == 1 else f"after, {draws} draws", fontsize="small", pad=4
            )
    return figure


@house_style()
def filters(weight: NDArray[np.float32]) -> Figure:
    """Draw a convolution's filters: of one channel by a scale of two colours, of three as colours.

    Args:
        weight: filters×channels×height×width, with 1 or 3 channels; the first 64 filters are drawn.
    """
    shown = weight[:MOST_FILTERS]
    largest = float(np.abs(shown).max()) or 1.0
    columns = min(FILTER_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(0.95 * columns + 0.8, 1.1 * rows + 0.1), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (axes, kernel) in enumerate(zip(grid.flat, shown, strict=False), start=1):
        if len(kernel) == 1:
            image = axes.imshow(kernel[0], cmap="PuOr_r", vmin=-largest, vmax=largest)
        else:
            image = axes.imshow(displayed(kernel) / largest / 2 + 0.5)
        axes.set_title(str(number), fontsize="small", pad=2)
    if weight.shape[1] == 1:
        figure.colorbar(image, ax=grid, shrink=0.9, aspect=12 * rows, pad=0.01, label="weight")
    return figure


@house_style()
def feature_maps(image: NDArray[np.uint8], layers: Sequence[Layer]) -> Figure:
    """Draw an image and, a row a layer, what each convolution and pooling makes of it.

    Each row has colours of its own, from its smallest value (dark) to its largest (bright).

    Args:
        image: C×H×W, as the model sees it.
        layers: as they ran, at least one; at most 8 are drawn, the first one, the last one and others at even
            distances, and the first 8 maps of each.
    """
    drawn = [layers[place] for place in np.unique(np.linspace(0, len(layers) - 1, MOST_LAYERS).round().astype(int))]
    columns = min(MOST_MAPS, max(LEAST_MAPS, *(len(layer.maps) for layer in drawn)))
    aspect = image.shape[1] / image.shape[2]
    cell = 0.75 * CELL
    figure = Figure(figsize=(columns * cell, (1 + len(drawn)) * (0.95 * cell * aspect + 0.25)), layout="constrained")
    grid = figure.subplots(1 + len(drawn), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    show(grid[0, 0], image)
    _caption(grid[0, 0], f"input: {_shape(image)}")
    for row, layer in zip(grid[1:], drawn, strict=True):
        low, high = float(layer.maps.min()), float(layer.maps.max())
        for axes, channel in zip(row, layer.maps, strict=False):
            axes.imshow(channel, cmap="viridis", vmin=low, vmax=high)
        part = f", the first {columns}" if len(layer.maps) > columns else ""
        _caption(row[0], f"{layer.name} ({layer.kind}): {_shape(layer.maps)}{part}")
    return figure


def _shape(array: NDArray[np.generic]) -> str:
    return "×".join(str(size) for size in array.shape)


def _caption(axes: Axes, text: str) -> None:
    """Write a row's caption above its first cell; a title as long as that would push the next cell away."""
    axes.set_title(" ", fontsize="small", pad=3)
    axes.annotate(
        text, (0, 1), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points", fontsize="small"
    ).set_in_layout(False)


def _frame(axes: Axes, color: str, line: str | tuple[int, tuple[float, float]], width: float) -> None:
    for spine in axes.spines.values():
        spine.set(visible=True, color=color, linestyle=line, linewidth=width)
