"""Fully connected layers of a training in bf16 on a CPU: small products are computed in float32."""

from __future__ import annotations

from typing import Self, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Multiply-adds of a product up to which bf16 takes as long or longer than float32: to turn its factors, their gradients
# and the result into another format costs more than the product gains. LeNet's three layers take 1.4 times as long in
# bf16 (64 images, forward and backward; AMD EPYC with AVX-512 and bf16, 1 and 2 threads).
SMALL = 2**22


class Linear(nn.Linear):
    """A Linear whose products, where they are small, are in float32 under autocast, too."""

    @classmethod
    def of(cls, layer: nn.Linear) -> Self:
        """`layer`, computed another way; the parameters are the same objects."""
        made = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """From …×in_features to …×out_features."""
        if not self.training or input.numel() * self.out_features > SMALL:
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return F.linear(input.float(), self.weight, self.bias)


def lay_out(model: nn.Module) -> None:
    """Have `Linear` stand for the layers of a model that it can stand for, in place.

    Parameters stay the same objects and keep their names.
    """
    for parent in model.modules():
        for name, layer in list(parent._modules.items()):
            if fits(layer):
                setattr(parent, name, Linear.of(layer))


def fits(layer: nn.Module | None) -> TypeGuard[nn.Linear]:
    """Whether `Linear` can stand for `layer`."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and layer.weight.dtype is torch.float32
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )
