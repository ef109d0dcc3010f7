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


def predict(model: nn.Module, images: Images, batch_size: int, compute: Compute) -> Tensor:
    """Logits of all images, float32, N×classes, on the images' device; `model` is put in evaluation mode."""
    model.eval()
    with torch.inference_mode(), autocast(compute, images.labels.device):
        return torch.cat([model(inputs).float() for inputs, _ in images.in_order(batch_size)])


def score(logits: Tensor, labels: Tensor) -> Score:
    """Score logits N×classes against labels N."""
    right = int((logits.argmax(1) == labels).sum())
    return Score(F.cross_entropy(logits, labels).item(), right / len(labels))
