"""Typed sections of params.yaml, read by DVC's own YAML rules, each fault told in one sentence."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

PARAMS_FILE = "params.yaml"
BLOCKS = {"datasets": "dataset", "labs": "lab", "compare": "comparison"}  # what a block of each group is called
NAME = "^[A-Za-z0-9_][A-Za-z0-9_-]*$"
UNIONS = (typing.Union, UnionType)

Section = TypeVar("Section", bound="Options")

# Names become parts of paths, of DVC's stage names and of command lines.
BlockName = Annotated[str, Field(pattern=NAME)]
DatasetName = Annotated[str, Field(description="Name of a block of `datasets`.")]
Seed = Annotated[
    int,
    Field(
        ge=0,
        le=2**63 - 1,
        description="Seed of the initial weights, of shuffling, augmentation and dropout, and of the validation split.",
    ),
]


class UserError(Exception):
    """A mistake that the user can mend; its text says what is wrong, where, and what would be right."""


class OptionError(Exception):
    """An option's value does not fit what it is used for; raised by code that does not know whose option it is.

    Attributes:
        key: the option's dotted key below its block.
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


@contextmanager
def blame(where: str) -> Iterator[None]:
    """Turn an OptionError raised inside into a UserError that names the whole key, below `where`."""
    try:
        yield
    except OptionError as error:
        raise UserError(f"{PARAMS_FILE}: {where}.{error.key} {error}") from None


class Options(BaseModel):
    """Base of every section of params.yaml: no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def read_params(path: Path = Path(PARAMS_FILE)) -> dict[str, Any]:
    """Read params.yaml with the YAML 1.2 rules that DVC reads it with (so `1e-3` is a number).

    Raises:
        UserError: the file is missing, is not YAML, repeats a key, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"There is no {path} in {Path.cwd()}; run from the project's root folder.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    try:
        params = _parsed(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        problem = (error.problem or "not valid YAML").partition(" with value ")[0]
        hint = "; put its blocks together under one" if "duplicate key" in problem else ""
        raise UserError(f"{where}: {problem}{hint}.") from None
    except YAMLError as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}.") from None
    if not isinstance(params, dict):
        raise UserError(f"{path} must be a mapping of keys to values, such as `labs:`.")
    return params


def _parsed(text: str) -> Any:
    with suppress(YAMLError):
        return YAML(typ="safe").load(text)  # by a parser in C, if there is one: it takes a fifth of the time
    return YAML(typ="safe", pure=True).load(text)  # whose words on what is wrong are the clearer ones


def read_block(group: str, name: str) -> Any:
    """Read block `name` of `group` (`labs`, `datasets` or `compare`), unchecked.

    Raises:
        UserError: there is no such block.
    """
    blocks = read_params().get(group)
    if not isinstance(blocks, dict) or name not in blocks:
        known = blocks if isinstance(blocks, dict) else ()
        raise UserError(f"{PARAMS_FILE}: {unknown(BLOCKS[group], name, known)}")
    return blocks[name]


def read_section(group: str, name: str, section: type[Section]) -> Section:
    """Read the keys that `section` declares from block `name` of `group`.

    Other keys of the block belong to other stages, which check them themselves.

    Raises:
        UserError: no such block, or one of the keys is missing or wrong.
    """
    block = read_block(group, name)
    own = {key: block[key] for key in section.model_fields if key in block} if isinstance(block, dict) else block
    return check(section, own, f"{group}.{name}")


def check(section: type[Section], values: Any, where: str = "") -> Section:
    """Validate `values`, which stand at the dotted key `where` of params.yaml.

    Raises:
        UserError: one sentence for every fault, a line each.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        sentences = _sentences(section, _without_consequences(error.errors()), where)
        raise UserError("\n".join(f"{PARAMS_FILE}: {sentence}" for sentence in sentences)) from None


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Say that there is no `what` of this name, suggest the nearest one and list those that there are."""
    names = [str(other) for other in known]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    listed = f" Known: {', '.join(names)}." if names else ""
    return f"there is no {what} '{name}'{hint}{listed}"


def _without_consequences(faults: Iterable[Any]) -> list[Any]:
    """Leave out that a key is missing where one beside it is that key, misspelt."""
    faults = list(faults)
    misspelt = [fault["loc"] for fault in faults if fault["type"] == "extra_forbidden"]
    return [
        fault
        for fault in faults
        if fault["type"] != "missing"
        or not any(
            loc[:-1] == fault["loc"][:-1] and difflib.get_close_matches(str(loc[-1]), [fault["loc"][-1]])
            for loc in misspelt
        )
    ]


@dataclass
class _Place:
    """Where in the file a fault stands.

    Attributes:
        path: its keys.
        owner: the keys that there can be beside the last one, with their descriptions.
        limits: what the schema says of the value beside its type.
        alternative: whether the value may be of several types, told apart by no key: each has a fault of its own.
    """

    path: list[str] = field(default_factory=list)
    owner: dict[str, str | None] = field(default_factory=dict)
    limits: tuple[Any, ...] = ()
    alternative: bool = False

    def key(self, where: str) -> str:
        """The whole dotted key, below `where`."""
        return ".".join(part for part in (where, *self.path) if part) or "the file"


def _sentences(section: type[Options], faults: Iterable[Any], where: str) -> list[str]:
    """A sentence for each fault, and one for all faults of a value of which each type that it may have has one."""
    sentences: list[str] = []
    alternatives: dict[str, tuple[Any, list[str]]] = {}
    for fault in faults:
        place = _locate(section, fault["loc"])
        if place.alternative:
            _, wanted = alternatives.setdefault(place.key(where), (fault["input"], []))
            wanted.append(_wanted(fault))
        else:
            sentences.append(_sentence(place, fault, where))
    return sentences + [
        f"{key} is {value!r}, but should be {', or '.join(wanted)}." for key, (value, wanted) in alternatives.items()
    ]


def _sentence(place: _Place, fault: Any, where: str) -> str:
    path, owner, key = place.path, place.owner, place.key(where)
    context, value = fault.get("ctx", {}), fault["input"]
    match fault["type"]:
        case "extra_forbidden":
            return f"{key}: {unknown('key', path[-1], owner)}"
        case "missing":
            description = owner.get(path[-1]) if path else None
            return f"{key} is missing" + (f": {description}" if description else ".")
        case "union_tag_not_found":
            return f"{key}.{context['discriminator'].strip(chr(39))} is missing: it says which kind is meant."
        case "union_tag_invalid":
            tag, choices = context["discriminator"].strip("'"), context["expected_tags"]
            what = path[-1] if path[-1] in owner else tag
            return f"{key}.{tag}: {unknown(what, context['tag'], _quoted(choices))}"
        case "literal_error" if isinstance(value, str) and "'" in context["expected"]:
            return f"{key}: {unknown(path[-1], value, _quoted(context['expected']))}"
        case "literal_error" if isinstance(value, str):
            return f"{key} is {value!r}, but should be the number {context['expected']}, without quotes."
        case "value_error":
            return f"{key}: {context['error']}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"{key} is {value!r}, but should be a block of keys and values."
        case "too_short" | "too_long":
            return f"{key} is {value!r}, but should have {_length(context, place.limits)}."
        case "string_pattern_mismatch" if context["pattern"] == NAME:
            return f"{key}: a name may hold letters, digits, _ and -, and may not begin with -."
        case "string_pattern_mismatch":
            return f"{key} is {value!r}, but should match {context['pattern']}."
        case _:
            return f"{key} is {value!r}, but should be {_wanted(fault)}."


def _wanted(fault: Any) -> str:
    """What a value should be, in pydantic's words."""
    return str(fault["msg"]).removeprefix("Input should be ")


def _length(context: Any, limits: Iterable[Any]) -> str:
    """How many values a list or a block should have; pydantic's `context` has but the limit that was passed."""
    least, most = (
        next((getattr(limit, name) for limit in limits if hasattr(limit, name)), None)
        for name in ("min_length", "max_length")
    )
    number = context.get("min_length", context.get("max_length"))
    exactly = "" if least == most else "at least " if "min_length" in context else "at most "
    return f"{exactly}{number} {'value' if number == 1 else 'values'}"


def _quoted(choices: str) -> list[str]:
    """Split pydantic's "'a', 'b' or 'c'" into names."""
    return [part.strip().strip("'") for part in choices.replace(" or ", ", ").split(",")]


def _locate(section: Any, loc: tuple[str | int, ...]) -> _Place:
    """Turn pydantic's location into keys of the file.

    Pydantic's location also names the member of a union that it took, which is no key of the file.
    """
    place = _Place()
    section, place.limits = _bare(section)
    for part in loc:
        if part == "[key]":  # what is wrong is the key itself
            continue
        if typing.get_origin(section) in UNIONS:
            member = _union_member(section, part)
            place.alternative = member is None
            section, place.limits = _bare(member)
            continue
        place.path.append(str(part))
        place.alternative = False
        if isinstance(section, type) and issubclass(section, Options):
            place.owner = {name: entry.description for name, entry in section.model_fields.items()}
            entry = section.model_fields.get(str(part))
            section, place.limits = _bare(entry.annotation, entry.metadata) if entry else (None, ())
        else:
            section, place.limits = _bare(next(reversed(typing.get_args(section)), None))
    return place


def _bare(annotation: Any, limits: Iterable[Any] = ()) -> tuple[Any, tuple[Any, ...]]:
    """The type alone, without `Annotated` and without None, and the limits that its annotations set."""
    limits = tuple(limits)
    while True:
        members = [member for member in typing.get_args(annotation) if member is not NoneType]
        if typing.get_origin(annotation) is Annotated:
            annotation, *extra = members
            limits += tuple(limit for entry in extra for limit in getattr(entry, "metadata", [entry]))
        elif typing.get_origin(annotation) in UNIONS and len(members) == 1:
            (annotation,) = members
        else:
            return annotation, limits


def _union_member(section: Any, tag: str | int) -> Any:
    """The member that has `tag` as the value of one of its keys; none in a union that no key tells apart."""
    for member in typing.get_args(section):
        if isinstance(member, type) and issubclass(member, Options):
            for entry in member.model_fields.values():
                if typing.get_origin(entry.annotation) is typing.Literal and tag in typing.get_args(entry.annotation):
                    return member
    return None
