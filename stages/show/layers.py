"""What convolutions and poolings make of an image: taken from any model while it runs, by hooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """One convolution or pooling, and what came out of it.

    Attributes:
        name: the layer's name in the model, such as `conv1` or `stage2.0.conv1`.
        kind: its class, such as `Conv2d` or `MaxPool2d`.
        weight: float32, filters×channels×height×width; none where the layer has no weights.
        maps: its output for the one image, float32, channels×height×width.
    """

    name: str
    kind: str
    weight: NDArray[np.float32] | None
    maps: NDArray[np.float32]


def trace(model: nn.Module, image: Tensor) -> list[Layer]:
    """Run one image through `model`, which is put in evaluation mode, and watch convolutions and poolings.

    Args:
        model: any module from N×C×H×W to logits.
        image: the model's input, float32, 1×C×H×W.

    Returns:
        The layers in the order in which they ran; empty for a model that has none, such as an MLP.
    """
    layers: list[Layer] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            weight = module.weight if isinstance(module, nn.Conv2d) else None
            layers.append(
                Layer(
                    name,
                    type(module).__name__,
                    None if weight is None else weight.detach().float().numpy(),
                    output[0].float().numpy(),
                )
            )

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) or type(module).__name__.endswith("Pool2d")
    ]
    model.eval()
    with torch.inference_mode():
        model(image)
    for handle in handles:
        handle.remove()
    return layers
