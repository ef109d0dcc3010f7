"""Network in Network: convolutions followed by 1×1 convolutions, and no fully connected layer.

M. Lin, Q. Chen and S. Yan, "Network in network", ICLR 2014; widths and kernels as in A. Zhang, Z. C. Lipton, M. Li
and A. J. Smola, "Dive into Deep Learning", section 8.3.

Parameters: 1,992,166 for 1×224×224 and 10 classes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.models import Family, output_shape

if TYPE_CHECKING:
    from torch import nn

# Filters, kernel, stride and padding of the first convolution of each block but the last.
BLOCKS = ((96, 11, 4, 0), (256, 5, 1, 2), (384, 3, 1, 1))


class Model(Family):
    """Network in Network."""

    name: Literal["nin"] = Field(description="Network in Network (Lin et al., 2014).")
    dropout: float = Field(ge=0, lt=1, description="Part of the last feature maps that is dropped in training.")


def build(model: Model) -> nn.Sequential:
    """Build the network.

    Raises:
        OptionError: the images are too small for the first convolution and three poolings.
    """
    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = model.input_shape[0]
    for number, (filters, kernel, stride, padding) in enumerate(BLOCKS, start=1):
        layers[f"block{number}"] = _block(channels, filters, kernel, stride, padding)
        layers[f"pool{number}"] = nn.MaxPool2d(3, stride=2)
        channels = filters
    layers["dropout"] = nn.Dropout(model.dropout)
    layers[f"block{len(BLOCKS) + 1}"] = _block(channels, model.classes, 3, 1, 1)
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    network = nn.Sequential(layers)
    output_shape(network, model.input_shape)
    return network


def _block(channels: int, filters: int, kernel: int, stride: int, padding: int) -> nn.Sequential:
    from torch import nn

    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, filters, kernel, stride, padding),
            act1=nn.ReLU(),
            conv1x1_1=nn.Conv2d(filters, filters, 1),
            act2=nn.ReLU(),
            conv1x1_2=nn.Conv2d(filters, filters, 1),
            act3=nn.ReLU(),
        )
    )
