"""docs/results.md: what each lab should reach and what it reached."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stages.learning.expectation import Expectation, judge
from stages.program.options import PARAMS_FILE, read_params
from stages.show.html import signed

PAGE = "docs/results.md"
RECORDS = "docs/results.jsonl"
JPEG, ORIGINAL = "cifar10jpeg", "cifar10"

VERDICTS = {True: "as expected", False: "not as expected", None: "-"}

TOP = """# Results

What each lab of `params.yaml` should reach by its own recipe, and what it reached. This page is written by
`python -m benchmarks.results write` from [results.jsonl](results.jsonl), which holds a line for each run; the
commands below add such lines. A run is the lab's stages as programs, with model, transform and training as they
stand in `params.yaml`; seed, threads and precision too, where the command does not name others.
Accuracies are those on the test images after the best epoch, which is picked by them, as the course does it.
Where there are several seeds, the figure is their mean ± standard deviation. `(reported)` marks an accuracy that the
lab's source reports for this very recipe; the other expected ones were first measured with labdag. What a lab costs
stands in `params.yaml`; `python -m benchmarks.cost` measures it.
"""
JPEG_NOTE = """CIFAR-10's images as JPEG files, which have lost some detail: what is reached here is no result of
CIFAR-10. Model, transform and training are those of the labs on CIFAR-10. The archive, which `--jpeg` names, has a
folder for each class in `train/` and in `test/`.
"""
FEW_NOTE = """Too heavy for the machine: one epoch on a few images, spread over the training set, to see that the lab
runs from end to end. The accuracy reached in so few steps means nothing.
"""


def recipe_key(block: dict[str, Any]) -> str:
    """What tells one recipe of a lab from another, of its block in params.yaml."""
    parts = [block[part] for part in ("model", "transform", "train")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def records(root: Path) -> list[dict[str, Any]]:
    """What was measured, oldest first."""
    path = root / RECORDS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def page(root: Path) -> str:
    """The page's text, from the runs of the recipes that params.yaml has now."""
    blocks = read_params(root / PARAMS_FILE)["labs"]
    runs: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in sorted(records(root), key=lambda record: record["seed"]):
        base = blocks.get(_base(record))
        if base is None or record["recipe"] != recipe_key(base):
            continue
        key = tuple(record[part] for part in ("lab", "images", "precision", "threads", "machine"))
        known = runs.setdefault(key, [])
        # Seeds 1 to N make one row; a lab's own seed, where it is another, has a row of its own.
        if record["seed"] == len(known) + 1:
            known.append(record)
        else:
            runs[*key, record["seed"]] = [record]
    runs = {key: run for key, run in runs.items() if run}
    order = {name: place for place, name in enumerate(blocks)}
    found = sorted(runs.values(), key=lambda run: (order[_base(run[0])], run[0]["lab"], run[0]["seed"]))
    full = [run for run in found if run[0]["images"] is None]
    parts = [TOP, _table([run for run in full if JPEG not in run[0]["lab"]], blocks)]
    parts += _questions({run[0]["lab"]: run for run in full if run[0]["seed"] == 1})
    if jpeg := [run for run in full if JPEG in run[0]["lab"]]:
        parts += ["## CIFAR-10 as JPEG files\n", JPEG_NOTE, _table(jpeg, blocks, jpeg=True), _classes(jpeg)]
    if few := [run for run in found if run[0]["images"] is not None]:
        parts += ["## A few steps of heavy labs\n", FEW_NOTE, _few(few, blocks)]
    run_at_all = {_base(run[0]) for run in found}
    if missing := [name for name in blocks if name not in run_at_all]:
        parts.append(f"Not run yet: {', '.join(f'`{name}`' for name in missing)}.\n")
    return "\n".join(parts)


def _base(record: dict[str, Any]) -> str:
    """The lab of params.yaml that a run was of."""
    return str(record["lab"]).replace(JPEG, ORIGINAL)


def _table(runs: Sequence[Sequence[dict[str, Any]]], blocks: dict[str, Any], jpeg: bool = False) -> str:
    rows = []
    for run in runs:
        first = run[0]
        block = blocks[_base(first)]
        expected = Expectation.model_validate(block["expect"])
        accuracies = [record["accuracy"] for record in run]
        verdict = judge(expected, statistics.mean(accuracies)).agrees
        rows.append(
            (
                f"`{first['lab']}`",
                "none" if expected.accuracy is None else f"{expected.accuracy:.2%}{' (reported)' * expected.reported}",
                f"**{_spread(accuracies)}**",
                *([] if jpeg else [VERDICTS[verdict]]),
                ", ".join(str(record["best_epoch"]) for record in run) + f" of {first['epochs']}",
                f"{statistics.mean(record['loss'] for record in run):.4f}",
                _how(run, block),
            )
        )
    expected_of, verdicts = ("expected of CIFAR-10 itself", []) if jpeg else ("expected", ["verdict"])
    header = ("lab", expected_of, "measured", *verdicts, "best epoch", "test loss", "how")
    return _markdown(header, rows)


def _questions(runs: dict[str, Sequence[dict[str, Any]]]) -> list[str]:
    """What CNN and perceptron gain and lose, once all four labs have been run."""
    names = ("mlp_mnist", "cnn_mnist", "mlp_mnist_permuted", "cnn_mnist_permuted")
    if not all(name in runs for name in names):
        return []
    mlp, cnn, mlp_permuted, cnn_permuted = (
        100 * statistics.mean(record["accuracy"] for record in runs[name]) for name in names
    )
    return [
        f"On the mean of {len(runs[names[0]])} seeds, the CNN is {cnn - mlp:.2f} points better than the perceptron on "
        f"plain pixels; permuting the pixels changes the CNN by {signed(cnn_permuted - cnn)} points and the perceptron "
        f"by {signed(mlp_permuted - mlp)}.\n"
    ]


def _classes(runs: Sequence[Sequence[dict[str, Any]]]) -> str:
    names = list(runs[0][0]["per_class"])
    rows = [
        (
            f"`{run[0]['lab']}`, {run[0]['precision']}, {run[0]['machine']}",
            *(f"{run[0]['per_class'][name]:.1%}" for name in names),
        )
        for run in runs
    ]
    return "Accuracy of each class (seed 1):\n\n" + _markdown(("lab", *names), rows)


def _few(runs: Sequence[Sequence[dict[str, Any]]], blocks: dict[str, Any]) -> str:
    rows = [
        (
            f"`{run[0]['lab']}`",
            f"{run[0]['images']:,}",
            f"{run[0]['first_train_loss']:.3f}",
            f"{run[0]['loss']:.3f}",
            _how(run, blocks[_base(run[0])]),
        )
        for run in runs
    ]
    return _markdown(("lab", "training images", "mean training loss", "test loss after", "how"), rows)


def _how(run: Sequence[dict[str, Any]], block: dict[str, Any]) -> str:
    """The command that makes a row, and where."""
    first = run[0]
    command = [f"python -m benchmarks.results run {first['lab']}"]
    if len(run) > 1:
        command.append(f"--seeds {len(run)}")
    if first["images"]:
        command.append(f"--images {first['images']}")
    for option in ("threads", "precision"):
        if first[option] != block["compute"][option]:
            command.append(f"--{option} {first[option]}")
    if JPEG in first["lab"]:
        command.append("--jpeg ARCHIVE")
    seed = "" if len(run) > 1 else f"; seed {first['seed']}"
    return f"`{' '.join(command)}`{seed}; {first['machine']}"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2%}"
    return f"{statistics.mean(values):.2%} ± {100 * statistics.stdev(values):.2f}"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
