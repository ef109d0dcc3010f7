"""The points of a sweep: which values params take, in which combinations, and what each is called."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from labdag.errors import UserError
from labdag.pipeline.graph import Pipeline, flat

PARAMS = "params.yaml"
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?"
_SPAN = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*(:log)?\s*", re.IGNORECASE)
LONGEST = 120  # characters of a name, but for a hash of its rest: it is part of a file's name
FIGURES = 4  # digits of a value that a search picks
MOST_POINTS = 100_000  # of a grid
_UNNAMEABLE = re.compile(r"[^A-Za-z0-9.+-]+")


@dataclass(frozen=True)
class Span:
    """All numbers from one to another.

    Attributes:
        low: the least of them.
        high: the greatest.
        is_log: whether each order of magnitude counts as much as any other.
    """

    low: float
    high: float
    is_log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Setting:
    """A param and the values that it takes.

    Attributes:
        name: dotted, in full.
        short: as many of its last parts as tell it from the others.
        values: what it is set to.
    """

    name: str
    short: str
    values: tuple[Any, ...] | Span


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Attributes:
        name: of the point; fit for the name of an experiment.
        values: of each setting, by its dotted name.
    """

    name: str
    values: Mapping[str, Any]


def settings(texts: Iterable[str], params: Any, key: str) -> list[Setting]:
    """What is to be set to what.

    Args:
        texts: each `NAME=VALUES`: the param's dotted name, or what follows in it the key of the target; then values,
            separated by commas, or a range, `1..5`, `1e-4..1e-1:log`.
        params: what params.yaml says.
        key: of the target.

    Raises:
        UserError: a text is not of that form, or names no param.
    """
    found: dict[str, tuple[Any, ...] | Span] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        if not (name and equals and listed.strip()):
            raise UserError(f"-S {text} should be a param and its values, such as train.lr=0.1,0.01 or seed=1..5.")
        full = _full(name.strip(), params, key)
        if full in found:
            raise UserError(f"-S {text} sets {full} again; write all its values in one -S.")
        found[full] = _values(text, listed.strip(), is_text=isinstance(_at(params, full), str))
    if not found:
        raise UserError("Nothing is varied: name params and their values, such as -S seed=1..5.")
    return [Setting(name, _short(name, found), values) for name, values in found.items()]


def require_read(pipeline: Pipeline, names: Iterable[str], chosen: Iterable[Setting], target: str) -> None:
    """See to it that each setting makes a difference.

    Raises:
        UserError: no stage reads a param.
    """
    if unread := pipeline.unread(names, [setting.name for setting in chosen]):
        raise UserError(
            f"Nothing of {target} reads {unread[0]}, so its value makes no difference: name it in the `params:` of the "
            "stage in dvc.yaml that does."
        )


def grid(target: str, chosen: list[Setting]) -> list[Point]:
    """All combinations of the settings' values, the last one's values changing first.

    Raises:
        UserError: a setting has more values than can be told, there are too many points, or two of one name.
    """
    listed: list[Sequence[Any]] = []
    for setting in chosen:
        span = setting.values
        if isinstance(span, Span):
            if not span.is_whole or span.is_log:
                raise UserError(
                    f"{setting.name} is to take all values from {span.low:g} to {span.high:g}: list those to try, or "
                    "say with --trials how many a search may try."
                )
            listed.append(range(int(span.low), int(span.high) + 1))
        else:
            listed.append(span)
    if (count := math.prod(map(len, listed))) > MOST_POINTS:
        raise UserError(
            f"The grid has {count:,} points, more than {MOST_POINTS:,}: list fewer values, or say with --trials how "
            "many a search may try."
        )
    points = [point(target, chosen, values) for values in itertools.product(*listed)]
    counts = Counter(each.name for each in points)
    if doubled := next((name for name, count in counts.items() if count > 1), None):
        raise UserError(f"Two points would be called {doubled}; a value stands there twice, or is too like another.")
    return points


def corners(target: str, chosen: list[Setting]) -> list[Point]:
    """The points of a search where each setting has its first value, and then its last one.

    Raises:
        UserError: two values of a setting would make two points of one name.
    """
    for setting in chosen:
        listed = () if isinstance(setting.values, Span) else setting.values
        counts = Counter(_part(setting, value) for value in listed)
        if doubled := next((part for part, count in counts.items() if count > 1), None):
            raise UserError(
                f"Two values of {setting.name} would both be called {doubled}; a value stands there twice, or is too "
                "like another."
            )
    ends = [
        (span.low, span.high) if isinstance(span := setting.values, Span) else (span[0], span[-1]) for setting in chosen
    ]
    return [point(target, chosen, values) for values in zip(*ends, strict=True)]


def point(target: str, chosen: list[Setting], values: Iterable[Any]) -> Point:
    """The point where the settings have these values."""
    pairs = list(zip(chosen, values, strict=True))
    parts = [_part(setting, value) for setting, value in pairs]
    name = re.sub(r"\.{2,}", ".", "-".join([_UNNAMEABLE.sub("_", target), *parts])).rstrip(".")
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Point(name, {setting.name: value for setting, value in pairs})


def _part(setting: Setting, value: Any) -> str:
    """What a point's name says of a setting."""
    return f"{setting.short.replace('.', '_')}{_UNNAMEABLE.sub('_', _written(value))}"


def read(root: Path) -> Any:
    """What params.yaml says.

    Raises:
        UserError: there is none.
    """
    try:
        return YAML(typ="safe", pure=True).load((root / PARAMS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no {PARAMS} in {root}, so there is nothing to vary.") from None


def write(root: Path, point: Point) -> None:
    """Set the values of a point in params.yaml, of which all else stays as it is written."""
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 1 << 16
    params = yaml.load((root / PARAMS).read_text(encoding="utf-8"))
    apply(params, point.values)
    with (root / PARAMS).open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


class _Representer(RoundTripRepresenter):
    """Writes numbers as every reader of YAML knows them."""

    def represent_any_float(self, value: float) -> ScalarNode:
        """Write 1e-05 with a point, without which it is text by YAML 1.1, and so to PyYAML."""
        digits, exponent, power = repr(value).partition("e")
        if not exponent or "." in digits:
            return self.represent_float(value)
        return self.represent_scalar("tag:yaml.org,2002:float", f"{digits}.0e{power}")


_Representer.add_representer(float, _Representer.represent_any_float)


def apply(params: Any, values: Mapping[str, Any]) -> None:
    """Set values in what params.yaml says, in place, by their dotted names."""
    for name, value in values.items():
        *parents, last = name.split(".")
        block = params
        for parent in parents:
            block = block[parent]
        block[last] = value


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else told(value)


def told(value: Any) -> str:
    """A value as YAML has it: null, true."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _full(name: str, params: Any, key: str) -> str:
    """The whole of a param's name, which may be given from the target's key on."""
    blocks = [""] + [f"{path}." for path in _blocks(params, key)]
    for block in blocks:
        parent, _, last = f"{block}{name}".rpartition(".")
        found = _at(params, parent)
        if isinstance(found, Mapping) and last in found:
            return f"{block}{name}"
    near = [leaf for block in blocks[1:] for leaf, _ in flat(_at(params, block.rstrip(".")))]
    alike = [leaf for leaf in near if leaf.endswith(f".{name}")] or difflib.get_close_matches(name, near, n=1)
    hint = f" {key} has {', '.join(near[:30])}." if near else ""
    hint = f" Did you mean '{alike[0]}'?" if alike else hint
    raise UserError(f"params.yaml has no param '{name}'.{hint}")


def _blocks(params: Any, key: str, path: str = "") -> Iterable[str]:
    """Dotted names of all mappings that are called `key`."""
    if isinstance(params, Mapping):
        for name, value in params.items():
            inner = f"{path}.{name}" if path else str(name)
            if name == key and isinstance(value, Mapping):
                yield inner
            else:
                yield from _blocks(value, key, inner)


def _at(params: Any, path: str) -> Any:
    for part in path.split(".") if path else ():
        params = params.get(part) if isinstance(params, Mapping) else None
    return params


class _Values(SafeConstructor):
    """Reads values as DVC takes them: a date stays text."""


class _Texts(_Values):
    """Reads the values of a param that is text: 1.10 is not 1.1."""


def _as_written(_: SafeConstructor, node: ScalarNode) -> str:
    return str(node.value)


_Values.add_constructor("tag:yaml.org,2002:timestamp", _as_written)
for _kind in ("int", "float", "bool", "timestamp"):
    _Texts.add_constructor(f"tag:yaml.org,2002:{_kind}", _as_written)


def _values(text: str, listed: str, *, is_text: bool) -> tuple[Any, ...] | Span:
    if match := _SPAN.fullmatch(listed):
        low, high = (_number(end) for end in match.groups()[:2])
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError(f"-S {text} has an end that is no finite number.")
        if high < low:
            raise UserError(f"-S {text} has no values: {low} is more than {high}.")
        if match[3] and low <= 0:
            raise UserError(f"-S {text} begins at {low}, and logarithms at more than 0.")
        return Span(low, high, bool(match[3]))
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.Constructor = _Texts if is_text else _Values
        values = yaml.load(f"[{listed}]")
    except (YAMLError, ValueError):  # such as a date that there is not
        raise UserError(f"-S {text} has values that are no YAML.") from None
    if not values:
        raise UserError(f"-S {text} has no values.")
    if span := next((value for value in values if isinstance(value, str) and _SPAN.fullmatch(value)), None):
        raise UserError(f"-S {text} has the range {span} among other values; a range stands alone, so list its values.")
    return tuple(values)


def _short(name: str, names: Iterable[str]) -> str:
    """As many of the last parts of a dotted name as no other one ends with."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        short = ".".join(parts[-count:])
        if not any(other != name and other.endswith(f".{short}") for other in names):
            return short
    return name


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)
