"""How fast labs train beside a plain loop as courses teach it, in one run on this machine.

    python -m benchmarks.train_speed                                  # lenet_mnist, two threads
    python -m benchmarks.train_speed vgg_cifar10 --images 1280
    python -m benchmarks.train_speed --workers 4 --workers 8          # the plain loop with these worker counts only
    python -m benchmarks.train_speed lenet_mnist --growth             # epochs, images, labs at once
    python -m benchmarks.train_speed lenet_mnist --pipeline           # and where the time of the whole lab goes

The plain loop: a torchvision dataset, PIL transforms for each image, a DataLoader with the number of workers that is
best here (0, 1, 2, 4, ... up to the number of cores are tried), torch's default optimizer and layout, `.item()` at each
step. It is fp32, whatever labdag's own loop is asked for: that is what courses teach. (On a GPU torch's default is to
round its convolutions to TF32.) Both train the lab's model by its recipe, on random images of its dataset's shape; the
plain loop without weight decay, label smoothing, clipping and schedule. Each measurement has a process of its own; they
take turns, and a table shows the medians. Let nothing else run meanwhile.

`gain` is the speed beside that of the plain loop with its best worker count. `recipe, s` is how long all epochs of the
lab's recipe take at that speed, without the tests after them. `of peak` is the share of this machine's own matrix
products (2048×2048, on a GPU 8192×8192; the same threads and precision) that the model's multiply-adds come to, three
passes of them for each image. `start` is from the process's start to its first step, `peak MiB` all of its memory, but
a GPU's; what a DataLoader's workers share with it and with each other is counted for each of them.

With `--pipeline` a last table has the seconds of each stage of the labs, as they stand in params.yaml: by the whole
recipe, on the dataset, which is downloaded (LABDAG_MIRRORS is heeded); each runs once, as a program, without DVC and
Prefect. `loop` is what of `train` is training and the tests after each epoch; `outside` is the share of all stages'
time that is not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import statistics as numbers
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.projects import copy_with_labs, run

ROOT = Path(__file__).parents[1]
STAGES = ("download", "stats", "build", "train", "evaluate", "plot")
PRECISIONS = ("fp32", "tf32", "bf16")
WARM_UP = 5  # steps
PASSES = 3  # forward, and backward for inputs and weights
GEMM = 2048
ENOUGH = 0.2  # seconds of a product that tell how fast it is


def main() -> None:
    """Print a table for each lab."""
    from benchmarks.cost import DATASETS
    from benchmarks.results import is_on_gpu, machine, positive
    from stages import params

    labs = [name for name, lab in params.load(ROOT / "params.yaml").labs.items() if lab.dataset in DATASETS]
    precisions = PRECISIONS if is_on_gpu() else tuple(each for each in PRECISIONS if each != "tf32")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labs", nargs="*", metavar="LAB", default=["lenet_mnist"])
    parser.add_argument("--images", type=positive, default=12_800, help="images of a measurement (default: 12800)")
    parser.add_argument("--rounds", type=positive, default=3, help="how often each is measured (default: 3)")
    parser.add_argument("--threads", type=positive, default=2, help="CPU threads (default: 2)")
    parser.add_argument(
        "--precision", choices=precisions, action="append", help="may be repeated (default: all of this machine)"
    )
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--workers", type=_count, action="append", metavar="N", help="of the plain loop to try; may be repeated"
    )
    ways.add_argument("--no-plain", action="store_true", help="time labdag's loop only")
    ways.add_argument("--growth", action="store_true", help="show how the cost grows, instead of the plain loop")
    parser.add_argument("--pipeline", action="store_true", help="time the stages of the whole lab, too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for lab in options.labs:
        if lab not in labs:
            parser.error(f"there is no lab '{lab}' on a dataset that comes with labdag; known: {', '.join(labs)}")
    if options.one:
        print(json.dumps(_measured(options)))
        return
    cores = len(os.sched_getaffinity(0))
    options.workers = options.workers or [0, *(2**power for power in range(cores.bit_length()))]
    if options.no_plain:
        options.workers = []
    options.precision = options.precision or (["fp32"] if options.growth else list(precisions))
    print(machine())
    for lab in options.labs:
        if options.growth:
            for precision in options.precision:
                _show_growth(lab, precision, options)
        else:
            _show_lab(lab, options)
    if options.pipeline:
        _show_pipelines(options.labs)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"is {number}, but should be 0 or more")
    return number


def _show_lab(lab: str, options: argparse.Namespace) -> None:
    plain = [f"plain:{workers}" for workers in options.workers]
    contenders = plain + [f"labdag:{precision}" for precision in options.precision]
    found: dict[str, list[dict[str, float]]] = {contender: [] for contender in contenders}
    for number in range(1, options.rounds + 1):
        for contender in contenders:
            answer = _answer(_started(contender, lab, options.threads, options.images, 1))
            found[contender].append(answer)
            print(f"{lab}, {number}, {contender}: {answer['images_per_second']:,.0f} images/s", file=sys.stderr)
    speeds = {contender: _median(found[contender], "images_per_second") for contender in contenders}
    best = max((speeds[contender] for contender in plain), default=None)
    print(f"\n{lab}, {options.threads} threads, {options.images:,} images, medians of {options.rounds}\n")
    print("| loop | images/s | gain | recipe, s | of peak | start, s | peak MiB |")
    print("| :--- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for contender in contenders:
        rows = found[contender]
        name = contender.replace("plain:", "plain, workers ").replace(":", ", ")
        gain = f"{speeds[contender] / best:.2f}" if best else "-"
        print(
            f"| {name} | {speeds[contender]:,.0f} | {gain} | "
            f"{rows[0]['recipe'] / speeds[contender]:,.1f} | {_median(rows, 'of_peak'):.1%} | "
            f"{_median(rows, 'start'):.1f} | {_median(rows, 'mib'):,.0f} |",
            flush=True,
        )


def _show_pipelines(labs: list[str]) -> None:
    print(f"\n| seconds | {' | '.join(STAGES)} | loop | outside |")
    print(f"| :--- |{' ---: |' * (len(STAGES) + 2)}")
    for lab in labs:
        seconds, loop = _timed(lab)
        cells = [f"{each:.1f}" for each in (*seconds, loop)]
        print(f"| {lab} | {' | '.join(cells)} | {1 - loop / sum(seconds):.0%} |", flush=True)


def _timed(lab: str) -> tuple[list[float], float]:
    """Seconds of each of a lab's stages, and of the training loop."""
    seconds, loop = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        (dataset,) = copy_with_labs(Path(folder), [lab])
        for stage in STAGES:
            of = dataset if stage in ("download", "stats") else lab
            clock = time.perf_counter()
            said = run(Path(folder), sys.executable, "-m", f"stages.{stage}", of)
            seconds.append(time.perf_counter() - clock)
            if found := re.search(r"([\d.]+) s of training", said):
                loop = float(found[1])
    return seconds, loop


def _show_growth(lab: str, precision: str, options: argparse.Namespace) -> None:
    print(f"\n{lab}, {precision}, seconds of training (medians of {options.rounds})\n")
    print("| images | epochs | labs at once, of 1 thread each | seconds | images/s, all together |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    count = options.images
    for images, epochs, labs in (
        (count, 1, 1), (2 * count, 1, 1), (4 * count, 1, 1), (count, 2, 1), (count, 4, 1), (count, 1, 2), (count, 1, 4),
    ):  # fmt: skip
        seconds = []
        for _ in range(options.rounds):
            processes = [_started(f"labdag:{precision}", lab, 1, images, epochs) for _ in range(labs)]
            seconds.append(max(_answer(process)["seconds"] for process in processes))
        took = numbers.median(seconds)
        print(f"| {images:,} | {epochs} | {labs} | {took:.1f} | {images * epochs * labs / took:,.0f} |", flush=True)


def _median(rows: Iterable[dict[str, float]], name: str) -> float:
    return numbers.median(row[name] for row in rows)


def _started(contender: str, lab: str, threads: int, images: int, epochs: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.train_speed", lab, "--one", contender]
    command += ["--threads", str(threads), "--images", str(images), "--epochs", str(epochs)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _answer(process: subprocess.Popen[str]) -> dict[str, float]:
    said, _ = process.communicate()
    if process.returncode != 0:
        sys.exit(f"a measurement failed: {' '.join(map(str, process.args))}")  # type: ignore[arg-type]
    answer: dict[str, float] = json.loads(said.splitlines()[-1])
    return answer


def _measured(options: argparse.Namespace) -> dict[str, float]:
    """What one contender does in this process."""
    import psutil
    import torch

    from benchmarks.cost import DATASETS, wait_for_gpu
    from benchmarks.results import is_on_gpu
    from stages import params
    from stages.learning.device import choose_device

    lab = params.load(ROOT / "params.yaml").labs[options.labs[0]]
    kind, _, how = options.one.partition(":")
    workers, precision = (0, how) if kind == "labdag" else (int(how), "fp32")
    compute = lab.compute.model_copy(update={"threads": options.threads, "precision": precision})
    if kind == "labdag":
        device = choose_device(compute)
    else:
        device = torch.device("cuda" if is_on_gpu() else "cpu")
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shape = DATASETS[lab.dataset][0]
    steps = (
        _labdags(lab, compute, device, options.images, options.epochs)
        if kind == "labdag"
        else _plain(lab, device, shape, options.images, workers)
    )
    model = next(steps)
    for _ in range(WARM_UP):
        next(steps)
    wait_for_gpu()
    begun = time.time()
    start = begun - psutil.Process().create_time()
    trained, clock = 0, time.perf_counter()
    for count in steps:
        trained += count
    wait_for_gpu()
    seconds = time.perf_counter() - clock
    peak = _peak(device, options.threads, precision)
    flops = 2 * PASSES * _mult_adds(model, shape) * trained / seconds
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kibibytes += resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * workers
    return {
        "images_per_second": trained / seconds,
        "seconds": seconds,
        "recipe": DATASETS[lab.dataset][1] * lab.train.epochs,
        "of_peak": flops / peak,
        "start": start,
        "mib": kibibytes / 1024,
    }


def _labdags(lab: Any, compute: Any, device: Any, images: int, epochs: int) -> Iterator[Any]:
    """The model, and after each step of labdag's own loop the number of its images."""
    from benchmarks.cost import random_images
    from stages.learning import loop
    from stages.models import build_model

    size = lab.train.batch_size
    count = images + WARM_UP * size
    data = random_images(lab, compute, count, device)
    model = build_model(lab.model).to(device)
    yield model
    run = loop.begin(model, lab.train, compute, seed=1)
    for _ in range(epochs):
        for epoch in loop.steps(run, data, lab.train, compute):
            yield min(size, count - (epoch.step - 1) * size)
        run.epoch = None


def _plain(lab: Any, device: Any, shape: tuple[int, ...], images: int, workers: int) -> Iterator[Any]:
    """The model, and after each step of a plain loop the number of its images."""
    import numpy as np
    import torch
    from PIL import Image
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision.datasets import VisionDataset

    from stages.models import build_model

    size = lab.train.batch_size

    class Pictures(VisionDataset):  # type: ignore[misc]
        """As torchvision's own datasets keep and give their images."""

        def __init__(self, count: int) -> None:
            super().__init__(root=".", transform=of_an_image(lab.transform, shape))
            random = np.random.default_rng(0)
            self.data = random.integers(0, 256, (count, *shape[1:], shape[0]), np.uint8)
            self.targets = random.integers(0, 10, count).tolist()

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return self.transform(Image.fromarray(self.data[index].squeeze())), self.targets[index]

    model = build_model(lab.model).to(device)
    yield model
    loader: DataLoader[Any] = DataLoader(
        Pictures(images + WARM_UP * size),
        batch_size=size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    criterion = nn.CrossEntropyLoss() if lab.train.loss == "cross_entropy" else nn.NLLLoss()
    rate = lab.train.optimizer.lr
    optimizer = (
        torch.optim.SGD(model.parameters(), lr=rate, momentum=lab.train.optimizer.momentum)
        if lab.train.optimizer.name == "sgd"
        else torch.optim.Adam(model.parameters(), lr=rate)
    )
    model.train()
    running, right = 0.0, 0
    for inputs, labels in loader:
        inputs, labels = inputs.to(device), labels.to(device)
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        running += loss.item()
        right += (outputs.argmax(1) == labels).sum().item()
        yield len(labels)


def of_an_image(options: Any, shape: tuple[int, ...], training: bool = True) -> Callable[[Any], Any]:
    """A lab's transform as courses write it: from a PIL image of `shape`, C×H×W, to a tensor."""
    import torch
    from torchvision import transforms

    steps: list[Any] = []
    if options.resize:
        steps.append(transforms.Resize(options.resize))
    if options.random_crop and training:
        steps.append(transforms.RandomCrop(shape[1], padding=options.random_crop.padding))
    if options.horizontal_flip and training:
        steps.append(transforms.RandomHorizontalFlip(options.horizontal_flip))
    steps += [transforms.ToTensor(), transforms.Normalize([0.5] * shape[0], [0.25] * shape[0])]
    if options.permute:
        order = torch.randperm(math.prod(shape[1:]))
        steps.append(transforms.Lambda(lambda image: image.view(shape[0], -1)[:, order].view(shape)))
    composed: Callable[[Any], Any] = transforms.Compose(steps)
    return composed


def _mult_adds(model: Any, shape: tuple[int, ...]) -> int:
    import torchinfo

    device = next(model.parameters()).device
    return int(torchinfo.summary(model, input_size=(1, *shape), device=device, verbose=0).total_mult_adds)


def _peak(device: Any, threads: int, precision: str) -> float:
    """Floating-point operations a second of a matrix product."""
    import torch

    from benchmarks.cost import wait_for_gpu

    torch.set_num_threads(threads)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    largest = 4 * GEMM if device.type == "cuda" else GEMM
    size, fastest = largest // 8, 0.0
    while size < largest and fastest < ENOUGH:  # bf16 takes a processor without instructions for it forever
        size *= 2
        matrix = torch.randn(size, size, device=device).to(kind)
        fastest = float("inf")
        for _ in range(10):
            clock = time.perf_counter()
            matrix @ matrix
            wait_for_gpu()
            fastest = min(fastest, time.perf_counter() - clock)
    return float(2 * size**3 / fastest)


if __name__ == "__main__":
    main()
