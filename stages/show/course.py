"""The course on one page: every lab and every comparison of params.yaml, with what of them has been run so far.

    python -m stages.show.course [--stale NAME ...]     from the project's root; writes results/course.html

No stage: what has not been run is missing on the page, and nothing is run for it.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from stages.learning import history
from stages.learning.expectation import Expectation, Verdict, judge
from stages.learning.group import Group
from stages.program.files import write_text
from stages.program.options import BlockName, DatasetName, Options, UserError, check, read_params
from stages.show.comparison import RESULTS, Row, answer, load_table
from stages.show.html import fill

TEMPLATE = "course.html"
PAGE = RESULTS / "course.html"
STATISTICS = Path("data/stats")
PNG_END = b"IEND\xaeB`\x82"

Content = TypeVar("Content")


class Partial(Options):
    """A block of which the page reads some keys; the others belong to stages, which check them."""

    model_config = ConfigDict(extra="ignore")


class ModelBlock(Partial):
    """What the page reads of a lab's `model`."""

    name: str = Field(description="The model's family.")


class LabBlock(Partial):
    """What the page reads of a lab's block."""

    about: str = Field(description="What there is to see in the lab.")
    dataset: DatasetName
    model: ModelBlock = Field(description="The model's family and its options.")
    expect: Expectation = Field(description="What the lab should reach, and what it costs.")


class Course(Partial):
    """What the page reads of params.yaml."""

    labs: dict[BlockName, LabBlock] = Field(description="Labs by name.")
    compare: dict[BlockName, Group] = Field(default={}, description="Comparisons of labs by name.")


class Results(BaseModel):
    """Base of what the page reads of files that stages left."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Metrics(Results):
    """What the page reads of metrics.json."""

    accuracy: float = Field(ge=0, le=1)
    best_epoch: int


class Size(Results):
    """What the page reads of model.json."""

    parameters: int
    mult_adds: int


@dataclass(frozen=True)
class Lab:
    """One lab as the page shows it; what has not been run, was left out, or is not whole is none.

    Attributes:
        name: the lab's name.
        about: what there is to see in it.
        dataset: the dataset's name.
        model: the model's family.
        expect: what the lab should reach.
        size: content of model.json.
        metrics: content of metrics.json.
        epochs: number of epochs trained.
        verdict: of the accuracy measured.
        curves: PNG of loss and accuracy by epoch.
        mistakes: PNG of the most confident mistakes; without one, of the confusion matrix.
        report: whether there is a report to link to.
        stale: whether the results were made with other params or code.
    """

    name: str
    about: str
    dataset: str
    model: str
    expect: Expectation
    size: Size | None
    metrics: Metrics | None
    epochs: int | None
    verdict: Verdict | None
    curves: bytes | None
    mistakes: bytes | None
    report: bool
    stale: bool


@dataclass(frozen=True)
class Comparison:
    """One comparison as the page shows it.

    Attributes:
        name: the comparison's name.
        group: its block of params.yaml.
        rows: of its table; none where it has not been run.
        answer: sentences on what came out.
        same_images: whether all labs have the same dataset.
        missing: labs of it that have not been run.
        curves: PNG of all labs' curves.
        accuracy: PNG of accuracies and costs.
        report: whether there is a page to link to.
        stale: whether the results were made with other params or code.
    """

    name: str
    group: Group
    rows: Sequence[Row] | None
    answer: Sequence[str]
    same_images: bool
    missing: Sequence[str]
    curves: bytes | None
    accuracy: bytes | None
    report: bool
    stale: bool


def main(stale: Sequence[str] = ()) -> None:
    """Write the page.

    Args:
        stale: names of labs and comparisons whose results were made with other params or code; where there are
            no results, and where there is no such name, it makes no difference.

    Raises:
        UserError: there is no params.yaml, it can't be read, or what the page reads of it is missing or wrong.
    """
    course = check(Course, read_params())
    labs = {name: _lab(name, block, name in stale) for name, block in course.labs.items()}
    comparisons = [_comparison(name, group, labs, name in stale) for name, group in course.compare.items()]
    datasets = list(dict.fromkeys(lab.dataset for lab in labs.values()))
    values = {
        "labs": list(labs.values()),
        "comparisons": comparisons,
        "datasets": {name: _whole(_png, STATISTICS / f"{name}_4x5.png") for name in datasets},
        "run": sum(lab.metrics is not None for lab in labs.values()),
        "compared": sum(comparison.rows is not None for comparison in comparisons),
    }
    write_text(PAGE, fill(TEMPLATE, values))
    print(PAGE)


def _lab(name: str, block: LabBlock, stale: bool) -> Lab:
    folder = RESULTS / name
    plots = folder / "plots"
    metrics = _whole(_metrics, folder / "metrics.json")
    epochs = _whole(history.load, folder / "history.csv")
    return Lab(
        name=name,
        about=block.about,
        dataset=block.dataset,
        model=block.model.name,
        expect=block.expect,
        size=_whole(_size, folder / "model.json"),
        metrics=metrics,
        epochs=len(epochs) if epochs else None,
        verdict=judge(block.expect, metrics.accuracy) if metrics else None,
        curves=_whole(_png, plots / "curves.png"),
        mistakes=_whole(_png, plots / "mistakes.png") or _whole(_png, plots / "confusion.png"),
        report=(folder / "report.html").is_file(),
        stale=stale,
    )


def _comparison(name: str, group: Group, labs: Mapping[str, Lab], stale: bool) -> Comparison:
    folder = RESULTS / "compare" / name
    rows = _whole(_rows, folder / "table.csv")
    members = [labs[lab] for lab in group.labs if lab in labs]
    return Comparison(
        name=name,
        group=group,
        rows=rows,
        answer=answer(rows, group.pairs) if rows else [],
        same_images=len({lab.dataset for lab in members}) <= 1,
        missing=[lab.name for lab in members if lab.metrics is None],
        curves=_whole(_png, folder / "plots/curves.png"),
        accuracy=_whole(_png, folder / "plots/accuracy.png"),
        report=(folder / "report.html").is_file(),
        stale=stale,
    )


def _whole(read: Callable[[Path], Content], path: Path) -> Content | None:
    """What `read` makes of a file; none where there is none, and where it is empty, cut off or of another kind.

    Results that are not whole are as good as none: running the lab makes them anew.
    """
    try:
        return read(path) if path.is_file() else None
    except (ValueError, KeyError, TypeError, csv.Error):
        return None


def _metrics(path: Path) -> Metrics:
    return Metrics.model_validate_json(path.read_bytes())


def _size(path: Path) -> Size:
    return Size.model_validate_json(path.read_bytes())


def _rows(path: Path) -> list[Row]:
    rows = load_table(path)
    if len(rows) < 2:
        raise ValueError("a comparison is of two labs or more")
    return rows


def _png(path: Path) -> bytes:
    """A PNG that tells its resolution, which a page needs."""
    content = path.read_bytes()
    if not content.endswith(PNG_END) or b"pHYs" not in content:
        raise ValueError("no whole PNG")
    return content


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stale", nargs="*", default=[], metavar="NAME", help="a lab or comparison made with other params or code"
    )
    try:
        main(parser.parse_args().stale)
    except (UserError, OSError) as error:
        sys.exit(f"Error: {error}")
