"""`labdag diff`: what was changed between two revisions, and what it did to each result."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import edit_params, run

PIPELINE = """
stages:
  train:
    foreach: ${labs}
    do:
      cmd: python train.py ${key}
      deps: [train.py]
      params: ["labs.${key}"]
      metrics: ["${key}.json"]
      meta:
        summary: {accuracy: ".1%"}
        extremes: {"per_class.*.f1": ".0%"}
        seed: labs.${key}.seed
"""
PARAMS = "labs:\n  a: {lr: 1, seed: 1}\n  b: {lr: 1, seed: 1}\n"
TRAIN = """
import json, sys, yaml
lab = yaml.safe_load(open("params.yaml"))["labs"][sys.argv[1]]
chance = {1: 0, 2: 0.01, 3: -0.01}[lab["seed"]]
classes = {str(i): {"f1": 0.5 + lab["lr"] * (i - 4) / 100} for i in range(9)}
found = {"accuracy": 0.5 + lab["lr"] / 10 + chance, "loss": 1 / lab["lr"], "per_class": classes}
json.dump(found, open(f"{sys.argv[1]}.json", "w"))
"""


@pytest.fixture
def labs(toy: Callable[..., Path]) -> Path:
    """Two labs, run and committed."""
    folder = toy(PIPELINE, **{"params.yaml": PARAMS, "train.py": TRAIN})
    run("dvc", "repro", "--quiet", cwd=folder)
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    run("git", "add", "--all", cwd=folder)
    run("git", "commit", "--quiet", "--message", "Change", cwd=folder)


def lines(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("labdag", "diff", "--json", *arguments, cwd=folder).stdout)
    return found


def refusal(folder: Path, *arguments: str) -> str:
    done = run("labdag", "diff", *arguments, cwd=folder, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_what_was_changed_and_what_it_did(labs: Path) -> None:
    edit_params(labs, labs__a__lr=2)
    run("dvc", "repro", "--quiet", cwd=labs)
    found = lines(labs)
    assert {line["result"] for line in found} == {"a"}
    assert [(line["what"], line["old"], line["new"]) for line in found[:3]] == [
        ("lr", 1, 2),
        ("accuracy", 0.6, 0.7),
        ("loss", 1.0, 0.5),
    ]
    assert [line["what"] for line in found[3:]] == [f"per_class.{i}.f1" for i in (0, 1, 2, 3, 5, 6, 7, 8)]

    shown = run("labdag", "diff", cwd=labs).stdout
    # Of nine classes the three that gained most and the three that lost most.
    assert re.findall(r"per_class\.(\d)", shown) == ["8", "7", "6", "2", "1", "0"]
    assert "60.0%" in shown
    assert "+10.0 points" in shown
    commit(labs)
    assert run("labdag", "diff", cwd=labs).stdout == "No result of workspace differs from that of HEAD.\n"
    table = run("labdag", "diff", "--md", "HEAD~1", "HEAD", cwd=labs).stdout.splitlines()
    assert table[:3] == [
        "| result | what | HEAD~1 | HEAD | change |",
        "| :--- | :--- | ---: | ---: | ---: |",
        "| a | lr | 1 | 2 | +1 |",
    ]
    raw = run("labdag", "diff", "--raw", "HEAD~1", "HEAD", cwd=labs).stdout
    assert "labs.a.lr" in raw
    assert "per_class.0.f1" in raw


def test_a_change_within_the_noise_of_the_seed_is_called_so(labs: Path) -> None:
    for seed in (2, 3):
        run("dvc", "exp", "run", "--quiet", "--name", f"a{seed}", "-S", f"labs.a.seed={seed}", "train@a", cwd=labs)
    run("git", "checkout", "params.yaml", "dvc.lock", cwd=labs)
    run("dvc", "checkout", cwd=labs)

    accuracy = next(line for line in lines(labs, "a2", "a3") if line["what"] == "accuracy")
    assert accuracy["noise"] == pytest.approx(0.01)
    assert (accuracy["repeats"], accuracy["is_chance"]) == (3, True)
    shown = run("labdag", "diff", "a2", "a3", cwd=labs).stdout
    assert "within the noise of the seed, up to 2.8 points (± 1.0 points over 3 runs)" in shown

    edit_params(labs, labs__a__lr=2)
    run("dvc", "repro", "--quiet", cwd=labs)
    assert next(line for line in lines(labs) if line["what"] == "accuracy")["noise"] is None  # of lr 2 one run is known
    found = {line["what"]: line for line in lines(labs, "workspace", "HEAD")}
    assert found["accuracy"]["is_chance"] is False
    assert "more than the noise of the seed" in run("labdag", "diff", "workspace", "HEAD", cwd=labs).stdout
    assert found["loss"]["noise"] == 0


def test_other_code_is_no_noise(labs: Path) -> None:
    for seed in (2, 3):
        run("dvc", "exp", "run", "--quiet", "--name", f"a{seed}", "-S", f"labs.a.seed={seed}", "train@a", cwd=labs)
    run("git", "checkout", "params.yaml", "dvc.lock", cwd=labs)
    (labs / "train.py").write_text(TRAIN.replace("0.5 + lab", "0.4 + lab"))
    run("dvc", "repro", "--quiet", cwd=labs)
    assert next(line for line in lines(labs) if line["what"] == "accuracy")["noise"] is None
    run("git", "checkout", "train.py", cwd=labs)
    (labs / "dvc.yaml").write_text(PIPELINE.replace("train.py ${key}", "train.py ${key} --twice"))
    run("dvc", "repro", "--quiet", cwd=labs)
    edit_params(labs, labs__a__seed=2)
    run("dvc", "repro", "--quiet", cwd=labs)
    found = {line["what"]: line for line in lines(labs) if line["result"] == "a"}
    assert found["accuracy"]["noise"] is None
    assert (found["command of train@a"]["old"], found["command of train@a"]["new"]) == ("…", "… --twice")


def test_metrics_of_any_shape_are_told(toy: Callable[..., Path]) -> None:
    """Nested ones, nan, files that are declared and were not made yet."""
    pipeline = "stages:\n  a: {cmd: cp a.in a.json, deps: [a.in], metrics: [a.json]}\n"
    folder = toy(pipeline, **{"a.in": '{"x": 1, "deep": {"y": 1, "z": NaN}}'})
    run("dvc", "repro", "--quiet", cwd=folder)
    commit(folder)
    assert run("labdag", "diff", "HEAD", "HEAD", cwd=folder).stdout == "No result of HEAD differs from that of HEAD.\n"
    (folder / "a.in").write_text('{"x": NaN, "deep": {"y": 2, "z": NaN}}')
    run("dvc", "repro", "--quiet", cwd=folder)
    found = {line["what"]: (line["old"], line["new"], line["change"]) for line in lines(folder)}
    del found["a.in"]
    assert found == {"x": (1, "nan", "nan"), "deep.y": (1, 2, 1)}
    (folder / "dvc.yaml").write_text(pipeline.replace("a.json]", "a.json, b.json]"))
    assert "deep.y" in run("labdag", "diff", cwd=folder).stdout


def test_code_that_was_changed_is_told(labs: Path) -> None:
    (labs / "train.py").write_text(TRAIN.replace("0.5 + lab", "0.4 + lab"))
    run("dvc", "repro", "--quiet", cwd=labs)
    assert [line["what"] for line in lines(labs, "-t", "b")][:2] == ["train.py", "accuracy"]


def test_what_is_in_one_revision_only(labs: Path) -> None:
    (labs / "params.yaml").write_text("labs:\n  b: {lr: 1, seed: 1}\n  c: {lr: 1, seed: 1}\n  d: {lr: 1, seed: 1}\n")
    run("dvc", "repro", "--quiet", "train@c", cwd=labs)
    assert [(line["result"], line["remark"]) for line in lines(labs)] == [
        ("c", "only in workspace: HEAD has no such result"),
        ("a", "only in HEAD: workspace has no such result"),
    ]
    run("git", "checkout", "params.yaml", cwd=labs)
    (labs / "dvc.lock").unlink()
    remarks = [line["remark"] for line in lines(labs, "-t", "a")]
    assert remarks == ["run only in HEAD: workspace has it, but never ran it"]


def test_metrics_that_are_gone_are_told(labs: Path) -> None:
    edit_params(labs, labs__a__lr=2)
    run("dvc", "repro", "--quiet", cwd=labs)
    commit(labs)
    run("git", "tag", "later", cwd=labs)
    run("git", "checkout", "--quiet", "HEAD~1", cwd=labs)
    run("dvc", "checkout", cwd=labs)
    run("dvc", "gc", "--workspace", "--force", cwd=labs)
    assert [(line["what"], line["remark"]) for line in lines(labs, "HEAD", "later")] == [
        ("lr", ""),
        ("a.json", "its content is not in DVC's cache; `dvc fetch` may have it"),
    ]


def test_params_that_were_edited_since_are_told(labs: Path) -> None:
    edit_params(labs, labs__a__lr=2)
    said = run("labdag", "diff", cwd=labs).stdout
    assert "No result of workspace differs" in said
    assert "In workspace, labs.a.lr has another value than the results were made with" in said


def test_mistakes_get_a_sentence(labs: Path, tmp_path: Path) -> None:
    assert "There is no revision 'nope'" in refusal(labs, "nope")
    assert "Neither HEAD nor workspace has a result 'aa'. Did you mean 'a'?" in refusal(labs, "-t", "aa")
    assert "'a' is a result, and no revision; `labdag diff --target a` shows it" in refusal(labs, "a")
    assert "exclude each other" in refusal(labs, "--md", "--json")
    bare = tmp_path / "bare"
    bare.mkdir()
    run("dvc", "init", "--quiet", "--no-scm", cwd=bare)
    assert "DVC was told that there is no git (`dvc init --no-scm`)" in refusal(bare)


NUMBERS = """
stages:
  train:
    cmd: python train.py
    deps: [train.py, data.csv]
    params: [seed, lr]
    metrics: [found.yaml, best.json]
    meta: {seed: seed, extremes: {"per_class.*": ".1f"}}
"""
NUMBERS_TRAIN = """
import datetime, json, yaml
params = yaml.safe_load(open("params.yaml"))
data = float(open("data.csv").read())
seed = params["seed"] if isinstance(params["seed"], int) else sum(params["seed"])
found = {"when": datetime.date(2026, 1, params["lr"]), "detail": {"x": data}}
yaml.dump(found, open("found.yaml", "w"))
json.dump(data * params["lr"] + seed / 10, open("best.json", "w"))
"""


def test_data_and_figures_of_any_kind_are_told(toy: Callable[..., Path]) -> None:
    """Data of `dvc add`, a metrics file that is a number, a date, and figures that no family has."""
    folder = toy(NUMBERS, **{"params.yaml": "{seed: 1, lr: 2}\n", "train.py": NUMBERS_TRAIN, "data.csv": "1\n"})
    run("git", "rm", "--quiet", "--cached", "data.csv", cwd=folder)
    run("dvc", "add", "--quiet", "data.csv", cwd=folder)
    run("dvc", "repro", "--quiet", cwd=folder)
    commit(folder)
    edit_params(folder, lr=3)
    run("dvc", "repro", "--quiet", cwd=folder)
    commit(folder)
    for seed in (2, 3):
        run("dvc", "exp", "run", "--quiet", "--temp", "--set-param", f"seed={seed}", cwd=folder)
    told = {line["what"]: line for line in lines(folder, "HEAD~1", "HEAD")}
    assert set(told) == {"lr", "when", "best.json"}
    assert (told["when"]["old"], told["when"]["new"]) == ("2026-01-02", "2026-01-03")
    assert told["best.json"]["change"] == 1
    assert told["best.json"]["repeats"] == 3

    (folder / "data.csv").write_text("2\n")
    run("dvc", "repro", "--quiet", cwd=folder)
    assert {line["what"] for line in lines(folder)} == {"data.csv", "detail.x", "best.json"}
    commit(folder)

    # Only a figure that is in no family differs: it has no line of its own, but is not concealed.
    path = folder / "found.yaml"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("x: 2.0", "x: 2.5"))
    run("dvc", "commit", "--force", "--quiet", cwd=folder)
    assert re.search(r"train +1 figure +- +- +- +`--json` tells more", run("labdag", "diff", cwd=folder).stdout)


def test_what_is_no_commit_and_no_text_gets_a_sentence(labs: Path) -> None:
    assert refusal(labs, "HEAD^{tree}") == "Error: 'HEAD^{tree}' is a tree, and no commit.\n"
    assert refusal(labs, "HEAD:params.yaml") == "Error: 'HEAD:params.yaml' is a blob, and no commit.\n"
    (labs / "a.json").unlink()
    (labs / "a.json").write_bytes(b'{"caf\xe9": 1}')
    run("labdag", "diff", cwd=labs)


def test_a_seed_of_several_numbers_is_no_reason_to_fail(toy: Callable[..., Path]) -> None:
    folder = toy(NUMBERS, **{"params.yaml": "{seed: [1, 2], lr: 2}\n", "train.py": NUMBERS_TRAIN, "data.csv": "1\n"})
    run("dvc", "repro", "--quiet", cwd=folder)
    commit(folder)
    run("dvc", "exp", "run", "--quiet", "--temp", "--set-param", "seed=[3,4]", cwd=folder)
    (folder / "data.csv").write_text("2\n")
    run("dvc", "repro", "--quiet", cwd=folder)
    assert {line["what"]: line["repeats"] for line in lines(folder)}["best.json"] == 0


UPSTREAM = """
stages:
  base:
    cmd: python base.py
    deps: [base.py]
    params: [base]
    outs: [weights]
    metrics: [base.json]
    meta: {summary: {loss: ".1f"}}
  tune:
    cmd: python tune.py
    deps: [tune.py, weights]
    params: [seed]
    metrics: [tune.json]
    meta: {seed: seed, summary: {accuracy: ".1f"}}
"""
BASE = """
import yaml
base = yaml.safe_load(open("params.yaml"))["base"]
open("weights", "w").write(str(base))
open("base.json", "w").write('{"loss": %s}' % base)
"""
TUNE = """
import yaml
seed = yaml.safe_load(open("params.yaml"))["seed"]
open("tune.json", "w").write('{"accuracy": %s}' % (float(open("weights").read()) + seed / 10))
"""


def test_a_result_upstream_that_differs_is_no_noise_of_the_seed(toy: Callable[..., Path]) -> None:
    """Else what another base does would be taken for chance."""
    params = {"params.yaml": "{base: 1, seed: 1}\n"}
    folder = toy(UPSTREAM, **params, **{"base.py": BASE, "tune.py": TUNE})
    run("dvc", "repro", "--quiet", cwd=folder)
    commit(folder)
    for seed in (2, 3):
        run(
            "dvc", "exp", "run", "--quiet", "--temp", "--set-param", f"seed={seed}", "--set-param", "base=9", cwd=folder
        )
    for seed in (4, 5):
        run("dvc", "exp", "run", "--quiet", "--temp", "--set-param", f"seed={seed}", cwd=folder)
    edit_params(folder, seed=6)
    run("dvc", "repro", "--quiet", cwd=folder)
    (line,) = [line for line in lines(folder) if line["what"] == "accuracy"]
    assert line["repeats"] == 4  # seeds 1, 4, 5 and 6
    assert line["noise"] < 0.3
