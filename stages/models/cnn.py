"""A small CNN: two 5×5 convolutions with pooling, and two fully connected layers.

With 6 features it is the CNN that A. Canziani's course (NYU Deep Learning) sets beside a perceptron of the same
size.

Parameters: 6,422 for 1×28×28, 6 features and 10 classes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.models import Family, Width, output_shape

if TYPE_CHECKING:
    from torch import nn

KERNEL = 5
HIDDEN = 50


class Model(Family):
    """A small CNN."""

    name: Literal["cnn"] = Field(description="Two convolutions with pooling, two fully connected layers.")
    features: Width = Field(description="Filters of each convolution.")
    output: Literal["logits", "log_softmax"] = Field(
        description="What comes out: logits, or log-probabilities, which the nll loss needs."
    )


def build(model: Model) -> nn.Sequential:
    """Build the network.

    Raises:
        OptionError: the images are too small for two convolutions and poolings.
    """
    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = model.input_shape[0]
    for number in (1, 2):
        layers[f"conv{number}"] = nn.Conv2d(channels, model.features, KERNEL)
        layers[f"act{number}"] = nn.ReLU()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        channels = model.features
    layers["flatten"] = nn.Flatten()
    (inputs,) = output_shape(nn.Sequential(layers), model.input_shape)
    layers["fc1"] = nn.Linear(inputs, HIDDEN)
    layers["act3"] = nn.ReLU()
    layers["fc2"] = nn.Linear(HIDDEN, model.classes)
    if model.output == "log_softmax":
        layers["log_softmax"] = nn.LogSoftmax(1)
    return nn.Sequential(layers)
