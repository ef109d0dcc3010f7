"""docs/results.md: the page is what the kept runs say, and a run is kept."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks import ablation, convolutions, projects, results_page
from stages import params
from stages.learning import device
from tests.conftest import ROOT, edit_params, run


def test_the_page_is_the_one_that_the_kept_runs_give() -> None:
    text = (ROOT / results_page.PAGE).read_text()
    assert text == results_page.page(ROOT), "run `python -m benchmarks.results write`"


def test_a_run_is_kept_once_and_shown(project: Path) -> None:
    (project / results_page.RECORDS).write_text("")
    command = ("python", "-m", "benchmarks.results")
    done = run(*command, "run", "lenet_digits", "--seeds", "2", "--images", "300", cwd=project)
    assert done.stdout.count("lenet_digits, seed") == 2
    first, second = results_page.records(project)
    assert (first["seed"], second["seed"], first["images"], first["epochs"]) == (1, 2, 300, 1)
    assert first["accuracy"] != second["accuracy"] or first["loss"] != second["loss"]
    assert first["parameters"] == 61_706
    assert 0 < first["accuracy"] < 0.98, "one epoch of five steps"
    again = run(*command, "run", "lenet_digits", "--images", "300", cwd=project)
    assert again.stdout == "lenet_digits, seed 1: kept already\n"
    assert len(results_page.records(project)) == 2
    assert [path.name for path in (project / ".results").iterdir()] == ["data"]

    def page() -> str:
        run(*command, "write", cwd=project)
        return (project / results_page.PAGE).read_text()

    few = "| `lenet_digits` | 300 | "
    written = page()
    assert "## A few steps of heavy labs" in written
    assert few in written
    assert "`python -m benchmarks.results run lenet_digits --seeds 2 --images 300`" in written

    edit_params(project, labs__lenet_digits__train__epochs=1)
    assert few not in page(), "of another recipe"
    run(*command, "run", "lenet_digits", "--threads", "2", cwd=project)
    written = page()
    whole = results_page.records(project)[-1]
    assert "| `lenet_digits` | 98.00% | " in written
    assert f"**{whole['accuracy']:.2%}** | not as expected | 1 of 1 |" in written
    assert "`python -m benchmarks.results run lenet_digits --threads 2`; seed 1" in written
    assert "Not run yet: `lenet_mnist`." in written
    assert json.loads((project / results_page.RECORDS).read_text().splitlines()[0]) == first


def test_labs_are_timed_in_a_copy_that_holds_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    assert projects.copy_with_labs(folder, ["mlp_mnist", "lenet_digits"]) == ["mnist", "digits"]
    assert list(params.load(folder / "params.yaml").labs) == ["mlp_mnist", "lenet_digits"]
    assert "compare@" not in run("dvc", "stage", "list", "--name-only", cwd=folder).stdout


def test_a_labs_loop_and_the_stages_of_its_pipeline_are_timed() -> None:
    options = ("--no-plain", "--precision", "fp32", "--rounds", "1", "--images", "200", "--threads", "1", "--pipeline")
    said = run("python", "-m", "benchmarks.train_speed", "lenet_digits", *options, cwd=ROOT).stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if line.startswith("|")]
    (_, _, loop), (heads, _, pipeline) = rows[:3], rows[3:]
    assert loop[0] == "labdag, fp32"
    assert heads == ["seconds", "download", "stats", "build", "train", "evaluate", "plot", "loop", "outside"]
    *stages, loop_seconds = map(float, pipeline[1:-1])
    assert all(seconds > 0 for seconds in stages)
    assert 0 < loop_seconds < stages[3]
    assert float(pipeline[-1].strip("%")) == pytest.approx(100 * (1 - loop_seconds / sum(stages)), abs=2)


def calls(side: ablation.Side) -> Counter[str]:
    """What torch was called for in two steps of a training, and how often."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        side.take_a_turn(2)
    return Counter({event.key: event.count for event in seen.key_averages()})


# All of a CPU's in fp32, but two of which torch sees nothing: reading ahead, and the memory that the C library keeps.
@pytest.mark.parametrize(
    ("lab", "choice"),
    [
        *(
            ("lenet_mnist", name)
            for name, choice in ablation.CHOICES.items()
            if choice.device in (None, "cpu") and not choice.precision and name not in ("ahead", "memory", "winograd")
        ),
        ("vgg_cifar10", "winograd"),
        ("lenet_mnist", None),
    ],
)
def test_without_a_choice_a_training_does_other_work(
    lab: str, choice: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABDAG_DEVICE", "cpu")
    block = params.load(ROOT / "params.yaml").labs[lab]
    count = 4 * block.train.batch_size
    undone = ablation.CHOICES[choice] if choice else None
    # The first one makes what the others find.
    _, as_shipped, without, again = (
        calls(ablation.Side(block, each, count, tmp_path)) for each in (None, None, undone, None)
    )
    assert (as_shipped == without) == (choice is None)
    assert as_shipped == again, "its patches stayed"


def test_a_choice_of_a_whole_process_is_undone_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABDAG_DEVICE", "cpu")
    kept: list[str] = []
    monkeypatch.setattr(device, "_keep_freed_memory", lambda: kept.append("kept"))
    options = {"lab": "lenet_digits", "one": "memory", "images": 64, "threads": 1, "precision": "fp32"}
    assert len(ablation.training(argparse.Namespace(**options, sides="without"))) == 1
    assert kept == []
    assert len(ablation.training(argparse.Namespace(**options, sides="with"))) == 1
    assert kept


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--choice", "bf16"], "'bf16' is a choice on cpu in bf16 only"),
        (["--choice", "graphs"], "'graphs' is a choice on cuda in any precision only"),
    ],
)
def test_a_choice_that_is_none_here_is_told(
    options: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABDAG_DEVICE", "cpu")
    monkeypatch.setattr("sys.argv", ["ablation", *options])
    with pytest.raises(SystemExit):
        ablation.main()
    assert sentence in capsys.readouterr().err


def test_what_a_choice_gains_is_told() -> None:
    options = ("--choice", "fused", "--choice", "memory", "--images", "64", "--rounds", "1", "--threads", "1")
    said = run("python", "-m", "benchmarks.ablation", "lenet_digits", *options, cwd=ROOT).stdout.splitlines()
    for line, what in zip(said[-2:], ("the fused optimizer", "freed memory kept"), strict=True):
        name, *speeds, gain = (cell.strip() for cell in line.strip("|").split("|"))
        with_it, without = (float(speed.replace(",", "")) for speed in speeds)
        assert name == what
        assert float(gain) == pytest.approx(with_it / without, abs=0.01)


def test_mistakes_get_a_sentence(project: Path) -> None:
    done = run("python", "-m", "benchmarks.results", "run", "lenet_cifar10jpeg", cwd=project, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: there is no lab lenet_cifar10jpeg in params.yaml (labs *_cifar10jpeg need --jpeg).\n"
    )


def test_convolutions_are_held_against_torchs_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABDAG_DEVICE", "cpu")  # which it sets itself, for its own process
    monkeypatch.setattr("sys.argv", ["convolutions", "lenet_digits", "--rounds", "1", "--threads", "1"])
    convolutions.main()
    *_, row = capsys.readouterr().out.splitlines()
    image, way, *times, theirs, ours = (cell.strip() for cell in row.strip("|").split("|"))
    assert (image, way) == ("14×14, 6, 16, 5×5", "few_channels")
    assert all(float(time) > 0 for time in times)
    assert 0 < float(theirs) < 2e-6
    assert 0 < float(ours) < 2e-6
