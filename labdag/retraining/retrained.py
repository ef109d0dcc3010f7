"""The retrainings of a target that are known: DVC experiments, of this repository and of its git remote."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from labdag.git import git
from labdag.pipeline.revisions import EXPERIMENTS
from labdag.retraining.gate import Check

SIGN = "labdag retrain"  # what the messages of their commits begin with
THEIRS = "refs/labdag/remote"  # where a clone keeps the experiments of the git remote
FORM = "%(objectname)%00%(refname)%00%(contents)%01"


@dataclass(frozen=True)
class Past:
    """An experiment that a retraining has recorded.

    Attributes:
        name: of the experiment.
        target: what was made.
        digest: of all that it was made from.
        upstream: a sign of what was there upstream, by stage.
        fetched: a sign of what was made of that, by stage.
        champion: the version that it was held against, if there was one.
        passed: whether it passed the gate.
        checks: what the gate asked and found.
        values: of the params that were set.
        commit: its hash; empty while it is not recorded.
        ref: where git has it; likewise.
    """

    name: str
    target: str
    digest: str
    upstream: Mapping[str, str]
    fetched: Mapping[str, str]
    champion: str | None
    passed: bool
    checks: tuple[Check, ...]
    values: Mapping[str, Any]
    commit: str = ""
    ref: str = ""

    def message(self) -> str:
        """The message of its commit."""
        told = {
            "target": self.target,
            "set": self.values,
            "upstream": self.upstream,
            "fetched": self.fetched,
            "champion": self.champion,
            "passed": self.passed,
            "gate": [dataclasses.asdict(check) for check in self.checks],
        }
        return f"{SIGN} {self.digest}\n\n{json.dumps(told, indent=1, default=str)}"


def known(repository: Path, target: str) -> list[Past]:
    """The recorded retrainings of a target that a repository knows, the oldest first."""
    listed = git(repository, "for-each-ref", "--sort=creatordate", f"--format={FORM}", EXPERIMENTS, THEIRS)
    found: dict[str, Past] = {}
    for entry in listed.split("\1"):
        commit, _, rest = entry.strip().partition("\0")
        ref, _, message = rest.partition("\0")
        first, _, text = message.partition("\n")
        if not first.startswith(f"{SIGN} ") or commit in found:
            continue
        try:
            told = json.loads(text)
            past = Past(
                ref.rpartition("/")[2],
                told["target"],
                first.split()[-1],
                told["upstream"],
                told["fetched"],
                told["champion"],
                told["passed"],
                tuple(Check(**check) for check in told["gate"]),
                told["set"],
                commit,
                ref.replace(THEIRS, EXPERIMENTS, 1),
            )
        except (ValueError, KeyError, TypeError):  # somebody has edited it
            continue
        if past.target == target:
            found[commit] = past
    return list(found.values())


def free_name(repository: Path, target: str) -> str:
    """A name for the next one, that no experiment has, whoever made it."""
    refs = git(repository, "for-each-ref", "--format=%(refname)", EXPERIMENTS, THEIRS).splitlines()
    taken = {ref.rpartition("/")[2] for ref in refs}
    start = quote(target, safe="").replace("%", "_")
    return next(name for number in itertools.count(1) if (name := f"{start}-retrain-{number}") not in taken)
