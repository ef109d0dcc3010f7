"""The page of a lab: one HTML file that holds its numbers, its tables and its pictures, and loads nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stages.datasets.transforms import Transform
from stages.learning.expectation import Expectation, judge
from stages.learning.history import Epoch, best
from stages.program.options import Options
from stages.show.html import fill

if TYPE_CHECKING:
    from stages.datasets.statistics import Statistics

TEMPLATE = "report.html"


class Plot(Options):
    """How a lab's pictures are drawn."""

    dpi: int = Field(ge=50, le=400, description="Dots per inch of the pictures; 110 suits a page.")


@dataclass(frozen=True)
class Setting:
    """One option of params.yaml: its dotted key, its value as YAML has it, and what it means."""

    key: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Report:
    """All that a lab's page shows.

    Attributes:
        lab: the lab's name.
        about: what there is to see in the lab.
        dataset: the dataset's name.
        classes: names of the classes, in label order.
        statistics: of the dataset.
        size: content of model.json.
        layers: content of model.txt.
        model: the model's settings.
        recipe: the settings of training.
        transform: what happens to images before the model sees them.
        planned: number of epochs that the recipe asks for; early stopping makes them fewer.
        epochs: the training's history.
        expect: what the lab should reach.
        metrics: content of metrics.json.
        mistakes: number of test images that were not recognised.
        commonest: true class, predicted class and count of the commonest mistake, where there is a mistake.
        samples: PNGs of sample training images, a smaller grid and a larger one.
        pictures: PNGs of the lab by name; a section whose picture is missing is left out.
    """

    lab: str
    about: str
    dataset: str
    classes: Sequence[str]
    statistics: Statistics
    size: Mapping[str, int]
    layers: str
    model: Sequence[Setting]
    recipe: Sequence[Setting]
    transform: Transform
    planned: int
    epochs: Sequence[Epoch]
    expect: Expectation
    metrics: Mapping[str, Any]
    mistakes: int
    commonest: tuple[str, str, int] | None
    samples: tuple[bytes, bytes]
    pictures: Mapping[str, bytes]


def settings(section: Options, keys: Sequence[str]) -> list[Setting]:
    """List the options that are given under `keys` of `section`, as deep as they go."""
    return [setting for key in keys for setting in _settings(section, key, key)]


def render(report: Report) -> str:
    """Make the page: HTML that loads nothing."""
    scores = report.metrics["per_class"]
    tested = [name for name in report.classes if scores[name]["count"]]
    weakest = min(tested, key=lambda name: scores[name]["accuracy"])
    verdict = judge(report.expect, report.metrics["accuracy"])
    return fill(
        TEMPLATE,
        vars(report)
        | {"best": best(report.epochs), "weakest": weakest, "verdict": verdict, "colours": ("red", "green", "blue")},
    )


def _settings(section: Options, name: str, key: str) -> Iterator[Setting]:
    value = getattr(section, name)
    if isinstance(value, Options):
        for inner in type(value).model_fields:
            if inner in value.model_fields_set:
                yield from _settings(value, inner, f"{key}.{inner}")
    else:
        meaning = type(section).model_fields[name].description or ""
        yield Setting(key, value if isinstance(value, str) else json.dumps(value), meaning)
