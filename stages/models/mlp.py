"""Multi-layer perceptron: fully connected layers with ReLU, which see an image as a row of numbers.

With two hidden layers of 8, it is the perceptron that A. Canziani's course (NYU Deep Learning) sets beside a CNN
of the same size.

Parameters: 6,442 for 1×28×28, hidden layers of 8 and 8, and 10 classes.
"""

from __future__ import annotations

from collections import OrderedDict
from math import prod
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.models import Family, Width

if TYPE_CHECKING:
    from torch import nn


class Model(Family):
    """A multi-layer perceptron."""

    name: Literal["mlp"] = Field(description="Multi-layer perceptron.")
    hidden: list[Width] = Field(description="Widths of the hidden layers.")
    output: Literal["logits", "log_softmax"] = Field(
        description="What comes out: logits, or log-probabilities, which the nll loss needs."
    )


def build(model: Model) -> nn.Sequential:
    """Build the network."""
    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = prod(model.input_shape)
    for number, outputs in enumerate(model.hidden, start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, outputs)
        layers[f"act{number}"] = nn.ReLU()
        inputs = outputs
    layers[f"fc{len(model.hidden) + 1}"] = nn.Linear(inputs, model.classes)
    if model.output == "log_softmax":
        layers["log_softmax"] = nn.LogSoftmax(1)
    return nn.Sequential(layers)
