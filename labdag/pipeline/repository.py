"""DVC's own view of a repository, and its complaints of what is in it as a user would put them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labdag.errors import UserError
from labdag.pipeline.settings import config, without_git

if TYPE_CHECKING:
    from dvc.repo import Repo

PROJECT_FILE = "dvc.yaml"
LFS_POINTER = "version https://git-lfs.github.com/"  # how the text begins that git has in place of a large file
LFS_FOUND = "{} is a pointer of Git LFS, not the file; `git lfs pull` fetches it."
_MEND_LOCK = (
    "Bring the committed one back (`git checkout dvc.lock`), or delete it: what has been run since is restored from "
    "the cache."
)


def opened(root: Path) -> Repo:
    """DVC's own view of the repository at `root`, of which all files are known to be readable.

    Raises:
        UserError: as `load` says.
    """
    from labdag.dvc_internals.texts import quicken, slacken

    _hide_progress()
    with ExitStack() as undone:
        quicken()
        undone.callback(slacken)
        repo = _opened(root)
        undone.pop_all()
    return repo


def _opened(root: Path) -> Repo:
    from dvc.repo import Repo

    config(root)
    try:
        with told_by_dvc():
            repo = Repo(str(root))
            _ = repo.index.graph
            for file in {
                node.path: node.dvcfile for node in repo.index.stages if node.path.endswith("dvc.yaml")
            }.values():
                dict(file.lockfile_contents.get("stages", {}))  # each entry is checked as it is taken
    except UserError as error:
        if "is not a git repository" in str(error):
            raise UserError(f"DVC can't read the pipeline: {without_git(root)}") from None
        for path in sorted(root.rglob("dvc.lock")):  # of which DVC says less
            _check_lock(root, path)
        for path in sorted(path for name in (PROJECT_FILE, "params.yaml") for path in root.rglob(name)):
            with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
                if file.read(len(LFS_POINTER)) == LFS_POINTER:
                    raise UserError(LFS_FOUND.format(path.relative_to(root))) from None
        raise
    return repo


def closed(repo: Repo) -> None:
    """Be done with what `opened` gave."""
    from labdag.dvc_internals.texts import slacken

    repo.close()
    slacken()


@contextmanager
def told_by_dvc() -> Iterator[None]:
    """Turn DVC's complaints into ours."""
    from dvc.exceptions import DvcException

    try:
        yield
    except DvcException as error:
        cause = f": {error.__cause__}" if error.__cause__ else ""
        raise UserError(f"DVC can't read the pipeline: {error}{cause}") from None
    except TypeError as error:  # such as a date of YAML's
        if not str(error).startswith("Unsupported value of type"):
            raise
        raise UserError(f"DVC can't read the pipeline: {error}; write it as text, in quotes.") from None
    except NotImplementedError:  # there is no way to work with a hash of that name
        raise UserError(f"dvc.lock names a kind of hash that there is not; it was broken off. {_MEND_LOCK}") from None


def _hide_progress() -> None:
    """Have DVC draw no progress bars in this process: they lie over the lines of a run's log, and fill a notebook."""
    for name in ("dvc.progress", "dvc_data.callbacks"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _check_lock(root: Path, path: Path) -> None:
    """Report a lock file that a merge or an interrupted write left behind.

    Args:
        root: the repository's root.
        path: of the lock file.

    Raises:
        UserError: it has conflicts, is no YAML, or not all of a lock file.
    """
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml
    from voluptuous import Invalid

    text, name = path.read_text(encoding="utf-8", errors="replace"), path.relative_to(root)
    if conflicts := [n for n, line in enumerate(text.splitlines(), 1) if line.startswith(("<<<<<<< ", ">>>>>>> "))]:
        raise UserError(
            f"{name} has conflicts of a merge, first in line {conflicts[0]}; take one side "
            f"(`git checkout --ours {name}`) and run again: what the other side had is restored from the cache."
        )
    try:
        COMPILED_LOCKFILE_SCHEMA(parse_yaml(text, path))
    except (YAMLFileCorruptedError, Invalid):
        if text.startswith(LFS_POINTER):
            raise UserError(LFS_FOUND.format(name)) from None
        if (loaded := _loaded(text)) and "schema" not in loaded and all(map(_is_entry, loaded.values())):
            raise UserError(
                f"{name} is of schema 1.0, which DVC 1 wrote and DVC 3 does not read. Have `dvc repro` of DVC 2 "
                "rewrite it, or delete it: then `labdag run` makes everything again."
            ) from None
        mend = _MEND_LOCK.replace("dvc.lock", str(name))
        raise UserError(f"{name} is not as DVC has written it: it was broken off, or edited. {mend}") from None


def _loaded(text: str) -> dict[str, Any]:
    """What a text of YAML says, if that is a mapping."""
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml

    with suppress(YAMLFileCorruptedError):
        found = parse_yaml(text, "")
        return found if isinstance(found, dict) else {}
    return {}


def _is_entry(value: Any) -> bool:
    """Whether it may be what a lock file says of a stage."""
    return isinstance(value, dict) and "cmd" in value
