"""What revisions hold: with which params and files results were made there, and the metrics that came of it."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labdag.errors import UserError
from labdag.git import GitError, git
from labdag.pipeline.graph import Stage, address, flat, relative, stages_of
from labdag.pipeline.repository import closed, opened, told_by_dvc
from labdag.pipeline.settings import without_git

if TYPE_CHECKING:
    from dvc.repo import Repo

WORKSPACE = "workspace"
DEFAULT_PARAMS = "params.yaml"
EXPERIMENTS = "refs/exps"
EXPERIMENT = re.compile(rf"{EXPERIMENTS}/([0-9a-f]{{2}})/([0-9a-f]{{38}})/(.+)")  # and not what DVC runs just now


@dataclass(frozen=True)
class Record:
    """How a stage was run last, as dvc.lock has it.

    Attributes:
        params: each value that it read, by its dotted name.
        files: hash of each file that it read and no command makes, by path from the root.
        made: likewise of each that another stage's command makes.
        metrics: what its metrics files held, by path from the root.
        missing: metrics files that DVC's cache does not have, and that are not there either.
        edited: dotted names of params that have another value in the revision than the stage was run with.
        command: what was run, words and lines apart by a space; None where that is not known.
    """

    params: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    made: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    edited: tuple[str, ...] = ()
    command: str | None = None


NEVER = Record()  # of what was not run


@dataclass(frozen=True)
class Revision:
    """A revision of the repository.

    Attributes:
        name: as it was asked for.
        stages: all that it has, each after those that it depends on.
        records: of those that were run.
    """

    name: str
    stages: dict[str, Stage]
    records: dict[str, Record]

    def edited(self) -> str:
        """Names of params that were edited after the results were made; empty where there are none."""
        names = dict.fromkeys(name for record in self.records.values() for name in record.edited)
        return ", ".join(names)


class History:
    """The revisions of the repository at `root`.

    Raises:
        UserError: the repository can't be read; here and in each method.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._repo = opened(root)
        self._stages = stages_of(self._repo)
        self._made = _made(self._repo)
        self._folders = {address(node): os.path.relpath(node.wdir, root) for node in self._repo.index.stages}

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        closed(self._repo)

    def read(self, name: str) -> Revision:
        """Look at a git revision, a DVC experiment, or `workspace`.

        Raises:
            UserError: there is no such revision, or it has no pipeline.
        """
        from dvc.exceptions import NotDvcRepoError
        from dvc.repo.brancher import switch
        from dvc.scm import NoSCM, RevError

        if name == WORKSPACE:
            return _revision(self._repo, name)
        if isinstance(self._repo.scm, NoSCM):
            raise UserError(f"There is no revision '{name}': {without_git(self.root)}")
        try:
            with switch(self._repo, name):
                try:
                    return _revision(self._repo, name)
                except UserError as error:
                    raise UserError(f"In {name}: {error}") from None
        except RevError:
            if any(stage.key == name for stage in self._stages.values()):
                raise UserError(
                    f"'{name}' is a result, and no revision; `labdag diff --target {name}` shows it."
                ) from None
            raise UserError(
                f"There is no revision '{name}': neither git (`git log --oneline`) nor DVC (`dvc exp list --all`) "
                "knows it."
            ) from None
        except AttributeError:  # of what it takes for a commit
            with suppress(GitError):
                if (kind := git(self.root, "cat-file", "-t", name).strip()) != "commit":
                    raise UserError(f"'{name}' is a {kind}, and no commit.") from None
            raise
        except NotDvcRepoError:
            raise UserError(f"The revision {name} has no DVC repository.") from None

    def repeats(self, revision: Revision, names: Iterable[str], seed: str) -> dict[Any, dict[str, Any]]:
        """The metrics of the same stages with other seeds: of DVC's experiments, and of the commits they began with.

        Args:
            revision: with whose params.
            names: of the stages.
            seed: dotted name of the param that may differ.

        Returns:
            For each value of the seed what the metrics files held, by path from the root; the revision's own, too.
        """
        # What `dvc add` tracks has no record in a lock file; as an input it is among its readers' files.
        records = {name: revision.records[name] for name in names if revision.records.get(name, NEVER).command}
        own = _merged(record.params for record in records.values())
        if not isinstance(own.get(seed, []), Hashable) or any(record.missing for record in records.values()):
            return {}
        # What other stages make is the same, or the seed is not all that differs.
        inside = {out.path for name in records for out in self._stages[name].outs if name in self._stages}
        found = {own[seed]: _merged(record.metrics for record in records.values())}
        experiments = self.experiments()
        for commit in dict.fromkeys([*experiments.values(), *(baseline for _, baseline in experiments)]):
            other = self.locked(commit, records)
            theirs = _merged(record.params for record in other.values())
            is_like = all(_origin(records[name], inside) == _origin(record, inside) for name, record in other.items())
            if (
                is_like
                and len(other) == len(records)
                and isinstance(theirs.get(seed, []), Hashable)
                and {**theirs, seed: own[seed]} == own
            ):
                found.setdefault(theirs[seed], _merged(record.metrics for record in other.values()))
        return found

    def experiments(self) -> dict[tuple[str, str], str]:
        """The commits of DVC's experiments, by their names and the commits that they began with."""
        refs = git(self.root, "for-each-ref", "--format=%(refname) %(objectname)", EXPERIMENTS)
        found = [(EXPERIMENT.fullmatch(line.split()[0]), line.split()[1]) for line in refs.splitlines()]
        return {(match[3], match[1] + match[2]): commit for match, commit in found if match}

    def locked(self, commit: str, names: Iterable[str]) -> dict[str, Record]:
        """Records of some stages at a commit, by its lock files alone, which is quick; of those that are whole.

        Args:
            commit: its hash.
            names: of the stages; only stages of a dvc.yaml are looked up.
        """
        locks: dict[str, Any] = {}
        found = {}
        for name in names:
            with suppress(OSError, KeyError, GitError, UserError):
                found[name] = self._locked(commit, name, locks)
        return found

    def _locked(self, commit: str, name: str, locks: dict[str, Any]) -> Record:
        """The record of a stage at a commit, of which `locks` has the lock files that have been read.

        Raises:
            OSError, KeyError, GitError: there is none, or its metrics are neither in the cache nor in git.
        """
        from labdag.dvc_internals.texts import parse

        file, _, stage = name.rpartition(":")
        lock = (file or "dvc.yaml").removesuffix(".yaml") + ".lock"
        if lock not in locks:
            locks[lock] = parse(git(self.root, "show", f"{commit}:./{lock}"), lock)["stages"]
        entry, folder = locks[lock][stage], self._folders[name]
        params: dict[str, Any] = {}
        for path, values in entry.get("params", {}).items():
            params |= flat(values, _prefix(_joined(folder, path)))
        hashes = {_joined(folder, out["path"]): out.get("md5") for out in entry.get("outs", ())}
        metrics = {}
        for path in self._stages[name].metrics:
            source = Path(self._repo.cache.local.oid_to_path(hashes[path]))
            text = (
                source.read_text(encoding="utf-8", errors="replace")
                if source.exists()
                else git(self.root, "show", f"{commit}:./{path}")
            )
            metrics[path] = _parsed(text, path)
        read = {_joined(folder, dep["path"]): str(dep.get("md5")) for dep in entry.get("deps", ())}
        files = {path: md5 for path, md5 in read.items() if not _is_made(path, self._made)}
        made = {path: md5 for path, md5 in read.items() if path not in files}
        return Record(params, files, made, metrics, command=_command(entry.get("cmd")))


def _revision(repo: Repo, name: str) -> Revision:
    with told_by_dvc():
        stages = stages_of(repo)
        made = _made(repo)
        records = {address(node): _record(repo, node, made) for node in repo.index.stages if _was_run(node)}
    return Revision(name, stages, records)


def _made(repo: Repo) -> set[str]:
    """What commands make: not what `dvc add` or an import tracks, which is an input wherever it is read."""
    return {relative(repo, out) for node in repo.index.stages if node.cmd for out in node.outs if out.is_in_repo}


def _was_run(node: Any) -> bool:
    return any(entry.hash_info for entry in (*node.deps, *node.outs))


def _record(repo: Repo, node: Any, made: set[str]) -> Record:
    from dvc.dependency import ParamsDependency
    from dvc.dependency.param import read_param_file

    params: dict[str, Any] = {}
    files: dict[str, str] = {}
    theirs: dict[str, str] = {}
    edited: list[str] = []
    for dep in node.deps:
        if isinstance(dep, ParamsDependency):
            path = relative(repo, dep)
            prefix = _prefix(path)
            then = dict(flat(dep.hash_info.value or {}, prefix))
            now: dict[str, Any] = {}
            with suppress(OSError):
                now = dict(flat(read_param_file(repo.fs, dep.fs_path, list(dep.params), flatten=True), prefix))
            params |= then
            edited += [key for key in {**then, **now} if then.get(key) != now.get(key)]
        elif dep.is_in_repo and dep.hash_info:
            path = relative(repo, dep)
            (theirs if _is_made(path, made) else files)[path] = str(dep.hash_info.value)
    metrics: dict[str, Any] = {}
    missing: list[str] = []
    for out in node.outs:
        if out.metric and out.is_in_repo:
            if not out.hash_info and out.use_cache:
                continue  # it was declared after the stage was run
            try:
                metrics[relative(repo, out)] = _held(repo, out)
            except OSError:
                missing.append(relative(repo, out))
    return Record(
        params,
        files,
        theirs,
        metrics,
        tuple(missing),
        tuple(edited),
        None if getattr(node, "cmd_changed", False) else _command(node.cmd),
    )


def _command(cmd: Any) -> str | None:
    """A stage's command in one line, which dvc.yaml may have as a list."""
    return " ".join(" ".join(cmd if isinstance(cmd, list) else [cmd]).split()) if cmd else None


def _is_made(path: str, made: set[str]) -> bool:
    return path in made or any(str(parent) in made for parent in Path(path).parents)


def _held(repo: Repo, out: Any) -> Any:
    """What a metrics file holds.

    Raises:
        OSError: it is nowhere to be had.
    """
    if out.use_cache and not (repo.fs.protocol == "local" and repo.fs.exists(out.fs_path)):
        text = Path(out.cache.oid_to_path(out.hash_info.value)).read_text(encoding="utf-8", errors="replace")
    else:
        with repo.fs.open(out.fs_path, "rb") as file:
            text = file.read().decode("utf-8", errors="replace")
    return _parsed(text, out.fs_path)


def _parsed(text: str, path: str) -> Any:
    """What the text of a metrics file says; nothing if it is not of a format that DVC knows."""
    from dvc.utils.serialize import PARSERS, ParseError

    with suppress(ParseError, KeyError):
        return PARSERS[Path(path).suffix.lower()](text, path)
    return {}


def _origin(record: Record, inside: set[str]) -> tuple[Any, ...]:
    """What a stage's figures come from besides params, and what the stages that make `inside` hand on."""
    made = {path: md5 for path, md5 in record.made.items() if not _is_made(path, inside)}
    return record.files, made, record.command


def _merged(mappings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for mapping in mappings for key, value in mapping.items()}


def _joined(folder: str, path: str) -> str:
    """The path from the root of what has a path from a folder."""
    return os.path.normpath(os.path.join(folder, path))  # noqa: PTH118 - `..` has to go


def _prefix(path: str) -> str:
    """What the names of params of a file begin with, so that they are not those of another file."""
    return "" if path == DEFAULT_PARAMS else f"{path}:"
