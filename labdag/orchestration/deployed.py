"""What `labdag up` has deployed, as a file that only this account can write: the worker runs that and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from labdag import files

FILE = "deployed.json"


@dataclass(frozen=True)
class Deployed:
    """A deployment, as far as it says what is run.

    Attributes:
        id: its id on the server; empty until it is there.
        entrypoint: the flow, as a module path or as a file and a name in it.
        path: where the code is, relative to what the pull steps make.
        pull_steps: what is done before the flow is loaded, such as changing to a folder.
        job_variables: what the process of a run gets, such as `env`.
        queue: the work queue that its runs are in; empty if they are not for the project's worker.
    """

    id: str = ""
    entrypoint: str = ""
    path: str | None = None
    pull_steps: list[dict[str, Any]] = field(default_factory=list)
    job_variables: dict[str, Any] = field(default_factory=dict)
    queue: str = field(default="", compare=False)


class Record:
    """The deployments of a project, by database and by name.

    Args:
        folder: a private folder of the project's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, database: str) -> dict[str, Deployed]:
        """The deployments in a database, by name.

        Args:
            database: a digest of its address.
        """
        return self._all().get(database, {})

    def find(self, deployment: str) -> Deployed | None:
        """The deployment with an id, in whatever database."""
        known = (each for by_name in self._all().values() for each in by_name.values())
        return next((each for each in known if each.id and each.id == deployment), None)

    def write(self, database: str, deployments: Mapping[str, Deployed]) -> None:
        """Replace what is recorded of a database.

        Raises:
            OSError: it can't be written.
        """
        entries = {
            name: {key: asdict(each) for key, each in by_name.items()}
            for name, by_name in (self._all() | {database: dict(deployments)}).items()
        }
        files.replace(self._folder / FILE, json.dumps(entries), self._folder)

    def _all(self) -> dict[str, dict[str, Deployed]]:
        """Everything; nothing where nothing was deployed, or the file is not whole."""
        found: dict[str, dict[str, Deployed]] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            for database, by_name in json.loads((self._folder / FILE).read_text(encoding="utf-8")).items():
                # Older versions wrote a list of names.
                pairs = by_name.items() if isinstance(by_name, dict) else ((name, {}) for name in by_name)
                found[database] = {name: Deployed(**entry) for name, entry in pairs}
        return found
