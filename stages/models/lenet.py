"""LeNet-5: two convolutions with pooling, then three fully connected layers.

Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document recognition",
Proc. IEEE 86(11), 1998; here in its usual modern form, with every feature map connected to every other.
Batch normalisation before each activation: S. Ioffe and C. Szegedy, 2015.

Parameters: 61,706 for 1×28×28 with padding 2; 62,006 for 3×32×32 without padding; 44,878 for 1×28×28
without padding and with batch normalisation.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.models import Family, output_shape

if TYPE_CHECKING:
    from torch import nn

FILTERS = (6, 16)
KERNEL = 5
HIDDEN = (120, 84)


class Model(Family):
    """LeNet-5 and its variants."""

    name: Literal["lenet"] = Field(description="LeNet-5 (LeCun et al., 1998).")
    padding: int = Field(ge=0, le=4, description="Zeros put around the image before the first convolution, in pixels.")
    activation: Literal["relu", "sigmoid", "tanh"] = Field(description="Non-linearity after each hidden layer.")
    pool: Literal["max", "average"] = Field(description="How 2×2 patches are pooled.")
    batch_norm: bool = Field(default=False, description="Batch normalisation before each non-linearity.")


def build(model: Model) -> nn.Sequential:
    """Build the network.

    Raises:
        OptionError: the images are too small for two convolutions and poolings.
    """
    from torch import nn

    activation = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}[model.activation]
    pool = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}[model.pool]

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = model.input_shape[0]
    for number, (filters, padding) in enumerate(zip(FILTERS, (model.padding, 0), strict=True), start=1):
        layers[f"conv{number}"] = nn.Conv2d(channels, filters, KERNEL, padding=padding)
        if model.batch_norm:
            layers[f"norm{number}"] = nn.BatchNorm2d(filters)
        layers[f"act{number}"] = activation()
        layers[f"pool{number}"] = pool(2)
        channels = filters
    layers["flatten"] = nn.Flatten()
    (inputs,) = output_shape(nn.Sequential(layers), model.input_shape)
    for number, outputs in enumerate(HIDDEN, start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, outputs)
        if model.batch_norm:
            layers[f"norm{number + len(FILTERS)}"] = nn.BatchNorm1d(outputs)
        layers[f"act{number + len(FILTERS)}"] = activation()
        inputs = outputs
    layers[f"fc{len(HIDDEN) + 1}"] = nn.Linear(inputs, model.classes)
    return nn.Sequential(layers)
