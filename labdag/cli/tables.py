"""Tables for people, as wide as the terminal is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from rich.table import Table

# Columns that may be broken where a terminal is narrow, but not into less than so many characters; and those that are
# left out there, in this order.
LONG = ("report", "state", "why", "found", "advice", "difference", "remark")
LEAST_WIDTH = 24
WIDEST = 100_000  # characters of a line that is no terminal's
GAP = 3  # characters between two columns of a table; one is at its left, and one at its right
SPARED = ("model", "dataset", "best_epoch", "parameters", "seconds", "reused")


def _widths(rows: list[dict[str, str]], width: int, *, whole_words: bool) -> dict[str, int] | None:
    """How many characters wide each column of a table is, LONG ones as far as there is room; None if there is none.

    Args:
        rows: of the table.
        width: of the terminal.
        whole_words: whether no word, such as a path, may be broken.
    """
    from rich.cells import cell_len

    columns = list(dict.fromkeys(column for row in rows for column in row))
    texts = {name: [name, *(row.get(name, "-") for row in rows)] for name in columns}
    found = {name: max(map(cell_len, texts[name])) for name in columns}
    least = {name: min(size, LEAST_WIDTH) if name in LONG else size for name, size in found.items()}
    if whole_words:
        words = {name: max(cell_len(word) for text in texts[name] for word in text.split()) for name in columns}
        least = {name: max(size, words[name]) for name, size in least.items()}
    excess = sum(found.values()) + GAP * len(columns) - 1 - width
    while excess > 0:
        name = max(found, key=lambda name: (found[name] > least[name], found[name]))
        if found[name] == least[name]:
            return None
        found[name] -= 1
        excess -= 1
    return found


def _table(rows: list[dict[str, str]], widths: Mapping[str, int], as_is: Container[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, width in widths.items():
        is_number = all(row.get(column, "-")[:1].isdigit() or row.get(column, "-") == "-" for row in rows)
        table.add_column(
            column if column in as_is else column.replace("_", " "),
            justify="right" if is_number else "left",
            no_wrap=column not in LONG,
            overflow="fold",
            width=width,
        )
    for row in rows:
        table.add_row(*(Text(row.get(column, "-")) for column in widths))
    return table


def _blocks(rows: list[dict[str, str]], as_is: Container[str]) -> Table:
    """What a table has, each cell in lines of its own."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", ratio=1)
    for row in rows:
        table.add_row("", "")
        for column, text in row.items():
            table.add_row(column if column in as_is else column.replace("_", " "), Text(text))
    table.add_row("", "")
    return table


def show(rows: list[dict[str, str]], as_is: Container[str] = ()) -> None:
    """Print a table, without some of its columns where the terminal is too narrow for all, but with no cell cut off.

    Args:
        rows: of the table, by column.
        as_is: columns that are named by the user, and so keep their names.
    """
    from rich.console import Console

    # A pipe has no width: let nothing be broken there.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDEST)
    shown = rows
    for column in ("", *SPARED):
        shown = [{name: value for name, value in row.items() if name != column} for row in shown]
        if (widths := _widths(shown, console.width, whole_words=True)) is not None:
            break
    else:
        widths = _widths(shown, console.width, whole_words=False)
    console.print(_blocks(rows, as_is) if widths is None else _table(shown, widths, as_is))
