"""What holds for a training on a GPU, too: tried where there is one, without CUDA graphs and with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cost import DATASETS
from stages import params
from stages.datasets.arrays import Split
from stages.datasets.statistics import Statistics
from stages.datasets.transforms import Pipeline
from stages.learning import gpu_convolution, graphs, loop
from stages.learning.checkpoint import Checkpoint
from stages.learning.device import choose_device, memory_format
from stages.learning.gpu_convolution import GpuConvolution
from stages.learning.graphs import GraphedStep
from stages.learning.history import Epoch
from stages.learning.images import Images
from stages.learning.recipe import Compute
from stages.learning.scoring import predict
from stages.models import build_model
from stages.program.options import UserError
from tests import test_resume
from tests.conftest import ROOT, run
from tests.test_convolution import assert_near, gradients, layers
from tests.test_resume import BATCHES, Deadly, Killed

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
by_precision = pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
LABS = [name for name, lab in params.load(ROOT / "params.yaml").labs.items() if lab.dataset in DATASETS]
FEW, SMALL = 6, 8  # steps of some images each
OPTIMIZERS = [
    {"name": "adam", "lr": 3e-3},
    {"name": "adamw", "lr": 3e-3},
    {"name": "sgd", "lr": 0.05, "momentum": 0.9},
]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[torch.device]:
    """A GPU that computes deterministically."""
    monkeypatch.setenv("LABDAG_DEVICE", "cuda")
    monkeypatch.chdir(tmp_path)
    yield choose_device(Compute(threads=1, precision="fp32"))
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["off", "on"])
def with_graphs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CUDA graphs, and with them."""
    monkeypatch.setenv("LABDAG_CUDA_GRAPHS", request.param)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[torch.cuda.CUDAGraph]:
    """The graphs that are replayed, in order."""
    replayed = []
    replay = torch.cuda.CUDAGraph.replay

    def noted(graph: torch.cuda.CUDAGraph) -> None:
        replayed.append(graph)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", noted)
    return replayed


def trained(precision: Any, state: Checkpoint | None, **options: Any) -> tuple[dict[str, Tensor], list[Epoch]]:
    """A small training, on the GPU."""
    choose_device(Compute(threads=1, precision=precision))
    return test_resume.trained(precision, state, "cuda", **options)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def some_steps(lab: Any, compute: Compute, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """A lab's weights after some steps on random images, and the losses on these."""
    shape = DATASETS[lab.dataset][0]
    random = np.random.default_rng(0)
    split = Split(random.integers(0, 256, (FEW * SMALL, *shape), np.uint8), random.integers(0, 10, FEW * SMALL))
    known = Statistics(mean=[0.5] * shape[0], std=[0.2] * shape[0], train=48, test=48, classes={"any": 48})
    images = Images(split, Pipeline(lab.transform, known), device, memory_format(compute))
    recipe = lab.train.model_copy(update={"batch_size": SMALL})
    torch.manual_seed(0)
    training = loop.begin(build_model(lab.model).to(device), recipe, compute, seed=1)
    for _ in loop.steps(training, images, recipe, compute):
        pass
    return training.model.state_dict(), predict(training.model, images, SMALL, compute).losses


@needs_gpu
@pytest.mark.usefixtures("with_graphs")
@by_precision
@pytest.mark.parametrize("name", LABS)
def test_every_lab_takes_steps_and_gets_the_same_bits_again(name: str, precision: Any, gpu: torch.device) -> None:
    lab = params.load(ROOT / "params.yaml").labs[name]
    compute = lab.compute.model_copy(update={"precision": precision})
    choose_device(compute)
    (weights, losses), (again, later) = (some_steps(lab, compute, gpu) for _ in range(2))
    assert_same(weights, again)
    assert torch.equal(losses, later)
    assert losses.isfinite().all()


@needs_gpu
@pytest.mark.usefixtures("with_graphs", "gpu")
@by_precision
def test_the_same_seed_gives_the_same_bits(precision: str) -> None:
    state, history = trained(precision, None)
    again, later = trained(precision, None)
    assert later == history
    assert_same(state, again)


@needs_gpu
@pytest.mark.usefixtures("gpu")
@by_precision
@pytest.mark.parametrize("choices", ["off off", "on on", "on off", "off on"])
@pytest.mark.parametrize("lives", [1, 4, BATCHES, BATCHES + 1, BATCHES + 2, 3 * (BATCHES + 1) + 5])
def test_a_training_broken_off_anywhere_ends_the_same(
    precision: str, choices: str, lives: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = choices.split()
    monkeypatch.setenv("LABDAG_CUDA_GRAPHS", before)
    state, history = trained(precision, None)
    with pytest.raises(Killed):
        trained(precision, Deadly(lives))
    torch.rand(7, device="cuda")
    monkeypatch.setenv("LABDAG_CUDA_GRAPHS", after)
    capsys.readouterr()
    again, later = trained(precision, Checkpoint("lab", "key"))
    assert capsys.readouterr().out.startswith("going on from a checkpoint: ")
    assert later == history
    assert_same(state, again)


@needs_gpu
@pytest.mark.usefixtures("gpu")
@by_precision
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda options: options["name"])
# Of 144 images: batches that are all as large, and a smaller one at the end.
@pytest.mark.parametrize(("size", "full"), [(16, 9), (20, 7)])
def test_a_graph_changes_no_bit(
    precision: str,
    optimizer: dict[str, Any],
    size: int,
    full: int,
    replays: list[torch.cuda.CUDAGraph],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = {}
    for choice in ("off", "on"):
        assert not replays
        monkeypatch.setenv("LABDAG_CUDA_GRAPHS", choice)
        ended[choice] = trained(precision, None, optimizer=optimizer, batch_size=size)
    epochs = len(ended["on"][1])
    assert len(replays) == epochs * (full - graphs.WARM_UP)
    assert len(set(map(id, replays))) == epochs
    assert ended["on"][1] == ended["off"][1]
    assert_same(ended["on"][0], ended["off"][0])


@needs_gpu
@pytest.mark.usefixtures("gpu")
@by_precision
@pytest.mark.parametrize(("channels", "filters", "size"), [(3, 64, 32), (6, 16, 14), (64, 128, 16), (512, 512, 2)])
def test_a_convolution_is_as_near_as_its_precision(precision: Any, channels: int, filters: int, size: int) -> None:
    choose_device(Compute(threads=1, precision=precision))
    layer, exact = (each.to("cuda") for each in layers(channels, filters, 3, 1, True))
    inputs = torch.randn(32, channels, size, size, device="cuda")
    made = torch.randn_like(layer(inputs))
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    gpu_convolution.lay_out(laid_out := nn.Sequential(layer), is_exact=precision == "fp32")
    assert isinstance(laid_out[0], GpuConvolution)
    found = gradients(laid_out, inputs, made, kind)
    right = gradients(exact, inputs.double(), made, torch.float64)
    # TF32 has eight times the bits of bfloat16.
    assert_near(found, right, kind, 0.0025 if precision == "tf32" else None)


@needs_gpu
@pytest.mark.usefixtures("gpu")
def test_kernels_for_each_weight_are_not_recorded(
    replays: list[torch.cuda.CUDAGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABDAG_CUDA_GRAPHS", "on")
    trained("fp32", None, optimizer=OPTIMIZERS[0] | {"fused": False})
    assert not replays


@needs_gpu
@pytest.mark.usefixtures("gpu")
def test_images_that_stay_on_disk_are_read_while_a_step_is_recorded(
    replays: list[torch.cuda.CUDAGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = params.load(ROOT / "params.yaml").labs["vgg_cifar10"]
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (640, 3, 32, 32), np.uint8), random.integers(0, 10, 640)
    np.save("images.npy", pixels)
    known = Statistics(mean=[0.5] * 3, std=[0.2] * 3, train=640, test=640, classes={"any": 640})
    recipe = lab.train.model_copy(update={"batch_size": 32})
    ended = []
    for limit, choice in (("4096", "off"), ("0", "on")):
        monkeypatch.setenv("LABDAG_RESIDENT_MIB", limit)
        monkeypatch.setenv("LABDAG_CUDA_GRAPHS", choice)
        split = Split(np.load("images.npy", mmap_mode="r"), labels)
        images = Images(split, Pipeline(lab.transform, known), torch.device("cuda"))
        assert images.is_resident == (limit != "0")
        torch.manual_seed(0)
        training = loop.begin(build_model(lab.model).to("cuda"), recipe, lab.compute, seed=1)
        for _ in loop.steps(training, images, recipe, lab.compute):
            pass
        ended.append(training.model.state_dict())
    assert replays
    assert_same(*ended)


@needs_gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("sizes", [[4, 4, 4, 4, 2, 4, 4], [2, 4, 4, 2, 2, 2, 2], [4, 2, 4, 4, 4, 2, 4]])
def test_a_batch_of_another_size_is_passed_on(sizes: list[int]) -> None:
    taken: list[int] = []

    def model_and_step(noted: list[int]) -> tuple[nn.Linear, torch.optim.Optimizer, graphs.Step]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2, device="cuda")
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)

        def step(inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            noted.append(len(inputs))
            loss = F.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return (loss.detach(),)

        return model, optimizer, step

    model, optimizer, step = model_and_step(taken)
    twin, _, plain = model_and_step([])
    graphed = GraphedStep(step, optimizer)
    for size in sizes:
        inputs, labels = torch.randn(size, 3, device="cuda"), torch.randint(2, (size,), device="cuda")
        (loss,), (theirs,) = graphed(inputs, labels), plain(inputs, labels)
        assert torch.equal(loss, theirs)
        assert_same(model.state_dict(), twin.state_dict())
    # Of the first size all but the steps to warm up are one recording.
    assert len(taken) == graphs.WARM_UP + 1 + sum(size != sizes[0] for size in sizes)
    assert not any(group["capturable"] for group in optimizer.param_groups)


@needs_gpu
@pytest.mark.usefixtures("gpu")
def test_a_step_that_cannot_be_recorded_gets_a_sentence() -> None:
    # In a process of its own: after it a GPU is of no use to this one.
    program = """
import torch
from torch import nn
from stages.learning.graphs import GraphedStep
weight = nn.Parameter(torch.ones(1, device="cuda"))
def step(inputs, labels):
    return (inputs * inputs.sum().item(),)  # which has to wait for the GPU
graphed = GraphedStep(step, torch.optim.SGD([weight], lr=0.1, fused=True))
for _ in range(9):
    graphed(torch.ones(2, device="cuda"), torch.ones(2, device="cuda"))
"""
    done = run("python", "-c", program, cwd=ROOT, check=False)
    assert "UserError: a step of this training cannot be recorded as a CUDA graph (" in done.stderr
    assert done.stderr.rstrip().endswith("; set LABDAG_CUDA_GRAPHS to off.")


def test_graphs_are_on_or_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert graphs.are_wanted()
    monkeypatch.setenv("LABDAG_CUDA_GRAPHS", "off")
    assert not graphs.are_wanted()
    monkeypatch.setenv("LABDAG_CUDA_GRAPHS", "yes")
    with pytest.raises(UserError, match="LABDAG_CUDA_GRAPHS is 'yes', but should be on or off"):
        graphs.are_wanted()
