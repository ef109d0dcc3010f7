"""The course page through its own command: whatever params.yaml and the results are like, a page or a sentence."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from stages.learning.group import Group
from stages.program.options import UserError, check
from stages.show.comparison import Row, answer
from tests.conftest import ROOT, run

LAB = "{{about: a, dataset: d, model: {{name: lenet}}, expect: {{accuracy: {expected}, tolerance: 0.1}}}}".format
METRICS = '{"accuracy": 0.5, "best_epoch": 1}'
SIZE = '{"parameters": 61706, "mult_adds": 416520}'
HISTORY = "epoch,train_loss,train_accuracy,test_loss,test_accuracy\n1,1,0.5,1,0.5\n"
TABLE = "lab,parameters,mult_adds,epochs,best_accuracy,best_epoch,final_accuracy,test_loss\na,1,1,1,0.5,1,0.5,1\n"


def page(folder: Path, params: str) -> subprocess.CompletedProcess[str]:
    (folder / "params.yaml").write_text(params)
    return run("python", "-m", "stages.show.course", cwd=folder, check=False, PYTHONPATH=str(ROOT))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("params", "sentences"),
    [
        ("datasets: {}", ["labs is missing: Labs by name."]),
        ("labs:", ["labs is None, but should be a block of keys and values."]),
        (
            "labs: {x: {about: a, dataset: d, model: {padding: 2}}, y: 7}",
            [
                "labs.x.model.name is missing: The model's family.",
                "labs.x.expect is missing: What the lab should reach, and what it costs.",
                "labs.y is 7, but should be a block of keys and values.",
            ],
        ),
        (
            f"labs: {{x: {LAB(expected=0.9)}}}\ncompare: {{g: {{labs: [x]}}}}",
            ["compare.g.labs is ['x'], but should have at least 2 values."],
        ),
    ],
)
def test_what_the_page_misses_in_params_yaml_is_told(params: str, sentences: list[str], tmp_path: Path) -> None:
    done = page(tmp_path, params)
    told = "\n".join(f"params.yaml: {sentence}" for sentence in sentences)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"Error: {told}\n")


@pytest.mark.parametrize(
    "text", ["", METRICS[:12], '{"accuracy": 0.5}', '{"accuracy": "high", "best_epoch": 1}'], ids=repr
)
def test_results_without_whole_figures_count_as_not_run(text: str, tmp_path: Path) -> None:
    write(tmp_path / "results/broken/metrics.json", text)
    write(tmp_path / "results/whole/metrics.json", METRICS)
    done = page(tmp_path, f"labs: {{broken: {LAB(expected=0.9)}, whole: {LAB(expected=0.5)}}}\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "results/course.html\n", "")
    html = (tmp_path / "results/course.html").read_text()
    assert "so far: 1 of\n2 labs" in html
    assert "not run: <code>labdag run broken</code>" in html
    assert "within the expected 50.00%" in html


def test_what_is_not_whole_beside_the_figures_is_left_out(tmp_path: Path) -> None:
    for lab in ("a", "b"):
        write(tmp_path / f"results/{lab}/metrics.json", METRICS)
    for name, text in {"model.json": SIZE, "history.csv": HISTORY}.items():
        write(tmp_path / "results/a" / name, text)
        write(tmp_path / "results/b" / name, text[:-25])
    (tmp_path / "results/a/plots").mkdir()
    Figure(dpi=100).savefig(tmp_path / "results/a/plots/curves.png")
    whole = (tmp_path / "results/a/plots/curves.png").read_bytes()
    (tmp_path / "results/b/plots").mkdir()
    (tmp_path / "results/b/plots/curves.png").write_bytes(whole[:-10])
    write(tmp_path / "results/b/plots/mistakes.png", "")
    write(tmp_path / "data/stats/d_4x5.png", "PNG")
    write(tmp_path / "results/compare/one_row/table.csv", TABLE)
    write(tmp_path / "results/compare/cut_off/table.csv", TABLE + "b,1,1")
    compare = "compare: {one_row: {labs: [a, b]}, cut_off: {labs: [a, b]}}"
    done = page(tmp_path, f"labs: {{a: {LAB(expected=0.5)}, b: {LAB(expected=0.5)}}}\n{compare}\n")
    assert (done.returncode, done.stderr) == (0, "")
    html = (tmp_path / "results/course.html").read_text()
    assert "2 of\n2 labs, 0 of 2 comparisons" in html
    assert html.count("Not compared yet") == 2
    of_a, of_b = html.split('<h3 id="lab-')[1:]
    assert "61,706" in of_a
    assert "1 of 1" in of_a
    assert "<img" in of_a
    assert "61,706" not in of_b
    assert "1 of 1" not in of_b
    assert html.count("<img") == 1


def test_without_labs_there_is_an_empty_page(tmp_path: Path) -> None:
    assert page(tmp_path, "labs: {}").returncode == 0
    assert "0 labs" in (tmp_path / "results/course.html").read_text()


def row(lab: str, accuracy: float, epochs: int, cost: int) -> Row:
    return Row(lab, 100, cost, epochs, accuracy, 1, accuracy, 0.1)


@pytest.mark.parametrize(
    ("rows", "pairs", "sentences"),
    [
        (
            [row("mlp", 0.88, 1, 10), row("cnn", 0.96, 1, 20), row("mixed", 0.84, 1, 20)],
            [["cnn", "mixed"]],
            [
                "mlp reaches 88.00%; held against it, cnn 96.00% (+8.00 points) and mixed 84.00% (−4.00 points).",
                "It is −12.00 points from cnn to mixed.",
                "The most accurate is cnn.",
                "The cheapest for an image is mlp, with 10 multiply-adds.",
            ],
        ),
        (
            [row("short", 0.88, 1, 10), row("long", 0.89, 30, 10)],
            [],
            [
                "short reaches 88.00%; held against it, long 89.00% (+1.00 points).",
                "Their trainings are not equally long: short has 1 epoch and long has 30 epochs.",
                "The most accurate is long.",
                "An image costs all of them the same: 10 multiply-adds.",
            ],
        ),
    ],
)
def test_an_answer_tells_accuracies_lengths_and_costs(
    rows: list[Row], pairs: list[list[str]], sentences: list[str]
) -> None:
    assert answer(rows, pairs) == sentences


def test_a_pair_is_of_the_labs_that_are_compared() -> None:
    with pytest.raises(UserError, match=r"compare\.x: pairs name 'c', which is none of the comparison's labs\."):
        check(Group, {"labs": ["a", "b"], "pairs": [["a", "c"]]}, "compare.x")
