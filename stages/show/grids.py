"""Grids of sample images, and what every picture of labdag has in common: its look and its bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stages.datasets.arrays import Split

GRID_DPI = 110
# Of a gallery, in inches: an image with the gap to the next one, the gap, a line of a title.
CELL, GAP, TITLE_LINE = 1.35, 0.11, 0.14
TITLE_CHARACTERS = 16

# Okabe and Ito's palette: told apart by colour-blind eyes too.
BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#007A59", "#8A8A8A"

STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "image.interpolation": "nearest",
    "image.cmap": "gray",
    # A class may be called `$5`: that is no formula.
    "text.parse_math": False,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in labdag's style, whatever the matplotlibrc of the machine says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


@house_style()
def png(figure: Figure, dpi: int) -> bytes:
    """Render `figure` at `dpi` dots per inch; the same figure gives the same bytes every time."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    return content.getvalue()


def displayed(image: NDArray[Any]) -> NDArray[Any]:
    """Turn an image C×H×W into what matplotlib shows: H×W where it is grey, H×W×3 where it has colours."""
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def shortened(name: str, characters: int = TITLE_CHARACTERS) -> str:
    """Cut `name` down to `characters`, an ellipsis at its end where something is missing."""
    return name if len(name) <= characters else f"{name[: characters - 1].rstrip()}…"


def show(axes: Axes, image: NDArray[np.uint8]) -> None:
    """Draw an image uint8 C×H×W, without axes."""
    axes.imshow(displayed(image), vmin=0, vmax=255)
    bare(axes)


def bare(axes: Axes) -> None:
    """Leave of `axes` only what is drawn in them, and their title."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def spread(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Choose up to `count` indices into `labels`, varied across the classes.

    First comes the first image of each class in label order, then the second of each, and so on; where there
    are more classes than `count`, classes at even distances.
    """
    present = np.unique(labels)
    if len(present) > count:
        present = present[np.linspace(0, len(present) - 1, count).round().astype(np.int64)]
    ranked = [
        (rank, label, index)
        for label in present.tolist()
        for rank, index in enumerate(np.flatnonzero(labels == label)[:count].tolist())
    ]
    return np.array([index for _, _, index in sorted(ranked)[:count]], dtype=np.int64)


@house_style()
def gallery(images: NDArray[np.uint8], titles: Sequence[str], columns: int) -> Figure:
    """Draw images N×C×H×W in rows of `columns`, each under its title; cells beyond the last stay empty."""
    side = CELL - GAP
    tall = side * images.shape[2] / images.shape[3]
    strip = TITLE_LINE * (1 + max(title.count("\n") for title in titles)) + GAP
    width, height = columns * CELL, -(-len(images) // columns) * (tall + strip) + GAP / 2
    figure = Figure(figsize=(width, height))
    for place, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(place, columns)
        left, bottom = column * CELL + GAP / 2, height - (row + 1) * (tall + strip)
        axes = figure.add_axes((left / width, bottom / height, side / width, tall / height))
        show(axes, image)
        axes.set_title(title, fontsize="small", pad=4)
    return figure


def sample_grid(split: Split, classes: list[str], rows: int, columns: int) -> bytes:
    """Show sample images with their class names, varied across the classes.

    Args:
        split: images of any number and shape; where they are fewer than cells, the last cells stay empty.
        classes: names of the classes, in label order.
        rows: rows of the grid.
        columns: columns of the grid.

    Returns:
        A PNG.
    """
    chosen = spread(split.labels, rows * columns)
    titles = [shortened(classes[label]) for label in split.labels[chosen].tolist()]
    return png(gallery(split.images[chosen], titles, columns), GRID_DPI)
