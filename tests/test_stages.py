"""Stages as programs: the same bytes every time, and whole files or none whatever happens to them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from stages.program.command import KEPT
from tests.conftest import edit_params, run

LAB = "lenet_digits"
STAGES = [("download", "digits"), ("stats", "digits"), *((s, LAB) for s in ("build", "train", "evaluate", "plot"))]
OUTS = ("data", "results")


def digests(folder: Path) -> dict[str, str]:
    """Checksum of every file below the folders of outputs."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for root in OUTS
        for path in sorted((folder / root).rglob("*"))
        if path.is_file()
    }


def test_every_stage_gives_the_same_bytes_again(finished: Path, finished_copy: Path) -> None:
    """Run by themselves, in another folder than DVC ran them."""
    first = digests(finished)
    assert len(first) > 20
    for root in OUTS:
        shutil.rmtree(finished_copy / root)
    for stage, name in STAGES:
        done = run("python", "-m", f"stages.{stage}", name, cwd=finished_copy, TZ="Asia/Tokyo", LC_ALL="C.UTF-8")
        assert done.stderr == ""  # no library has anything to complain of either
    assert digests(finished_copy) == first


def start_long_training(folder: Path) -> subprocess.Popen[str]:
    """Start a training that would last minutes, and wait until it has done some epochs."""
    edit_params(folder, labs__lenet_digits__train__epochs=5000)
    process = subprocess.Popen(
        ["python", "-m", "stages.train", LAB],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 3/"):
            return process
    pytest.fail(process.communicate()[1])


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (signal.SIGINT, 130, f"Error: interrupted; {KEPT}\n"),
        (signal.SIGTERM, 143, f"Error: terminated; {KEPT}\n"),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_a_stopped_training_leaves_nothing_half_written(
    number: signal.Signals, code: int, told: str, finished_copy: Path
) -> None:
    before = digests(finished_copy)
    process = start_long_training(finished_copy)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors == told
    assert digests(finished_copy) == before, "the results of the last good run stand as they were"


def test_a_training_killed_in_dvc_runs_again_to_the_same_end(finished: Path, finished_copy: Path) -> None:
    edit_params(finished_copy, labs__lenet_digits__train__epochs=5000)
    dvc = subprocess.Popen(
        ["dvc", "repro", f"plot@{LAB}"],
        cwd=finished_copy, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert dvc.stdout is not None
    assert any(line.startswith("epoch 3/") for line in dvc.stdout)
    os.killpg(dvc.pid, signal.SIGKILL)
    dvc.communicate(timeout=30)
    run("git", "checkout", "params.yaml", cwd=finished_copy)
    run("dvc", "repro", f"plot@{LAB}", cwd=finished_copy)
    assert digests(finished_copy) == digests(finished)


def mounted(
    spare: int, options: str, folder: str, stage: str, name: str, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run a stage with a file system of its own at `folder`, with what is there and `spare` KiB more."""
    script = (
        f'mkdir -p "{folder}" && cp -a "{folder}" kept && size=$(($(du -sk kept | cut -f1) + {spare}))k '
        f'&& mount -t tmpfs -o size=$size none "{folder}" '
        f'&& cp -a kept/. "{folder}"/ && mount -o remount,{options} "{folder}" && rm -rf kept '
        f'&& python -m stages.{stage} {name}; code=$?; find "{folder}" -name "*.part*" >&2; exit $code'
    )
    return run("unshare", "--map-root-user", "--mount", "sh", "-c", script, cwd=cwd, check=False)


needs_namespaces = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True).returncode != 0,
    reason="needs the right to make a mount namespace",
)


@needs_namespaces
@pytest.mark.parametrize(
    ("stage", "name", "out", "spare"),
    [
        ("download", "digits", "data/raw/digits", 600),
        ("stats", "digits", "data/stats", 8),
        ("build", LAB, f"results/{LAB}/init.safetensors", 100),
        ("train", LAB, f"results/{LAB}/best.safetensors", 100),
        ("evaluate", LAB, f"results/{LAB}/predictions.csv", -8),
        ("plot", LAB, f"results/{LAB}/plots", 100),
    ],
)
def test_a_full_disk_gets_a_sentence(stage: str, name: str, out: str, spare: int, finished_copy: Path) -> None:
    # What the stage is about to write, DVC has removed before.
    removed = finished_copy / out
    shutil.rmtree(removed) if removed.is_dir() else removed.unlink()
    done = mounted(spare, "rw", out.partition("/")[0], stage, name, finished_copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("Error: the disk is full")
    assert done.stderr.count("\n") == 1, "one sentence, and no part file left"


@needs_namespaces
@pytest.mark.parametrize(("stage", "name", "folder"), [("download", "digits", "data"), ("train", LAB, "results")])
def test_a_folder_that_cannot_be_written_gets_a_sentence(
    stage: str, name: str, folder: str, finished_copy: Path
) -> None:
    edit_params(finished_copy, labs__lenet_digits__train__epochs=1)
    done = mounted(9_000, "ro", folder, stage, name, finished_copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("Error: no permission to write at ")
    assert done.stderr.count("\n") == 1


def test_a_file_in_the_place_of_a_folder_gets_a_sentence(project: Path) -> None:
    (project / "data").write_text("in the way")
    done = run("python", "-m", "stages.download", "digits", cwd=project, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: a file stands where a folder is needed at data")


def test_a_stage_whose_inputs_are_missing_says_what_to_do(project: Path) -> None:
    done = run("python", "-m", "stages.train", LAB, cwd=project, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: there is no file at data/raw/digits/classes.json; run the stages")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"labs__lenet_digits__model__input_shape": [3, 28, 28]},
            "labs.lenet_digits.model.input_shape is [3, 28, 28], but the images of digits are [1, 28, 28].",
        ),
        (
            {"labs__lenet_digits__model__classes": 12},
            "labs.lenet_digits.model.classes is 12, but digits has 10 classes.",
        ),
        (
            {"labs__lenet_digits__train__batch_size": 5000},
            "labs.lenet_digits.train.batch_size is 5000, but there are only 1347 images to train on.",
        ),
        (
            {"labs__lenet_digits__train__batch_size": 1300, "labs__lenet_digits__train__select_on": "validation"},
            "labs.lenet_digits.train.batch_size is 1300, but there are only 1212 images to train on.",
        ),
    ],
)
def test_params_that_do_not_fit_the_data_get_a_sentence(
    changes: dict[str, object], sentence: str, finished_copy: Path
) -> None:
    edit_params(finished_copy, **changes)
    run("python", "-m", "stages.build", LAB, cwd=finished_copy)
    done = run("python", "-m", "stages.train", LAB, cwd=finished_copy, check=False)
    assert (done.returncode, done.stderr) == (1, f"Error: params.yaml: {sentence}\n")


def test_progress_is_a_line_every_hundred_batches_off_a_terminal(finished_copy: Path) -> None:
    edit_params(finished_copy, labs__lenet_digits__train__epochs=1, labs__lenet_digits__train__batch_size=5)
    lines = run("python", "-m", "stages.train", LAB, cwd=finished_copy).stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "epoch 1/1, batch 100/270",
        "epoch 1/1, batch 200/270",
        "epoch 1/1",
        LAB,
    ]


def test_progress_is_a_bar_on_a_terminal(finished_copy: Path) -> None:
    edit_params(finished_copy, labs__lenet_digits__train__epochs=1, labs__lenet_digits__train__batch_size=5)
    command = f"stty rows 40 cols 120; python -m stages.train {LAB}"
    done = run("script", "--quiet", "--command", command, "/dev/null", cwd=finished_copy)
    assert re.search(r"epoch 1/1: +37%.*100/270.*loss \d\.\d{4}, accuracy \d\d\.\d\d%", done.stdout)
    assert "batch 100/270" not in done.stdout
