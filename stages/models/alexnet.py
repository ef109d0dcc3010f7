"""AlexNet, redrawn for images of 32×32: five convolutions, three overlapping poolings, three fully connected layers.

A. Krizhevsky, I. Sutskever and G. E. Hinton, "ImageNet classification with deep convolutional neural networks",
NIPS 2012; with a first convolution of 5×5 and stride 1 instead of 11×11 and stride 4.

Parameters: 29,983,114 for 3×32×32 and 10 classes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.models import Family, output_shape

if TYPE_CHECKING:
    from torch import nn

# Filters, kernel, padding, and whether a pooling follows.
CONVOLUTIONS = ((96, 5, 2, True), (256, 5, 2, True), (384, 3, 1, False), (384, 3, 1, False), (256, 3, 1, True))
HIDDEN = (4096, 4096)


class Model(Family):
    """AlexNet for small images."""

    name: Literal["alexnet"] = Field(description="AlexNet for small images (after Krizhevsky et al., 2012).")
    dropout: float = Field(ge=0, lt=1, description="Part of each hidden layer's inputs that is dropped in training.")


def build(model: Model) -> nn.Sequential:
    """Build the network.

    Raises:
        OptionError: the images are too small for three poolings.
    """
    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, pool = model.input_shape[0], 0
    for number, (filters, kernel, padding, pooled) in enumerate(CONVOLUTIONS, start=1):
        layers[f"conv{number}"] = nn.Conv2d(channels, filters, kernel, padding=padding)
        layers[f"act{number}"] = nn.ReLU()
        if pooled:
            pool += 1
            layers[f"pool{pool}"] = nn.MaxPool2d(3, stride=2)
        channels = filters
    layers["flatten"] = nn.Flatten()
    (inputs,) = output_shape(nn.Sequential(layers), model.input_shape)
    for number, outputs in enumerate(HIDDEN, start=1):
        layers[f"dropout{number}"] = nn.Dropout(model.dropout)
        layers[f"fc{number}"] = nn.Linear(inputs, outputs)
        layers[f"act{len(CONVOLUTIONS) + number}"] = nn.ReLU()
        inputs = outputs
    layers[f"fc{len(HIDDEN) + 1}"] = nn.Linear(inputs, model.classes)
    return nn.Sequential(layers)
