"""The typed recipe of a training: what a lab's `train` and `compute` blocks may say.

Everything is torch's own, reached by name. Torch is imported only where something is made of it, so that
params.yaml can be checked without it.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.program.options import Options


class Compute(Options):
    """How the arithmetic is done, as far as it changes the bits of the result."""

    # The four labs of mlp_cnn with their whole DAGs, two at once of one thread each: 1.71 times as fast as one after
    # the other with two threads.
    threads: int = Field(
        ge=1, le=1024, description="CPU threads; other counts sum in another order, so give other bits."
    )
    # On 2 cores with AVX-512 and instructions for bfloat16 bf16 has 1.10 times the speed of fp32 with LeNet-5, and 1.43
    # times with the slim VGG; on an NVIDIA H200 with the VGG 3.0 times, and tf32 2.5 times.
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        description="fp32; tf32, for GPUs only (products of numbers rounded to 10 bits, as is torch's default for "
        "convolutions there); or bf16 autocast (matrix products in bfloat16, weights and sums in float32; where "
        "channels_last is true small products of a training on a CPU in float32, too)."
    )
    channels_last: bool = Field(
        default=True,
        description="Whether images and weights lie in memory with the channels of a pixel side by side, and the "
        "convolutions and products of a training are computed in the way that suits their shape: faster, and in "
        "other bits than torch's default.",
    )
    deterministic: bool = Field(
        default=True, description="Whether a GPU, too, gives the same bits each time; a CPU always does."
    )


class Optimizer(Options):
    """What turns gradients into steps."""

    fused: bool = Field(
        default=True,
        description="One kernel for all weights: faster, and in other bits than torch's default of one for each.",
    )


class Adam(Optimizer):
    """Adam (D. P. Kingma and J. Ba, 2015), with torch's defaults for all but what is given."""

    name: Literal["adam"] = Field(description="Adam (Kingma and Ba, 2015).")
    lr: float = Field(gt=0, description="Learning rate.")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty on the weights.")


class AdamW(Optimizer):
    """Adam with weight decay apart from the gradient (I. Loshchilov and F. Hutter, 2019)."""

    name: Literal["adamw"] = Field(description="AdamW (Loshchilov and Hutter, 2019).")
    lr: float = Field(gt=0, description="Learning rate.")
    weight_decay: float = Field(default=0.01, ge=0, description="Part of the weights taken away, times the rate.")


class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = Field(description="Stochastic gradient descent.")
    lr: float = Field(gt=0, description="Learning rate.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Momentum.")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty on the weights.")


class Schedule(Options):
    """How the learning rate changes; torch's schedulers, stepped after each epoch."""

    warmup_epochs: int = Field(
        default=0, ge=0, description="Epochs in which the rate rises, in equal steps, to the optimizer's."
    )


class Constant(Schedule):
    """The optimizer's learning rate throughout."""

    name: Literal["constant"] = Field(description="The same rate in every epoch.")


class Step(Schedule):
    """A learning rate that falls in steps (torch's StepLR)."""

    name: Literal["step"] = Field(description="The rate is multiplied by gamma every step_size epochs.")
    step_size: int = Field(ge=1, description="Epochs between two falls.")
    gamma: float = Field(gt=0, le=1, description="Factor of each fall.")


class Cosine(Schedule):
    """A learning rate that falls along half a cosine (torch's CosineAnnealingLR; Loshchilov and Hutter, 2017)."""

    name: Literal["cosine"] = Field(description="The rate falls along half a cosine, to min_lr at the end.")
    min_lr: float = Field(default=0.0, ge=0, description="Learning rate after the last epoch.")


class EarlyStopping(Options):
    """Stop before the last epoch when nothing improves any more."""

    patience: int = Field(ge=1, description="Epochs without a new best accuracy (by select_on) after which to stop.")


class Recipe(Options):
    """How a model is trained."""

    epochs: int = Field(ge=1, description="Passes over the training images.")
    batch_size: int = Field(ge=1, description="Images per step; the last batch of an epoch may be smaller.")
    test_batch_size: int = Field(ge=1, description="Images per batch when testing after each epoch.")
    shuffle: bool = Field(description="Whether the training images come in a new order in each epoch.")
    loader_order: Literal["own", "torch"] = Field(
        default="own",
        description="Where the order comes from: a generator of its own, which neither dropout nor augmentation "
        "disturbs; or, as in a plain loop after torch.manual_seed(seed), torch's global one, from which a DataLoader "
        "takes it anew in each epoch.",
    )
    loss: Literal["cross_entropy", "nll"] = Field(
        default="cross_entropy",
        description="Cross-entropy of logits, or negative log-likelihood of a model's log-probabilities.",
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Part of the target spread evenly over all classes (Szegedy et al., 2016); of the training loss "
        "with cross_entropy only.",
    )
    optimizer: Annotated[Adam | AdamW | SGD, Field(discriminator="name")] = Field(
        description="What turns gradients into steps."
    )
    schedule: Annotated[Constant | Step | Cosine, Field(discriminator="name")] = Field(
        default=Constant(name="constant"), description="How the learning rate changes from epoch to epoch."
    )
    clip_norm: float | None = Field(
        default=None, gt=0, description="Largest norm of all gradients together; larger ones are scaled down to it."
    )
    early_stopping: EarlyStopping | None = Field(default=None, description="When to stop before the last epoch.")
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

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.label_smoothing and self.loss != "cross_entropy":
            raise ValueError("label_smoothing needs the loss cross_entropy; leave it out with nll.")
        if self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs is {self.schedule.warmup_epochs}, but should be less than epochs, "
                f"{self.epochs}."
            )
        if isinstance(self.schedule, Cosine) and self.schedule.min_lr > self.optimizer.lr:
            raise ValueError(
                f"schedule.min_lr is {self.schedule.min_lr}, but should not be more than optimizer.lr, "
                f"{self.optimizer.lr}."
            )
        return self

    def held_out(self, images: int) -> int:
        """How many of `images` training images are not trained on, but kept to pick the best epoch by."""
        return max(1, round(images * self.validation_fraction)) if self.select_on == "validation" else 0
