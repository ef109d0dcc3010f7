"""What a stage reads, before its command and after it, and what of it was edited meanwhile.

DVC records what it finds after the command. That is right only as long as it is what the command has read.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.dependency import ParamsDependency
from dvc.dependency.base import Dependency
from dvc.exceptions import DvcException
from dvc.fs import LocalFileSystem
from dvc.scm import NoSCM
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.meta import Meta
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError
from pathspec.patterns.gitwildmatch import GitWildMatchPattern

from labdag.meta import parse

# What tools leave in the folders that they work in, and no command reads: bytecode, caches, notes of file managers and
# editors. DVC takes them for a part of the folder, so they are recorded; but they are no edit.
BYPRODUCTS = (
    "__pycache__", "*.pyc", "*.pyo", ".ipynb_checkpoints", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".DS_Store",
    "Thumbs.db", "desktop.ini", "*.swp", "*.swo", "*~", ".#*", ".~lock.*#",
)  # fmt: skip


@dataclass(frozen=True)
class Edit:
    """One thing that is not as it was before the command.

    Attributes:
        name: the dependency, as dvc.yaml has it.
        key: of exactly what changed: the dependency, the file in it (`src/log.txt`), or the param (`params.yaml:lr`).
        text: what changed, as a person would say it.
    """

    name: str
    key: str
    text: str

    def is_of(self, keys: Container[str]) -> bool:
        """Whether what changed is one of some keys, or in a dependency that is one of them."""
        return self.name in keys or self.key in keys


def read(deps: Iterable[Any]) -> dict[str, Any]:
    """What some dependencies hold now: the hash of a file, the values of a file of params, the hashes in a folder.

    Args:
        deps: dependencies of a DVC stage.
    """
    found: dict[str, Any] = {}
    for dep in deps:
        try:
            found[dep.def_path] = _files(dep) or dep.get_hash().value
        except (DvcException, OSError):  # missing, say: DVC itself will tell, or the command will make it
            continue
    return {name: plain(value) for name, value in found.items()}


def noted(values: Mapping[str, Any], own: Container[str] = ()) -> dict[str, Any]:
    """What `read` has found, as it is noted in a file: of a folder a digest, for it may hold many files.

    Args:
        values: as `read` has given it.
        own: keys of what the command is known to write, which is left out of digests.
    """
    return {name: _digest(name, value, own) if _is_folder(value) else value for name, value in values.items()}


def edits(deps: Iterable[Any], before: Mapping[str, Any], own: Container[str] = ()) -> list[Edit]:
    """What of some dependencies is not as it was before.

    Args:
        deps: dependencies of a DVC stage, which DVC has just hashed.
        before: as `read` or `noted` has given it.
        own: as `noted` has had it.
    """
    found = []
    for dep in deps:
        name = dep.def_path
        if name not in before or dep.hash_info.value is None:
            continue
        found += list(_edits_of(dep, name, before[name], own))
    return sorted(found, key=lambda edit: (edit.text, edit.name))


def touched(deps: Iterable[Any], keys: Iterable[str]) -> dict[str, list[int]]:
    """The modification time and the inode of each key's file; missing files are left out.

    Args:
        deps: dependencies of a DVC stage.
        keys: as edits of these have them.
    """
    found = {}
    places = {dep.def_path: dep.fs_path for dep in deps}
    for key in keys:
        names = [name for name in places if key == name or key.startswith((_in(name, ""), f"{name}:"))]
        name = max(names, key=len, default=None)
        if name is None:
            continue
        rest = key.removeprefix(_in(name, "")) if key.startswith(_in(name, "")) else ""
        with suppress(OSError):
            stat = Path(places[name], rest).stat()
            found[key] = [stat.st_mtime_ns, stat.st_ino]
    return found


def _in(name: str, file: str) -> str:
    """The key of a file in a folder."""
    return f"{name.rstrip('/')}/{file}"


def _edits_of(dep: Any, name: str, old: Any, own: Container[str]) -> Iterable[Edit]:
    if _is_folder(old):
        new = _files(dep)
        if new is None:  # it is a file now
            yield Edit(name, name, str(dep))
            return
        yield from (
            Edit(name, _in(name, file), f"{dep}/{file}")
            for file in sorted(old.keys() | new.keys())
            if file and old.get(file) != new.get(file)
        )
    elif isinstance(dep, ParamsDependency) and isinstance(old, dict):
        new = plain(dep.hash_info.value)
        yield from (Edit(name, f"{name}:{key}", f"{key} of {dep}") for key in old.keys() | new.keys()
                    if _differ(old.get(key), new.get(key)))  # fmt: skip
    else:
        files = _files(dep)
        if old != (_digest(name, files, own) if files else plain(dep.hash_info.value)):
            yield Edit(name, name, str(dep))


def foreseen(dep: Any, coming: Mapping[str, Any]) -> Any:
    """The hash that a dependency will have when something else has been restored, and what else DVC will note of it.

    Args:
        dep: a dependency of a DVC stage, with something that is coming in it, or in something that is coming.
        coming: the hash of what will have been restored, and what else DVC notes of it, by its path.

    Returns:
        Both, or None if that can't be known.
    """
    cache = dep.repo.cache.local
    try:
        for path, (found, _) in coming.items():
            if dep.fs_path.startswith(f"{path}/") and found.isdir:
                key = tuple(dep.fs_path.removeprefix(f"{path}/").split("/"))
                tree = Tree.load(cache, found)
                held = tree.get_obj(cache, key)
                meta = (tree.get(key) or (None, None))[0]
                return held and (held.hash_info, Meta(isexec=bool(meta and meta.isexec)))
        return _with(_tree(dep) or Tree.from_list([]), dep, coming).hash_info, Meta()
    except (DvcException, ObjectFormatError, OSError):
        return None


def _with(tree: Tree, dep: Any, coming: Mapping[str, Any]) -> Tree:
    """The contents of a folder, with what is coming in it in the place of what is there."""
    inside = {tuple(path.removeprefix(f"{dep.fs_path}/").split("/")): path for path in coming
              if path.startswith(f"{dep.fs_path}/")}  # fmt: skip
    made: Tree = Tree.from_list([])
    for key, meta, found in tree:
        if not any(key[: len(other)] == other for other in inside):
            made.add(key, meta, found)
    for key, path in inside.items():
        found, meta = coming[path]
        if found.isdir:
            for inner, each, its in Tree.load(dep.repo.cache.local, found):
                made.add((*key, *inner), each, its)
        else:
            made.add(key, meta, found)
    for path, text in _ignore_files(dep.repo, inside.values()).items():
        key = tuple(path.removeprefix(f"{dep.fs_path}/").split("/"))
        made.add(key, Meta(), HashInfo("md5", hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()))
    made.digest()
    return made


def _ignore_files(repo: Any, outs: Iterable[str]) -> dict[str, str]:
    """The text of each .gitignore file that DVC will have written once it has restored some outputs, by its path."""
    if isinstance(repo.scm, NoSCM):
        return {}
    ignored = {out.fs_path for out in repo.index.outs if out.use_scm_ignore}
    found: dict[str, str] = {}
    for path in outs:
        if path not in ignored or repo.scm.is_ignored(path):
            continue
        entry, file = repo.scm._get_gitignore(path)
        if file not in found:
            found[file] = Path(file).read_text(encoding="utf-8") if Path(file).exists() else ""
        text = found[file]
        line = f"{GitWildMatchPattern.escape(entry)}\n"
        if line not in text.splitlines(keepends=True):
            separator = "\n" if text and not text.endswith("\n") else ""
            found[file] = text + separator + line
    return found


def declared(meta: Any) -> list[str]:
    """What a stage says in its `meta:` that its command writes of what it reads."""
    return list(parse(meta).writes_inputs)


def plain(values: Any) -> Any:
    """As JSON has it, so that what was noted compares with what is there: a date is a string, a tuple a list."""
    return json.loads(json.dumps(values, default=str))


def _files(dep: Any) -> dict[str, str] | None:
    """The hashes of the files in a folder, by their paths in it, without byproducts; None for anything else."""
    found = _tree(dep)
    if found is None:
        return None
    files = {"/".join(key): str(info.value) for key, _, info in found if not any(map(_is_byproduct, key))}
    return {"": FOLDER, **files}


def _tree(dep: Any) -> Tree | None:
    """The hashes of all files in a folder; None for anything else."""
    if type(dep) is not Dependency or not isinstance(dep.fs, LocalFileSystem) or not dep.fs.isdir(dep.fs_path):
        return None
    odb = dep.cache if dep.use_cache else dep.local_cache
    _, _, found = dep._build(
        odb, dep.fs_path, dep.fs, dep.hash_name, ignore=dep.dvcignore, dry_run=not dep.use_cache, no_progress_bar=True
    )
    return found if isinstance(found, Tree) else None


FOLDER = "folder"  # what stands for the folder itself, which may be empty


def _is_folder(value: Any) -> bool:
    return isinstance(value, dict) and value.get("") == FOLDER


def _is_byproduct(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in BYPRODUCTS)


def _digest(name: str, files: Mapping[str, str], own: Container[str]) -> str:
    others = {file: found for file, found in files.items() if not file or _in(name, file) not in own}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _differ(old: Any, new: Any) -> bool:
    """Whether two values of a param are written differently: .nan does not even equal itself."""
    return json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True)
