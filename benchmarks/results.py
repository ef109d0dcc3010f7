"""Run labs by the recipes of params.yaml, keep what they reached, and write docs/results.md from it.

    python -m benchmarks.results run mlp_mnist cnn_mnist --seeds 5     # seeds 1 to 5 of each
    python -m benchmarks.results run vgg11_fashion --images 384        # a few steps of a heavy lab
    python -m benchmarks.results run vgg_cifar10jpeg --jpeg cifar10-jpeg.tar.gz
    python -m benchmarks.results write

Each run is the stages of the lab as programs, in a folder below `--workspace`, and adds a line to
docs/results.jsonl; what stands there already is not run again. A lab `NAME_cifar10jpeg` is `NAME_cifar10` on an
archive of CIFAR-10's images as JPEG files (train/<class>/, test/<class>/), which have lost some detail: what is
reached there is no result of CIFAR-10.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from benchmarks import results_page

ROOT = Path(__file__).parents[1]
MOST_TEST_IMAGES = 500  # where a run is of a few training images only


def main() -> None:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run labs and keep what they reached")
    run.add_argument("labs", nargs="+", metavar="LAB")
    run.add_argument("--seeds", type=positive, metavar="N", help="run with seeds 1 to N (default: the lab's own)")
    run.add_argument("--images", type=positive, metavar="N", help="train one epoch on N of the training images only")
    run.add_argument("--threads", type=positive, help="in the place of the lab's own compute.threads")
    run.add_argument(
        "--precision", choices=("fp32", "tf32", "bf16"), help="in the place of the lab's own compute.precision"
    )
    run.add_argument("--jpeg", type=Path, metavar="ARCHIVE", help=f"images of the labs *_{results_page.JPEG}")
    run.add_argument("--workspace", type=Path, default=ROOT / ".results", help="where to run (default: .results)")
    commands.add_parser("write", help=f"write {results_page.PAGE} from what was kept")
    options = parser.parse_args()
    if options.command == "write":
        (ROOT / results_page.PAGE).write_text(results_page.page(ROOT), encoding="utf-8")
        return
    params = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    if options.jpeg:
        if not options.jpeg.is_file():
            sys.exit(f"Error: --jpeg names {options.jpeg}, but there is no such file.")
        _add_jpeg(params, options.jpeg.resolve())
    unknown = [lab for lab in options.labs if lab not in params["labs"]]
    if unknown:
        sys.exit(
            f"Error: there is no lab {', '.join(unknown)} in params.yaml (labs *_{results_page.JPEG} need --jpeg)."
        )
    for lab in options.labs:
        block = params["labs"][lab]
        block["compute"]["threads"] = options.threads or block["compute"]["threads"]
        block["compute"]["precision"] = options.precision or block["compute"]["precision"]
        for seed in range(1, options.seeds + 1) if options.seeds else [block["seed"]]:
            block["seed"] = seed
            _run(lab, params, options)


def positive(text: str) -> int:
    """A number of 1 or more of a command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"is {number}, but should be 1 or more")
    return number


def _add_jpeg(params: dict[str, Any], archive: Path) -> None:
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    source = {"kind": "image_folder", "path": str(archive), "sha256": digest, "size": [32, 32], "color": "rgb"}
    params["datasets"][results_page.JPEG] = source
    for name, block in list(params["labs"].items()):
        if block["dataset"] == results_page.ORIGINAL:
            params["labs"][name.replace(results_page.ORIGINAL, results_page.JPEG)] = {
                **block,
                "compute": dict(block["compute"]),
                "dataset": results_page.JPEG,
            }


def _run(lab: str, params: dict[str, Any], options: argparse.Namespace) -> None:
    block = params["labs"][lab]
    key = {
        "lab": lab,
        "seed": block["seed"],
        "images": options.images,
        "precision": block["compute"]["precision"],
        "threads": block["compute"]["threads"],
        "recipe": results_page.recipe_key(block),
        "machine": machine(),
    }
    known = results_page.records(ROOT)
    if any(key.items() <= record.items() for record in known):
        print(f"{lab}, seed {block['seed']}: kept already")
        return
    workspace: Path = options.workspace
    folder = workspace / f"{lab}-{block['seed']}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    if options.images:
        block = block | {"train": block["train"] | {"epochs": 1, "schedule": {"name": "constant"}}}
    _write_params(folder, {"datasets": params["datasets"], "labs": {lab: block}})
    _link_data(workspace, folder, block["dataset"], options.images)
    _stage(folder, "build", lab)
    _stage(folder, "train", lab)
    _stage(folder, "evaluate", lab)

    results = folder / "results" / lab
    metrics = json.loads((results / "metrics.json").read_text())
    model = json.loads((results / "model.json").read_text())
    history = (results / "history.csv").read_text().split()[1:]
    record = key | {
        "accuracy": metrics["accuracy"],
        "final_accuracy": metrics["final_accuracy"],
        "loss": metrics["loss"],
        "best_epoch": metrics["best_epoch"],
        "epochs": len(history),
        "first_train_loss": float(history[0].split(",")[1]),
        "test_accuracies": [round(float(row.split(",")[4]), 4) for row in history],
        "per_class": {name: round(scores["accuracy"], 4) for name, scores in metrics["per_class"].items()},
        "parameters": model["parameters"],
    }
    with (ROOT / results_page.RECORDS).open("a") as file:
        file.write(json.dumps(record, sort_keys=True) + "\n")
    print(f"{lab}, seed {block['seed']}: {metrics['accuracy']:.2%}", flush=True)
    shutil.rmtree(folder)


def _write_params(folder: Path, params: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    YAML(typ="safe", pure=True).dump(params, folder / "params.yaml")


def _link_data(workspace: Path, folder: Path, dataset: str, images: int | None) -> None:
    """Have the workspace's dataset and its statistics in a run's folder, or only `images` training images of it."""
    whole = (workspace / "data").resolve()
    (whole / "raw").mkdir(parents=True, exist_ok=True)
    (folder / "data").symlink_to(whole)
    for stage, out in (("download", f"raw/{dataset}"), ("stats", f"stats/{dataset}.json")):
        if not (whole / out).exists():
            _stage(folder, stage, dataset)
    if images is None:
        return
    (folder / "data").unlink()
    (folder / "data").mkdir()
    (folder / "data" / "stats").symlink_to(whole / "stats")
    raw, mine = whole / "raw" / dataset, folder / "data" / "raw" / dataset
    mine.mkdir(parents=True)
    shutil.copy(raw / "classes.json", mine)
    for part, wanted in (("train", images), ("test", min(images, MOST_TEST_IMAGES))):
        there = len(np.load(raw / f"{part}_labels.npy"))
        # Spread over the whole set: some archives are sorted by class.
        chosen = np.linspace(0, there - 1, min(wanted, there)).round().astype(int)
        for what in ("images", "labels"):
            np.save(mine / f"{part}_{what}.npy", np.load(raw / f"{part}_{what}.npy", mmap_mode="r")[chosen])


def _stage(folder: Path, stage: str, name: str) -> None:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", f"stages.{stage}", name]
    with (folder / "log.txt").open("a") as log:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"Error: {stage}@{name} failed; see {folder / 'log.txt'}.")


def is_on_gpu() -> bool:
    """Whether labs compute on a GPU here."""
    import torch

    return os.environ.get("LABDAG_DEVICE") != "cpu" and torch.cuda.is_available()


def machine() -> str:
    """What this machine computes with: its GPU, or else its processor."""
    if is_on_gpu():
        import torch

        return f"{torch.cuda.get_device_name()}, torch {torch.__version__.partition('+')[0]}"
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    name = models[0] if models else platform.processor()
    return f"{len(os.sched_getaffinity(0))} CPU cores ({name.split(' Processor')[0]})"


if __name__ == "__main__":
    main()
