"""LeNet-5: two convolutions with pooling, then three fully connected layers.

Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document recognition",
Proc. IEEE 86(11), 1998; here in its usual modern form, with every feature map connected to every other.

Parameters: 61,706 for 1×28×28 with padding 2; 62,006 for 3×32×32 without padding.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stages.program.options import OptionError, Options

if TYPE_CHECKING:
    from torch import nn

FILTERS = (6, 16)
KERNEL = 5
HIDDEN = (120, 84)


class Model(Options):
    """LeNet-5 and its variants."""

    name: Literal["lenet"] = Field(description="LeNet-5 (LeCun et al., 1998).")
    input_shape: list[Annotated[int, Field(ge=1)]] = Field(
        min_length=3, max_length=3, description="Channels, height and width of an image."
    )
    classes: int = Field(ge=2, description="Number of classes.")
    padding: int = Field(ge=0, le=4, description="Zeros put around the image before the first convolution, in pixels.")
    activation: Literal["relu", "sigmoid", "tanh"] = Field(description="Non-linearity after each hidden layer.")
    pool: Literal["max", "average"] = Field(description="How 2×2 patches are pooled.")


def build(model: Model) -> nn.Sequential:
    """Build the network, with torch's default initialisation (Kaiming uniform).

    Raises:
        OptionError: the images are too small for two convolutions and poolings.
    """
    from torch import nn

    activation = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}[model.activation]
    pool = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}[model.pool]
    channels, height, width = model.input_shape

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (filters, padding) in enumerate(zip(FILTERS, (model.padding, 0), strict=True), start=1):
        layers[f"conv{number}"] = nn.Conv2d(channels, filters, KERNEL, padding=padding)
        layers[f"act{number}"] = activation()
        layers[f"pool{number}"] = pool(2)
        channels = filters
        height, width = _after(height, padding), _after(width, padding)
        if min(height, width) < 1:
            raise OptionError(
                "model.input_shape",
                f"is {model.input_shape}, too small: nothing is left of the image after pool{number}.",
            )
    layers["flatten"] = nn.Flatten()
    inputs = channels * height * width
    for number, outputs in enumerate(HIDDEN, start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, outputs)
        layers[f"act{number + len(FILTERS)}"] = activation()
        inputs = outputs
    layers[f"fc{len(HIDDEN) + 1}"] = nn.Linear(inputs, model.classes)
    return nn.Sequential(layers)


def _after(size: int, padding: int) -> int:
    """Size of a side after one convolution and one pooling."""
    return (size + 2 * padding - KERNEL + 1) // 2
