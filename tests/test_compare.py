"""What metrics are, and what became of them since a commit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from labdag.pipeline.graph import Pipeline
from labdag.results.compare import Line, leaves, printed, tables
from tests.conftest import run

PIPELINE = """
stages:
  a: {cmd: cp in.json a.json, deps: [in.json], metrics: [a.json]}
  b: {cmd: cp in.json b.json, deps: [in.json], metrics: [b.json: {cache: false}]}
"""


def test_a_format_that_no_sign_fits_tells_differences_as_they_are() -> None:
    line = Line("lab", "acc", 0.25, 0.75, ".1%")
    assert printed(line)[:3] == ("25.0%", "75.0%", "+50.0 points")
    assert printed(replace(line, style="+.1%"))[:3] == ("+25.0%", "+75.0%", "+0.5")
    assert printed(replace(line, style=".1f%"))[:3] == ("0.25", "0.75", "+0.5")


def test_metrics_are_numbers_and_strings_in_the_upper_levels() -> None:
    values = {"loss": 1, "test": {"loss": 2.5, "name": "x", "deep": {"loss": 3}}, "curve": [1, 2], "none": None}
    assert dict(leaves(values)) == {"loss": 1, "test.loss": 2.5, "test.name": "x"}
    assert list(leaves([1, 2])) == []


@pytest.mark.parametrize("where", [".", "below"])
def test_what_became_of_metrics_since_a_commit(where: str, toy: Callable[..., Path]) -> None:
    folder = toy("{}") / where
    if where != ".":  # the DVC repository is a part of the git repository
        folder.mkdir()
        run("dvc", "init", "--quiet", "--subdir", cwd=folder)
    (folder / "dvc.yaml").write_text(PIPELINE)

    def made(text: str) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
        (folder / "in.json").write_text(text)
        run("dvc", "repro", "--quiet", cwd=folder)
        with Pipeline(folder) as pipeline:
            return tables(pipeline, pipeline.stages)

    metrics, changed = made('{"loss": 0.3, "name": "x"}')
    assert metrics == [{"metrics": path, "loss": 0.3, "name": "x"} for path in ("a.json", "b.json")]
    assert [(row["HEAD"], row["now"], row["change"]) for row in changed] == [("-", 0.3, "-"), ("-", "x", "-")] * 2
    run("git", "add", "--all", cwd=folder)
    run("git", "commit", "--quiet", "--message", "Run", cwd=folder)
    assert made('{"loss": 0.3, "name": "x"}')[1] == []
    _, changed = made('{"loss": 0.1, "name": "x", "new": 1}')
    assert [row for row in changed if row["metrics"] == "a.json"] == [
        {"metrics": "a.json", "metric": "loss", "HEAD": 0.3, "now": 0.1, "change": -0.2},
        {"metrics": "a.json", "metric": "new", "HEAD": "-", "now": 1, "change": "-"},
    ]
    assert {row["metrics"] for row in changed} == {"a.json", "b.json"}


def test_without_git_all_is_new(tmp_path: Path) -> None:
    run("dvc", "init", "--quiet", "--no-scm", cwd=tmp_path)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "in.json").write_text('{"loss": 1}')
    run("dvc", "repro", "--quiet", cwd=tmp_path)
    with Pipeline(tmp_path) as pipeline:
        metrics, changed = tables(pipeline, ["a"])
    assert metrics == [{"metrics": "a.json", "loss": 1}]
    assert changed == [{"metrics": "a.json", "metric": "loss", "HEAD": "-", "now": 1, "change": "-"}]
