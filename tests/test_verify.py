"""`labdag verify`: stages run again in an isolated copy, and each output is held against dvc.lock."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import edit_params, run, wait_for

# `luck` differs each time that it runs, once `dice` says so, and so does what is made of it; `sure` never does.
TOY = """
stages:
  luck:
    cmd: python luck.py
    deps: [luck.py, table.csv]
    outs: [luck.txt]
    metrics: [luck.json: {cache: false}]
  sum:
    cmd: cat luck.txt table.csv > sum.txt && mkdir many && cp luck.txt many/a && cp table.csv many/b
    deps: [luck.txt, table.csv]
    outs: [sum.txt, many]
  sure:
    cmd: cp hidden sure.txt
    deps: [hidden]
    outs: [sure.txt]
  later:
    cmd: cat table.csv > later.txt
    deps: [table.csv]
    outs: [later.txt]
"""
LUCK = """
import json, os, random
dice = random.random() if os.path.exists("DICE") else 0.5
open("luck.txt", "w").write(str(dice))
json.dump({"luck": dice, "sides": {"n": 6}}, open("luck.json", "w"))
"""


@pytest.fixture(autouse=True)
def _server(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)


@pytest.fixture
def made(toy: Callable[..., Path], tmp_path: Path) -> Path:
    """A repository with data that DVC tracks, a file that git ignores, and all stages but one run."""
    luck = LUCK.replace('"DICE"', repr(str(tmp_path / "dice")))
    files = {"luck.py": luck, "table.csv": "1,2\n", ".gitignore": "/hidden\n", "hidden": "3"}
    folder = toy(TOY, **files)
    run("git", "rm", "--quiet", "--cached", "table.csv", cwd=folder)
    run("dvc", "add", "--quiet", "table.csv", cwd=folder)
    run("dvc", "repro", "--quiet", "luck", "sum", "sure", cwd=folder)
    return folder


def state(folder: Path) -> tuple[str, str, bytes, list[str]]:
    return (
        run("git", "status", "--porcelain", cwd=folder).stdout,
        run("dvc", "status", cwd=folder).stdout,
        (folder / "dvc.lock").read_bytes(),
        sorted(str(path) for path in (folder / ".dvc/cache").rglob("*")),
    )


def test_what_is_made_again_alike_is_verified_and_nothing_of_the_users_is_touched(made: Path) -> None:
    before = state(made)
    done = run("labdag", "verify", cwd=made)
    assert done.stdout.strip() == "5 outputs: 5 the same, 0 different"
    assert state(made) == before
    assert not (made / ".dvc/tmp/labdag/verify").exists()


def test_what_differs_is_told_metrics_first_and_what_it_follows_from(made: Path, tmp_path: Path) -> None:
    (made / "luck.json").write_text('{"luck": 42}')  # which is not what was recorded
    before = state(made)
    (tmp_path / "dice").touch()
    done = run("labdag", "verify", "sum", "sure", cwd=made, check=False)
    assert done.returncode == 1
    rows = [
        re.split(r"  +", line.strip())
        for line in done.stdout.splitlines()
        if line.startswith((" luck", " sum", "luck", "sum"))
    ]
    assert [row[:3] for row in rows] == [
        ["luck", "luck.json", "-"],
        ["luck", "luck.txt", "-"],
        ["sum", "sum.txt", "luck"],
        ["sum", "many", "luck"],
    ]
    assert re.match(r"luck 0\.5 → 0\.\d+", rows[0][3])
    assert done.stdout.strip().endswith("5 outputs: 1 the same, 4 different")
    assert state(made) == before


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (["later"], "later was never run, so there is nothing to hold it against; `labdag run` does."),
        (["suer"], "Nothing is called 'suer'. Did you mean 'sure'?"),
    ],
)
def test_what_cannot_be_verified_gets_a_sentence(made: Path, targets: list[str], sentence: str) -> None:
    done = run("labdag", "verify", *targets, cwd=made, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {sentence}")


ODD = """
vars: [ignored.yaml]
stages:
  one: {cmd: cp table.csv one.txt, deps: [table.csv], outs: [one.txt]}
  held: {cmd: cp one.txt held.txt, deps: [one.txt], outs: [held.txt], frozen: true}
  after: {cmd: cat held.txt linked.csv > after.txt, deps: [held.txt, linked.csv], outs: [after.txt]}
  listed: {cmd: 'ls mixed > listed.txt; cat lib/m.txt >> listed.txt; echo ${word}', deps: [mixed], outs: [listed.txt]}
"""


def test_frozen_stages_links_and_what_git_ignores_are_there_in_the_copy(toy: Callable[..., Path]) -> None:
    ignored = "/ignored.yaml\n/store/\n/mixed/x.dat\n"
    files = {"table.csv": "1\n", ".gitignore": ignored, "ignored.yaml": "word: hi"}
    folder = toy(ODD.replace(", frozen: true", ""), **files)
    for name in ("store", "mixed", "real"):
        (folder / name).mkdir()
    for name in ("store/linked.csv", "mixed/README", "mixed/x.dat", "real/m.txt"):
        (folder / name).write_text(name)
    (folder / "linked.csv").symlink_to("store/linked.csv")
    (folder / "lib").symlink_to("real")
    run("git", "add", "linked.csv", "lib", "real", "mixed", cwd=folder)
    run("dvc", "repro", "--quiet", cwd=folder)
    (folder / "dvc.yaml").write_text(ODD)
    assert "3 outputs: 3 the same" in run("labdag", "verify", cwd=folder).stdout
    assert "3 outputs: 3 the same" in run("labdag", "verify", "after", "listed", "one", cwd=folder).stdout


def test_what_reaches_out_of_the_repository_or_is_of_dvc_2_is_not_verified(made: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    for entry in (f"outs: [out, {outside}: {{cache: false}}]", "deps: [../outside.txt], outs: [out]"):
        (made / "dvc.yaml").write_text(f"stages: {{out: {{cmd: 'echo 1 | tee out >> {outside}', {entry}}}}}")
        (made / "dvc.lock").unlink(missing_ok=True)
        outside.write_text("mine\n")
        run("dvc", "repro", "--quiet", "out", cwd=made)
        before = outside.read_text()
        done = run("labdag", "verify", "out", cwd=made, check=False)
        assert "outside.txt lies outside the repository" in done.stderr
        assert outside.read_text() == before
    (made / "dvc.yaml").write_text("stages: {out: {cmd: echo 1 > out, outs: [out]}}")
    run("dvc", "repro", "--quiet", "out", cwd=made)
    lock = made / "dvc.lock"
    lock.write_text(lock.read_text().replace("      hash: md5\n", ""))
    assert "was recorded by DVC 2" in run("labdag", "verify", "out", cwd=made, check=False).stderr


def test_what_was_edited_since_it_was_recorded_is_not_verified(made: Path) -> None:
    (made / "hidden").write_text("4")
    done = run("labdag", "verify", "sure", cwd=made, check=False)
    assert done.returncode == 1
    assert "Error: sure was recorded as something else: hidden changed. `labdag run`" in done.stderr


def test_a_clone_that_has_the_lock_file_and_no_outputs_is_verified(made: Path, tmp_path: Path) -> None:
    run("git", "add", "--all", cwd=made)
    run("git", "commit", "--quiet", "--message", "Made", cwd=made)
    clone = tmp_path / "clone"
    run("git", "clone", "--quiet", str(made), str(clone), cwd=tmp_path)
    shutil.copy(made / "table.csv", clone)
    assert "2 outputs: 2 the same" in run("labdag", "verify", "luck", cwd=clone).stdout
    assert not (clone / "luck.txt").exists()


def test_one_copy_is_made_at_a_time_and_what_a_killed_one_has_left_is_removed(made: Path, tmp_path: Path) -> None:
    (made / "dvc.yaml").write_text(
        "stages: {wait: {cmd: 'test ! -e ../../../../../wait || exec sleep 100; echo 1 > out', outs: [out]}}"
    )
    run("labdag", "run", cwd=made)
    (tmp_path / "wait").touch()
    first = subprocess.Popen(["labdag", "verify"], cwd=made, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (made / ".dvc/tmp/labdag/verify/.dvc/tmp/labdag/stages/wait.json").exists())
    second = run("labdag", "verify", cwd=made, check=False)
    assert "Another `labdag verify` is at work" in second.stderr
    first.kill()
    first.communicate()
    (tmp_path / "wait").unlink()
    (made / ".dvc/tmp/labdag/verify/out").touch()
    assert "1 the same" in run("labdag", "verify", cwd=made).stdout


def test_a_lab_is_verified_and_one_of_other_params_is_not(finished_copy: Path) -> None:
    said = run("labdag", "verify", "lenet_digits", cwd=finished_copy).stdout
    assert re.search(r"^(\d+) outputs: \1 the same, 0 different$", said, re.MULTILINE), said
    edit_params(finished_copy, labs__lenet_digits__train__epochs=3)
    done = run("labdag", "verify", "lenet_digits", cwd=finished_copy, check=False)
    assert "train@lenet_digits was recorded as something else: params.yaml: labs.lenet_digits.train.epochs 20 → 3" in (
        done.stderr
    )


def test_a_training_with_other_bits_is_found(finished_copy: Path) -> None:
    """A processor with fewer instructions sums in another order: nothing that DVC knows of."""
    older = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    done = run("labdag", "verify", "lenet_digits", cwd=finished_copy, check=False, **older)
    assert done.returncode == 1
    rows = [line.split() for line in done.stdout.splitlines() if "@lenet_digits" in line]
    assert rows[0][:2] == ["evaluate@lenet_digits", "results/lenet_digits/metrics.json"], "figures first"
    assert "loss" in " ".join(done.stdout.split())
    assert ["train@lenet_digits", "results/lenet_digits/best.safetensors"] in [row[:2] for row in rows]
    assert re.search(r"^\d+ outputs: \d+ the same, [1-9]\d* different$", done.stdout, re.MULTILINE)


def test_a_stage_that_fails_in_the_copy_is_told(made: Path, tmp_path: Path) -> None:
    (made / "dvc.yaml").write_text(f"stages: {{once: {{cmd: 'mkdir {tmp_path}/once && echo 1 > out', outs: [out]}}}}")
    run("labdag", "run", cwd=made)
    done = run("labdag", "verify", cwd=made, check=False)
    assert done.returncode == 1
    assert re.search("^Error: In the isolated copy, once failed: its command exited with 1", done.stderr, re.MULTILINE)
