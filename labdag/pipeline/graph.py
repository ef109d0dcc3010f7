"""The stages of a DVC repository, their edges, and why each is stale."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import threading
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import date, time
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labdag.errors import UserError
from labdag.git import GitError, git
from labdag.git import top as git_top
from labdag.meta import Meta, parse
from labdag.pipeline.repository import PROJECT_FILE, closed, opened, told_by_dvc

if TYPE_CHECKING:
    from dvc.repo import Repo

NEVER_RUN = "never run"
UNCHANGED = "nothing that it reads or writes changed"
_TEMPLATE = re.compile(r"\$\{\s*([^}\s\[]+)")  # a param's name in dvc.yaml
_FILE = re.compile(r"((?:.*?/)?dvc\.yaml):.")  # at the beginning of a stage's name, if it is not of the root's file
SHOWN = 40  # characters of a param's value


@dataclass(frozen=True)
class Out:
    """What a stage makes.

    Attributes:
        path: of the file or folder, relative to the repository's root.
        cached: whether DVC keeps it in its cache.
        persist: whether DVC leaves it in place for the stage to work on.
    """

    path: str
    cached: bool = True
    persist: bool = False


@dataclass(frozen=True)
class Stage:
    """A node of the DAG.

    Attributes:
        name: how DVC addresses it (`train@lenet_mnist`, `sub/dvc.yaml:train`, `data.csv.dvc`).
        upstream: names of the stages whose outputs it reads.
        meta: what its `meta:` block in dvc.yaml says.
        metrics: its metrics files, relative to the repository's root.
        plots: its files and folders of plots, likewise.
        outs: all that it makes.
        is_run: whether there is anything to run: a command or an import, and it is not frozen. Of others DVC leaves
            the outputs alone, and only records what is there.
        file: the dvc.yaml or .dvc file that defines it; None takes what its name begins with.
    """

    name: str
    upstream: tuple[str, ...] = ()
    meta: Meta = field(default_factory=Meta)
    metrics: tuple[str, ...] = ()
    plots: tuple[str, ...] = ()
    outs: tuple[Out, ...] = ()
    is_run: bool = True
    file: str | None = None

    @property
    def path(self) -> str:
        """The dvc.yaml or .dvc file that defines it, from the repository's root."""
        if self.file is not None:
            return self.file
        if self.name.endswith(".dvc"):
            return self.name
        found = _FILE.match(self.name)
        return found[1] if found else PROJECT_FILE

    @property
    def inner(self) -> str:
        """Its name in that file (`train@lenet_mnist`); empty for a .dvc file."""
        return "" if self.name == self.path else self.name.removeprefix(f"{self.path}:")

    @property
    def address(self) -> tuple[str, str]:
        """The folder, from the repository's root, in which a DVC command finds it, and by which target.

        DVC takes what follows the first `@` of a target for a key, in a folder's name, too.
        """
        folder = posixpath.dirname(self.path)
        return (folder, f"{PROJECT_FILE}:{self.inner}") if "@" in folder and self.inner else ("", self.name)

    @property
    def key(self) -> str:
        """What a foreach or matrix made this stage for (`lenet_mnist`), or else its own name."""
        return self.inner.partition("@")[2] or self.name

    @property
    def group(self) -> str:
        """The stage's name without the key (`train`, `sub/dvc.yaml:train`)."""
        group = self.inner.partition("@")[0]
        return self.name.removesuffix(self.inner) + group


@dataclass(frozen=True)
class Change:
    """One reason why a stage is stale.

    Attributes:
        text: what is different, as a person would say it.
        source: the stage that makes what is different, where one does.
        is_fatal: whether DVC can't bring the stage up to date like this.
        of_out: whether it is an output that is different.
    """

    text: str
    source: str | None = None
    is_fatal: bool = False
    of_out: bool = False


@dataclass(frozen=True)
class Restorable:
    """What DVC would restore of a stage.

    Attributes:
        outs: the hash of each output, and what else DVC notes of it, by its path.
        is_recorded: whether that is what dvc.lock has.
    """

    outs: Mapping[str, Any]
    is_recorded: bool


_ahead: dict[Path, Pipeline] = {}  # pipelines that nobody has taken yet


def prepare(root: Path) -> Pipeline:
    """Open the pipeline at `root` for `take`, so that it is read once by who checks targets and who runs them.

    Raises:
        UserError: as `load` says.
    """
    _ahead[root] = Pipeline(root)
    return _ahead[root]


def take(root: Path) -> Pipeline:
    """The pipeline at `root`, to be closed by who takes it.

    Raises:
        UserError: as `load` says.
    """
    return _ahead.pop(root, None) or Pipeline(root)


def load(root: Path) -> dict[str, Stage]:
    """All stages of the repository, each after those that it depends on.

    Raises:
        UserError: dvc.yaml, params.yaml or dvc.lock can't be read; DVC's own sentence says why.
    """
    with Pipeline(root) as pipeline:
        return pipeline.stages


def stale(root: Path, names: Iterable[str]) -> dict[str, str | None]:
    """Why each of the named stages would not be skipped, seen for itself: None where it is fresh.

    A stage that is fresh for itself may still rerun, when a stale one upstream changes what it reads.

    Raises:
        UserError: the repository can't be read.
    """
    with Pipeline(root) as pipeline:
        return {name: told(pipeline.changes(name)) for name in names}


def told(changes: Iterable[Change]) -> str | None:
    """The reasons in one line; None where there are none."""
    return "; ".join(change.text for change in changes) or None


class Pipeline:
    """The stages of the repository at `root`, looked at again whenever their definitions change.

    It takes none of DVC's locks, so it can be asked while stages run. Its methods may be called from any thread.

    Attributes:
        root: the repository's root.
        stages: all stages as they were when the pipeline was opened, each after those that it depends on.
        allow_missing: whether data that are missing, but recorded, are taken for unchanged.

    Raises:
        UserError: as `load` says; here and in each method.
    """

    allow_missing = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self._mutex = threading.RLock()
        self._hashes: dict[str, tuple[tuple[int, ...], Any]] = {}
        self._params: dict[str, tuple[tuple[int, ...], Any]] = {}
        self._repo = opened(root)
        with ExitStack() as undone:
            undone.callback(closed, self._repo)
            self._read()
            self.stages = stages_of(self._repo)
            self._refuse_dates()
            undone.pop_all()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        closed(self._repo)

    def changes(self, name: str, *, allow_missing: bool = False) -> list[Change]:
        """Why the stage would not be skipped, seen for itself; empty if it is fresh.

        Args:
            name: of the stage.
            allow_missing: whether data that are missing, but recorded, are taken for unchanged; if `self.allow_missing`
                says so, they are anyway.
        """
        may_miss = allow_missing or self.allow_missing
        from dvc.exceptions import DvcException

        with self._mutex, told_by_dvc():
            node = self._node(name, is_read_only=True)
            entries = [*node.deps, *node.outs]
            if entries and not any(entry.hash_info for entry in entries):
                missing = [change for dep in node.deps for change in self._missing(dep)]
                if not _is_run(node):  # what is there is recorded, and nothing would make what is not
                    missing = [Change(f"{out} is missing", is_fatal=True, of_out=True) for out in node.outs
                               if not out.exists]  # fmt: skip
                return [Change(NEVER_RUN), *missing]
            found = [] if node.frozen else [change for dep in node.deps for change in self._changes_of(dep, may_miss)]
            if not node.frozen and (node.is_callback or node.always_changed):
                found.append(Change("it always runs"))
            for out in node.outs:
                try:
                    status = out.status()
                except DvcException as error:
                    status = {str(out): str(error)}
                for path, what in status.items():
                    if may_miss and what in ("deleted", "not in cache"):
                        continue
                    is_lost = what == "deleted" and not _is_run(node)
                    found.append(Change(f"{path} {_OF_OUTS.get(what, what)}", is_fatal=is_lost, of_out=True))
            if node.changed_stage():
                found.append(Change("its command changed"))
            return found

    def restorable(self, name: str, coming: Mapping[str, Any]) -> Restorable | None:
        """What DVC would restore from its cache instead of running the stage; None if it would run it.

        Args:
            name: of the stage.
            coming: what will have been restored before its turn comes, as `Restorable.outs` has it.
        """
        from dvc.stage.cache import _get_cache_hash
        from dvc.stage.loader import StageLoader
        from dvc.stage.serialize import to_single_stage_lockfile
        from dvc_data.hashfile.meta import Meta

        from labdag.dvc_internals.inputs import foreseen

        with self._mutex, told_by_dvc():
            node = self._node(name)
            if not _is_cacheable(node):
                return None
            is_recorded = not node.changed_stage() and all(out.hash_info for out in node.outs)
            for dep in node.deps:
                if dep.fs_path in coming:
                    now = coming[dep.fs_path]
                elif dep.fs_path and any(_overlap(dep.fs_path, path) for path in coming):
                    now = foreseen(dep, coming)
                else:
                    now = _hash_now(dep)
                if now is None:
                    return None
                is_recorded = is_recorded and now[0] == dep.hash_info
                dep.hash_info, dep.meta = now
            entry = to_single_stage_lockfile(node)
            cache = self._repo.stage_cache
            if not is_recorded:
                key = _get_cache_hash(entry, key=True)
                folder = Path(cache._get_cache_dir(key))
                newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime) if folder.is_dir() else None
                entry = newest and cache._load_cache(key, newest.name)
            if not entry:
                return None
            StageLoader.fill_from_lock(node, entry)
            for out in node.outs:
                out.use_cache = True  # the run-cache has metrics, too, that the cache has not
            if not node.outs_cached():
                return None
            found = {out.fs_path: (out.hash_info, Meta(isexec=out.meta.isexec)) for out in node.outs}
            return Restorable(found, is_recorded)

    def command(self, name: str) -> str:
        """The stage's command as a text, of several the list."""
        with self._mutex, told_by_dvc():
            return json.dumps(self._node(name).cmd)

    def cache_key(self, name: str) -> str | None:
        """What DVC's run-cache has a run of the stage under, as things are now; None if it keeps none of it."""
        from dvc.stage.cache import _get_cache_hash
        from dvc.stage.serialize import to_single_stage_lockfile

        with self._mutex, told_by_dvc():
            node = self._node(name)
            if not _is_cacheable(node):
                return None
            for dep in node.deps:
                now = _hash_now(dep)
                if now is None:
                    return None
                dep.hash_info, dep.meta = now
            return str(_get_cache_hash(to_single_stage_lockfile(node), key=True))

    def fingerprint(self, names: Iterable[str], without: Container[str] = ()) -> str:
        """A hash of how some stages are defined, and of all that they read and none of them makes, as it is now.

        Args:
            names: of the stages.
            without: dotted names of params whose values don't count.
        """
        from dvc.dependency import ParamsDependency

        found = []
        with self._mutex, told_by_dvc():
            for name in sorted(names):
                node = self._node(name)
                read: dict[str, Any] = {}
                for dep in node.deps:
                    if isinstance(dep, ParamsDependency):
                        values = flat(dep.read_params())
                        read |= {f"{dep}:{key}": value for key, value in values if key not in without}
                    else:
                        read[str(dep)] = self._hash_of_the_unmade(dep)
                # Of what is tracked and not made, the hash is all there is.
                outs = {
                    str(out): None if _is_run(node) or not out.hash_info else out.hash_info.value for out in node.outs
                }
                found.append([name, node.cmd, read, outs])
        return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()

    def _hash_of_the_unmade(self, dep: Any) -> Any:
        """The hash of what a stage reads; of a folder in which stages make something, those of the other files."""
        made = [path for path in self._makers if dep.fs_path and _overlap(dep.fs_path, path)]
        if not made:
            now = _hash_now(dep)
            return now and now[0].value
        if any(dep.fs_path == path or dep.fs_path.startswith(f"{path}/") for path in made):
            return None
        found = {}
        for path in self._repo.dvcignore.find(self._repo.fs, dep.fs_path):
            # DVC writes the names of what stages make into .gitignore.
            if Path(path).name != ".gitignore" and not any(_overlap(path, out) for out in made):
                with suppress(OSError), Path(path).open("rb") as file:
                    found[Path(path).relative_to(dep.fs_path).as_posix()] = hashlib.file_digest(file, "md5").hexdigest()
        return found

    def unread(self, names: Iterable[str], params: Iterable[str]) -> list[str]:
        """Those of some params of params.yaml, by their dotted names, that change nothing for any of some stages."""
        from dvc.dependency import ParamsDependency

        file = str(self.root / "params.yaml")
        read = set()
        for dep in (dep for name in names for dep in self._nodes[name].deps if dep.fs_path == file):
            if not (isinstance(dep, ParamsDependency) and dep.params):
                return []  # all of the file
            read |= {*dep.params}
        # What stands in a stage's command and elsewhere, or is taken apart by foreach.
        for path in (path for path in self._files if path.endswith("dvc.yaml")):
            read |= {*_TEMPLATE.findall(Path(path).read_text(encoding="utf-8"))}
        return [name for name in params if not any(f"{name}.".startswith(f"{each}.") or
                                                   f"{each}.".startswith(f"{name}.") for each in read)]  # fmt: skip

    def always_run(self, names: Iterable[str]) -> list[str]:
        """Those of some stages that DVC runs each time, whether anything changed or not."""
        nodes = {name: self._nodes[name] for name in names}
        return [name for name, node in nodes.items() if not node.frozen and (node.is_callback or node.always_changed)]

    @property
    def cache(self) -> Path:
        """The folder of DVC's cache."""
        return Path(self._repo.cache.local_cache_dir)

    def mend_locks(self) -> bool:
        """Remove DVC's list of files in use if a command was killed while writing it; tells whether it was broken.

        Entries of commands that are gone stay: those in another container look like it too.
        """
        from dvc.lock import LockError
        from dvc.rwlock import RWLOCK_FILE, SCHEMA
        from voluptuous import Invalid

        path = Path(self._repo.tmp_dir) / RWLOCK_FILE
        with self._mutex, suppress(LockError), self._repo.lock:  # DVC writes the list only under its lock
            try:
                SCHEMA(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, Invalid):
                path.unlink()
                return True
            except FileNotFoundError:
                pass
        return False

    def order(self, names: Container[str]) -> dict[str, list[str]]:
        """The order in which `dvc repro` would write the first entries of some stages into its lock files.

        Args:
            names: of the stages that are brought up to date.

        Returns:
            By the path of each lock file the names, as they stand there, of those stages that have no entry yet.
        """
        import networkx as nx

        with self._mutex:
            graph = self._repo.index.graph.copy()
            graph.remove_edges_from([edge for node in graph if node.frozen for edge in graph.out_edges(node)])
            graph.remove_nodes_from([node for node in graph if address(node) not in names])
            found: dict[str, list[str]] = {}
            for node in nx.dfs_postorder_nodes(graph):
                if node.path not in self._files or not node.path.endswith("dvc.yaml"):
                    continue
                if node.name not in self._files[node.path].lockfile_contents.get("stages", {}):
                    found.setdefault(_lock_of(node.path), []).append(node.name)
        return found

    def recorded(self, name: str) -> set[str]:
        """Paths, from the root, of those of the stage's outputs that dvc.lock has."""
        with self._mutex, told_by_dvc():
            outs = [out for out in self._node(name).outs if out.hash_info and out.is_in_repo]
            return {relative(self._repo, out) for out in outs}

    def lost(self, name: str) -> list[str]:
        """Paths, from the root, of the stage's outputs that dvc.lock has, but DVC's cache has not, or only in part."""
        with self._mutex, told_by_dvc():
            outs = [out for out in self._node(name).outs if out.hash_info and out.use_cache and out.is_in_repo]
            return [relative(self._repo, out) for out in outs if not _is_in_cache(out)]

    def hashes(self, name: str) -> dict[str, tuple[str, str]]:
        """The kind of hash and the hash of each output of the stage that dvc.lock has, by its path from the root."""
        with self._mutex, told_by_dvc():
            outs = [out for out in self._node(name).outs if out.hash_info and out.is_in_repo]
            return {relative(self._repo, out): (out.hash_info.name, out.hash_info.value) for out in outs}

    def made(self) -> set[str]:
        """Paths, from the root, of all that stages with something to run make."""
        return {out.path for stage in self.stages.values() if stage.is_run for out in stage.outs}

    def sources(self, names: Iterable[str]) -> set[str]:
        """Paths, from the root, of what some stages read and no stage with something to run makes."""
        names = list(names)
        found = {out.path for name in names if not self.stages[name].is_run for out in self.stages[name].outs}
        for dep in (dep for name in names for dep in self._nodes[name].deps):
            maker = self._maker(dep.fs_path)
            if dep.is_in_repo and (maker is None or not self.stages[maker].is_run):
                found.add(relative(self._repo, dep))
        inside = (Path(path) for path in self._definitions() if Path(path).is_relative_to(self.root))
        return found | {path.relative_to(self.root).as_posix() for path in inside if path.exists()}

    def strays(self, name: str) -> list[str]:
        """What the stage would write, or read by a relative path, outside of a copy of the repository."""
        node = self._nodes[name]
        outs = [str(out) for out in node.outs if not out.is_in_repo]
        deps = [
            dep for dep in node.deps if dep.fs_path and not dep.is_in_repo and not Path(str(dep.def_path)).is_absolute()
        ]
        return outs + [str(dep) for dep in deps]

    def objects(self, names: Iterable[str]) -> dict[str, Path]:
        """Where DVC's cache has the outputs of stages with nothing to run, by the names that these have in a cache."""
        from dvc.exceptions import DvcException
        from dvc_objects.errors import ObjectFormatError

        found = {}
        root = Path(self._repo.cache.local_cache_dir)
        with self._mutex, told_by_dvc():
            for out in (out for name in names if not self.stages[name].is_run for out in self._node(name).outs):
                if not out.use_cache or not out.hash_info:
                    continue
                oids = [out.hash_info.value]
                with suppress(DvcException, ObjectFormatError, FileNotFoundError):
                    oids += [entry.value for _, _, entry in out.get_obj()] if out.hash_info.isdir else []
                for path in (Path(out.cache.oid_to_path(oid)) for oid in oids):
                    if path.exists() and path.is_relative_to(root):
                        found[path.relative_to(root).as_posix()] = path
        return found

    def locks_of_the_unrun(self) -> dict[str, str]:
        """The text of each lock file, by its path from the root, with entries only of stages with nothing to run."""
        from dvc.utils.serialize import dumps_yaml, parse_yaml

        kept = {(node.path, node.name) for name, node in self._nodes.items() if not _is_run(node) and node.cmd}
        found = {}
        for path in (path for path in self._files if path.endswith("dvc.yaml") and Path(_lock_of(path)).exists()):
            lock = _lock_of(path)
            everything = parse_yaml(Path(lock).read_text(encoding="utf-8"), lock)
            entries = {name: entry for name, entry in everything["stages"].items() if (path, name) in kept}
            if entries:
                text = str(dumps_yaml(everything | {"stages": entries}))
                found[Path(lock).relative_to(self.root).as_posix()] = text
        return found

    def imports(self, names: Iterable[str]) -> list[str]:
        """Those of some stages that `dvc import` or `dvc import-url` has made."""
        return [name for name in names if self._nodes[name].is_import]

    def artifacts(self, names: Iterable[str]) -> list[str]:
        """What dvc.yaml files declare as `artifacts:` of what some stages make, by the names that GTO has for them."""
        made = {Path(out.fs_path) for name in names for out in self._nodes[name].outs}
        top = git_top(self.root)
        found = []
        for file, artifacts in self._repo.index._artifacts.items():
            folder = Path(file).parent
            prefix = "" if folder == top else f"{folder.relative_to(top).as_posix()}:"
            for name, each in artifacts.items():
                path = Path(os.path.normpath(folder / each["path"]))
                if made & {path, *path.parents}:
                    found.append(f"{prefix}{name}")
        return found

    def locks(self) -> set[str]:
        """Paths, from the root, of the lock files of all stages."""
        locks = {Path(_lock_of(path)) for path in self._files if path.endswith("dvc.yaml")}
        return {lock.relative_to(self.root).as_posix() for lock in locks}

    def recorded_metrics(self, names: Iterable[str]) -> dict[str, Any]:
        """What some stages' metrics files held when they were recorded, by path from the root, as far as is known."""
        from dvc.exceptions import DvcException
        from dvc.utils.serialize import PARSERS

        found = {}
        with self._mutex, told_by_dvc():
            for out in (out for name in names for out in self._node(name).outs if out.metric and out.is_in_repo):
                source = Path(out.fs_path)
                with suppress(OSError, ValueError, DvcException):
                    is_there = source.exists() and out.get_hash() == out.hash_info
                    place = source if is_there else Path(out.cache.oid_to_path(out.hash_info.value))
                    text = place.read_text(encoding="utf-8")
                    found[relative(self._repo, out)] = PARSERS[source.suffix.lower()](text, str(source))
        return found

    def metrics(self, names: Iterable[str], rev: str | None = None) -> dict[str, Any]:
        """What metrics files hold, by path from the root; those that can't be read are left out.

        Args:
            names: of the stages that make them.
            rev: a git revision to take them from, by its dvc.lock and out of DVC's cache; None takes what lies there.
        """
        from dvc.exceptions import DvcException
        from dvc.utils.serialize import PARSERS

        locks: dict[str, Any] = {}
        found = {}
        with self._mutex, told_by_dvc():
            for node in (self._nodes[name] for name in names if name in self._nodes):
                for out in (out for out in node.outs if out.metric and out.is_in_repo):
                    source = Path(out.fs_path)
                    with suppress(OSError, ValueError, DvcException):
                        text = (
                            source.read_text(encoding="utf-8")
                            if rev is None
                            else self._committed(node, out, rev, locks)
                        )
                        found[relative(self._repo, out)] = PARSERS[source.suffix.lower()](text, str(source))
        return found

    def _committed(self, node: Any, out: Any, rev: str, locks: dict[str, Any]) -> str:
        """The text of an output at a git revision, of which `locks` has the lock files that have been read."""
        from dvc.utils.serialize import parse_yaml

        if not out.use_cache:
            return _at_rev(Path(out.fs_path), rev)
        path = _lock_of(node.path)
        if path not in locks:
            locks[path] = {}
            locks[path] = parse_yaml(_at_rev(Path(path), rev), path) or {}
        entry = locks[path].get("stages", {}).get(node.name, {})
        md5 = next((each["md5"] for each in entry.get("outs", ()) if each["path"] == out.def_path), None)
        if md5 is None:
            raise FileNotFoundError
        return Path(out.cache.oid_to_path(md5)).read_text(encoding="utf-8")

    def _read(self) -> None:
        nodes = list(self._repo.index.stages)
        self._nodes = {address(node): node for node in nodes}
        self._files = {node.path: node.dvcfile for node in nodes}
        self._makers = {out.fs_path: address(node) for node in nodes for out in node.outs}
        self._maker_of: dict[str, str | None] = {}  # as far as asked: stages share what they read
        self._seen = self._definitions()
        self._locks: dict[str, tuple[int, ...]] = {path: _signature(_lock_of(path)) for path in self._files}
        self._locks_read = dict(self._locks)  # with which `_nodes` were read

    def _definitions(self) -> dict[str, tuple[int, ...]]:
        """The files that define the stages, and a sign of each one's contents."""
        from dvc.dependency import ParamsDependency

        paths = set(self._files)
        for node in self._nodes.values():
            paths |= {dep.fs_path for dep in node.deps if isinstance(dep, ParamsDependency)}
        for path, dvcfile in self._files.items():
            if path.endswith("dvc.yaml"):
                named = [entry for entry in dvcfile.contents.get("vars", []) if isinstance(entry, str)]
                paths |= {str(Path(path).parent / entry.partition(":")[0]) for entry in ("params.yaml", *named)}
        return {path: _signature(path) for path in paths}

    def _node(self, name: str, *, is_read_only: bool = False) -> Any:
        """The stage as it is defined and recorded now; a new object, unless nothing in it will be changed."""
        if any(_signature(path) != seen for path, seen in self._seen.items()):
            self._repo._reset()
            self._read()
        if name not in self._nodes:
            raise UserError(f"There is no stage '{name}' in the pipeline any more; it was edited during the run.")
        node = self._nodes[name]
        lock = _signature(_lock_of(node.path))
        if is_read_only and lock == self._locks_read[node.path]:
            return node
        if lock != self._locks[node.path]:
            self._locks[node.path] = lock
            for cached in ("lockfile_contents", "stages"):
                self._files[node.path].__dict__.pop(cached, None)
        if not node.path.endswith("dvc.yaml"):
            return node.reload()
        return self._files[node.path].stages[node.name]

    def _changes_of(self, dep: Any, may_miss: bool) -> Iterator[Change]:
        from dvc.dependency import ParamsDependency
        from dvc.dependency.dataset import DatasetDependency

        if isinstance(dep, ParamsDependency):
            yield from self._changed_params(dep)
            return
        signature = _signature(dep.fs_path) if dep.fs_path else ()
        if signature and not Path(dep.fs_path).is_dir():  # hashed for another stage, most often
            if self._hashes.get(dep.fs_path, ((), None))[0] != signature:
                self._hashes[dep.fs_path] = signature, dep.get_hash()
            if self._hashes[dep.fs_path][1] == dep.hash_info:
                return
        if isinstance(dep, DatasetDependency) and dep.name not in dep.repo.datasets:
            yield Change(f"{dep} is not declared under `datasets:`", is_fatal=True)
            return
        for path, what in dep.status().items():
            maker = self._maker(dep.fs_path)
            if may_miss and what == "deleted" and self._is_as_made(dep):
                continue
            if what == "not in sync":
                told = f"{path} is not in dvc.lock as it is declared; `dvc ds update {dep.name}` records it"
                yield Change(told, is_fatal=True)
                continue
            is_fatal = what == "deleted" and maker is None
            yield Change(f"{path} {_OF_DEPS.get(what, what)}", maker, is_fatal)

    def _is_as_made(self, dep: Any) -> bool:
        """Whether what a stage has read is what the one that makes it has recorded."""
        outs = (out for node in self._nodes.values() for out in node.outs if out.fs_path == dep.fs_path)
        return all(out.hash_info == dep.hash_info for out in outs)

    def _refuse_dates(self) -> None:
        """Report a date among the params of stages, which DVC can't record; it doesn't say where the date is."""
        from dvc.dependency import ParamsDependency
        from dvc.exceptions import DvcException

        for dep in (dep for node in self._nodes.values() for dep in node.deps if isinstance(dep, ParamsDependency)):
            with suppress(DvcException, OSError):  # missing, say: the stage's turn will tell
                everything = self._params_of(dep)
                for key in dep.params or everything:
                    for name, value in flat(_at(everything, key), key):
                        if isinstance(value, date | time):
                            raise UserError(
                                f"{dep}: {name} is a date or a time, {value}, which DVC does not take; write it as "
                                "text, in quotes."
                            )

    def _params_of(self, dep: Any) -> Any:
        """All that a file of params holds, read again only when it has changed."""
        from dvc.dependency.param import read_param_file

        signature = _signature(dep.fs_path)
        if self._params.get(dep.fs_path, ((), None))[0] != signature or not signature:
            self._params[dep.fs_path] = signature, read_param_file(dep.repo.fs, dep.fs_path)
        return self._params[dep.fs_path][1]

    def _changed_params(self, dep: Any) -> Iterator[Change]:
        if not _signature(dep.fs_path):
            maker = self._maker(dep.fs_path)
            yield Change(f"{dep} is missing", maker, is_fatal=maker is None)
            return
        everything, old = self._params_of(dep), dep.hash_info.value or {}
        keys = dep.params or [*everything, *(key for key in old if key not in everything)]
        for key in keys:
            new = _at(everything, key)
            if difference := "; ".join(_differences(key, old.get(key, _NOTHING), new)):
                maker = self._maker(dep.fs_path)
                is_gone = new is _NOTHING and key in dep.params and maker is None
                yield Change(f"{dep}: {difference}", maker, is_gone)

    def _missing(self, dep: Any) -> Iterator[Change]:
        """What a stage needs that nothing will make."""
        from dvc.dependency import ParamsDependency

        if dep.fs_path is None:
            yield from (change for change in self._changes_of(dep, may_miss=False) if change.is_fatal)
        elif self._maker(dep.fs_path) is not None:
            return
        elif not dep.exists:
            yield Change(f"{dep} is missing", is_fatal=True)
        elif isinstance(dep, ParamsDependency) and (missing := sorted({*dep.params} - {*dep.read_params()})):
            yield Change(f"{dep}: {', '.join(missing)} is missing", is_fatal=True)

    def _maker(self, path: str | None) -> str | None:
        """The stage that makes the file, or the folder that it lies in, or something within this folder."""
        if path is None:  # it is elsewhere, such as a dataset
            return None
        if path not in self._maker_of:
            makers = (name for made, name in self._makers.items() if _overlap(path, made))
            self._maker_of[path] = next(makers, None)
        return self._maker_of[path]


def stages_of(repo: Repo) -> dict[str, Stage]:
    """All stages of a repository that `opened` has opened, each after those that it depends on."""
    edges = repo.index.graph
    stages = {
        address(node): Stage(
            name=address(node),
            # A frozen stage is not run, whatever is upstream of it.
            upstream=() if node.frozen else tuple(sorted(map(address, edges.successors(node)))),
            is_run=_is_run(node),
            file=str(node.path_in_repo),
            meta=_meta(node),
            metrics=tuple(relative(repo, out) for out in node.outs if out.metric and out.is_in_repo),
            plots=tuple(relative(repo, out) for out in node.outs if out.plot and out.is_in_repo),
            outs=tuple(
                Out(relative(repo, out), bool(out.use_cache), bool(out.persist)) for out in node.outs if out.is_in_repo
            ),
        )
        for node in repo.index.stages
    }
    order = TopologicalSorter({stage.name: stage.upstream for stage in stages.values()}).static_order()
    return {name: stages[name] for name in order}


def problems(stages: Iterable[Stage]) -> list[str]:
    """What labdag can't use of the `meta:` of some stages, each once."""
    return list(dict.fromkeys(problem for stage in stages for problem in stage.meta.problems))


def flat(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree of mappings, by their dotted names."""
    if isinstance(values, Mapping) and (values or not name):
        for key, value in values.items():
            yield from flat(value, f"{name}{'.' if name and name[-1] not in ':.' else ''}{key}")
    else:
        yield name, list(values) if isinstance(values, tuple) else values


def _is_run(node: Any) -> bool:
    return bool(node.cmd or node.is_import) and not node.frozen


def _is_cacheable(node: Any) -> bool:
    """Whether DVC's run-cache keeps runs of the stage."""
    if not (node.cmd and node.deps and node.outs) or node.always_changed or node.frozen:
        return False
    return not any(out.persist or not out.is_in_repo for out in node.outs)


def _is_in_cache(out: Any) -> bool:
    """Whether DVC's cache has all of an output that dvc.lock has."""
    from dvc.exceptions import DvcException
    from dvc_objects.errors import ObjectFormatError

    names = [out.hash_info.value]
    try:
        if out.hash_info.isdir:
            names += [entry.value for _, _, entry in out.get_obj() or ()]
    except (DvcException, ObjectFormatError, OSError):
        return False
    return all(Path(out.cache.oid_to_path(name)).exists() for name in names)


def _overlap(one: str, other: str) -> bool:
    """Whether two paths are one, or one of them lies in the other."""
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")


def _hash_now(dep: Any) -> Any:
    """The hash of what a stage reads, and what else DVC would note of it; None if it is not there."""
    from dvc.dependency import ParamsDependency
    from dvc.exceptions import DvcException
    from dvc_data.hashfile.meta import Meta

    with suppress(DvcException, OSError):
        if isinstance(dep, ParamsDependency) or dep.fs_path is None:
            return dep.get_hash(), Meta()
        meta, found = dep._get_hash_meta()
        return found, Meta(isexec=meta.isexec)
    return None


_NOTHING = object()
_OF_DEPS = {
    "modified": "changed",
    "deleted": "is missing",
    "new": "is new",
}
_OF_OUTS = {
    "modified": "is not what it made",
    "deleted": "is missing",
    "new": "is new",
    "not in cache": "is not in the cache",
}


def _at(values: Any, dotted: str) -> Any:
    from labdag.dvc_internals.texts import at

    with suppress(KeyError):
        return at(values, dotted)
    return values.get(dotted, _NOTHING) if isinstance(values, Mapping) else _NOTHING


def _differences(key: str, old: Any, new: Any) -> Iterator[str]:
    """What became of a param, down to the single values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for inner in dict.fromkeys([*old, *new]):
            yield from _differences(f"{key}.{inner}", old.get(inner, _NOTHING), new.get(inner, _NOTHING))
    elif new is _NOTHING and old is not _NOTHING:
        yield f"{key} is gone (was {_short(old)})"
    elif old is _NOTHING and new is not _NOTHING:
        yield f"{key} is new ({_short(new)})"
    elif old != new and not (isinstance(new, tuple) and list(new) == old):
        yield f"{key} {_short(old)} → {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)  # null and true, as in YAML
    text = repr(text) if not text.strip() else text
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _at_rev(path: Path, rev: str) -> str:
    """The text of a file at a git revision.

    Raises:
        FileNotFoundError: it is not there, or there is no such revision.
    """
    try:
        return git(path.parent, "show", f"{rev}:./{path.name}")
    except GitError:
        raise FileNotFoundError(path) from None


def _signature(path: str | Path) -> tuple[int, ...]:
    """A sign of a file's contents that is quick to take; empty where there is none."""
    try:
        stat = Path(path).stat()
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _lock_of(path: str) -> str:
    return path.removesuffix(".yaml") + ".lock" if path.endswith("dvc.yaml") else path


def address(node: Any) -> str:
    """How DVC addresses the stage from the repository's root, wherever this process stands."""
    path, name = str(node.path_in_repo), getattr(node, "name", None)
    if name is None:
        return path
    return str(name) if path == "dvc.yaml" else f"{path}:{name}"


def _meta(node: Any) -> Meta:
    meta = parse(node.meta)
    where = str(node.path_in_repo)
    if name := getattr(node, "name", None):
        where += f": stages.{name.partition('@')[0]}"  # a foreach has one block for all of its stages
    return replace(meta, problems=tuple(f"{where}.{problem}" for problem in meta.problems))


def relative(repo: Repo, out: Any) -> str:
    """The path of an output or a dependency from the repository's root."""
    return Path(out.fs_path).relative_to(repo.root_dir).as_posix()
