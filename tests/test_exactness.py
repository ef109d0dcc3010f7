"""One edit, and exactly the stages that it affects: over the real dvc.yaml, three labs and a comparison of two."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo

from labdag.pipeline import graph
from tests.conftest import edit_params, run, write_dag

EVERY_LAB = ("build", "train", "evaluate", "plot")
DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")
LABS = ("lenet_digits", "lenet_mnist", "tiny_digits")


@pytest.fixture(scope="module")
def committed(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, with a lab of another model, every stage recorded as done; its outputs are stand-ins."""
    folder = tmp_path_factory.mktemp("committed") / "project"
    shutil.copytree(pristine, folder, symlinks=True)
    lenet = (folder / "stages/models/lenet.py").read_text()
    (folder / "stages/models/tiny.py").write_text(lenet.replace('Literal["lenet"]', 'Literal["tiny"]'))
    add_lab(folder, "tiny_digits", model="tiny")
    edit_params(folder, compare={"pair": {"question": "Which?", "labs": ["lenet_digits", "tiny_digits"]}})
    write_dag(folder)
    run("git", "add", "--all", cwd=folder)
    run("git", "commit", "--quiet", "--message", "Add a lab with a model of its own", cwd=folder)
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


def add_lab(folder: Path, name: str, model: str = "lenet") -> None:
    """Write a copy of lenet_digits' block below the labs."""
    text = (folder / "params.yaml").read_text()
    block = re.search(r"  lenet_digits:[^\n]*\n(.*?)\n\n", text, re.DOTALL)
    assert block
    added = f"  {name}:\n{block.group(1).replace('name: lenet', f'name: {model}')}\n\n"
    (folder / "params.yaml").write_text(text.replace("labs:\n", f"labs:\n{added}", 1))


def compared_anew(folder: Path) -> None:
    edit_params(folder, compare__pair__labs=["tiny_digits", "lenet_mnist", "lenet_digits"])
    write_dag(folder)


def mirror(_folder: Path) -> None:
    os.environ["LABDAG_MIRRORS"] = "/elsewhere"


def cache_file(folder: Path) -> None:
    (folder / "stages/__pycache__").mkdir(exist_ok=True)
    (folder / "stages/__pycache__/stray.pyc").write_bytes(b"stray")


def of(key: str, *groups: str) -> set[str]:
    return {f"{group}@{key}" for group in groups}


def each(keys: tuple[str, ...], *groups: str) -> set[str]:
    return {f"{group}@{key}" for key in keys for group in groups}


LENETS = ("lenet_digits", "lenet_mnist")
ON_DIGITS = ("lenet_digits", "tiny_digits")
PAIR = {"compare@pair"}

# An edit → the stages that no longer stand as recorded, so must rerun → those that must, too, once these have
# written something else than before.
EDITS: dict[str, tuple[Callable[[Path], object], set[str], set[str]]] = {
    "learning rate": (
        params(labs__lenet_digits__train__optimizer__lr=0.002),
        of("lenet_digits", "train", "plot"),
        of("lenet_digits", "evaluate") | PAIR,
    ),
    "epochs": (
        params(labs__lenet_mnist__train__epochs=3),
        of("lenet_mnist", "train", "plot"),
        of("lenet_mnist", "evaluate"),
    ),
    "seed": (
        params(labs__lenet_digits__seed=2),
        of("lenet_digits", "build", "train", "plot"),
        of("lenet_digits", "evaluate") | PAIR,
    ),
    "model option": (
        params(labs__lenet_digits__model__activation="tanh"),
        of("lenet_digits", *EVERY_LAB),
        PAIR,
    ),
    "normalisation": (
        params(labs__lenet_mnist__transform__normalize={"by": "values", "mean": [0.5], "std": [0.5]}),
        of("lenet_mnist", "train", "evaluate", "plot"),
        set(),
    ),
    "threads": (
        params(labs__lenet_mnist__compute__threads=2),
        of("lenet_mnist", "train", "evaluate", "plot"),
        set(),
    ),
    "dots per inch": (params(labs__lenet_digits__plot__dpi=80), of("lenet_digits", "plot"), set()),
    "evaluation batch": (
        params(labs__lenet_digits__evaluate__batch_size=100),
        of("lenet_digits", "evaluate"),
        of("lenet_digits", "plot") | PAIR,
    ),
    "dataset option": (
        params(datasets__digits__seed=7),
        of("digits", "download"),
        of("digits", "stats") | each(ON_DIGITS, "train", "evaluate", "plot") | PAIR,
    ),
    "dataset of a lab": (
        params(labs__lenet_mnist__dataset="fashion_mnist"),
        of("lenet_mnist", "train", "evaluate", "plot"),
        set(),
    ),
    "comment": (comment, set(), set()),
    "YAML style": (style, set(), set()),
    "order of keys": (order, set(), set()),
    "mirror": (mirror, set(), set()),
    "stray compiled file": (cache_file, set(), set()),
    "new lab": (lambda folder: add_lab(folder, "my_lab"), of("my_lab", *EVERY_LAB), set()),
    "block of another lab": (
        params(labs__tiny_digits__seed=5),
        of("tiny_digits", "build", "train", "plot"),
        of("tiny_digits", "evaluate") | PAIR,
    ),
    "model file of another lab": (touched("stages/models/tiny.py"), of("tiny_digits", *EVERY_LAB), PAIR),
    "model file": (touched("stages/models/lenet.py"), each(LENETS, *EVERY_LAB), PAIR),
    "training loop": (touched("stages/learning/loop.py"), each(LABS, "train"), each(LABS, "evaluate", "plot") | PAIR),
    "scoring": (touched("stages/learning/scoring.py"), each(LABS, "train", "evaluate", "plot"), PAIR),
    "per-class scores": (touched("stages/learning/classes.py"), each(LABS, "evaluate", "plot"), PAIR),
    "figures": (touched("stages/show/figures.py"), each(LABS, "plot"), set()),
    "page template": (touched("stages/show/report.html"), each(LABS, "plot"), set()),
    "source of one dataset": (
        touched("stages/datasets/sources/digits.py"),
        of("digits", "download"),
        of("digits", "stats") | each(ON_DIGITS, "train", "evaluate", "plot") | PAIR,
    ),
    "downloader": (
        touched("stages/datasets/fetch.py"),
        each(DATASETS, "download"),
        each(DATASETS, "stats") | each(LABS, "train", "evaluate", "plot") | PAIR,
    ),
    "sample grids": (
        touched("stages/show/grids.py"),
        each(DATASETS, "stats") | each(LABS, "plot") | PAIR,
        each(LABS, "train", "evaluate"),
    ),
    "what a lab is about": (params(labs__lenet_digits__about="New words."), of("lenet_digits", "plot"), set()),
    "what a lab should reach": (
        params(labs__lenet_mnist__expect__accuracy=0.9),
        of("lenet_mnist", "plot"),
        set(),
    ),
    "question of a comparison": (params(compare__pair__question="Why?"), PAIR, set()),
    "labs of a comparison": (compared_anew, PAIR, set()),
    "code of comparisons": (touched("stages/compare.py"), PAIR, set()),
    "schema of the whole": (touched("stages/params.py"), set(), set()),
    "labdag": (touched("labdag/flows/reproduce.py"), set(), set()),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_affects_exactly(edit: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABDAG_MIRRORS", "/here")
    make, stale, downstream = EDITS[edit]
    make(folder)
    stages = graph.load(folder)
    rerun = {name for name, reason in graph.stale(folder, stages).items() if reason}
    assert rerun == stale
    for stage in stages.values():  # upstream first
        if rerun & set(stage.upstream):
            rerun.add(stage.name)
    assert rerun == stale | downstream


def test_a_reason_names_what_changed(folder: Path) -> None:
    edit_params(folder, labs__lenet_digits__plot__dpi=80)
    replaced(folder, "stages/show/figures.py", r"\Z", "# changed\n")
    reasons = graph.stale(folder, graph.load(folder))
    assert reasons["plot@lenet_mnist"] == "stages/show/figures.py changed"
    assert (
        reasons["plot@lenet_digits"]
        == "stages/show/figures.py changed; params.yaml: labs.lenet_digits.plot.dpi 110 → 80"
    )
    assert reasons["train@lenet_digits"] is None
