"""DVC's own commands over the finished first lab, as their users expect them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import edit_params, run

LAB = "lenet_digits"


def as_json(*command: str, cwd: Path) -> Any:
    return json.loads(run(*command, cwd=cwd).stdout)


def metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results" / LAB / "metrics.json").read_text())
    return found


def test_the_first_lab_reaches_its_accuracy(finished: Path) -> None:
    assert metrics(finished)["accuracy"] >= 0.97


def test_the_shapes_of_the_files_that_others_read(finished: Path) -> None:
    results = finished / "results" / LAB
    stats = json.loads((finished / "data/stats/digits.json").read_text())
    assert stats.keys() == {"mean", "std", "train", "test", "classes"}
    assert json.loads((results / "model.json").read_text()) == {"parameters": 61_706, "mult_adds": 423_038}
    found = metrics(finished)
    assert found.keys() == {"accuracy", "loss", "best_epoch", "final_accuracy", "per_class"}
    assert found["per_class"]["3"].keys() == {"accuracy", "precision", "recall", "f1", "count"}
    with (results / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"]
    assert len(rows) == 20
    trace = (results / "model.txt").read_text()
    for shape in ("[4, 6, 28, 28]", "[4, 16, 5, 5]", "[4, 400]", "[4, 10]"):
        assert shape in trace


def test_the_best_weights_give_exactly_the_best_accuracy_that_training_saw(finished: Path) -> None:
    with (finished / "results" / LAB / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = max(float(row["test_accuracy"]) for row in rows)
    found = metrics(finished)
    assert found["accuracy"] == best
    assert found["accuracy"] == float(rows[found["best_epoch"] - 1]["test_accuracy"])
    assert found["loss"] == float(rows[found["best_epoch"] - 1]["test_loss"])
    assert found["final_accuracy"] == float(rows[-1]["test_accuracy"])


def test_predictions_agree_with_the_metrics(finished: Path) -> None:
    with (finished / "results" / LAB / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = [row["actual"] == row["predicted"] for row in rows]
    assert sum(right) / len(right) == metrics(finished)["accuracy"]
    assert [int(row["index"]) for row in rows] == list(range(450))
    assert all(0.1 <= float(row["confidence"]) <= 1 for row in rows)


def test_the_report_is_one_page_with_everything_inside(finished: Path) -> None:
    page = (finished / "results" / LAB / "report.html").read_text()
    assert f"{metrics(finished)['accuracy']:.2%}" in page
    assert page.count("data:image/png;base64,") >= 9
    for outside in ("<script", "http://", "https://", 'src="/', 'rel="stylesheet"', str(finished)):
        assert outside not in page
    plots = {path.name for path in (finished / "results" / LAB / "plots").iterdir()}
    assert {"curves.png", "per_class.png", "confusion.png", "predictions.png", "filters.png"} <= plots


def test_the_dag_has_the_edges_of_the_lab(finished: Path) -> None:
    edges = set(run("dvc", "dag", "--dot", f"plot@{LAB}", cwd=finished).stdout.split("\n"))
    told = {edge.strip().rstrip(";") for edge in edges if "->" in edge}
    assert {
        '"download@digits" -> "stats@digits"',
        f'"stats@digits" -> "train@{LAB}"',
        f'"build@{LAB}" -> "train@{LAB}"',
        f'"train@{LAB}" -> "evaluate@{LAB}"',
        f'"evaluate@{LAB}" -> "plot@{LAB}"',
    } <= told


def test_metrics_and_params_are_compared_with_the_first_commit(finished_copy: Path) -> None:
    run("git", "add", "dvc.lock", cwd=finished_copy)
    run("git", "commit", "--quiet", "--message", "First run", cwd=finished_copy)
    assert as_json("dvc", "metrics", "diff", "--json", cwd=finished_copy) == {}

    before = metrics(finished_copy)
    edit_params(finished_copy, labs__lenet_digits__train__epochs=2)
    run("dvc", "repro", f"plot@{LAB}", cwd=finished_copy)
    diff = as_json("dvc", "metrics", "diff", "--json", cwd=finished_copy)
    changed = diff[f"results/{LAB}/metrics.json"]["accuracy"]
    assert (changed["old"], changed["new"]) == (before["accuracy"], metrics(finished_copy)["accuracy"])
    params = as_json("dvc", "params", "diff", "--json", cwd=finished_copy)
    assert params == {"params.yaml": {f"labs.{LAB}.train.epochs": {"old": 20, "new": 2, "diff": -18}}}

    plots = as_json("dvc", "plots", "diff", "HEAD", "--json", cwd=finished_copy)["data"]
    curve = plots[f"results/{LAB}/history.csv"][0]["content"]["data"]["values"]
    assert {row["rev"] for row in curve} == {"HEAD", "workspace"}
    assert f"Loss of {LAB}" in plots
    confusion = plots[f"results/{LAB}/predictions.csv"][0]["content"]["data"]["values"]
    assert {"actual", "predicted"} <= confusion[0].keys()
    assert plots[f"results/{LAB}/plots/curves.png"][0]["type"] == "image"
    done = run("dvc", "plots", "show", cwd=finished_copy)
    assert done.stdout.strip().endswith("dvc_plots/index.html")


def test_an_experiment_is_run_and_shown(finished_copy: Path) -> None:
    run("git", "add", "dvc.lock", cwd=finished_copy)
    run("git", "commit", "--quiet", "--message", "First run", cwd=finished_copy)
    name = "two-epochs"
    setting = f"labs.{LAB}.train.epochs=2"
    run("dvc", "exp", "run", "--name", name, "-S", setting, f"plot@{LAB}", cwd=finished_copy)
    (*_, row) = csv.DictReader(run("dvc", "exp", "show", "--csv", cwd=finished_copy).stdout.splitlines())
    assert row["Experiment"] == name
    assert row[f"labs.{LAB}.train.epochs"] == "2"
    assert float(row["accuracy"]) == pytest.approx(metrics(finished_copy)["accuracy"])


def test_a_clone_gets_a_stages_results_from_a_remote(finished_copy: Path, tmp_path: Path) -> None:
    """A class's teacher pushes; a student's clone restores all of it without a run."""
    run("dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote"), cwd=finished_copy)
    run("git", "add", ".dvc/config", "dvc.lock", cwd=finished_copy)
    run("git", "commit", "--quiet", "--message", "First run", cwd=finished_copy)
    run("dvc", "push", f"plot@{LAB}", "--with-deps", cwd=finished_copy)
    run("git", "clone", "--quiet", str(finished_copy), str(tmp_path / "clone"), cwd=tmp_path)
    done = run("dvc", "repro", "--pull", f"plot@{LAB}", cwd=tmp_path / "clone")
    assert "Running stage" not in done.stdout
    assert metrics(tmp_path / "clone") == metrics(finished_copy)
