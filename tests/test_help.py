"""What `labdag --help` says of each command, on a terminal of 80 columns."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from labdag.cli.main import app

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def said(*command: str) -> str:
    return CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).stdout


def test_each_command_is_told_of() -> None:
    assert {"run", "plan", "list", "diff", "sweep", "retrain", "verify", "doctor", "up"} <= {*COMMANDS}
    assert all(f"│ {command} " in said() for command in COMMANDS)


def test_help_is_asked_for_in_short_too() -> None:
    for command in ((), ("run",)):
        assert CliRunner().invoke(app, [*command, "-h"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).stdout == said(
            *command
        )


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_cut_off(command: str) -> None:
    text = said(command)
    assert f"Usage: root {command}" in text or f"Usage: labdag {command}" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_defaults_in_words_are_told() -> None:
    """Rich takes what stands in brackets for its own markup."""
    told = {"run": "one per CPU core", "retrain": "the one checked out", "up": "127.0.0.1)"}
    for command, default in told.items():
        flat = " ".join(said(command).replace("│", " ").split())
        assert default in flat
