"""What each choice of the training loop gains: the loop as shipped beside the loop without one of them.

    python -m benchmarks.ablation                                  # lenet_mnist, fp32, with the lab's own threads
    python -m benchmarks.ablation vgg_cifar10 --images 1024
    python -m benchmarks.ablation --precision bf16 --choice linear --choice fused

Both train the lab's model by its recipe, on random images of its dataset's shape, in one process, some steps each in
turn; what holds for a whole process is left out in a process of its own. Each is as fast as its median turn, and the
gain is the median over some such processes. Choices need one another: what one gains is more or less without the
others. Two lines tell how long transforms take for themselves, and a table how the size of a batch matters where a
model is tested. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics as numbers
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor

from benchmarks.cost import DATASETS, random_images, wait_for_gpu
from benchmarks.results import is_on_gpu, machine, positive
from benchmarks.train_speed import of_an_image
from stages import params
from stages.datasets.transforms import Pipeline
from stages.learning import convolution, device, gpu_convolution, images, linear, loop, winograd
from stages.learning.scoring import predict
from stages.models import build_model

ROOT = Path(__file__).parents[1]
WARM_UP = 2  # turns
TESTED = (64, 250, 500, 1000, 10_000)  # images of a batch


def nothing(*_: Any) -> None:
    """Stands for what lays something out."""


def never(*_: Any) -> bool:
    """Stands for what asks whether something is to be done."""
    return False


def image_by_image(pipeline: Pipeline, batch: Tensor, random: torch.Generator | None = None) -> Tensor:
    """Stands for a pipeline: the same transform, of one PIL image after the other."""
    transform = of_an_image(pipeline._transform, tuple(batch.shape[1:]), training=random is not None)
    pictures = batch.permute(0, 2, 3, 1).cpu().numpy()
    return torch.stack([transform(Image.fromarray(picture.squeeze())) for picture in pictures]).to(batch.device)


def unpinned(*size: Any, **options: Any) -> Tensor:
    """Stands for torch.empty: in memory that is not pinned."""
    return EMPTY(*size, **options | {"pin_memory": False})


def no_layouts(*shapes: Any) -> convolution.Way | None:
    """Stands for `choose_way`: without layouts of their own for layers of few channels."""
    way = CHOOSE_WAY(*shapes)
    return None if way is convolution.Way.FEW_CHANNELS else way


EMPTY, CHOOSE_WAY = torch.empty, convolution.choose_way


@dataclass(frozen=True)
class Choice:
    """A choice of the training loop, and how it is undone.

    Attributes:
        what: was chosen.
        device: on which it is one, cpu or cuda; None for both.
        precision: in which it is one; None for all.
        compute: options of the lab's `compute` block that undo it.
        optimizer: options of the lab's optimizer that do.
        patches: names of modules and classes, with what stands for them then.
        environment: variables that undo it.
        stays: variables that are set with and without it.
        reads: whether the loss and the hits are read after each step then.
        of_process: whether a process can't have both.
    """

    what: str
    device: str | None = "cpu"
    precision: str | None = None
    compute: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    patches: tuple[tuple[Any, str, Any], ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    stays: dict[str, str] = field(default_factory=dict)
    reads: bool = False
    of_process: bool = False


ON_DISK = {"LABDAG_RESIDENT_MIB": "0"}
CHOICES = {
    "batches": Choice(
        "transforms of a whole batch, and not of one PIL image after the other",
        device=None,
        patches=((Pipeline, "__call__", image_by_image),),
    ),
    "resident": Choice("images resident, and not read from their file", device=None, environment=ON_DISK),
    "ahead": Choice(
        "of images in a file, two batches read ahead", None, patches=((images, "AHEAD", 0),), stays=ON_DISK
    ),
    "groups": Choice("batches of small images made some at a time", None, patches=((images, "TOGETHER", 0),)),
    "reading": Choice("no loss and hits read after each step", None, reads=True),
    "channels_last": Choice(
        "channels_last, and with it convolutions computed in the way that suits their shape",
        None,
        compute={"channels_last": False},
    ),
    "convolutions": Choice(
        "convolutions computed in the way that suits their shape", patches=((convolution, "lay_out", nothing),)
    ),
    "pooled": Choice("the first convolution together with its pooling", patches=((convolution, "fits_pooled", never),)),
    "layouts": Choice(
        "gradients of a convolution of few channels each in its own layout",
        patches=((convolution, "choose_way", no_layouts),),
    ),
    "winograd": Choice(
        "Winograd's algorithm",
        patches=((winograd, "is_faster", never), (convolution, "choose_way", CHOOSE_WAY.__wrapped__)),
    ),
    "relu": Choice(
        "max-pooling before ReLU, and with it the first convolution together with its pooling",
        patches=((loop, "pool_before_relu", nothing),),
    ),
    "linear": Choice("small products in float32", precision="bf16", patches=((linear, "lay_out", nothing),)),
    "fused": Choice("the fused optimizer", None, optimizer={"fused": False}),
    "memory": Choice("freed memory kept", patches=((device, "_keep_freed_memory", nothing),), of_process=True),
    "bf16": Choice("bf16, and not fp32", None, "bf16", compute={"precision": "fp32"}),
    "tf32": Choice("tf32, and not fp32", "cuda", "tf32", compute={"precision": "fp32"}),
    "graphs": Choice("steps replayed as a CUDA graph", "cuda", environment={"LABDAG_CUDA_GRAPHS": "off"}),
    "unfolded": Choice(
        "convolutions as products of unfolded images", "cuda", patches=((gpu_convolution, "lay_out", nothing),)
    ),
    "pinned": Choice(
        "of images in a file, batches read into pinned memory",
        "cuda",
        patches=((torch, "empty", unpinned),),
        stays=ON_DISK,
    ),
    "deterministic": Choice("the same bits each time", "cuda", compute={"deterministic": False}),
}


def main() -> None:
    """Print two tables for a lab."""
    labs = {name: lab for name, lab in params.load(ROOT / "params.yaml").labs.items() if lab.dataset in DATASETS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lab", nargs="?", choices=labs, metavar="LAB", default="lenet_mnist")
    parser.add_argument("--choice", choices=CHOICES, action="append", help="may be repeated (default: all)")
    parser.add_argument("--images", type=positive, default=12_800, help="images of a measurement (default: 12800)")
    parser.add_argument("--rounds", type=positive, default=3, help="how often each is measured (default: 3)")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: the lab's own)")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32", help="(default: fp32)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--sides", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measured = {"tests": _tests, "transforms": _transforms}.get(options.one, training)
        print(json.dumps(measured(options)))
        return
    here = "cuda" if is_on_gpu() else "cpu"
    options.threads = options.threads or labs[options.lab].compute.threads
    there = {
        name
        for name, choice in CHOICES.items()
        if choice.device in (None, here) and choice.precision in (None, options.precision)
    }
    chosen = options.choice or [name for name in CHOICES if name in there]
    for name in chosen:
        if name not in there:
            choice = CHOICES[name]
            parser.error(
                f"'{name}' is a choice on {choice.device or here} in {choice.precision or 'any precision'} only"
            )
    threads = f"{options.threads} threads, " if here == "cpu" else ""
    print(f"{machine()}\n\n{options.lab}, {options.precision}, {threads}medians of {options.rounds}\n")
    print("| choice | with it, images/s | without | gain |\n| :--- | ---: | ---: | ---: |")
    for name in chosen:
        both = [_both(options, name, number) for number in range(options.rounds)]
        speeds = (numbers.median(pair) for pair in zip(*both, strict=True))
        gain = numbers.median(with_it / without for with_it, without in both)
        print(f"| {CHOICES[name].what} | {' | '.join(f'{speed:,.0f}' for speed in speeds)} | {gain:.2f} |", flush=True)
    if not options.choice:
        rounds = [_answer(options, "tests") for _ in range(options.rounds)]
        both = [_answer(options, "transforms") for _ in range(options.rounds)]
        together, alone = (numbers.median(speeds) for speeds in zip(*both, strict=True))
        print(
            f"\ninputs made of images, a batch at a time: {together:,.0f} images/s\none by one: {alone:,.0f} images/s"
        )
        print("\n| images of a batch in a test | images/s |\n| ---: | ---: |")
        for size in rounds[0]:
            print(f"| {int(size):,} | {numbers.median(speeds[size] for speeds in rounds):,.0f} |")


def _answer(options: argparse.Namespace, *what: str) -> Any:
    command = [sys.executable, "-m", "benchmarks.ablation", options.lab, "--one", *what]
    for name in ("images", "threads", "precision"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"a measurement failed: {' '.join(command)}")
    return json.loads(done.stdout.splitlines()[-1])


def _both(options: argparse.Namespace, name: str, number: int) -> tuple[float, float]:
    """Images a second with a choice and without it, in round `number`."""
    if not CHOICES[name].of_process:
        with_it, without = _answer(options, name, "--sides", "both")
        return with_it, without
    order = ("with", "without") if number % 2 == 0 else ("without", "with")
    found = {side: _answer(options, name, "--sides", side)[0] for side in order}
    return found["with"], found["without"]


class Side:
    """A training with a choice or without it.

    Args:
        lab: a block of params.yaml.
        choice: to be undone, if there is one.
        count: images.
    """

    def __init__(self, lab: Any, choice: Choice | None, count: int, folder: Path) -> None:
        self._choice, self.seconds = choice, list[float]()
        self._compute, recipe = lab.compute, lab.train
        if choice:
            self._compute = self._compute.model_copy(update=choice.compute)
            recipe = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update=choice.optimizer)})
        self._batch_size = recipe.batch_size
        with self._undone():
            data = random_images(lab, self._compute, count, device.choose_device(self._compute), folder)
            run = loop.begin(build_model(lab.model).to(data.labels.device), recipe, self._compute, seed=1)
            self._steps = loop.steps(run, data, recipe, self._compute)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self._choice:
                stack.enter_context(patch.dict(os.environ, self._choice.environment))
                for owner, name, stand_in in self._choice.patches:
                    stack.enter_context(patch.object(owner, name, stand_in))
            device.choose_device(self._compute)  # sets what holds for all of torch
            yield

    def take_a_turn(self, steps: int) -> None:
        """Train for some steps."""
        with self._undone():
            clock = time.perf_counter()
            for _ in range(steps):
                epoch = next(self._steps)
                if self._choice and self._choice.reads:
                    epoch.score(self._batch_size)
            wait_for_gpu()
            self.seconds.append(time.perf_counter() - clock)


def training(options: argparse.Namespace) -> list[float]:
    """Images a second with a choice and without it, or one of them, in this process."""
    lab, choice = _lab(options), CHOICES[options.one]
    size = lab.train.batch_size
    # As many as are made at once.
    steps = max(1, images.TOGETHER // (4 * size * math.prod(lab.model.input_shape)))
    turns = math.ceil(options.images / (steps * size))
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, choice.stays):
        sides = [
            Side(lab, undone, steps * size * (turns + WARM_UP), Path(folder))
            for name, undone in (("with", None), ("without", choice))
            if options.sides in (name, "both")
        ]
        for _ in range(turns + WARM_UP):
            for side in sides:
                side.take_a_turn(steps)
    return [steps * size / numbers.median(side.seconds[WARM_UP:]) for side in sides]


def _tests(options: argparse.Namespace) -> dict[int, float]:
    """Images a second of tests in batches of several sizes, in this process."""
    lab = _lab(options)
    data = random_images(lab, lab.compute, min(options.images, TESTED[-1]), device.choose_device(lab.compute))
    model = loop.begin(build_model(lab.model).to(data.labels.device), lab.train, lab.compute, seed=1).model
    found = {}
    for size in (size for size in TESTED if size <= len(data)):
        predict(model, data.part(torch.arange(size)), size, lab.compute)
        wait_for_gpu()
        clock = time.perf_counter()
        predict(model, data, size, lab.compute).score(data.labels)
        found[size] = len(data) / (time.perf_counter() - clock)
    return found


def _transforms(options: argparse.Namespace) -> list[float]:
    """Images a second of which inputs are made, by batches and one by one, in this process."""
    lab = _lab(options)
    size, count, found = lab.train.batch_size, min(options.images, TESTED[-1]), []
    data = random_images(lab, lab.compute, count, device.choose_device(lab.compute))
    for stand_in in (Pipeline.__call__, image_by_image):
        with patch.object(Pipeline, "__call__", stand_in):
            random = torch.Generator(data.labels.device).manual_seed(0)
            batches = torch.split(torch.randperm(count).to(data.labels.device), size)
            for _ in data.batches(batches[:WARM_UP], random):
                pass
            wait_for_gpu()
            clock = time.perf_counter()
            for _ in data.batches(batches, random):
                pass
            wait_for_gpu()
            found.append(count / (time.perf_counter() - clock))
    return found


def _lab(options: argparse.Namespace) -> Any:
    lab = params.load(ROOT / "params.yaml").labs[options.lab]
    changes = {"threads": options.threads, "precision": options.precision}
    return lab.model_copy(update={"compute": lab.compute.model_copy(update=changes)})


if __name__ == "__main__":
    main()
