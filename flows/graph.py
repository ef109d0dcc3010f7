"""The stages of a DVC repository, their edges, and why each is stale; the only reader of DVC's internals."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvc.repo import Repo

NEVER_RUN = "never run"


class GraphError(Exception):
    """The repository or a target is not as it should be; the text says what is wrong and what would be right."""


@dataclass(frozen=True)
class Stage:
    """A node of the DAG.

    Attributes:
        name: how DVC addresses it (`train@lenet_mnist`, `sub/dvc.yaml:train`, `data.csv.dvc`).
        upstream: names of the stages whose outputs it reads.
        meta: its `meta:` block in dvc.yaml.
        metrics: its metrics files, relative to the repository's root.
    """

    name: str
    upstream: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What a foreach or matrix made this stage for (`lenet_mnist`), or else its own name."""
        return self.name.partition("@")[2] or self.name

    @property
    def group(self) -> str:
        """The stage's name in dvc.yaml, without the key (`train`)."""
        return self.name.partition("@")[0]


def find_root(start: Path) -> Path:
    """The root of the DVC repository that holds `start`.

    Raises:
        GraphError: there is none.
    """
    for folder in (start, *start.parents):
        if (folder / ".dvc").is_dir():
            return folder
    raise GraphError(
        f"There is no DVC repository in {start} or above; go to the project's folder, or make this one a "
        "repository with `git init && dvc init`."
    )


def load(root: Path) -> dict[str, Stage]:
    """All stages of the repository, each after those that it depends on.

    Raises:
        GraphError: dvc.yaml, params.yaml or dvc.lock can't be read (DVC's own sentence says why), or a stage's
            `meta:` is not of the shape that labdag reads.
    """
    with _opened(root) as repo:
        graph = repo.index.graph
        stages = {
            _name(node): Stage(
                name=_name(node),
                upstream=tuple(sorted(map(_name, graph.successors(node)))),
                meta=_meta(node),
                metrics=tuple(_relative(repo, out) for out in node.outs if out.metric),
            )
            for node in repo.index.stages
        }
    order = TopologicalSorter({stage.name: stage.upstream for stage in stages.values()}).static_order()
    return {name: stages[name] for name in order}


def stale(root: Path, names: Iterable[str]) -> dict[str, str | None]:
    """Why each of the named stages would not be skipped, seen for itself: None where it is fresh.

    A stage that is fresh for itself may still rerun, when a stale one upstream changes what it reads.

    Raises:
        GraphError: the repository can't be read, or another DVC command holds its lock.
    """
    from dvc.lock import LockError

    wanted = set(names)
    with _opened(root) as repo:
        try:
            with repo.lock:
                return {_name(node): _reason(node) for node in repo.index.stages if _name(node) in wanted}
        except LockError:
            raise GraphError("A stage is running now, so freshness can't be told; try again later.") from None


def select(stages: dict[str, Stage], targets: Sequence[str]) -> dict[str, Stage]:
    """The stages that `targets` name, and all upstream of them, in the order of `stages`.

    A target is a stage (`train@lenet_mnist`), a stage group (`train`), a foreach key (`lenet_mnist`), or a
    glob over any of these; no target means everything.

    Raises:
        GraphError: a target names nothing; the nearest name is suggested.
    """
    chosen: set[str] = set()
    for target in targets:
        named = {stage.name for stage in stages.values() if _names(stage, target)}
        if not named:
            known = sorted({name for stage in stages.values() for name in (stage.key, stage.group, stage.name)})
            raise GraphError(_unknown(target, known))
        chosen |= named
    for stage in reversed(stages.values()):
        if not targets or stage.name in chosen:
            chosen |= {stage.name, *stage.upstream}
    return {name: stage for name, stage in stages.items() if name in chosen}


def results(stages: dict[str, Stage]) -> dict[str, dict[str, Stage]]:
    """The keys that stand for a result, each with its stages and those that lead to it, up to other results.

    They are those whose stages name a report or figures in their `meta:`, and those that no other key depends on.
    """
    read = _read_by_others(stages)
    keys = dict.fromkeys(s.key for s in stages.values() if s.key not in read or s.meta.keys() & {"report", "summary"})
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


def _names(stage: Stage, target: str) -> bool:
    return any(fnmatch.fnmatchcase(name, target) for name in (stage.name, stage.key, stage.group))


def _unknown(target: str, known: list[str]) -> str:
    near = difflib.get_close_matches(target, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"There is no lab or stage '{target}'.{hint} `labdag list` and `dvc stage list` show what there is."


def _opened(root: Path) -> Repo:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo = Repo(str(root))
        _ = repo.index.graph
    except DvcException as error:
        cause = f": {error.__cause__}" if error.__cause__ else ""
        raise GraphError(f"DVC can't read the pipeline: {error}{cause}") from None
    return repo


def _name(node: Any) -> str:
    """How DVC addresses the stage from the repository's root, wherever this process stands."""
    path, name = str(node.path_in_repo), getattr(node, "name", None)
    if name is None:
        return path
    return str(name) if path == "dvc.yaml" else f"{path}:{name}"


def _meta(node: Any) -> dict[str, Any]:
    """A stage's `meta:`, of which DVC leaves the shape to us; keys that labdag does not know may hold anything.

    Raises:
        GraphError: what labdag would read of it has another shape.
    """
    meta = {} if node.meta is None else node.meta
    if not isinstance(meta, dict):
        raise _wrong_meta(node, "meta", meta, 'a block, such as `meta: {summary: {accuracy: ".2%"}}`')
    summary, report = meta.get("summary", {}), meta.get("report", "")
    if not isinstance(summary, dict) or not all(isinstance(text, str) for pair in summary.items() for text in pair):
        wanted = 'figures with the format of each, such as `meta.summary: {accuracy: ".2%"}`'
        raise _wrong_meta(node, "meta.summary", summary, wanted)
    if not isinstance(report, str):
        raise _wrong_meta(node, "meta.report", report, "the path of a page, such as `meta.report: results/report.html`")
    return meta


def _wrong_meta(node: Any, key: str, value: Any, wanted: str) -> GraphError:
    return GraphError(f"{node.path_in_repo}: {key} of stage {_name(node)} is {value!r}, but should be {wanted}.")


def _relative(repo: Repo, out: Any) -> str:
    return Path(out.fs_path).relative_to(repo.root_dir).as_posix()


def _reason(node: Any) -> str | None:
    if not any(entry.hash_info for entry in (*node.deps, *node.outs)):
        return NEVER_RUN
    changes: list[str] = []
    for change in next(iter(node.status().values()), []):
        if isinstance(change, str):
            changes.append({"changed checksum": "its command changed"}.get(change, change))
        else:
            for entries in change.values():
                changes += [f"{path} {_told(what)}" for path, what in entries.items()]
    return "; ".join(changes) or None


def _told(what: Any) -> str:
    """DVC says of a file what happened to it, and of a params file which keys changed how."""
    return ", ".join(f"{key} {how}" for key, how in what.items()) if isinstance(what, dict) else str(what)
