"""A training under way: all that its rest depends on, and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stages.learning.history import Epoch, best
from stages.learning.scoring import Score


@dataclass
class Run:
    """A training under way: all that its rest depends on.

    Attributes:
        model: with the weights of now.
        optimizer: with its moments.
        schedule: of the learning rate.
        random: of the order of the images.
        augmentation: of crops and flips.
        history: of the epochs that are over.
        best_state: the state dict of the best of them.
        epoch: the epoch that has begun; None between two epochs.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    random: torch.Generator
    augmentation: torch.Generator
    history: list[Epoch] = field(default_factory=list)
    best_state: dict[str, Tensor] = field(default_factory=dict)
    epoch: EpochSoFar | None = None

    def end_epoch(self, ended: Epoch) -> None:
        """Count an epoch as over, and keep its weights if they are the best."""
        with warnings.catch_warnings():  # of an epoch's last batch the step may have been taken before a kill
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.schedule.step()
        self.epoch = None
        self.history.append(ended)
        if best(self.history) is ended:
            self.best_state = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def place(self) -> str:
        """Where the training is, in words."""
        over = f"{len(self.history)} epochs are done" if len(self.history) != 1 else "1 epoch is done"
        return over if self.epoch is None else f"{over}, and {self.epoch.step} batches of the next"

    def state(self) -> dict[str, Any]:
        """All of it, as torch saves it."""
        device = next(self.model.parameters()).device
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": self.random.get_state(),
            "augmentation": self.augmentation.get_state(),
            "dropout": torch.get_rng_state(),
            "dropout_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "history": [asdict(epoch) for epoch in self.history],
            "best_state": self.best_state,
            "epoch": None if self.epoch is None else vars(self.epoch),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Be what `state` gave."""
        device = next(self.model.parameters()).device
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.random.set_state(state["random"])
        self.augmentation.set_state(state["augmentation"])
        torch.set_rng_state(state["dropout"])
        if state["dropout_cuda"] is not None:
            torch.cuda.set_rng_state(state["dropout_cuda"], device)
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best_state = {name: tensor.to(device) for name, tensor in state["best_state"].items()}
        if (begun := state["epoch"]) is not None:
            tensors = {name: begun[name].to(device) for name in ("order", "loss_sum", "right")}
            self.epoch = EpochSoFar(**tensors, step=begun["step"])


@dataclass
class EpochSoFar:
    """An epoch under way.

    Attributes:
        order: the places of all images in the order in which they come, int64.
        loss_sum: of the losses of the images that have been trained on, float64.
        right: how many of them were recognised, int64.
        step: batches done.
    """

    order: Tensor
    loss_sum: Tensor
    right: Tensor
    step: int = 0

    def score(self, size: int) -> Score:
        """Mean over the images so far, in batches of `size`."""
        seen = min(self.step * size, len(self.order))
        return Score(self.loss_sum.item() / seen, self.right.item() / seen)
