"""Versions of models: git tags that GTO and DVC's `artifacts` understand (`lenet_digits@v0.0.2`).

GTO is called by its command line: its import sets up logging anew, and waits for ever where Prefect's log is at work.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from labdag.errors import UserError
from labdag.git import git

UNKNOWN = "Cannot find artifact"
_NAME = re.compile(r"([\w./-]+:)?[a-zA-Z0-9]([\w/-]*[a-zA-Z0-9])?", re.ASCII)  # that GTO takes


@dataclass(frozen=True)
class Version:
    """A registered version of a model.

    Attributes:
        tag: `lenet_digits@v0.0.2`.
        name: `v0.0.2`.
        commit: the hash of the commit that holds it.
    """

    tag: str
    name: str
    commit: str


def check_name(model: str) -> None:
    """See to it that a model can have versions.

    Raises:
        UserError: GTO does not take its name.
    """
    if not _NAME.fullmatch(model):
        raise UserError(
            f"The artifact {model} can't be registered: GTO wants names of the letters a-z and A-Z, digits, and within "
            "them `-`, `_` and `/`; of a dvc.yaml in a folder, with the folder's path and a colon before."
        )


def versions(top: Path, model: str) -> list[Version]:
    """All registered versions of a model, the newest first.

    Args:
        top: of the git repository.
        model: the artifact's name, as GTO has it (`lenet_digits`, `sub:lenet`).

    Raises:
        UserError: GTO refuses it.
    """
    done = _gto(top, "show", model, "--json")
    if done.returncode != 0:
        if UNKNOWN in done.stdout + done.stderr:
            return []
        raise UserError(f"The versions of {model} can't be read: {_said(done)}")
    return [
        Version(each["ref"], each["version"], each["commit_hexsha"])
        for each in json.loads(done.stdout)
        if each["registrations"] and each["is_active"]
    ]


def was_registered(top: Path, model: str, commit: str) -> bool:
    """Whether a commit ever was a version of a model, though that may have been taken back (`gto deprecate`)."""
    start = f"{model.replace(':', '=')}@v"  # as GTO writes a tag
    return any(tag.startswith(start) for tag in git(top, "tag", "--points-at", commit).split())


def register(top: Path, model: str, commit: str, message: str) -> Version:
    """Register a commit as the next version of a model: an annotated tag of the repository.

    Raises:
        UserError: GTO refuses it.
    """
    done = _gto(top, "register", model, commit, "--message", message, "--simple", "true")
    if done.returncode == 0:
        for version in versions(top, model):
            if version.commit == commit:
                return version
    raise UserError(f"{model} can't be registered: {_said(done)}")


def _gto(top: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from gto.cli import app; app()", *arguments, "--repo", str(top)]
    return subprocess.run(command, cwd=top, capture_output=True, text=True, check=False)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    said = (done.stderr or done.stdout).strip().splitlines()
    return said[-1].lstrip("❌ ") if said else f"gto exited with {done.returncode}"
