"""DVC's files, parsed once and entry by entry, say what DVC itself reads in them."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import dpath
import pytest
from dvc import dvcfile
from dvc.dependency import param
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.utils import serialize
from dvc.utils.serialize import YAMLFileCorruptedError, _yaml, dumps_yaml, parse_yaml, parse_yaml_for_update
from dvc.utils.strictyaml import YAMLValidationError
from ruamel.yaml import YAML
from voluptuous import Invalid

from labdag.dvc_internals.texts import Entries, at, locked, parse, read_ahead, with_entry
from labdag.errors import UserError
from labdag.pipeline.graph import Pipeline, load

NAMES = ["plain", "with space", "1", "a@x: y", "true", "ünïcode", "q'uote"]
ENTRY: dict[str, Any] = {
    "cmd": "echo a very long command line " * 8,
    "params": {"params.yaml": {"a.b": [1, {"c": None}], "text": "two\nlines\n", "empty": {}}},
    "outs": [{"path": "x", "hash": "md5", "md5": "0" * 32, "size": 1}],
}


def lock_file(names: list[str]) -> str:
    text = ""
    for number, name in enumerate(names):
        text = with_entry(text, name, ENTRY | {"cmd": f"{ENTRY['cmd']} {number}"}, "dvc.lock")
        assert dumps_yaml(parse_yaml_for_update(text, "dvc.lock")) == text
    return text


def test_an_entry_is_put_into_dvc_lock_as_dvc_itself_would() -> None:
    text = lock_file([*NAMES, "plain", "1"])
    assert list(YAML(typ="safe").load(text)["stages"]) == NAMES


def test_a_lock_file_with_comments_keeps_them() -> None:
    text = "schema: '2.0'\n# mine\nstages:\n  a:\n    cmd: ls  # so\n  b:\n    cmd: {}\n"
    assert with_entry(text.format("ls"), "b", {"cmd": "cat"}, "dvc.lock") == text.format("cat")


def test_an_entry_by_itself_says_what_the_whole_file_does() -> None:
    text = lock_file(NAMES)
    found = locked(text, "dvc.lock")
    assert found is not None
    assert {"schema": found["schema"], "stages": dict(found["stages"])} == parse_yaml(text, "dvc.lock")
    assert len(found["stages"]) == len(NAMES)
    assert "wi" not in found["stages"]


@pytest.mark.parametrize("name", ["x" * 200, "? x", ": x"])
def test_a_name_that_yaml_writes_over_two_lines_takes_the_long_way(name: str) -> None:
    text = lock_file(["plain", name, "last", name])
    assert list(parse_yaml(text, "dvc.lock")["stages"]) == ["plain", name, "last"]
    if name.startswith("x"):
        assert locked(text, "dvc.lock") is None


HEAD = "schema: '2.0'\nstages:\n"
EDITED = [
    "  a:  # tuned by hand\n    cmd: ls\n",
    "  a: \n    cmd: ls\n",
    "  'a':\n    cmd: ls\n",
    "  a: {cmd: ls}\n",
    "  a:\n    cmd: ls\n  # why\n    outs:\n    - path: x\n      md5: abc\n",
    "  z: &z\n    cmd: ls\n  a: *z\n",
    "  z:\n    cmd: &z ls\n  a:\n    cmd: *z\n",
    "  z: &z\n    cmd: ls\n  a:\n    <<: *z\n",
    "  1:\n    cmd: ls\n  a:\n    cmd: ls\n",
    "   a:\n     cmd: ls\n",
    "  z:\n    cmd: [&z ls]\n  a:\n    cmd: [x,*z]\n",
    "  z:\n    cmd: !!str &z ls\n  a:\n    cmd: *z\n",
    f"  {'a' * 140}:\n    cmd: ls\n",
    "  a:\n    cmd: ls\n  \n    outs:\n    - path: x\n      md5: abc\n",
]


@pytest.mark.parametrize("stages", EDITED)
def test_a_lock_file_edited_by_hand_is_read_and_written_as_dvc_does(stages: str) -> None:
    assert locked(HEAD + stages, "dvc.lock") is None
    changed = parse_yaml(with_entry(HEAD + stages, "a", {"cmd": "cat"}, "dvc.lock"), "dvc.lock")
    assert changed["stages"] == parse_yaml(HEAD + stages, "dvc.lock")["stages"] | {"a": {"cmd": "cat"}}


def test_an_entry_that_is_there_twice_is_refused_as_dvc_refuses_it() -> None:
    text = HEAD + "  a:\n    cmd: ls\n" * 2
    assert locked(text, "dvc.lock") is None
    with pytest.raises(YAMLFileCorruptedError):
        with_entry(text, "a", {"cmd": "cat"}, "dvc.lock")


@pytest.mark.parametrize("command", ["a && b", "rm *.txt", "x &", "echo 'a: &b'", "a \\\n  &b"])
def test_a_command_may_have_the_signs_of_references(command: str) -> None:
    text = with_entry("", "a", {"cmd": command}, "dvc.lock")
    found = locked(text, "dvc.lock") or parse_yaml(text, "dvc.lock")
    assert found["stages"]["a"] == {"cmd": command}


def test_an_entry_that_is_none_is_refused_each_time() -> None:
    entries = Entries(HEAD + "  a:\n    outs: 3\n", "dvc.lock")
    for _ in range(2):
        with pytest.raises(YAMLValidationError):
            entries["a"]


@pytest.mark.parametrize("text", ["a: !!bool x", "a: [", "\xff", "a: !!int ''", "[" * 5000])
def test_what_cannot_be_parsed_ahead_is_left_alone(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text, encoding="latin-1")
    read_ahead(str(tmp_path))


def test_what_is_parsed_may_be_changed_by_whoever_gets_it() -> None:
    parse("a: [1]", "x")["a"].append(2)
    assert parse("a: [1]", "x") == {"a": [1]}


@pytest.mark.parametrize("dotted", ["a", "a.b", "a.b.0", "a.1", "a.*.x", "a.c.x", "no", "a.no", "e.", "f[0]"])
def test_a_param_is_looked_up_as_dvc_does(dotted: str) -> None:
    values = {"a": {"b": [1, 2], "c": {"x": 3}, 1: "one"}, "e": {"x": 1}, "f[0]": 4, "f0": 5}

    def told(look_up: Any) -> str:
        try:
            return repr(look_up())
        except (KeyError, ValueError) as error:
            return type(error).__name__

    assert told(lambda: at(values, dotted)) == told(lambda: dpath.get(values, dotted, separator="."))


def is_valid(lock: Any) -> bool:
    try:
        COMPILED_LOCKFILE_SCHEMA(lock)
    except Invalid:
        return False
    return bool(lock)


def mutated(text: str, chance: random.Random) -> str:
    """A lock file as somebody might have edited it."""
    lines = text.splitlines()
    for _ in range(chance.choice([0, 1, 2])):
        number = chance.randrange(len(lines))
        line = lines[number]
        edits = [f"{line}  # c", f"{line} ", f" {line}", line[1:], line.replace("cmd: ", "cmd: &z "), f"{line}\n{line}"]
        inserted = " " * chance.randrange(6) + chance.choice(["", "# c"]) + f"\n{line}"
        lines[number] = chance.choice([*edits, inserted])
    return "\n".join([*lines, ""])


def test_lock_files_edited_at_random_are_read_and_written_as_dvc_does() -> None:
    plain = 0
    for seed in range(200):
        chance = random.Random(seed)
        names = [*NAMES, "x" * 140, "null", "a.b"]
        text = mutated(lock_file(chance.sample(names, chance.randint(1, 4))), chance)
        try:
            theirs = parse_yaml(text, "dvc.lock")
            theirs = theirs if isinstance(theirs["stages"], dict) else {}
        except (YAMLFileCorruptedError, KeyError, TypeError):
            theirs = {}
        found = locked(text, "dvc.lock")
        if found is not None:
            plain += 1
            try:
                assert dict(found["stages"]) == theirs.get("stages"), text
            except (YAMLFileCorruptedError, YAMLValidationError):
                assert not is_valid(theirs), text
        if theirs:
            name = chance.choice(names)
            changed = parse_yaml(with_entry(text, name, {"cmd": "cat"}, "dvc.lock"), "dvc.lock")
            assert changed == theirs | {"stages": theirs["stages"] | {name: {"cmd": "cat"}}}, text
    assert 20 < plain < 180


def test_dvc_is_as_it_was_when_nobody_reads_any_more(empty_repository: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(empty_repository, tmp_path / "labs", symlinks=True))
    (folder / "dvc.yaml").write_text("stages:\n  a: {cmd: 'echo 1 > a', outs: [a]}\n")

    def functions() -> list[Any]:
        return [dvcfile.Lockfile._load_yaml, param.read_param_file, _yaml.parse_yaml, serialize.parse_yaml]

    before = functions()
    with Pipeline(folder), Pipeline(folder):
        assert not set(before) & set(functions())
        load(folder)
        assert not set(before) & set(functions())
    assert functions() == before
    (folder / "dvc.yaml").write_text("stages: {a: 1}\n")
    with pytest.raises(UserError):
        load(folder)
    assert functions() == before
