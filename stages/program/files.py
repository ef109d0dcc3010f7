"""Files and folders that are there whole or not at all, and whose bytes depend on their content alone."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name beside `path`, then rename it into place.

    Raises:
        OSError: the disk is full or the folder can't be written; `path` is as it was before.
    """
    with new_file(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys; numbers that JSON has no word for (NaN, infinity) are refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table with a header line, comma-separated, lines ended by a newline."""
    with new_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        text.detach()  # what it has not written yet is written; the file stays open


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """Read a table with a header line, row by row: a dict for each."""
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


@contextmanager
def new_file(path: Path) -> Iterator[BufferedWriter]:
    """Give a file to write, under a temporary name; on leaving without an error it takes the place of `path`.

    Raises:
        OSError: the disk is full or the folder can't be written; `path` is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill; on leaving without an error it takes the place of `path`.

    Raises:
        OSError: the disk is full or the parent folder can't be written; `path` is as it was before.
    """
    part = _part(path)
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            shutil.rmtree(path)
        part.replace(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
