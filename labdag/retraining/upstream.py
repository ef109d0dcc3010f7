"""What stages fetch from outside: whether it is still what it was when it was fetched."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from labdag.environment import search_path, without_lent
from labdag.errors import UserError
from labdag.pipeline.graph import Pipeline, Stage
from labdag.retraining.retrained import Past

DIGITS = 16  # of a digest that are enough to tell inputs apart
CHECK_SECONDS = 3600.0  # that a look may take, of a stage with no timeout of its own
# Runs a command, and kills it with all that it has started once nobody holds the other end of its standard input.
_ENDED_WITH_PARENT = """
exec 3<&0 </dev/null
(cat <&3; kill -KILL 0) >/dev/null 2>&1 &
exec 3<&-
exec sh -c "$0"
"""


def signs(stages: Mapping[str, Stage], root: Path, log: Callable[[str], None]) -> dict[str, str]:
    """What is there upstream: a sign of it for each stage that says how to look (`meta.upstream`).

    Args:
        stages: of the pipeline.
        root: of the repository, in which the stages' commands look.
        log: takes lines.

    Raises:
        UserError: it can't be taken.
    """
    found = {}
    for name, stage in stages.items():
        if stage.meta.upstream:
            log(f"Checking upstream: {name}")
            said = _said(name, stage, root / Path(name.rpartition(":")[0]).parent, log)
            found[name] = hashlib.sha256(said.encode()).hexdigest()[:DIGITS]
    return found


def made(pipeline: Pipeline, names: Iterable[str]) -> dict[str, str]:
    """What stages have fetched: a sign of it for each that was ever run."""
    found = {}
    for name in names:
        if hashes := pipeline.hashes(name):
            found[name] = hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()[:DIGITS]
    return found


def outdated(pipeline: Pipeline, seen: Mapping[str, str], known: Iterable[Past]) -> list[str]:
    """Stages whose outputs, as dvc.lock has them, were not made of what is there upstream now, as far as is known.

    Args:
        pipeline: with the lock files.
        seen: as `signs` tells it.
        known: retrainings, with what was there upstream and what was made of it.
    """
    pairs = {(name, past.upstream.get(name), past.fetched.get(name)) for past in known for name in seen}
    now = made(pipeline, seen)
    return [
        name
        for name, sign in seen.items()
        # Of one that is stale, DVC might restore what it made once.
        if (name, sign, now.get(name)) not in pairs or any(not change.of_out for change in pipeline.changes(name))
    ]


def _said(name: str, stage: Stage, folder: Path, log: Callable[[str], None]) -> str:
    """What a stage's command prints."""
    seconds = stage.meta.timeout or CHECK_SECONDS
    theirs, mine = os.pipe()
    try:
        process = subprocess.Popen(
            ["sh", "-c", _ENDED_WITH_PARENT, str(stage.meta.upstream)],
            cwd=folder,
            env=without_lent(os.environ) | {"PATH": search_path(os.environ)},
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except BaseException:
        os.close(mine)
        raise
    finally:
        os.close(theirs)
    try:
        printed, told = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise UserError(f"{name}: the look upstream took more than {seconds:g} s, and was ended.") from None
    finally:
        os.close(mine)
    said = [line for line in told.splitlines() if line.strip()]
    if process.returncode != 0:
        start = next((i for i, line in enumerate(said) if line.startswith("Error: ")), len(said) - 1)
        why = "\n".join(said[start:]).removeprefix("Error: ") if said else f"it exited with {process.returncode}"
        raise UserError(f"{name}: the data upstream can't be taken: {why}")
    for line in said:
        log(f"{name}: {line}")
    return printed
