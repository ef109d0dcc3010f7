"""The typed recipe of a training: what a lab's `train` and `compute` blocks may say.

Torch is imported only where something is made of it, so that params.yaml can be checked without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stages.program.options import Options, UserError

if TYPE_CHECKING:
    import torch


class Compute(Options):
    """How the arithmetic is done, as far as it changes the bits of the result."""

    threads: int = Field(
        ge=1, le=1024, description="CPU threads; other counts sum in another order, so give other bits."
    )
    precision: Literal["fp32", "bf16"] = Field(
        description="fp32, or bf16 autocast (matrix products in bfloat16, weights and sums in float32)."
    )


class Adam(Options):
    """Adam (D. P. Kingma and J. Ba, 2015), with torch's defaults for all but what is given."""

    name: Literal["adam"] = Field(description="Adam (Kingma and Ba, 2015).")
    lr: float = Field(gt=0, description="Learning rate.")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty on the weights.")


class SGD(Options):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = Field(description="Stochastic gradient descent.")
    lr: float = Field(gt=0, description="Learning rate.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Momentum.")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty on the weights.")


class Recipe(Options):
    """How a model is trained. The loss is cross-entropy of the logits."""

    epochs: int = Field(ge=1, description="Passes over the training images.")
    batch_size: int = Field(ge=1, description="Images per step; the last batch of an epoch may be smaller.")
    test_batch_size: int = Field(ge=1, description="Images per batch when testing after each epoch.")
    shuffle: bool = Field(description="Whether the training images come in a new order in each epoch.")
    optimizer: Annotated[Adam | SGD, Field(discriminator="name")] = Field(
        description="What turns gradients into steps."
    )
    select_on: Literal["test", "validation"] = Field(
        description="Which accuracy picks the best epoch: that on the test images (as courses do; slightly "
        "optimistic), or that on a held-out part of the training images (keeps the test images clean)."
    )
    validation_fraction: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Part of the training images held out where select_on is validation.",
    )

    def held_out(self, images: int) -> int:
        """How many of `images` training images are not trained on, but kept to pick the best epoch by."""
        return max(1, round(images * self.validation_fraction)) if self.select_on == "validation" else 0


def make_optimizer(options: Adam | SGD, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that the recipe names, over `parameters`.

    The fused kernel updates all parameters in one call: 1.06 times the speed of the default, for an epoch of
    LeNet-5 on MNIST in batches of 64 (fp32, 2 CPU threads; median of 3).
    """
    from torch import optim

    if options.name == "adam":
        return optim.Adam(parameters, lr=options.lr, weight_decay=options.weight_decay, fused=True)
    return optim.SGD(
        parameters, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay, fused=True
    )


def choose_device(compute: Compute) -> torch.device:
    """Set threads and determinism for `compute`, and choose the device by LABDAG_DEVICE (auto, cpu, cuda).

    `auto`, the default, takes a GPU that is there.

    Raises:
        UserError: LABDAG_DEVICE is none of the three, or asks for a GPU that is not there.
    """
    import torch

    choice = os.environ.get("LABDAG_DEVICE", "auto")
    if choice not in ("auto", "cpu", "cuda"):
        raise UserError(f"LABDAG_DEVICE is {choice!r}, but should be auto, cpu or cuda.")
    there = torch.cuda.is_available()
    if choice == "cuda" and not there:
        raise UserError("LABDAG_DEVICE is 'cuda', but torch finds no usable GPU; set it to auto or cpu.")
    torch.set_num_threads(compute.threads)
    # fp32 means fp32: on a GPU torch's default is to let convolutions round to TF32.
    torch.backends.cudnn.allow_tf32 = False
    if choice == "cpu" or not there:
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    return torch.device("cuda")
