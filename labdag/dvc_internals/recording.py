"""How DVC reads and records a stage that it runs, made exact, safe against a crash, and quick.

DVC 3 has these faults here, and no option against them:

- It hashes what a stage reads after the command. What was edited meanwhile is recorded, in dvc.lock and in the
  run-cache, as if it had made the outputs. Here a stage is recorded only if all that it reads is what it was before.
- It takes what its cache has for what it should have, as long as the file is read-only. Here what is to be restored is
  hashed before, and a spoilt object is dropped, so that the stage runs.
- It writes dvc.lock in place. A kill at that moment, or a full disk, leaves a part of it. Here it is replaced at once.
- It parses and writes the whole of dvc.lock in round-trip mode for each stage, most of a second with 200 stages.
  Here the stage's own entry is put into the text.
- It parses params.yaml and dvc.lock again and again. Here each text is parsed once, and of dvc.lock the entries that
  are asked for (`labdag.dvc_internals.texts`).

The same bytes come out. And here a stage leaves a note, in the file that LABDAG_NOTE names, of what it read, and once
its command has ended well, of what that made: for whoever finds it finished but not recorded.

`install` changes the process that it is called in and nothing else: the supervisor's children, which run `dvc repro`
for one stage each.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dvc import dvcfile, lock, rwlock, stage
from dvc.exceptions import DvcException
from dvc.output import Output
from dvc.stage import Stage, serialize
from dvc.stage.cache import StageCache
from dvc_data.hashfile.hash import file_md5
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError

from labdag.dvc_internals import inputs
from labdag.dvc_internals.notes import NOTE, ORDER, SUSPECTS, TAINTED, WRITES
from labdag.dvc_internals.texts import READING, quicken, with_entry
from labdag.files import replace

POLL_SECONDS = 0.02  # between two tries for DVC's lock, which are half a second apart in DVC itself

# What is replaced below, as it must look to be replaced.
_KNOWN: dict[Callable[..., Any], str] = {
    stage.run_stage: "(stage, dry=False, force=False, run_env=None, **kwargs)",
    Stage.save_outs: "(self, allow_missing: bool = False)",
    StageCache._create_stage: "(self, cache, wdir=None)",
    dvcfile.Lockfile.dump_stages: "(self, stages, **kwargs)",
    **READING,
}


class TaintedError(DvcException):  # type: ignore[misc]
    """What the stage reads was edited while it ran, so nothing can be said of what its outputs were made from."""


def install() -> None:
    """Make DVC record stages in this way, in this process.

    Raises:
        RuntimeError: this version of DVC differs where it matters.
    """
    check()
    run_stage, save_outs = stage.run_stage, Stage.save_outs
    read_before: dict[str, Any] = {}
    touched_before: dict[str, list[int]] = {}

    def run_between_notes(node: Stage, *args: Any, **kwargs: Any) -> None:
        read_before.update(inputs.read(node.deps))
        touched_before.update(inputs.touched(node.deps, _keys(SUSPECTS)))
        own = [*inputs.declared(node.meta), *_keys(WRITES), *_keys(SUSPECTS)]
        note = _read_note() | {"definition": _definition(node), "read": inputs.noted(read_before, own)}
        _write_note(note)
        run_stage(node, *args, **kwargs)
        _write_note(note | {"made": made((out.fs_path for out in node.outs), node.repo.root_dir)})

    def save_untainted_outs(self: Stage, *args: Any, **kwargs: Any) -> None:
        # DVC has just hashed the dependencies anew, and what it has found now is what it would record.
        note = _read_note()
        declared = inputs.declared(self.meta)
        own = [*declared, *_keys(WRITES), *_keys(SUSPECTS)]
        edits = inputs.edits(self.deps, read_before or note.get("read", {}), own)
        told = [edit.text for edit in edits if not edit.is_of(own)]
        wrote = [edit.key for edit in edits if not edit.is_of(declared)]
        # What changed during the last try, and has been written again: with what was there already.
        touched = inputs.touched(self.deps, touched_before)
        wrote += [key for key, sign in touched.items() if sign != touched_before[key] and key not in wrote]
        if note.get("definition", here := _definition(self)) != here:  # where it is recorded later than it ran
            told.append(f"the definition of {self.addressing}")
        if note:
            _write_note(note | {"wrote": wrote})
        if told:
            raise TaintedError(TAINTED + ", ".join(told))
        save_outs(self, *args, **kwargs)

    create_stage = StageCache._create_stage

    def create_sound_stage(self: StageCache, entry: Mapping[str, Any], **kwargs: Any) -> Stage:
        node = create_stage(self, entry, **kwargs)
        for out in node.outs:
            _drop_spoilt(out)
        return node

    stage.run_stage, Stage.save_outs = run_between_notes, save_untainted_outs
    StageCache._create_stage = create_sound_stage
    dvcfile.Lockfile.dump_stages = _dump_stages
    quicken()
    # DVC's lock waits for ever where --wait-for-lock is given; this is only how often it looks.
    lock.DEFAULT_TIMEOUT = POLL_SECONDS * 6
    rwlock.make_lock = _patient_lock


def _keys(variable: str) -> list[str]:
    return list(json.loads(os.environ.get(variable, "[]")))


def _drop_spoilt(out: Output) -> None:
    """Remove those of an output's objects from the cache whose contents have another hash than their names say."""
    if out.hash_name != "md5":
        return
    try:
        found = out.get_obj()
    except (DvcException, ObjectFormatError):
        found = None
    names = [out.hash_info.value]
    names += [entry.value for _, _, entry in found] if isinstance(found, Tree) else []
    for name in names:
        path = Path(out.cache.oid_to_path(name))
        if path.exists() and file_md5(str(path), out.cache.fs) != name.removesuffix(".dir"):
            dvcfile.logger.warning("What the cache has of '%s' is spoilt; it is dropped.", out)
            path.unlink()


def check() -> None:
    """Look whether DVC is as it must be for `install`.

    Raises:
        RuntimeError: it is not.
    """
    for function, known in _KNOWN.items():
        signature = str(inspect.signature(inspect.unwrap(function))).partition(" ->")[0]
        if signature != known:
            raise RuntimeError(f"labdag does not know this version of DVC: {function.__qualname__} takes {signature}.")


def _patient_lock(*args: Any, **kwargs: Any) -> Any:
    """The guard of the list of files in use, held for moments, for which DVC waits only so long: wait for it too."""
    return lock.make_lock(*args, **kwargs | {"wait": True})


def _definition(node: Stage) -> dict[str, Any]:
    """What the stage is, beside the contents of what it reads."""
    found: dict[str, Any] = inputs.plain(
        {
            "cmd": node.cmd,
            "deps": sorted(str(dep) for dep in node.deps),
            "params": sorted(name for dep in node.deps for name in getattr(dep, "params", ())),
            "outs": sorted(str(out) for out in node.outs),
        }
    )
    return found


def made(paths: Iterable[str], root: str) -> dict[str, list[int]]:
    """Size and time of change of every file under some outputs, by path from the root: a sign that nobody touched them.

    Args:
        paths: of files and folders.
        root: of the repository, which may be copied or moved before the sign is looked at.
    """
    files = [Path(path) for path in paths]
    files += [
        Path(folder) / name for path in files if path.is_dir() for folder, _, names in os.walk(path) for name in names
    ]
    return {
        os.path.relpath(file, root): [(stat := file.stat()).st_size, stat.st_mtime_ns]
        for file in files
        if file.is_file()
    }


def _write_note(note: Mapping[str, Any]) -> None:
    if path := os.environ.get(NOTE):
        replace(Path(path), json.dumps(note), Path(path).parent)


def _read_note() -> dict[str, Any]:
    path = os.environ.get(NOTE)
    if path is None or not Path(path).exists():
        return {}
    note: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return note


def _dump_stages(self: dvcfile.Lockfile, stages: list[Stage], **kwargs: Any) -> None:
    if not stages:
        return
    path = Path(self.path).resolve()
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not text:
        dvcfile.logger.info("Generating lock file '%s'", self.relpath)
    changed = text
    for node in stages:
        entry = serialize.to_lockfile(node, **kwargs)[node.name]
        changed = with_entry(changed, node.name, entry, str(path), _later(self.path, node.name))
    if changed == text:
        return
    if text:
        dvcfile.logger.info("Updating lock file '%s'", self.relpath)
    replace(path, changed, Path(self.repo.tmp_dir))
    self.repo.scm_context.track_file(self.relpath)


def _later(lock_file: str, name: str) -> list[str]:
    """Those of the stages that get their first entry in this run which `dvc repro` would have recorded after one."""
    path = os.environ.get(ORDER)
    if path is None or not Path(path).exists():
        return []
    order: list[str] = json.loads(Path(path).read_text(encoding="utf-8")).get(lock_file, [])
    return order[order.index(name) + 1 :] if name in order else []
