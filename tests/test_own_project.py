"""The page on labdag with another project's dvc.yaml: its files and its commands, to the letter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from labdag.orchestration.deployments import read
from tests.conftest import ROOT, run

PAGE = (ROOT / "docs" / "own-project.md").read_text()


def test_the_project_of_the_page_does_what_the_page_says(
    tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    for name, text in re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        (tmp_path / name).write_text(text)
    for command in ("git init --quiet", "dvc init --quiet", "git add .", "git commit --quiet --message Wines"):
        run(*command.split(), cwd=tmp_path)
    said = run("labdag", "run", cwd=tmp_path)
    assert "3 stages: 3 run, 0 reused" in said.stdout
    assert re.search(r"forest +2 +0 +9\d\.\d%", said.stdout)
    assert "tree 20/20: " in said.stderr
    run("git", "add", ".", cwd=tmp_path)
    run("git", "commit", "--quiet", "--message", "First run", cwd=tmp_path)
    params = tmp_path / "params.yaml"
    params.write_text(params.read_text().replace("depth: 2}", "depth: 4}"))
    assert (
        "fit@forest   will run   params.yaml: models.forest.depth 2 → 4" in run("labdag", "plan", cwd=tmp_path).stdout
    )
    assert "3 stages: 1 run, 2 reused" in run("labdag", "run", cwd=tmp_path).stdout
    assert re.search(r"forest +depth +2 +4 +\+2", run("labdag", "diff", cwd=tmp_path).stdout)
    run("git", "commit", "--quiet", "--all", "--message", "Deeper trees", cwd=tmp_path)
    retrain = ("labdag", "retrain", "forest", "-S", "seed=fresh")
    assert "Registered: forest-retrain-1 passed the gate, and is forest@v0.0.1" in run(*retrain, cwd=tmp_path).stdout
    assert "UpToDate: nothing has changed since forest-retrain-1" in run(*retrain, cwd=tmp_path).stdout
    assert [each.name for each in read(tmp_path)] == ["reproduce/wines", "retrain/forest"]
