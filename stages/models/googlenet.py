"""GoogLeNet: Inception blocks, which look at their input with four kernels at once.

C. Szegedy et al., "Going deeper with convolutions", CVPR 2015, without its auxiliary classifiers; as in A. Zhang,
Z. C. Lipton, M. Li and A. J. Smola, "Dive into Deep Learning", section 8.4.

Parameters: 5,977,530 for one channel and 10 classes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.models import Family, output_shape

if TYPE_CHECKING:
    from torch import Tensor, nn

Widths = tuple[int, tuple[int, int], tuple[int, int], int]

# Filters of the four paths of each Inception block: 1×1; 1×1 → 3×3; 1×1 → 5×5; pooling → 1×1. A pooling stands
# between the groups.
INCEPTIONS: tuple[tuple[Widths, ...], ...] = (
    ((64, (96, 128), (16, 32), 32), (128, (128, 192), (32, 96), 64)),
    (
        (192, (96, 208), (16, 48), 64),
        (160, (112, 224), (24, 64), 64),
        (128, (128, 256), (24, 64), 64),
        (112, (144, 288), (32, 64), 64),
        (256, (160, 320), (32, 128), 128),
    ),
    ((256, (160, 320), (32, 128), 128), (384, (192, 384), (48, 128), 128)),
)


class Model(Family):
    """GoogLeNet."""

    name: Literal["googlenet"] = Field(description="GoogLeNet (Szegedy et al., 2015).")


def build(model: Model) -> nn.Sequential:
    """Build the network.

    Raises:
        OptionError: the images are too small for five halvings.
    """
    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(model.input_shape[0], 64, 7, stride=2, padding=3),
        act1=nn.ReLU(),
        pool1=nn.MaxPool2d(3, stride=2, padding=1),
        conv2=nn.Conv2d(64, 64, 1),
        act2=nn.ReLU(),
        conv3=nn.Conv2d(64, 192, 3, padding=1),
        act3=nn.ReLU(),
    )
    channels, number = 192, 0
    for pool, group in enumerate(INCEPTIONS, start=2):
        layers[f"pool{pool}"] = nn.MaxPool2d(3, stride=2, padding=1)
        for widths in group:
            number += 1
            layers[f"inception{number}"] = _inception(channels, widths)
            channels = _width(widths)
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, model.classes)
    network = nn.Sequential(layers)
    output_shape(network, model.input_shape)
    return network


def _width(widths: Widths) -> int:
    one, (_, three), (_, five), pooled = widths
    return one + three + five + pooled


def _inception(channels: int, widths: Widths) -> nn.Module:
    """Four paths side by side over N×channels×H×W, concatenated on the channels."""
    import torch
    from torch import nn

    class Inception(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            one, three, five, pooled = widths
            self.path1 = nn.Sequential(nn.Conv2d(channels, one, 1), nn.ReLU())
            self.path2 = nn.Sequential(
                nn.Conv2d(channels, three[0], 1), nn.ReLU(), nn.Conv2d(three[0], three[1], 3, padding=1), nn.ReLU()
            )
            self.path3 = nn.Sequential(
                nn.Conv2d(channels, five[0], 1), nn.ReLU(), nn.Conv2d(five[0], five[1], 5, padding=2), nn.ReLU()
            )
            self.path4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), nn.Conv2d(channels, pooled, 1), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.path1(x), self.path2(x), self.path3(x), self.path4(x)], dim=1)

    return Inception()
