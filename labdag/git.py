"""Git, by its command line."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from labdag.environment import without_lent
from labdag.errors import UserError


class GitError(Exception):
    """A git command failed; the text is why, as git says it."""


def git(folder: Path, *arguments: str | Path, env: Mapping[str, str] | None = None, text: str = "") -> str:
    """What a git command in `folder` prints.

    Args:
        folder: where it works.
        arguments: of it.
        env: what its environment has besides this process's.
        text: what it reads from its standard input.

    Raises:
        GitError: it failed, or there is no git.
    """
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments],
            input=os.fsencode(text),
            capture_output=True,
            check=False,
            env=without_lent(os.environ) | dict(env or {}),
        )
    except FileNotFoundError:
        raise GitError("git is not installed") from None
    if done.returncode != 0:
        raise GitError(_reason(os.fsdecode(done.stderr)) or f"git {arguments[0]} failed")
    return os.fsdecode(done.stdout)


def _reason(said: str) -> str:
    """Why a git command failed: what was refused, or what it calls fatal, with what was said before that."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("hint: ")]
    if refused := next((line for line in lines if line.startswith("! ")), None):
        return refused.removeprefix("! ")
    at = next((n for n, line in enumerate(lines) if line.startswith(("fatal: ", "error: "))), len(lines) - 1)
    before = f" ({lines[at - 1]})" if at > 0 else ""
    return lines[at].removeprefix("fatal: ").removeprefix("error: ") + before if lines else ""


def top(folder: Path) -> Path:
    """The root of the git repository that holds `folder`.

    Raises:
        GitError: there is none.
    """
    return Path(git(folder, "rev-parse", "--show-toplevel").rstrip("\n"))


def uncommitted(folder: Path) -> list[str]:
    """Files of the git repository that holds `folder` which are not as they were last committed, and new ones.

    Returns:
        Their paths from the top of the repository, without those that git ignores.

    Raises:
        GitError: there is no commit.
    """
    root = top(folder)
    changed = git(root, "diff", "--name-only", "--no-renames", "-z", "HEAD").split("\0")
    new = git(root, "ls-files", "-z", "--others", "--exclude-standard").split("\0")
    return [path for path in dict.fromkeys([*changed, *new]) if path]


def snapshot(folder: Path) -> str:
    """A sign of the commit and of all files that git does not ignore, as they are now.

    Raises:
        GitError: there is no commit.
    """
    head = git(folder, "rev-parse", "HEAD").strip()
    with tempfile.TemporaryDirectory() as place:
        # Nothing is left of it in the repository.
        known = Path(folder, git(folder, "rev-parse", "--git-path", "objects").rstrip("\n")).resolve()
        objects = Path(place) / "objects"
        objects.mkdir()
        env = {
            "GIT_INDEX_FILE": str(Path(place) / "index"),
            "GIT_OBJECT_DIRECTORY": str(objects),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(known),
        }
        git(folder, "read-tree", "HEAD", env=env)
        git(folder, "add", "--all", ":/", env=env)
        return f"{head} {git(folder, 'write-tree', env=env).strip()}"


def find_root(start: Path) -> Path:
    """The root of the DVC repository that holds `start`.

    Raises:
        UserError: there is none.
    """
    for folder in (start, *start.parents):
        if (folder / ".dvc").is_dir():
            return folder
    with suppress(GitError):
        root = top(start)
        if git(root, "ls-files", ".dvc"):
            raise UserError(f"{root} has lost its .dvc; `git checkout .dvc`, there, brings it back.")
    raise UserError(
        f"There is no DVC repository in {start} or above; go to the project's folder, or make this one a "
        "repository with `git init && dvc init`."
    )
