"""The texts of DVC's files: each is parsed once, and dvc.lock one stage's entry at a time.

DVC parses params.yaml up to eight times for one stage, and for each stage the whole of dvc.lock, in which one entry has
changed since the last. `quicken` has it read them in this way.
"""

from __future__ import annotations

import pickle
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import dpath
from dvc import dvcfile
from dvc.dependency import param
from dvc.exceptions import DvcException
from dvc.fs import LocalFileSystem
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.utils import serialize as formats
from dvc.utils import strictyaml
from dvc.utils.serialize import _yaml, dumps_yaml, parse_yaml_for_update

_HEAD = "schema: '2.0'\nstages:\n"
_PATTERN = frozenset("*?[]!")
_ENTRY = re.compile(r"^( {2}\S.*)\n((?:(?: {3}.*|)\n)*)", re.MULTILINE)
# Names that YAML writes as they are, whatever else it quotes.
_BARE = re.compile(r"(?!(?:true|false|null)$)[a-z][a-z0-9_@-]{,99}", re.IGNORECASE)
# What stands for another part of the text, at the beginning of a value; a command may have a & and a * elsewhere.
_REFERENCE = re.compile(r"(?:^ *|[:\-?] +|![\w!]* +|[\[{,] *)[&*]\S|<<:", re.MULTILINE)
_BLANKS = re.compile(r"[\t\x85\u2028\u2029]")  # that YAML takes for a blank, or for the end of a line
KEPT = 1 << 24  # characters of texts that are remembered
AHEAD_BYTES = 1 << 17  # of the largest file to be parsed ahead: the supervisor must be there to be told to stop
# What `quicken` replaces, as it must look to be replaced.
READING: dict[Callable[..., Any], str] = {
    dvcfile.Lockfile._load_yaml: "(self, **kwargs: Any)",
    param.read_param_file: (
        "(fs: 'FileSystem', path: str, key_paths: Optional[list[str]] = None, flatten: bool = False, **load_kwargs)"
    ),
    _yaml.parse_yaml: "(text, path, typ='safe')",
}
_parse, _load_yaml, _whole_param_file = _yaml.parse_yaml, dvcfile.Lockfile._load_yaml, param.read_param_file
_valid: set[str] = set()  # texts of single entries of dvc.lock
_users = 0  # that have called `quicken`
_mutex = threading.Lock()
_parsed: dict[str, bytes] = {}  # what texts say, as a pickle: whoever gets it may change what he got


def quicken() -> None:
    """Have DVC, in this process, parse each text once and of dvc.lock the entries that are asked for."""
    global _users
    with _mutex:
        _users += 1
        _install(_load_lock, _read_param_file, parse)


def slacken() -> None:
    """Take back one `quicken`: after the last one, DVC is in this process as it was."""
    global _users
    with _mutex:
        _users -= 1
        if not _users:
            _install(_load_yaml, _whole_param_file, _parse)


def _install(load_lock: Any, read_param_file: Any, parse_yaml: Any) -> None:
    dvcfile.Lockfile._load_yaml = load_lock
    param.read_param_file = read_param_file
    _yaml.parse_yaml = formats.parse_yaml = strictyaml.parse_yaml = parse_yaml


def _read_param_file(
    fs: Any, path: str, key_paths: list[str] | None = None, flatten: bool = False, **kwargs: Any
) -> Any:
    if not (key_paths and flatten):
        return _whole_param_file(fs, path, key_paths, flatten, **kwargs)
    everything, found = _whole_param_file(fs, path, **kwargs), {}
    for key in key_paths:
        with suppress(KeyError):
            found[key] = at(everything, key)
    return found


def _load_lock(self: dvcfile.Lockfile, **kwargs: Any) -> tuple[Any, str]:
    if not kwargs and isinstance(self.repo.fs, LocalFileSystem):  # what is imported may lie in git's history
        with suppress(UnicodeDecodeError):
            text = Path(self.path).read_text(encoding="utf-8")
            if (found := locked(text, self.path)) is not None:
                return found, text
    loaded: tuple[Any, str] = _load_yaml(self, **kwargs)
    return loaded


def parse(text: str, path: str, typ: str = "safe") -> Any:
    """What a YAML text says, as DVC's own `parse_yaml` would tell.

    Args:
        text: the text.
        path: of its file, for messages.
        typ: ruamel.yaml's kind of parser; with any but this one nothing is remembered.

    Raises:
        dvc.utils.serialize.YAMLFileCorruptedError: the text is no YAML.
    """
    if typ != "safe":
        return _parse(text, path, typ=typ)
    if text not in _parsed:
        if sum(map(len, _parsed)) > KEPT:
            _parsed.clear()
        _parsed[text] = pickle.dumps(_parse(text, path))
    return pickle.loads(_parsed[text])


def at(values: Any, dotted: str) -> Any:
    """The value of a param, as DVC looks it up, but straight where there is no pattern in its name.

    Args:
        values: what a file of params holds.
        dotted: the param's name, as in dvc.yaml.

    Raises:
        KeyError: there is none.
    """
    found = values
    for key in dotted.split("."):
        if not isinstance(found, dict) or key not in found or not _PATTERN.isdisjoint(key):
            return dpath.get(values, dotted, separator=".")
        found = found[key]
    return found


def read_ahead(folder: str) -> None:
    """Parse what most stages of the repository at `folder` will want, unless that was done already."""
    for name in ("dvc.yaml", "params.yaml"):
        path = Path(folder) / name
        with suppress(Exception):  # the parser has many; if DVC reads the file at all, it will say what is wrong
            if path.stat().st_size <= AHEAD_BYTES:
                parse(path.read_text(encoding="utf-8"), str(path))


class Entries(Mapping[str, Any]):
    """What a lock file that DVC wrote has of each stage, by the stage's name.

    Args:
        text: of the lock file; `is_plain`.
        path: of the lock file, for messages.

    Raises:
        dvc.utils.strictyaml.YAMLValidationError: when an entry is looked up that is none.
        dvc.utils.serialize.YAMLFileCorruptedError: when an entry is looked up that is no YAML.
    """

    def __init__(self, text: str, path: str) -> None:
        self._path = path
        self._texts = {found[1]: found[0] for found in _ENTRY.finditer(text)}

    def __getitem__(self, name: str) -> Any:
        return self._entry(self._texts[_first_line(name)])[name]

    def __iter__(self) -> Iterator[str]:
        for text in self._texts.values():
            yield from self._entry(text)

    def __len__(self) -> int:
        return len(self._texts)

    def _entry(self, text: str) -> dict[str, Any]:
        entry: dict[str, Any] = parse(text, self._path)
        if text not in _valid:
            strictyaml.validate({"schema": "2.0", "stages": entry}, COMPILED_LOCKFILE_SCHEMA, path=self._path)
            _valid.add(text)
        return entry


def locked(text: str, path: str) -> dict[str, Any] | None:
    """What a lock file says, its stages as `Entries`; None if DVC did not write it so.

    Args:
        text: of the lock file.
        path: of the lock file, for messages.
    """
    return {"schema": "2.0", "stages": Entries(text, path)} if _is_plain(text) else None


def with_entry(text: str, name: str, entry: Mapping[str, Any], path: str, later: Collection[str] = ()) -> str:
    """The text of a lock file with the entry of one stage in place of the one that it has, or after all others.

    Args:
        text: of the lock file; may be empty.
        name: of the stage.
        entry: what is to be recorded.
        path: of the lock file, for messages.
        later: names of stages whose entries come after a new one, if they are there.

    Raises:
        dvc.utils.serialize.YAMLFileCorruptedError: the text is no YAML.
    """
    if text and not _is_plain(text):  # DVC's own, slow way
        data = parse_yaml_for_update(text, path)
        stages = data.setdefault("stages", {})
        place = next((n for n, each in enumerate(stages) if each in later), None)
        if name in stages or place is None:
            stages[name] = entry
        else:
            stages.insert(place, name, entry)
        return str(dumps_yaml(data))
    new = str(dumps_yaml({"stages": {name: entry}})).removeprefix("stages:\n")
    head = _first_line(name)
    after = {_first_line(each) for each in later}
    place = len(text)
    for found in _ENTRY.finditer(text):
        if found[1] == head:
            return text[: found.start()] + new + text[found.end() :]
        if found[1] in after:
            place = min(place, found.start())
    return text[:place] + new + text[place:] if text else _HEAD + new


def _is_plain(text: str) -> bool:
    """Whether the text is as DVC writes it: one block of stages, each an entry by itself under its name in a line."""
    stages = text.removeprefix(_HEAD)
    entries = list(_ENTRY.finditer(stages))
    if stages == text or not entries or "".join(entry[0] for entry in entries) != stages:
        return False
    if _BLANKS.search(stages) or _REFERENCE.search(stages):
        return False
    names = [entry[1] for entry in entries]
    return len({*names}) == len(names) and all(map(_is_name, names))


@cache
def _is_name(line: str) -> bool:
    """Whether this is how DVC writes a stage's name in dvc.lock."""
    if not line.endswith(":"):
        return False
    if _BARE.fullmatch(line, 2, len(line) - 1):
        return True
    try:
        (name,) = _parse(line, "dvc.lock")
    except (DvcException, ValueError, TypeError):
        return False
    return isinstance(name, str) and _first_line(name) == line


@cache
def _first_line(name: str) -> str:
    return str(dumps_yaml({"stages": {name: {"cmd": "x"}}})).splitlines()[1]
