"""Environment variables that labdag sets in its own processes; those for Prefect's client, no stage gets.

A stage runs with the variables of whoever started the run, as under `dvc repro`: with the server's password in its
environment, a command that prints its environment would write it into a log.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

LENT = "LABDAG_LENT"  # the names of the variables, with commas between


def lend(environment: MutableMapping[str, str], **variables: str) -> None:
    """Set variables that stages are not to get."""
    environment.update(variables)
    names = filter(None, environment.get(LENT, "").split(","))
    environment[LENT] = ",".join(dict.fromkeys([*names, *variables]))


def without_lent(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a stage: without the variables that `lend` has set."""
    names = {LENT, *environment.get(LENT, "").split(",")}
    return {name: value for name, value in environment.items() if name not in names}


def reach_this_machine(environment: MutableMapping[str, str]) -> None:
    """Let nothing that is sent to this machine go through a proxy, which would read the password, too."""
    for name in ("NO_PROXY", "no_proxy"):
        exempt = [host for host in environment.get(name, "").split(",") if host]
        environment[name] = ",".join(dict.fromkeys([*exempt, "127.0.0.1", "localhost"]))
