"""The page of a lab: one HTML file that holds its numbers, its tables and its pictures, and loads nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from stages.datasets.statistics import Statistics
from stages.learning.history import Epoch, best
from stages.program.options import Options

TEMPLATE = "report.html"
PIXELS_PER_INCH = 110  # of a page, not of a picture: a higher `dpi` makes pictures sharper, not larger
METRES_PER_INCH = 0.0254


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
        dataset: the dataset's name.
        classes: names of the classes, in label order.
        statistics: of the dataset.
        size: content of model.json.
        layers: content of model.txt.
        model: the model's settings.
        recipe: the settings of training.
        epochs: the training's history.
        metrics: content of metrics.json.
        mistakes: number of test images that were not recognised.
        commonest: true class, predicted class and count of the commonest mistake, where there is a mistake.
        samples: PNGs of sample training images, a smaller grid and a larger one.
        pictures: PNGs of the lab by name; a section whose picture is missing is left out.
    """

    lab: str
    dataset: str
    classes: Sequence[str]
    statistics: Statistics
    size: Mapping[str, int]
    layers: str
    model: Sequence[Setting]
    recipe: Sequence[Setting]
    epochs: Sequence[Epoch]
    metrics: Mapping[str, Any]
    mistakes: int
    commonest: tuple[str, str, int] | None
    samples: tuple[bytes, bytes]
    pictures: Mapping[str, bytes]


def settings(section: Options, keys: Sequence[str]) -> list[Setting]:
    """List the options that are given under `keys` of `section`, as deep as they go."""
    return [setting for key in keys for setting in _settings(section, key, key)]


def render(report: Report) -> str:
    """Make the page: HTML without scripts and without links to other files."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent="{:.2%}".format, grouped="{:,}".format, data_uri=_data_uri, size=_size)
    scores = report.metrics["per_class"]
    tested = [name for name in report.classes if scores[name]["count"]]
    weakest = min(tested, key=lambda name: scores[name]["accuracy"])
    return environment.get_template(TEMPLATE).render(
        vars(report), best=best(report.epochs), weakest=weakest, colours=("red", "green", "blue")
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


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG on the page, in its pixels, by the resolution that the PNG states."""
    resolution = png.index(b"pHYs") + 4
    inch = int.from_bytes(png[resolution : resolution + 4], "big") * METRES_PER_INCH
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    return round(width / inch * PIXELS_PER_INCH), round(height / inch * PIXELS_PER_INCH)
