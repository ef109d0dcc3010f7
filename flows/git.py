"""Git, by its command line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


class GitError(Exception):
    """A git command failed; the text is what it said last."""


def git(folder: Path, *arguments: str | Path) -> str:
    """What a git command in `folder` prints.

    Raises:
        GitError: it failed, or there is no git.
    """
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise GitError("git is not installed") from None
    if done.returncode != 0:
        said = os.fsdecode(done.stderr).strip() or f"git {arguments[0]} failed"
        raise GitError(said.splitlines()[-1].removeprefix("fatal: "))
    return os.fsdecode(done.stdout)
