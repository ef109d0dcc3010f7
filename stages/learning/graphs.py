"""A training's step on a GPU as a CUDA graph: launched as a whole, not kernel by kernel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from stages.program.options import UserError

# Steps that are taken kernel by kernel before one is recorded: what libraries set up at their first calls, and what the
# optimizer keeps of each weight, is there then.
WARM_UP = 3

Step = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def are_wanted() -> bool:
    """Whether LABDAG_CUDA_GRAPHS, on unless it is set, is on.

    Raises:
        UserError: it is neither on nor off.
    """
    choice = os.environ.get("LABDAG_CUDA_GRAPHS", "on")
    if choice not in ("on", "off"):
        raise UserError(f"LABDAG_CUDA_GRAPHS is {choice!r}, but should be on or off.")
    return choice == "on"


class GraphedStep:
    """A step that is recorded once, and replayed for each further batch of the same shape.

    With a small model and small batches the kernels of a step take less time than their launches; a graph of them is
    launched by one call: LeNet-5 trains at 7.0 times the speed, the slim VGG at 1.07 times (batches of 64 and 128,
    fp32, NVIDIA H200 with slow CPU cores). They are the same kernels with the same arguments, so weights are those of
    `step`, bit for bit, and dropout draws from the GPU's generator what it draws without a graph.

    A graph keeps what `step` read on the host when it was recorded, such as the learning rate: each epoch needs a new
    one. A batch of another shape than the first, as an epoch's last one may have, is passed to `step` itself.

    Args:
        step: one step of a training, of inputs N×C×H×W and labels N on the GPU; it returns tensors on the GPU and waits
            for nothing there.
        optimizer: the one that `step` calls; of torch's, with a fused kernel.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        self._step, self._optimizer = step, optimizer
        self._stream = _stream()
        self._inputs, self._labels = torch.empty(0), torch.empty(0)
        self._results: tuple[Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._taken = 0

    def __call__(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """What `step` returns of a batch; to be used before the next step, which may write to the same tensors."""
        if self._taken == 0:
            self._inputs, self._labels = torch.empty_like(inputs), torch.empty_like(labels)
        if inputs.shape != self._inputs.shape:
            return self._step(inputs, labels)
        self._inputs.copy_(inputs)
        self._labels.copy_(labels)
        self._taken += 1
        if self._taken <= WARM_UP:
            return self._take_aside()
        if self._graph is None:
            self._graph = self._recorded()
        self._graph.replay()
        return self._results

    def _take_aside(self) -> tuple[Tensor, ...]:
        """A step in the stream in which one is recorded later, as torch asks for."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = self._step(self._inputs, self._labels)
        current.wait_stream(self._stream)
        return results

    def _recorded(self) -> torch.cuda.CUDAGraph:
        """The step as a graph; it is not taken.

        Raises:
            UserError: it cannot be recorded; there is nothing but to end the program then.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads go on meanwhile: images that stay on disk are read in one.
            with (
                _capturable(self._optimizer),
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                self._results = self._step(self._inputs, self._labels)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"a step of this training cannot be recorded as a CUDA graph ({reason}); set LABDAG_CUDA_GRAPHS to off."
            ) from error
        return graph


@cache
def _stream() -> torch.cuda.Stream:
    """The stream in which steps are recorded: one for all, since libraries keep memory for each stream."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Have `optimizer` allow its step to be recorded; a fused kernel computes the same then as otherwise."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False
