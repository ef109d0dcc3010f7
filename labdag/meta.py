"""What DVC does not know of a stage: its `meta:` block in dvc.yaml, of which DVC leaves the shape to others."""

from __future__ import annotations

import difflib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

NEAR = 0.85  # how alike two keys are of which one is taken for the other, misspelt; others' own keys are left alone


@dataclass(frozen=True)
class Meta:
    """The keys of `meta:` that labdag reads; others may hold anything.

    Attributes:
        summary: figures of the stage's metrics to show in tables, each with the format to print it in.
        extremes: families of figures, `*` standing for any name, of which a comparison shows those that gained and lost
            most, with the format of each.
        seed: dotted name of the param that changes the figures by chance alone.
        report: the page that a person will want to open, a path from the repository's root.
        progress: a regular expression that is found in the lines by which the stage tells how far it has come, with the
            groups `done` and `total`.
        upstream: a command that prints something else when what the stage fetches from outside has changed, and fails
            if the stage can't take it.
        slots: how much of each resource the stage occupies while it runs (`{cpu: 2, gpu: 1}`).
        timeout: seconds after which it is ended and has failed; None lets it run for ever.
        retries: how often it is run again after a failure.
        retry_delay: seconds between a failure and the next try.
        writes_inputs: what of its dependencies its command writes itself, as a notebook that is executed in place.
        problems: what labdag can't use of these keys, or keys that are probably misspelled, each in a sentence.
    """

    summary: Mapping[str, str] = field(default_factory=dict)
    extremes: Mapping[str, str] = field(default_factory=dict)
    seed: str | None = None
    report: str | None = None
    progress: str | None = None
    upstream: str | None = None
    slots: Mapping[str, int] = field(default_factory=dict)
    timeout: float | None = None
    retries: int = 0
    retry_delay: float = 0.0
    writes_inputs: Sequence[str] = ()
    problems: tuple[str, ...] = ()


def parse(raw: Any) -> Meta:
    """Read a `meta:` block, which is the user's: DVC takes anything there, and what labdag can't use is left out.

    Args:
        raw: what the block holds.
    """
    if not isinstance(raw, dict):  # a text or a list is for somebody else to read
        return Meta()
    problems = [
        f"meta.{key} is no key that labdag reads; did you mean meta.{near[0]}?"
        for key in raw
        if key not in _SHAPES and (near := difflib.get_close_matches(str(key), _SHAPES, n=1, cutoff=NEAR))
    ]
    found = {}
    for key, (is_right, wanted) in _SHAPES.items():
        if key in raw:
            if is_right(raw[key]):
                found[key] = raw[key]
            else:
                problems.append(f"meta.{key} is {raw[key]!r}, which is ignored; it should be {wanted}.")
    return Meta(**found, problems=tuple(problems))


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < threading.TIMEOUT_MAX


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_summary(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) and _is_format(style) for name, style in value.items())


def _is_format(style: Any) -> bool:
    """Whether it is a format of Python's for a number or a text, not of hundreds of characters."""
    if not isinstance(style, str) or re.search(r"\d{3}", style):
        return False
    for value in (1, 1.0, ""):
        with suppress(ValueError, TypeError, OverflowError):
            format(value, style)
            return True
    return False


def _is_progress(value: Any) -> bool:
    try:
        return isinstance(value, str) and {"done", "total"} <= set(re.compile(value).groupindex)
    except re.error:
        return False


def _is_slots(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) and _is_whole(size) for name, size in value.items())


_SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "summary": (
        _is_summary,
        'figures with the format of each, as Python has them, such as `meta.summary: {accuracy: ".2%"}`',
    ),
    "extremes": (
        _is_summary,
        'families with the format of each, as Python has them, such as `meta.extremes: {per_class.*.f1: ".2%"}`',
    ),
    "seed": (lambda value: isinstance(value, str), "the name of a param, such as `meta.seed: train.seed`"),
    "report": (lambda value: isinstance(value, str), "the path of a page, such as `meta.report: results/report.html`"),
    "progress": (
        _is_progress,
        "a regular expression with the groups done and total, such as "
        r"`meta.progress: 'epoch (?P<done>\d+)/(?P<total>\d+)'`",
    ),
    "upstream": (lambda value: isinstance(value, str), "a command, such as `meta.upstream: md5sum /data/raw.csv`"),
    "slots": (_is_slots, "a whole number for each resource, such as `meta.slots: {cpu: 2, gpu: 1}`"),
    "timeout": (lambda value: _is_seconds(value) and value > 0, "seconds, such as `meta.timeout: 3600`"),
    "retries": (_is_whole, "a whole number, such as `meta.retries: 2`"),
    "writes_inputs": (
        lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
        "a list of dependencies, such as `meta.writes_inputs: [report.ipynb]`",
    ),
    "retry_delay": (_is_seconds, "seconds, such as `meta.retry_delay: 10`"),
}
