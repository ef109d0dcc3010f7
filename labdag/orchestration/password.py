"""The password of a project's Prefect server, and a folder that keeps it from other accounts of the machine."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path

from labdag.errors import UserError

FILE = "password"
USER = "labdag"  # Prefect's basic authentication wants `user:password`
OTHERS = stat.S_IRWXG | stat.S_IRWXO  # the rights of all accounts but the owner's


def new() -> str:
    """A password that nobody can guess, in the form `user:password` that Prefect takes."""
    return f"{USER}:{secrets.token_urlsafe(32)}"


def make_private(folder: Path) -> None:
    """Make a folder, if it is not there, and keep other accounts out of it as far as its file system can.

    Raises:
        UserError: it is another account's, or can't be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.geteuid():
            raise UserError(f"{folder} belongs to another account: each account needs a clone of its own for a server.")
        if found.st_mode & OTHERS:
            folder.chmod(0o700)
        # DVC keeps .dvc/tmp out of git, but not where git came after `dvc init --no-scm`.
        if not (ignore := folder / ".gitignore").exists():
            ignore.write_text("*\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} can't be made a private folder: {error.strerror}.") from None


def read(folder: Path) -> str | None:
    """The password in a folder; None if there is none, or if it is not for this account to read."""
    try:
        return (folder / FILE).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def is_exposed(folder: Path) -> bool:
    """Whether other accounts may read the password in a folder."""
    try:
        return bool((folder / FILE).stat().st_mode & OTHERS and folder.stat().st_mode & OTHERS)
    except OSError:
        return False


def renew(folder: Path) -> str:
    """A new password in a private folder, in the place of one that others may know.

    Raises:
        UserError: as `ensure` says.
    """
    (folder / FILE).unlink(missing_ok=True)
    return ensure(folder)


def ensure(folder: Path) -> str:
    """The password in a private folder, made now if there is none, or if others may have read it.

    Raises:
        UserError: other accounts can't be kept out of the folder, or the password can't be written.
    """
    was_exposed = is_exposed(folder)
    make_private(folder)
    if folder.stat().st_mode & OTHERS:
        raise UserError(
            f"{folder} can't be kept from other accounts: its file system has no permissions, and a password has no "
            "safe place there. Clone the project to another disk, or call `labdag up --no-password`."
        )
    known = read(folder)
    if known is not None and not was_exposed:
        (folder / FILE).chmod(0o600)
        return known
    made = new()
    try:
        handle, part = tempfile.mkstemp(dir=folder)  # of mode 0600
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"{made}\n")
            file.flush()
            os.fsync(file.fileno())
        Path(part).replace(folder / FILE)
    except OSError as error:
        raise UserError(f"{folder / FILE} can't be written: {error.strerror}.") from None
    return made
