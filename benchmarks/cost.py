"""What a lab's training costs on this machine, from some of its steps: for `expect.cost` in params.yaml.

    python -m benchmarks.cost                     # every lab
    python -m benchmarks.cost vgg_cifar10 --steps 3

Steps of labdag's own loop run on random images of the dataset's shape, by the lab's own recipe, threads and precision.
The mean time of one, in the fastest of some rounds over all labs, times the recipe's number of steps, and the same for
the tests after each epoch, is the cost of the training. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results import machine
from stages import params
from stages.datasets import arrays
from stages.datasets.arrays import Split
from stages.datasets.statistics import Statistics
from stages.datasets.transforms import Pipeline
from stages.learning import graphs, loop
from stages.learning.device import choose_device, memory_format
from stages.learning.images import Images
from stages.learning.scoring import Predictions, predict
from stages.models import build_model

# Shape of an image, training images, test images.
DATASETS = {
    "digits": ((1, 28, 28), 1_347, 450),
    "mnist": ((1, 28, 28), 60_000, 10_000),
    "fashion_mnist": ((1, 28, 28), 60_000, 10_000),
    "cifar10": ((3, 32, 32), 50_000, 10_000),
}
WARM_UP = graphs.WARM_UP + 2 if torch.cuda.is_available() else 2  # steps


def main() -> None:
    """Time the labs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    labs = {
        name: lab
        for name, lab in params.load(Path(__file__).parents[1] / "params.yaml").labs.items()
        if lab.dataset in DATASETS
    }
    parser.add_argument("labs", nargs="*", metavar="LAB", help="default: every lab on a dataset that comes with labdag")
    parser.add_argument("--steps", type=int, default=20, help="steps to time (default: 20)")
    parser.add_argument("--rounds", type=int, default=3, help="how often (default: 3)")
    options = parser.parse_args()
    for name in options.labs:
        if name not in labs:
            parser.error(f"there is no lab '{name}' on a dataset that comes with labdag; known: {', '.join(labs)}")
    if min(options.steps, options.rounds) < 1:
        parser.error("--steps and --rounds should be 1 or more")
    print(machine())
    names = options.labs or list(labs)
    rounds = [{name: _training(labs[name], options.steps) for name in names} for _ in range(options.rounds)]
    for name in names:
        seconds = min(found[name] for found in rounds)
        compute = labs[name].compute
        threads = "1 thread" if compute.threads == 1 else f"{compute.threads} threads"
        print(f"{name}: {_told(seconds)} of training ({threads}, {compute.precision})", flush=True)


def _told(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _training(lab: Any, steps: int) -> float:
    """Seconds that the lab's whole training takes."""
    _, training, test = DATASETS[lab.dataset]
    device, recipe = choose_device(lab.compute), lab.train
    count = max(recipe.batch_size * (WARM_UP + steps), recipe.test_batch_size)
    images = random_images(lab, lab.compute, count, device)
    run = loop.begin(build_model(lab.model).to(device), recipe, lab.compute, seed=0)

    trained = images.part(torch.arange(recipe.batch_size * (WARM_UP + steps)))
    tested = images.part(torch.arange(recipe.test_batch_size))

    def tests() -> Iterator[Predictions]:
        for _ in range(WARM_UP + max(1, steps // 5)):
            yield predict(run.model, tested, recipe.test_batch_size, lab.compute)

    epoch = _mean(loop.steps(run, trained, recipe, lab.compute)) * -(-training // recipe.batch_size)
    epoch += _mean(tests()) * test / recipe.test_batch_size
    return float(epoch * recipe.epochs)


def random_images(lab: Any, compute: Any, count: int, device: torch.device, folder: Path | None = None) -> Images:
    """Random images of the shape of a lab's dataset, as its training takes them; in a file, where a folder is given."""
    shape, random = DATASETS[lab.dataset][0], np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (count, *shape), np.uint8), random.integers(0, 10, count)
    if folder:
        pixels = arrays.stored(folder / f"{time.monotonic_ns()}.npy", pixels, pixels.shape)
    known = Statistics(mean=[0.5] * shape[0], std=[0.25] * shape[0], train=count, test=count, classes={"any": count})
    return Images(Split(pixels, labels), Pipeline(lab.transform, known), device, memory_format(compute))


def wait_for_gpu() -> None:
    """Wait until a GPU, if there is one, has done all that it was told to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _mean(steps: Iterable[Any]) -> float:
    """Seconds of one of `steps`, the first few of which are to warm up."""
    started, timed = 0.0, 0
    for number, _ in enumerate(steps, start=1 - WARM_UP):
        if number == 0:
            wait_for_gpu()
            started = time.perf_counter()
        timed = number
    wait_for_gpu()
    return (time.perf_counter() - started) / timed


if __name__ == "__main__":
    main()
