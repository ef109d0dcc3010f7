"""How good a model is on a set of images: mean loss and accuracy."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.learning.images import Images
from stages.learning.recipe import Compute


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy and fraction of right predictions."""

    loss: float
    accuracy: float


def autocast(compute: Compute, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a model's forward pass has the precision that `compute` asks for."""
    return torch.autocast(device.type, torch.bfloat16) if compute.precision == "bf16" else nullcontext()


@dataclass(frozen=True)
class Predictions:
    """What a model makes of N images, on their device: 16 bytes for each, however many classes there are.

    Attributes:
        classes: int64, N, the most probable class of each.
        confidence: float32, N, the probability of that class.
        losses: float32, N, the cross-entropy of each.
    """

    classes: Tensor
    confidence: Tensor
    losses: Tensor

    def score(self, labels: Tensor) -> Score:
        """Score them against labels N."""
        right = int((self.classes == labels).sum())
        return Score(self.losses.mean(dtype=torch.float64).item(), right / len(labels))


def predict(model: nn.Module, images: Images, batch_size: int, compute: Compute) -> Predictions:
    """What `model`, from inputs to logits, makes of all images; it is put in evaluation mode.

    LeNet-5 is tested in batches of 500 at 1.55 times the speed of batches of 64, and at 1.15 times that of all 10,000
    images at once (fp32, 2 CPU threads, AMD EPYC with AVX2; with 1 thread 1.14 and 0.97).
    """
    model.eval()
    count, device = len(images), images.labels.device
    made = Predictions(
        torch.empty(count, dtype=torch.int64, device=device),
        torch.empty(count, device=device),
        torch.empty(count, device=device),
    )
    done = 0
    with torch.inference_mode(), autocast(compute, device):
        for inputs, labels in images.in_order(batch_size):
            logits = model(inputs).float()
            batch = slice(done, done := done + len(labels))
            made.classes[batch] = logits.argmax(1)
            made.confidence[batch] = logits.softmax(1).amax(1)
            made.losses[batch] = F.cross_entropy(logits, labels, reduction="none")
    return made
