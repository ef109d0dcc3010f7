"""Environment variables that labdag sets in its own processes, and that no stage gets.

A stage runs with the variables of whoever started the run, as under `dvc repro`: with the server's password in its
environment, a command that prints its environment would write it into a log.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

LENT = "LABDAG_LENT"  # what the variables were before, by name, as JSON; null for one that was not set
# Neither Prefect nor DVC is to send usage statistics, or to print that it does, unless the user has asked for it.
QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DVC_NO_ANALYTICS": "1"}


def lend(environment: MutableMapping[str, str], **variables: str | None) -> None:
    """Set variables that stages are not to get; None takes one away."""
    before: dict[str, str | None] = json.loads(environment.get(LENT, "{}"))
    for name, value in variables.items():
        before.setdefault(name, environment.get(name))
        _set(environment, name, value)
    environment[LENT] = json.dumps(before)


def mark_lent(environment: MutableMapping[str, Any], names: Iterable[str]) -> None:
    """Keep from stages some variables that `lend` did not set."""
    before = json.loads(environment.get(LENT, "{}"))
    environment[LENT] = json.dumps(dict.fromkeys(names) | before)


def lent(environment: Mapping[str, str]) -> list[str]:
    """The names of the variables that were set, or taken away, by `lend`."""
    return list(json.loads(environment.get(LENT, "{}")))


def without_lent(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a stage: as it was before `lend`."""
    original = dict(environment)
    for name, value in json.loads(original.pop(LENT, "{}")).items():
        _set(original, name, value)
    return original


def search_path(environment: Mapping[str, str]) -> str:
    """The PATH of stage commands, which say `python`.

    It is the user's own, as under `dvc repro`. But where labdag was called by its path (`.venv/bin/labdag`) and no
    virtual environment is activated, its own comes first. One that pipx or `uv tool` has made for labdag alone never
    does: no stage is meant to run there.

    Args:
        environment: that labdag was started with.
    """
    given = environment.get("PATH", os.defpath)
    folder = Path(sys.executable).parent
    is_there = folder.resolve() in {Path(each).resolve() for each in given.split(os.pathsep)}
    is_tool = any((Path(sys.prefix) / name).exists() for name in ("pipx_metadata.json", "uv-receipt.toml"))
    another = environment.get("VIRTUAL_ENV") or environment.get("CONDA_PREFIX")
    if is_there or is_tool or another or sys.prefix == sys.base_prefix:
        return given
    return os.pathsep.join([str(folder), given])


def keep_quiet(environment: MutableMapping[str, str]) -> None:
    """Have no tool send usage statistics; whoever has set these variables has the last word."""
    lend(environment, **{name: value for name, value in QUIET.items() if name not in environment})


def _set(environment: MutableMapping[str, str], name: str, value: str | None) -> None:
    if value is None:
        environment.pop(name, None)
    else:
        environment[name] = value
