"""ResNet for small images: residual blocks, whose input is added to their output.

K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition", CVPR 2016, with the first
convolution 3×3 with stride 1 and no pooling after it, as usual for images of 32×32. Without residual connections
it is the paper's plain network: the same convolutions, one after the other.

Parameters for 3×32×32 and 10 classes: depth 18 11,173,962; 34 21,282,122; 50 23,520,842; 101 42,512,970;
152 58,156,618. Plain ones lack the 1×1 convolutions of the shortcuts.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.models import Family

if TYPE_CHECKING:
    from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)
EXPANSION = 4  # of a bottleneck's last convolution
# Depth → blocks in each of the four groups, and whether they are bottlenecks.
BLOCKS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


class Model(Family):
    """ResNet."""

    name: Literal["resnet"] = Field(description="ResNet (He et al., 2016).")
    depth: Literal[18, 34, 50, 101, 152] = Field(description="Layers with weights.")
    residual: bool = Field(description="Whether the input of a block is added to its output.")


def build(model: Model) -> nn.Sequential:
    """Build the network."""
    from torch import nn

    counts, bottleneck = BLOCKS[model.depth]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(model.input_shape[0], WIDTHS[0], 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(WIDTHS[0]),
        act=nn.ReLU(),
    )
    channels = WIDTHS[0]
    for number, (width, count) in enumerate(zip(WIDTHS, counts, strict=True), start=1):
        outputs = width * EXPANSION if bottleneck else width
        blocks = []
        for block in range(count):
            stride = 2 if number > 1 and block == 0 else 1
            blocks.append(_block(channels, width, outputs, stride, model.residual))
            channels = outputs
        layers[f"group{number}"] = nn.Sequential(*blocks)
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, model.classes)
    return nn.Sequential(layers)


def _block(channels: int, width: int, outputs: int, stride: int, residual: bool) -> nn.Module:
    """Two 3×3 convolutions, or a bottleneck (1×1, 3×3, 1×1) where `outputs` is more than `width`."""
    from torch import nn
    from torch.nn import functional as F

    def conv(before: int, after: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
        return nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if outputs == width:
                first = conv(channels, width, 3, stride)
                self.body = nn.Sequential(*first, nn.ReLU(), *conv(width, outputs, 3))
            else:
                middle = conv(width, width, 3, stride)
                self.body = nn.Sequential(
                    *conv(channels, width, 1), nn.ReLU(), *middle, nn.ReLU(), *conv(width, outputs, 1)
                )
            # Where the shape changes, a 1×1 convolution brings the input to the shape of the output.
            changes = stride != 1 or channels != outputs
            self.shortcut = nn.Sequential(*conv(channels, outputs, 1, stride)) if residual and changes else None

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(x)
            if residual:
                y = y + (x if self.shortcut is None else self.shortcut(x))
            return F.relu(y)

    return Block()
