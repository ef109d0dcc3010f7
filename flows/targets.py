"""Which stages are meant: by their names, groups, keys or globs; and which of them stand for results."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

from flows.graph import GraphError, Stage


def select(stages: dict[str, Stage], targets: Sequence[str], *, downstream: bool = False) -> dict[str, Stage]:
    """The stages that `targets` name, and all upstream of them, in the order of `stages`.

    A target is a stage (`train@lenet_mnist`, `dvc.yaml:train`, `sub/dvc.yaml:train`), a group (`train`), a foreach
    key (`lenet_mnist`), a folder's or a file's stages (`sub`, `sub/dvc.yaml`), or a glob over any of these; no target
    means everything.

    Args:
        stages: all stages, each after those that it depends on.
        targets: what is meant.
        downstream: take what depends on the targets instead of what they depend on.

    Raises:
        GraphError: a target names nothing; the nearest name is suggested. Or there are no stages at all.
    """
    if not stages:
        raise GraphError("There are no stages here: dvc.yaml defines them, and `dvc stage add` writes it.")
    chosen: set[str] = set()
    for target in targets:
        # As DVC has it, a name alone is the root's stage, though a folder below may have one of that name.
        named = {stage.name for stage in stages.values() if target.removeprefix("./") in _addresses(stage)}
        named = named or {stage.name for stage in stages.values() if target in _names(stage)}
        named = named or {stage.name for stage in stages.values() if fnmatch.filter(_names(stage), target)}
        if not named:
            known = sorted({name for stage in stages.values() for name in (stage.key, stage.group, stage.name)})
            raise GraphError(_unknown(target, known))
        chosen |= named
    if not targets:
        return dict(stages)
    for stage in stages.values() if downstream else reversed(stages.values()):
        if downstream and chosen.intersection(stage.upstream):
            chosen.add(stage.name)
        elif not downstream and stage.name in chosen:
            chosen.update(stage.upstream)
    return {name: stage for name, stage in stages.items() if name in chosen}


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


def _addresses(stage: Stage) -> set[str]:
    """How DVC addresses the stage alone."""
    return {stage.name} if ":" in stage.name or stage.name.endswith(".dvc") else {stage.name, f"dvc.yaml:{stage.name}"}


def _names(stage: Stage) -> set[str]:
    names = {stage.name, stage.key, stage.group}
    file, colon, inner = stage.name.rpartition(":")
    if colon:  # of another folder's dvc.yaml: by the names that it has there, too
        names |= {file, file.removesuffix("/dvc.yaml"), inner, inner.partition("@")[0]}
    return names


def _unknown(target: str, known: list[str]) -> str:
    near = difflib.get_close_matches(target, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"Nothing is called '{target}'.{hint} `labdag list` and `dvc stage list` show what there is."
