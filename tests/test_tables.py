"""Tables in a terminal: as wide as it is, and of each cell that is shown every character."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from rich.cells import cell_len

from labdag.cli import tables

RUN = [
    {
        "target": "mlp_mnist_permuted", "run": "0", "reused": "6", "parameters": "50,890", "accuracy": "96.89%",
        "best_epoch": "10", "seconds": "7.6", "report": "results/mlp_mnist_permuted/report.html",
    }
]  # fmt: skip
DIFF = [
    {"result": "lenet_digits", "what": "train.optimizer.lr", "HEAD": "0.001", "workspace": "0.002", "change": "-"},
    {
        "result": "lenet_digits", "what": "accuracy", "HEAD": "98.22%", "workspace": "98.67%", "change": "+0.44 points",
        "remark": "within the noise of the seed, unknown here (± 0.44 points over 3 runs)",
    },
]  # fmt: skip
STALE = [
    {
        "lab": "lenet_digits", "dataset": "digits", "model": "lenet", "parameters": "61,706", "accuracy": "98.22%",
        "state": "stale: train@lenet_digits: params.yaml: labs.lenet_digits.train.optimizer.lr 0.001 → 0.002",
    },
    {"lab": "写数字", "dataset": "digits", "model": "lenet", "state": "never run"},
]  # fmt: skip


def printed(
    rows: list[dict[str, str]], width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    tables.show(rows, as_is=("HEAD", "workspace"))
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()


@pytest.mark.parametrize("width", range(40, 200, 5))
@pytest.mark.parametrize("rows", [RUN, DIFF, STALE], ids=["run", "diff", "list"])
def test_no_character_is_lost(
    rows: list[dict[str, str]], width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(rows, width, monkeypatch, capsys)
    assert max(map(cell_len, lines)) <= width
    there = Counter("".join(lines))
    shown = [row[name] for row in rows for name in row if name not in tables.SPARED]
    assert not Counter("".join("".join(shown).split())) - there


@pytest.mark.parametrize(("rows", "gone"), [(RUN, "parameters"), (STALE, "model")], ids=["run", "list"])
def test_columns_that_tell_less_go_before_a_word_is_broken(
    rows: list[dict[str, str]], gone: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wide, narrow = (" ".join(printed(rows, width, monkeypatch, capsys)) for width in (200, 80))
    longest = max((word for row in rows for text in row.values() for word in text.split()), key=len)
    assert longest in wide
    assert longest in narrow
    assert gone in wide
    assert gone not in narrow


def test_where_no_table_fits_each_cell_has_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line.split() for line in printed(RUN, 40, monkeypatch, capsys)]
    assert ["best", "epoch", "10"] in lines
    assert ["parameters", "50,890"] in lines
