"""Fully connected layers of a training in bf16 on a CPU: small products are computed in float32."""

from __future__ import annotations

from typing import Self, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.learning.convolution import is_bare

# Multiply-adds of a product up to which bf16 mostly takes as long as float32 or longer: to turn its factors and their
# gradients into another format costs more than the product gains.
SMALL = 2**22
TAKEN = (torch.float32, torch.bfloat16)  # formats of inputs that a Linear takes under autocast in bf16


class Linear(nn.Linear):
    """A Linear whose products, where they are small, are in float32 under autocast, and so is what it returns.

    To turn that into autocast's format, and back for the next layer, would cost what is gained.
    """

    @classmethod
    def of(cls, layer: nn.Linear) -> Self:
        """`layer`, computed another way; the parameters are the same objects."""
        made = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """From …×in_features to …×out_features."""
        is_small = input.numel() * self.out_features <= SMALL
        if not (self.training and is_small and torch.is_autocast_enabled("cpu")) or input.dtype not in TAKEN:
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return F.linear(input.float(), self.weight, self.bias)


def lay_out(model: nn.Module) -> None:
    """Have `Linear` stand for the layers of a model that is a sequence of layers, in place.

    There what a layer returns goes into the next one, and nowhere else; in another model it may meet a tensor whose
    format has to be the same. Parameters stay the same objects and keep their names.
    """
    if isinstance(model, nn.Sequential):
        for place, layer in enumerate(model):
            if fits(layer):
                model[place] = Linear.of(layer)


def fits(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether `Linear` can stand for `layer`."""
    return type(layer) is nn.Linear and is_bare(layer)
