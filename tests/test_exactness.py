"""One edit, and exactly the stages that it affects: over the real dvc.yaml, with both labs and all datasets."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows import graph
from tests.conftest import copy_project, edit_params, run

EVERY_LAB = {"build", "train", "evaluate", "plot"}


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with every stage recorded as done, its outputs stand-ins: what runs is not asked here."""
    folder = copy_project(tmp_path_factory.mktemp("committed") / "project")
    repo = Repo(str(folder))
    for stage in repo.index.stages:
        for out in stage.outs:
            path = Path(out.fs_path)
            if path.suffix:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{stage.addressing} {path.name}")
            else:
                path.mkdir(parents=True)
                (path / "file").write_text(stage.addressing)
    run("dvc", "commit", "--force", "--quiet", cwd=folder)
    assert not any(graph.stale(folder, graph.load(folder)).values())
    return folder


@pytest.fixture
def folder(committed: Path) -> Iterator[Path]:
    """The recorded project, put back as it was after the test."""
    yield committed
    run("git", "checkout", "--quiet", ".", cwd=committed)
    run("git", "clean", "--quiet", "--force", "stages", cwd=committed)
    assert not any(graph.stale(committed, graph.load(committed)).values())


def replaced(folder: Path, name: str, pattern: str, new: str) -> None:
    text = (folder / name).read_text()
    assert re.search(pattern, text), pattern
    (folder / name).write_text(re.sub(pattern, new, text, count=1))


def params(**changes: object) -> Callable[[Path], object]:
    return lambda folder: edit_params(folder, **changes)


def touched(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text() + "\n# changed\n")


def comment(folder: Path) -> None:
    replaced(folder, "params.yaml", "labs:", "# another word about labs\nlabs:  # here")


def style(folder: Path) -> None:
    replaced(folder, "params.yaml", r"\{name: adam, lr: 1e-3\}", "\n        lr: 0.001\n        name: 'adam'")


def order(folder: Path) -> None:
    replaced(folder, "params.yaml", r"( +epochs: 20\n)( +batch_size: 64\n)", r"\2\1")


def new_lab(folder: Path) -> None:
    block = re.search(r"  lenet_digits:\n(.*?)\n\n", (folder / "params.yaml").read_text(), re.DOTALL)
    assert block
    with (folder / "params.yaml").open("a") as file:
        file.write(f"\n  my_lab:\n{block.group(1)}\n")


def mirror(_folder: Path) -> None:
    os.environ["LABDAG_MIRRORS"] = "/elsewhere"


def cache_file(folder: Path) -> None:
    (folder / "stages/__pycache__").mkdir(exist_ok=True)
    (folder / "stages/__pycache__/stray.pyc").write_bytes(b"stray")


def of(lab: str, *groups: str) -> set[str]:
    return {f"{group}@{lab}" for group in groups}


def both(*groups: str) -> set[str]:
    return of("lenet_digits", *groups) | of("lenet_mnist", *groups)


DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")

# An edit → the stages that no longer stand as recorded. What lies downstream of them reruns if, and only if,
# their outputs come out different.
EDITS: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "learning rate": (
        params(labs__lenet_digits__train__optimizer__lr=0.002),
        of("lenet_digits", "train", "plot"),
    ),
    "epochs": (params(labs__lenet_mnist__train__epochs=3), of("lenet_mnist", "train", "plot")),
    "seed": (params(labs__lenet_digits__seed=2), of("lenet_digits", "build", "train", "plot")),
    "model option": (
        params(labs__lenet_digits__model__activation="tanh"),
        of("lenet_digits", "build", "train", "evaluate", "plot"),
    ),
    "normalisation": (
        params(labs__lenet_mnist__transform__normalize={"by": "values", "mean": [0.5], "std": [0.5]}),
        of("lenet_mnist", "train", "evaluate", "plot"),
    ),
    "threads": (params(labs__lenet_mnist__compute__threads=1), of("lenet_mnist", "train", "evaluate", "plot")),
    "dots per inch": (params(labs__lenet_digits__plot__dpi=80), of("lenet_digits", "plot")),
    "evaluation batch": (params(labs__lenet_digits__evaluate__batch_size=100), of("lenet_digits", "evaluate")),
    "dataset option": (params(datasets__digits__seed=7), of("digits", "download")),
    "dataset of a lab": (
        params(labs__lenet_mnist__dataset="fashion_mnist"),
        of("lenet_mnist", "train", "evaluate", "plot"),
    ),
    "comment": (comment, set()),
    "YAML style": (style, set()),
    "order of keys": (order, set()),
    "mirror": (mirror, set()),
    "stray compiled file": (cache_file, set()),
    "new lab": (new_lab, of("my_lab", *EVERY_LAB)),
    "model file of another lab": (
        lambda folder: shutil.copy(folder / "stages/models/lenet.py", folder / "stages/models/mlp.py"),
        set(),
    ),
    "model file": (touched("stages/models/lenet.py"), both(*EVERY_LAB)),
    "training loop": (touched("stages/learning/loop.py"), both("train")),
    "scoring": (touched("stages/learning/scoring.py"), both("train", "evaluate", "plot")),
    "per-class scores": (touched("stages/learning/classes.py"), both("evaluate", "plot")),
    "figures": (touched("stages/show/figures.py"), both("plot")),
    "page template": (touched("stages/show/report.html"), both("plot")),
    "source of one dataset": (touched("stages/datasets/sources/digits.py"), of("digits", "download")),
    "downloader": (
        touched("stages/datasets/fetch.py"),
        {f"download@{name}" for name in DATASETS},
    ),
    "sample grids": (
        touched("stages/show/grids.py"),
        {f"stats@{name}" for name in DATASETS} | both("plot"),
    ),
    "schema of the whole": (touched("stages/params.py"), set()),
    "flows": (touched("flows/reproduce.py"), set()),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_affects_exactly(edit: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABDAG_MIRRORS", "/here")
    make, expected = EDITS[edit]
    make(folder)
    stale = graph.stale(folder, graph.load(folder))
    assert {name for name, reason in stale.items() if reason} == expected


def test_a_reason_names_what_changed(folder: Path) -> None:
    edit_params(folder, labs__lenet_digits__plot__dpi=80)
    replaced(folder, "stages/show/figures.py", r"\Z", "# changed\n")
    reasons = graph.stale(folder, graph.load(folder))
    assert reasons["plot@lenet_mnist"] == "stages/show/figures.py modified"
    assert (
        reasons["plot@lenet_digits"] == "stages/show/figures.py modified; params.yaml labs.lenet_digits.plot modified"
    )
    assert reasons["train@lenet_digits"] is None
