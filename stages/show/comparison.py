"""Labs side by side: their figures in a table, in words and in charts, and the page that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from stages.learning import history
from stages.learning.group import Group
from stages.learning.history import Epoch
from stages.program.files import read_csv, write_csv
from stages.show.grids import BLUE, GREEN, GREY, VERMILLION, house_style, shortened
from stages.show.html import fill, signed

TEMPLATE = "comparison.html"
RESULTS = Path("results")
WIDTH = 8.4  # inches
MOST_CLASSES = 20
NAME_CHARACTERS = 30

# A lab has a colour and a marker; of more than seven labs some share a colour, none a marker.
COLOURS = (BLUE, VERMILLION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # of Okabe and Ito's palette
MARKERS = "osD^vP*X<>ph"


@dataclass(frozen=True)
class Side:
    """One lab of a comparison, as it left its results.

    Attributes:
        lab: the lab's name.
        size: content of model.json.
        epochs: the training's history.
        metrics: content of metrics.json.
    """

    lab: str
    size: Mapping[str, int]
    epochs: Sequence[Epoch]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One lab's row of a comparison's table; accuracies are those on the test images, as fractions of 1.

    Attributes:
        lab: the lab's name.
        parameters: trainable ones.
        mult_adds: of one image.
        epochs: number of epochs trained.
        best_accuracy: with the weights of the best epoch.
        best_epoch: its number, from 1.
        final_accuracy: after the last epoch.
        test_loss: with the weights of the best epoch.
    """

    lab: str
    parameters: int
    mult_adds: int
    epochs: int
    best_accuracy: float
    best_epoch: int
    final_accuracy: float
    test_loss: float


def load(lab: str) -> Side:
    """Read what the stages of lab `lab` left.

    Raises:
        FileNotFoundError: one of them has not run.
    """
    folder = RESULTS / lab
    size, metrics = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("model.json", "metrics.json"))
    return Side(lab, size, history.load(folder / "history.csv"), metrics)


def table(sides: Sequence[Side]) -> list[Row]:
    """The figures of each lab, in the order of `sides`."""
    return [
        Row(
            side.lab,
            side.size["parameters"],
            side.size["mult_adds"],
            len(side.epochs),
            side.metrics["accuracy"],
            side.metrics["best_epoch"],
            side.metrics["final_accuracy"],
            side.metrics["loss"],
        )
        for side in sides
    ]


def save_table(rows: Sequence[Row], path: Path) -> None:
    """Write table.csv."""
    write_csv(path, [field.name for field in fields(Row)], [astuple(row) for row in rows])


def load_table(path: Path) -> list[Row]:
    """Read table.csv."""
    return [
        Row(
            row["lab"],
            int(row["parameters"]),
            int(row["mult_adds"]),
            int(row["epochs"]),
            float(row["best_accuracy"]),
            int(row["best_epoch"]),
            float(row["final_accuracy"]),
            float(row["test_loss"]),
        )
        for row in read_csv(path)
    ]


def same_images(sides: Sequence[Side]) -> bool:
    """Whether all labs were tested on the same images, as far as names and sizes of the classes tell."""
    counts = [{name: scores["count"] for name, scores in side.metrics["per_class"].items()} for side in sides]
    return all(count == counts[0] for count in counts)


def answer(rows: Sequence[Row], pairs: Sequence[Sequence[str]]) -> list[str]:
    """Say in a few sentences what a comparison has shown: accuracies, the best lab, and the cheapest one.

    Args:
        rows: of the table.
        pairs: names of labs to be held against each other besides.
    """
    first, *others = rows
    against = [
        f"{row.lab} {row.best_accuracy:.2%} ({signed((row.best_accuracy - first.best_accuracy) * 100)} points)"
        for row in others
    ]
    best = max(row.best_accuracy for row in rows)
    least = min(row.mult_adds for row in rows)
    leaders = [row.lab for row in rows if row.best_accuracy == best]
    cheapest = [row.lab for row in rows if row.mult_adds == least]
    cost = f"{least:,} multiply-adds"
    sentences = [f"{first.lab} reaches {first.best_accuracy:.2%}; held against it, {_listed(against)}."]
    by_name = {row.lab: row for row in rows}
    steps = [_step(by_name[before], by_name[after]) for before, after in pairs]
    if steps:
        sentences.append(f"It is {_listed(steps)}.")
    trained = {row.epochs for row in rows}
    if len(trained) > 1:
        sentences.append(f"Their trainings are not equally long: {_listed([_epochs(row) for row in rows])}.")
    if leaders == cheapest:
        sentences.append(
            f"{_listed(leaders)} {_be(leaders)} both the most accurate and the cheapest ({cost} for an image)."
        )
    else:
        sentences.append(f"The most accurate {_be(leaders)} {_listed(leaders)}.")
        if len(cheapest) == len(rows):
            sentences.append(f"An image costs all of them the same: {cost}.")
        else:
            sentences.append(f"The cheapest for an image {_be(cheapest)} {_listed(cheapest)}, with {cost}.")
    return sentences


def _step(before: Row, after: Row) -> str:
    points = signed((after.best_accuracy - before.best_accuracy) * 100)
    return f"{points} points from {before.lab} to {after.lab}"


def _epochs(row: Row) -> str:
    return f"{row.lab} has {row.epochs} epoch{'s' * (row.epochs > 1)}"


def draw(sides: Sequence[Side]) -> dict[str, Figure]:
    """Draw all figures of a comparison, by name; `per_class` is left out where the labs share no classes, or many."""
    drawn = {"curves": curves(sides), "accuracy": accuracy(table(sides))}
    first, *others = (side.metrics["per_class"] for side in sides)
    shared = [name for name, scores in first.items() if all(name in other for other in others) and scores["count"]]
    shared = [name for name in shared if all(other[name]["count"] for other in others)]
    if 0 < len(shared) <= MOST_CLASSES:
        drawn["per_class"] = per_class(sides, shared)
    return drawn


@house_style()
def curves(sides: Sequence[Side]) -> Figure:
    """Draw loss and accuracy of all labs by epoch, in two panels: test solid and marked, train thin and dashed."""
    legend_columns = 2 if max(len(side.lab) for side in sides) > 20 else 3
    legend_rows = -(-len(sides) // legend_columns)
    figure = Figure(figsize=(WIDTH, 4.0 + 0.2 * legend_rows), layout="constrained")
    longest = max(len(side.epochs) for side in sides)
    handles: list[Line2D] = []
    for axes, measure in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        handles = []
        for place, side in enumerate(sides):
            color, marker = COLOURS[place % len(COLOURS)], MARKERS[place]
            numbers = [epoch.epoch for epoch in side.epochs]
            train, test = ([getattr(epoch, f"{part}_{measure}") for epoch in side.epochs] for part in ("train", "test"))
            # A curve of one epoch is a point, which has no line to be dashed: it is hollow.
            hollow: dict[str, Any] = {"marker": marker, "markersize": 6, "markerfacecolor": "none"}
            axes.plot(
                numbers, train, "--", color=color, linewidth=0.9, alpha=0.8, **hollow if len(numbers) == 1 else {}
            )
            every = max(1, longest // 12)
            size = 7 if marker in "*X" else 5
            handles += axes.plot(
                numbers, test, "-", color=color, marker=marker, markersize=size, markevery=every, label=side.lab
            )
        axes.set(xlabel="epoch", title=measure)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y", color=GREY, alpha=0.25)
        if measure == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    figure.legend(
        handles,
        [shortened(side.lab, NAME_CHARACTERS) for side in sides],
        loc="outside lower center",
        ncols=legend_columns,
        frameon=False,
    )
    single = longest == 1
    kinds = [
        Line2D([], [], color="black", linestyle="none" if single else "-", marker="o", markersize=5),
        Line2D(
            [],
            [],
            color="black",
            linestyle="none" if single else "--",
            linewidth=0.9,
            marker="o" if single else "none",
            markersize=6,
            markerfacecolor="none",
        ),
    ]
    figure.legend(kinds, ["test", "train"], loc="outside upper center", ncols=2, frameon=False)
    return figure


@house_style()
def accuracy(rows: Sequence[Row]) -> Figure:
    """Draw each lab's best and final accuracy as bars, and below them what each lab costs, on log scales."""
    tall = 0.75 + 0.48 * len(rows)
    low = 0.8 + 0.36 * len(rows)
    figure = Figure(figsize=(WIDTH, tall + low), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(tall, low))
    top = figure.add_subplot(grid[0, :])
    places = np.arange(len(rows))
    for offset, color, hatch, label, values in (
        (-0.2, BLUE, "", "best epoch", [row.best_accuracy for row in rows]),
        (0.2, VERMILLION, "////", "last epoch", [row.final_accuracy for row in rows]),
    ):
        top.barh(
            places + offset,
            values,
            0.38,
            label=label,
            edgecolor=color,
            facecolor="white" if hatch else color,
            hatch=hatch,
        )
        for place, value in zip(places, values, strict=True):
            top.annotate(f"{value:.2%}", (value + 0.012, place + offset), va="center", fontsize="small")
    _rows(top, rows)
    top.set(xlim=(0, 1.1), xticks=np.linspace(0, 1, 5), title="test accuracy")
    top.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    top.spines["bottom"].set_bounds(0, 1)
    figure.legend(*top.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    for column, (title, costs) in enumerate(
        (
            ("parameters", [row.parameters for row in rows]),
            ("multiply-adds for an image", [row.mult_adds for row in rows]),
        )
    ):
        axes = figure.add_subplot(grid[1, column])
        axes.set_xscale("log")
        # A log scale has no zero for a bar to start at: dots.
        axes.plot(costs, places, "D", color=GREEN, markersize=6)
        for place, cost in zip(places, costs, strict=True):
            axes.annotate(f"{cost:,}", (cost, place), (0, 7), textcoords="offset points", ha="center", fontsize="small")
        axes.set(xlim=(min(costs) / 4, max(costs) * 4), title=title)
        axes.grid(axis="x", color=GREY, alpha=0.25)
        axes.minorticks_off()
        axes.xaxis.set_major_locator(LogLocator(numticks=20))  # every power of ten
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _rows(axes, rows)
        axes.set_ylim(len(rows) - 0.5, -0.8)
        axes.tick_params(labelleft=column == 0)
    return figure


@house_style()
def per_class(sides: Sequence[Side], names: Sequence[str]) -> Figure:
    """Draw, class by class, how many points each lab's accuracy is above or below the first lab's.

    Args:
        sides: two labs or more.
        names: of classes that all labs have been tested on, at least one.
    """
    accuracies = np.array([[side.metrics["per_class"][name]["accuracy"] for name in names] for side in sides])
    differences: NDArray[np.float64] = (accuracies[1:] - accuracies[0]) * 100
    others = [shortened(side.lab, NAME_CHARACTERS) for side in sides[1:]]
    ticks = [shortened(name, 14) for name in names]
    upright = max(len(name) for name in ticks) <= 3
    largest = max(1.0, float(np.abs(differences).max()))

    cell = min(0.62, max(0.46, 6.2 / len(names)))
    width = max(WIDTH, 2.6 + cell * len(names))
    figure = Figure(figsize=(width, (1.1 if upright else 1.9) + 0.36 * len(others)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(differences, cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto")
    for (row, column), value in np.ndenumerate(differences):
        color = "white" if abs(value) > 0.6 * largest else "black"
        axes.text(column, row, signed(value, 1), ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(names)), ticks, rotation=0 if upright else 90)
    axes.set_yticks(range(len(others)), others)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(f"points above (+) or below (−) {shortened(sides[0].lab, NAME_CHARACTERS)}, class by class")
    return figure


def render(name: str, group: Group, sides: Sequence[Side], pictures: Mapping[str, bytes]) -> str:
    """Make the page of a comparison: HTML that loads nothing, with links to the reports of its labs.

    Args:
        name: the comparison's.
        group: its block of params.yaml.
        sides: its labs.
        pictures: PNGs by name, as `draw` names them.
    """
    rows = table(sides)
    return fill(
        TEMPLATE,
        {
            "name": name,
            "question": group.question,
            "look_for": group.look_for,
            "rows": rows,
            "answer": answer(rows, group.pairs),
            "same_images": same_images(sides),
            "pictures": pictures,
        },
    )


def _rows(axes: Axes, rows: Sequence[Row]) -> None:
    """Name the rows of a panel, from top to bottom."""
    axes.set_yticks(range(len(rows)), [shortened(row.lab, NAME_CHARACTERS) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([*([", ".join(parts[:-1])] if parts[:-1] else []), parts[-1]])


def _be(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
