"""DVC's settings of a repository: its cache, its remotes, and whether it has git."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from labdag.errors import UserError

if TYPE_CHECKING:
    from dvc.config import Config


def cache_of(root: Path) -> Path:
    """The folder of DVC's cache of the repository at `root`.

    Raises:
        UserError: DVC can't read the repository's settings.
    """
    return Path(config(root)["cache"].get("dir") or root / ".dvc" / "cache").absolute()


def is_without_git(root: Path) -> bool:
    """Whether DVC takes the repository at `root` for one without git.

    Raises:
        UserError: DVC can't read the repository's settings.
    """
    return bool(config(root)["core"].get("no_scm"))


def without_git(root: Path) -> str:
    """Why DVC knows of no commits of the repository at `root`, and what to do, as the rest of a sentence.

    Raises:
        UserError: DVC can't read the repository's settings.
    """
    if is_without_git(root):
        return (
            "DVC was told that there is no git (`dvc init --no-scm`). If there is by now, "
            "`dvc config --unset core.no_scm`, then `git add .` and `git commit`."
        )
    return f"{root} is no git repository; `git init`, `git add .` and `git commit` make it one."


def has_remote(root: Path) -> bool:
    """Whether DVC has a default remote, to push to.

    Raises:
        UserError: DVC can't read the repository's settings.
    """
    return bool(config(root)["core"].get("remote"))


def near_remotes(root: Path) -> dict[str, Path]:
    """DVC's remotes that are declared by a path relative to the repository at `root`: where each is, by its name.

    Raises:
        UserError: DVC can't read the repository's settings.
    """
    from dvc.config_schema import RelPath

    remotes = config(root)["remote"]
    return {name: Path(each["url"]) for name, each in remotes.items() if isinstance(each.get("url"), RelPath)}


def default_remote(root: Path) -> tuple[str, Path | None] | None:
    """DVC's default remote, if there is one: its name, and where it is if that is a folder of this machine.

    Raises:
        UserError: DVC can't read the repository's settings, or they have no remote of that name.
    """
    options = config(root)
    name = options["core"].get("remote")
    if not name:
        return None
    if name not in options["remote"]:
        raise UserError(f"core.remote is {name}, but there is no such remote; `dvc remote add` adds it.")
    url = str(options["remote"][name].get("url", "")).removeprefix("file://")
    return name, Path(os.path.normpath(root / url)) if url and "://" not in url else None


def link_types(root: Path) -> list[str]:
    """The link types that DVC is set to use for files from its cache, best first; empty for its default.

    Raises:
        UserError: DVC can't read the repository's settings.
    """
    return list(config(root)["cache"].get("type") or [])


def share(copy: Path, cache: Path, remotes: Mapping[str, str] = MappingProxyType({})) -> None:
    """Have a copy of a repository use a cache, and find remotes elsewhere; only this copy of it.

    Args:
        copy: its root.
        cache: the folder.
        remotes: the URL of each, by its name.

    Raises:
        UserError: DVC can't read the copy's settings.
    """
    from configobj import ConfigObj

    with _told_of_settings(copy):
        # DVC itself writes its settings in ASCII, and fails on paths that have other letters.
        options = ConfigObj(str(copy / ".dvc" / "config.local"), encoding="utf-8", interpolation=False)
        options.setdefault("cache", {})["dir"] = str(cache.absolute())
        for name, url in remotes.items():
            options.setdefault(f'remote "{name}"', {})["url"] = url
        options.write()
        config(copy)


def config(root: Path) -> Config:
    """All of DVC's settings of the repository at `root`.

    Raises:
        UserError: DVC can't read them.
    """
    from dvc.config import Config

    with _told_of_settings(root):
        return Config(str(root / ".dvc"))


@contextmanager
def _told_of_settings(root: Path) -> Iterator[None]:
    """Turn what DVC and its parsers say of its settings into ours."""
    from dvc.exceptions import DvcException
    from voluptuous import Invalid

    try:
        yield
    except (DvcException, Invalid, OSError, SyntaxError, TypeError) as error:  # configobj's are SyntaxErrors
        said = str(error).removeprefix("config file error: ")
        raise UserError(f"DVC can't read its settings, in {root / '.dvc'}/config or config.local: {said}") from None
