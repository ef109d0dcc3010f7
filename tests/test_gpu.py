"""What holds for a training on a GPU, too: tried where there is one.

`LABDAG_CUDA_GRAPHS` is both off and on here, and gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.learning import graphs
from stages.learning.checkpoint import Checkpoint
from stages.learning.device import choose_device
from stages.learning.graphs import GraphedStep
from stages.learning.recipe import Compute
from stages.program.options import UserError
from tests.test_resume import BATCHES, Deadly, Killed, trained

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
OPTIMIZERS = [
    {"name": "adam", "lr": 3e-3},
    {"name": "adamw", "lr": 3e-3},
    {"name": "sgd", "lr": 0.05, "momentum": 0.9},
]


@pytest.fixture(params=["off", "on"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A GPU that computes deterministically, with and without graphs."""
    monkeypatch.setenv("LABDAG_DEVICE", "cuda")
    monkeypatch.setenv("LABDAG_CUDA_GRAPHS", request.param)
    monkeypatch.chdir(tmp_path)
    yield choose_device(Compute(threads=1, precision="fp32")).type
    torch.use_deterministic_algorithms(False)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bits(gpu: str, precision: str) -> None:
    state, history = trained(precision, None, gpu)
    again, later = trained(precision, None, gpu)
    assert later == history
    assert_same(state, again)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lives", [1, 4, BATCHES, BATCHES + 1, BATCHES + 2, 3 * (BATCHES + 1) + 5])
def test_a_training_broken_off_anywhere_ends_the_same(gpu: str, precision: str, lives: int) -> None:
    state, history = trained(precision, None, gpu)
    with pytest.raises(Killed):
        trained(precision, Deadly(lives), gpu)
    torch.rand(7, device=gpu)
    again, later = trained(precision, Checkpoint("lab", "key"), gpu)
    assert later == history
    assert_same(state, again)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda options: options["name"])
def test_a_graph_changes_no_bit(
    precision: str, optimizer: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LABDAG_DEVICE", "cuda")
    monkeypatch.chdir(tmp_path)
    choose_device(Compute(threads=1, precision="fp32"))
    replays = []
    replay = torch.cuda.CUDAGraph.replay

    def noted(graph: torch.cuda.CUDAGraph) -> None:
        replays.append(graph)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", noted)
    ended = {}
    for choice in ("off", "on"):
        monkeypatch.setenv("LABDAG_CUDA_GRAPHS", choice)
        assert not replays
        ended[choice] = trained(precision, None, "cuda", optimizer=optimizer)
    torch.use_deterministic_algorithms(False)
    epochs = len(ended["on"][1])
    # The first steps of an epoch are not replayed; with 144 images there is no smaller batch at its end.
    assert len(replays) == epochs * (BATCHES - graphs.WARM_UP)
    assert len(set(map(id, replays))) == epochs
    assert ended["on"][1] == ended["off"][1]
    assert_same(ended["on"][0], ended["off"][0])


@needs_gpu
def test_a_smaller_batch_is_passed_on_and_the_next_one_replayed() -> None:
    model = torch.nn.Linear(3, 2, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True)
    taken = []

    def step(inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        taken.append(len(inputs))
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return (loss.detach() * 1,)

    graphed = GraphedStep(step, optimizer)
    sizes = [4, 4, 4, 4, 2, 4, 4]
    for size in sizes:
        inputs, labels = torch.randn(size, 3, device="cuda"), torch.randint(2, (size,), device="cuda")
        (loss,) = graphed(inputs, labels)
        # Its rate is 0, so the model stays as it is.
        assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(model(inputs), labels).item(), rel=1e-5)
    assert taken == [4, 4, 4, 4, 2]


def test_graphs_are_on_or_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not graphs.are_wanted()
    monkeypatch.setenv("LABDAG_CUDA_GRAPHS", "on")
    assert graphs.are_wanted()
    monkeypatch.setenv("LABDAG_CUDA_GRAPHS", "yes")
    with pytest.raises(UserError, match="LABDAG_CUDA_GRAPHS is 'yes', but should be on or off"):
        graphs.are_wanted()
