"""What a course is made of: README's own lab, model and comparison, checks against what is expected, one page."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest

from stages import params
from tests.conftest import ROOT, edit_params, run, write_dag

README = (ROOT / "README.md").read_text()


def shown(language: str, beginning: str) -> str:
    """The block of code in README that begins so."""
    found = re.search(rf"```{language}\n({re.escape(beginning)}.*?)```", README, re.DOTALL)
    assert found, beginning
    return found.group(1)


def add_as_readme_says(folder: Path) -> None:
    """Do what README's section on adding things says, to the letter."""
    lab = shown("yaml", "  mlp_digits:")
    softmax = re.search(r"`(model: \{name: softmax.*?\})`", README)
    assert softmax
    copy = re.sub(r"model: \{.*\}", softmax.group(1), lab).replace("mlp_digits", "softmax_digits")
    text = (folder / "params.yaml").read_text()
    text = text.replace("labs:\n", f"labs:\n{lab}\n{copy}\n", 1)
    text = re.sub(r"^compare:.*\n", f"compare:\n{shown('yaml', '  digits_models:')}", text, flags=re.MULTILINE)
    (folder / "params.yaml").write_text(text)
    (folder / "stages/models/softmax.py").write_text(shown("python", '"""Softmax regression'))
    write_dag(folder)


def test_a_lab_is_a_block_a_model_a_file_and_a_comparison_a_block(
    finished_copy: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    add_as_readme_says(finished_copy)
    done = run("labdag", "run", "digits_models", cwd=finished_copy)
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if "report.html" in line}
    assert rows["lenet_digits"][1:3] == ["0", "6"], "what was there is not run again"
    assert rows["mlp_digits"][1:4] == ["4", "2", "50,890"]
    assert rows["softmax_digits"][1:4] == ["4", "2", "7,850"]
    assert rows["digits_models"][1:3] == ["1", "0"]
    assert "15 stages: 9 run, 6 reused" in done.stdout

    compared = finished_copy / "results/compare/digits_models"
    with (compared / "table.csv").open(newline="") as file:
        table = {row["lab"]: row for row in csv.DictReader(file)}
    assert list(table) == ["softmax_digits", "mlp_digits", "lenet_digits"]
    assert table["softmax_digits"]["parameters"] == "7850"
    for lab, row in table.items():
        assert float(row["best_accuracy"]) > 0.85, lab
    page = (compared / "report.html").read_text()
    assert "Is a deeper model better, even on 1,347 images?" in page
    for lab in table:
        assert f'href="../../{lab}/report.html"' in page

    # A comparison makes no lab rerun.
    edit_params(finished_copy, compare__digits_models__look_for="The first epoch.")
    done = run("labdag", "run", "digits_models", cwd=finished_copy)
    assert "15 stages: 1 run, 14 reused" in done.stdout
    assert (compared / "report.html").read_text() != page

    again = (compared / "table.csv").read_bytes(), (compared / "report.html").read_bytes()
    run("python", "-m", "stages.compare", "digits_models", cwd=finished_copy)
    assert again == ((compared / "table.csv").read_bytes(), (compared / "report.html").read_bytes())


def test_comparisons_that_dvc_does_not_know_of_are_told(finished_copy: Path) -> None:
    group = {"question": "Which?", "labs": ["lenet_digits", "lenet_mnist"]}
    edit_params(finished_copy, compare={"both": group})
    done = run("labdag", "run", "lenet_digits", cwd=finished_copy, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "Error: dvc.yaml does not have the comparisons that params.yaml has; run `make dag`.\n",
    )


def test_a_comparison_of_other_labs_than_dvc_declares_is_refused(finished_copy: Path) -> None:
    """By plain DVC too, which would not see when one of them changes."""
    edit_params(finished_copy, compare={"both": {"labs": ["lenet_digits", "lenet_mnist"]}})
    write_dag(finished_copy)
    shutil.copytree(finished_copy / "results/lenet_digits", finished_copy / "results/other")
    edit_params(finished_copy, compare__both__labs=["lenet_digits", "other"])
    done = run("python", "-m", "stages.compare", "both", "lenet_digits", "lenet_mnist", cwd=finished_copy, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "Error: params.yaml: compare.both.labs are lenet_digits, other, but dvc.yaml was written for lenet_digits, "
        "lenet_mnist; run `make dag`.\n",
    )


def test_a_mistake_leaves_the_dag_as_it_was(project: Path) -> None:
    before = (project / "dvc.yaml").read_text()
    edit_params(project, compare={"g": {"labs": ["lenet_digits", "lenet_mnits"]}})
    done = run("python", "-m", "stages.params", "dag", cwd=project, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: params.yaml: compare.g.labs: there is no lab 'lenet_mnits'; did you mean 'lenet_mnist'? "
        "Known: lenet_digits, lenet_mnist.\n"
    )
    assert (project / "dvc.yaml").read_text() == before


def test_names_that_yaml_takes_for_other_things_are_labs_like_others(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    text = text.replace("  lenet_mnist:", '  "null":').replace(
        "compare: {}", 'compare: {"1e3": {labs: [lenet_digits, "null"]}}'
    )
    (project / "params.yaml").write_text(text)
    write_dag(project)
    listed = run("dvc", "stage", "list", "--name-only", cwd=project).stdout.split()
    assert {"train@null", "compare@1e3"} <= set(listed)
    assert "results/null/metrics.json" in run("dvc", "dag", "--outs", "compare@1e3", cwd=project).stdout


def test_no_lab_may_be_called_as_the_folder_of_comparisons(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("  lenet_mnist:", "  compare:"))
    done = run("labdag", "list", cwd=project, check=False)
    assert done.stderr.startswith("Error: params.yaml: labs.compare: comparisons have this folder of results")


def test_the_shipped_dag_has_the_shipped_comparisons() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert params.dag(text, params.load(ROOT / "params.yaml").compare) == text, "run `make dag`"


def test_every_shipped_lab_says_what_it_should_reach_and_cost() -> None:
    for name, lab in params.load(ROOT / "params.yaml").labs.items():
        assert lab.about, name
        assert lab.expect.source, name
        assert re.match(r"[\d.]+ (s|min|h) of training with \d threads?, fp32", lab.expect.cost), name


def test_check_holds_a_result_against_what_is_expected(finished_copy: Path) -> None:
    done = run("labdag", "check", "lenet_digits", cwd=finished_copy)
    assert re.fullmatch(r"lenet_digits: 9\d\.\d\d%, within the expected 98\.00% ± 1\.50 points\n", done.stdout)
    assert run("labdag", "check", cwd=finished_copy).stdout == done.stdout, "labs that were not run are not missed"

    edit_params(finished_copy, labs__lenet_digits__expect__accuracy=0.5)
    done = run("labdag", "check", cwd=finished_copy, check=False)
    assert done.returncode == 1
    assert re.fullmatch(
        r"lenet_digits: 9\d\.\d\d%, outside the expected 50\.00% ± 1\.50 points \(stale: plot@lenet_digits: .*\)\n",
        done.stdout,
    )
    done = run("labdag", "check", "lenet_mnist", cwd=finished_copy, check=False)
    assert (done.returncode, done.stdout) == (1, "lenet_mnist: not run yet; `labdag run lenet_mnist` does\n")
    done = run("labdag", "check", "lenet_digit", cwd=finished_copy, check=False)
    assert done.stderr.startswith("Error: Nothing is called 'lenet_digit'. Did you mean 'lenet_digits'?")


def test_the_last_stage_says_whether_the_result_is_as_expected(finished_copy: Path) -> None:
    lines = run("python", "-m", "stages.plot", "lenet_digits", cwd=finished_copy).stdout.splitlines()
    assert re.fullmatch(r"lenet_digits: 9\d\.\d\d%, within the expected 98\.00% ± 1\.50 points", lines[-1])


def test_the_course_page_holds_whatever_has_been_run(project: Path, finished_copy: Path) -> None:
    empty = run("labdag", "course", cwd=project)
    assert "results/course.html" in empty.stdout
    assert "labdag run lenet_digits" in (project / "results/course.html").read_text()

    run("labdag", "course", cwd=finished_copy)
    page = (finished_copy / "results/course.html").read_text()
    assert 'href="lenet_digits/report.html"' in page
    assert "within the expected 98.00%" in page
    assert "labdag run lenet_mnist" in page
    assert "other params or code" not in page
    assert "<script" not in page
    assert not re.search(r'(src|href)="https?:', page)

    edit_params(finished_copy, labs__lenet_digits__train__epochs=3)
    run("labdag", "course", cwd=finished_copy)
    assert "other params or code" in (finished_copy / "results/course.html").read_text()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"compare": {"g": {"labs": ["lenet_digits", "lenet_mnits"]}}},
            "compare.g.labs: there is no lab 'lenet_mnits'; did you mean 'lenet_mnist'?",
        ),
        (
            {"compare": {"g": {"labs": ["lenet_digits"]}}},
            "compare.g.labs is ['lenet_digits'], but should have at least 2 val",
        ),
        ({"compare": {"g": {"labs": ["lenet_mnist"] * 2}}}, "compare.g.labs names a lab twice; once is enough."),
        (
            {"compare": {"mnist": {"labs": ["lenet_digits", "lenet_mnist"]}}},
            "compare.mnist: a lab or a dataset has this name already",
        ),
    ],
)
def test_a_mistake_in_a_comparison_gets_a_sentence(changes: dict[str, object], sentence: str, project: Path) -> None:
    edit_params(project, **changes)
    done = run("labdag", "list", cwd=project, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: params.yaml: {sentence}")
