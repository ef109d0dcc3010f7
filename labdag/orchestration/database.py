"""Where a Prefect server keeps its runs: in a folder of the project, whoever started it and whatever is in the home."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from labdag.errors import UserError

FILE = "prefect.db"
LARGE = 64 << 20  # bytes of a database from which on it would take too long to look at every page
MIGRATIONS = "server/database/_migrations/versions/sqlite"  # of Prefect's package
ADDRESSES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")


def environment(folder: Path) -> dict[str, str]:
    """What makes a Prefect server keep all that it keeps in a folder, with the settings of the user's profile.

    With the user's own database, two versions of Prefect under one home would be in each other's way, and with another
    project's, both would share runs and their ends.
    """
    return {"PREFECT_HOME": str(folder), "PREFECT_PROFILES_PATH": str(_profiles())}


def check_profiles() -> None:
    """See that Prefect can parse the user's profiles: it warns of it in three ways, and then fails.

    Raises:
        UserError: it can't; a file that is missing or not readable is none.
    """
    path = _profiles()
    with suppress(OSError):
        try:
            tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"Prefect can't read its profiles in {path}: {error}. Mend the file, or remove it."
            ) from None


def _profiles() -> Path:
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect"))
    return Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml")).expanduser()


@contextmanager
def starting(folder: Path) -> Iterator[None]:
    """Be the only server that brings the database in a folder up to its version, meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "starting.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def put_aside(folder: Path) -> str | None:
    """Put a database aside that this version of Prefect can't read, so that a new one is made; tells so.

    Args:
        folder: as `environment` has it.
    """
    path = folder / FILE
    if any(os.environ.get(name) for name in ADDRESSES) or not path.exists():
        return None
    with starting(folder):
        reason = _trouble(path)
        if reason is None:
            return None
        aside = next(place for n in range(1, 10_000) if not (place := path.with_name(f"{FILE}.{n}")).exists())
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(f"{FILE}{suffix}")
            if part.exists():
                part.rename(aside.with_name(f"{aside.name}{suffix}"))
    return f"Prefect's database of past runs {reason}. It is kept as {aside}, and a new one is begun."


def _trouble(path: Path) -> str | None:
    """Why a database can't be used, as the rest of a sentence."""
    try:
        with closing(sqlite3.connect(path, timeout=60)) as connection:
            known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
            revision = connection.execute("SELECT version_num FROM alembic_version").fetchone() if known else None
            if path.stat().st_size < LARGE:
                (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                if found != "ok":
                    return f"is broken ({found})"
    except sqlite3.OperationalError:  # it is locked, say, or may not be read: that is nothing that a new one would mend
        return None
    except sqlite3.DatabaseError as error:
        return f"is broken ({error})"
    prefect = find_spec("prefect")
    if revision is None or prefect is None or prefect.origin is None:
        return None
    if any((Path(prefect.origin).parent / MIGRATIONS).glob(f"*{revision[0]}*.py")):
        return None
    return "was written by a newer version of Prefect"
