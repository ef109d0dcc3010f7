"""Which stages are meant: by their names, groups, keys or globs; and which of them stand for results."""

from __future__ import annotations

import difflib
import fnmatch
import posixpath
from collections.abc import Iterable, Iterator, Sequence

from labdag.errors import UserError
from labdag.pipeline.graph import Stage
from labdag.pipeline.repository import PROJECT_FILE


def select(
    stages: dict[str, Stage],
    targets: Sequence[str],
    *,
    downstream: bool = False,
    single: bool = False,
) -> dict[str, Stage]:
    """The stages that `targets` name, and all upstream of them, in the order of `stages`.

    A target is a stage as DVC names it (`train`, `train@lenet_mnist`, `:train`, `dvc.yaml:train`,
    `../dvc.yaml:train`), a file of stages (`dvc.yaml`, `sub/dvc.yaml`, `data.csv.dvc`) or the folder that it lies in, a
    group (`train`), a foreach key (`lenet_mnist`), or a glob over any of these; no target means everything.

    Args:
        stages: all stages, each after those that it depends on.
        targets: what is meant.
        downstream: take what depends on the targets instead of what they depend on.
        single: take the targets alone.

    Raises:
        UserError: a target names nothing; the nearest name is suggested.
    """
    chosen = {name for target in targets for name in named(stages.values(), target)}
    if not targets:
        return dict(stages)
    if single:
        return {name: stage for name, stage in stages.items() if name in chosen}
    for stage in stages.values() if downstream else reversed(stages.values()):
        if downstream and chosen.intersection(stage.upstream):
            chosen.add(stage.name)
        elif not downstream and stage.name in chosen:
            chosen.update(stage.upstream)
    return {name: stage for name, stage in stages.items() if name in chosen}


def named(stages: Iterable[Stage], target: str, folder: str = "") -> list[str]:
    """The names of the stages that one target names, without those upstream.

    Args:
        stages: all stages.
        target: what is meant.
        folder: where it is named from, a path from the repository's root.

    Raises:
        UserError: it names nothing.
    """
    everything = list(stages)
    here = [stage for stage in everything if stage.path == posixpath.join(folder, PROJECT_FILE)]
    # A name alone is one in the dvc.yaml of this folder, as DVC has it, though another folder may have it, too.
    alone = target.removeprefix(":")
    found = [stage.name for stage in here if alone in (stage.inner, stage.inner.partition("@")[0])]
    found = found or _in_file(everything, target, folder)
    if not found and not target.startswith(":"):
        # What DVC has no such name for: keys, folders, globs. In a folder with stages of its own, these are meant.
        scope = here if folder and here else everything
        found = [stage.name for stage in scope if target in _names(stage)]
        found = found or [stage.name for stage in scope if fnmatch.filter(_names(stage), target)]
    if found:
        return found
    known = sorted({name for stage in here or everything for name in (stage.key, stage.group, stage.name)})
    elsewhere = next((stage for stage in everything if target in (stage.inner, stage.key, stage.group)), None)
    file = posixpath.relpath(elsewhere.path, folder or ".") if elsewhere else None
    raise UserError(_unknown(target, known, file))


def _in_file(stages: Iterable[Stage], target: str, folder: str) -> list[str]:
    """The stages that a target names by the file that defines them, alone or with a name in it."""
    named_file, colon, name = target, "", ""
    if f"{PROJECT_FILE}:" in target:
        before, colon, name = target.partition(f"{PROJECT_FILE}:")
        named_file = before + PROJECT_FILE
    path = posixpath.normpath(posixpath.join(folder, named_file))
    stages = [stage for stage in stages if stage.path == path]
    if not colon:
        return [stage.name for stage in stages]
    found = [stage.name for stage in stages if name in (stage.inner, stage.inner.partition("@")[0])]
    return found or [stage.name for stage in stages if fnmatch.fnmatchcase(stage.inner, name)]


def rooted(stages: dict[str, Stage], targets: Iterable[str], folder: str) -> list[str]:
    """Targets as they are named from the repository's root, where they are named from a folder below.

    Args:
        stages: all stages.
        targets: what is meant.
        folder: a path from the root; empty for the root itself.

    Raises:
        UserError: a target names nothing.
    """
    found: dict[str, None] = {}
    for target in targets:
        meant = named(stages.values(), target, folder)
        alike = (name for name in _from_root(target, folder) if _names_the_same(stages, name, meant))
        found.update(dict.fromkeys([name] if (name := next(alike, None)) else meant))
    return list(found)


def _from_root(target: str, folder: str) -> Iterator[str]:
    """What a target of a folder may be called from the root."""
    yield target
    if folder:
        yield f"{posixpath.join(folder, PROJECT_FILE)}:{target.removeprefix(':')}"
        yield posixpath.normpath(posixpath.join(folder, target))


def _names_the_same(stages: dict[str, Stage], target: str, meant: list[str]) -> bool:
    try:
        return named(stages.values(), target) == meant
    except UserError:
        return False


def results(stages: dict[str, Stage]) -> dict[str, dict[str, Stage]]:
    """The keys that stand for a result, each with its stages and those that lead to it, up to other results.

    They are those whose stages name a report or figures in their `meta:`, and those that no other key depends on.
    """
    read = _read_by_others(stages)
    keys = dict.fromkeys(s.key for s in stages.values() if s.key not in read or s.meta.report or s.meta.summary)
    found = {key: {stage.name for stage in stages.values() if stage.key == key} for key in keys}
    for members in found.values():
        for stage in reversed(stages.values()):
            if stage.name in members:
                members |= {up for up in stage.upstream if up in stages and stages[up].key not in keys}
    return {key: {name: stages[name] for name in stages if name in members} for key, members in found.items()}


def _read_by_others(stages: dict[str, Stage]) -> set[str]:
    """Keys that another key depends on."""
    return {
        stages[upstream].key
        for stage in stages.values()
        for upstream in stage.upstream
        if upstream in stages and stages[upstream].key != stage.key
    }


def _names(stage: Stage) -> set[str]:
    """What else a stage may be called by: its key, and of another folder's dvc.yaml the names that it has there."""
    names = {stage.name, stage.key, stage.group}
    if stage.inner and stage.path != PROJECT_FILE:
        names |= {posixpath.dirname(stage.path), stage.inner, stage.inner.partition("@")[0]}
    return names


def _unknown(target: str, known: list[str], elsewhere: str | None) -> str:
    if elsewhere and not elsewhere.startswith("dvc.yaml"):
        hint = f" Did you mean the one in {elsewhere}, '{elsewhere}:{target}'?"
    else:
        near = difflib.get_close_matches(target, known, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"Nothing is called '{target}'.{hint} `labdag list` and `dvc stage list` show what there is."
