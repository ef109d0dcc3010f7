"""The course on one page: every lab and every comparison of params.yaml, with what of them has been run so far.

    python -m stages.show.course [--stale NAME ...]     from the project's root; writes results/course.html

No stage: what has not been run is missing on the page, and nothing is run for it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.learning import history
from stages.learning.expectation import Expectation, Verdict, judge
from stages.learning.group import Group
from stages.program.files import write_text
from stages.program.options import UserError, check, read_params
from stages.show.comparison import RESULTS, Row, answer, load_table
from stages.show.html import fill

TEMPLATE = "course.html"
PAGE = RESULTS / "course.html"
STATISTICS = Path("data/stats")


@dataclass(frozen=True)
class Lab:
    """One lab as the page shows it; what has not been run, or was left out, is none.

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
    size: Mapping[str, int] | None
    metrics: Mapping[str, Any] | None
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
        UserError: there is no params.yaml, or it can't be read.
    """
    params = read_params()
    labs = {name: _lab(name, block, name in stale) for name, block in params["labs"].items()}
    comparisons = [
        _comparison(name, check(Group, block, f"compare.{name}"), labs, name in stale)
        for name, block in (params.get("compare") or {}).items()
    ]
    datasets = list(dict.fromkeys(lab.dataset for lab in labs.values()))
    values = {
        "labs": list(labs.values()),
        "comparisons": comparisons,
        "datasets": {name: _bytes(STATISTICS / f"{name}_4x5.png") for name in datasets},
        "run": sum(lab.metrics is not None for lab in labs.values()),
        "compared": sum(comparison.rows is not None for comparison in comparisons),
    }
    write_text(PAGE, fill(TEMPLATE, values))
    print(PAGE)


def _lab(name: str, block: Mapping[str, Any], stale: bool) -> Lab:
    folder = RESULTS / name
    plots = folder / "plots"
    metrics, epochs = _json(folder / "metrics.json"), folder / "history.csv"
    expect = check(Expectation, block["expect"], f"labs.{name}.expect")
    return Lab(
        name=name,
        about=block["about"],
        dataset=block["dataset"],
        model=block["model"]["name"],
        expect=expect,
        size=_json(folder / "model.json"),
        metrics=metrics,
        epochs=len(history.load(epochs)) if epochs.is_file() else None,
        verdict=judge(expect, metrics["accuracy"]) if metrics else None,
        curves=_bytes(plots / "curves.png"),
        mistakes=_bytes(plots / "mistakes.png") or _bytes(plots / "confusion.png"),
        report=(folder / "report.html").is_file(),
        stale=stale,
    )


def _comparison(name: str, group: Group, labs: Mapping[str, Lab], stale: bool) -> Comparison:
    folder = RESULTS / "compare" / name
    rows = load_table(folder / "table.csv") if (folder / "table.csv").is_file() else None
    members = [labs[lab] for lab in group.labs if lab in labs]
    return Comparison(
        name=name,
        group=group,
        rows=rows,
        answer=answer(rows) if rows else [],
        same_images=len({lab.dataset for lab in members}) <= 1,
        missing=[lab.name for lab in members if lab.metrics is None],
        curves=_bytes(folder / "plots/curves.png"),
        accuracy=_bytes(folder / "plots/accuracy.png"),
        report=(folder / "report.html").is_file(),
        stale=stale,
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stale", nargs="*", default=[], metavar="NAME", help="a lab or comparison made with other params or code"
    )
    try:
        main(parser.parse_args().stale)
    except (UserError, OSError) as error:
        sys.exit(f"Error: {error}")
