"""Convolutions of a training on a GPU, computed in the way that is fastest for their precision.

On batches of finite numbers the function is that of torch.nn.Conv2d, and so are its gradients; sums are taken in
another order, so the last bits differ. In evaluation mode a layer does what Conv2d does, to the bit.

Times are of the slim VGG's eight convolutions on CIFAR-10's shapes, 128 images, as CUDA graphs on an NVIDIA H200 (torch
2.11, cuDNN's deterministic kernels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stages.learning.convolution import Convolution, fits, torchs_backward

# Bytes of unfolded images, nine times the images' for a kernel of 3×3, that are made at once. If all are more, they are
# made in pieces, and again in the backward pass.
AT_ONCE = 1 << 27
# With fewer channels a step's gradient of the weight is a product of few columns and very many rows.
FEW = 16
# With so few filters that gradient is made transposed: the product of 1152 rows and 64 columns takes 110 µs so, 222 µs
# the other way; with 256 filters and more there is no difference.
FEW_FILTERS = 256
WIDE = 16  # bytes that are copied at once, where all lies at multiples of them


class GpuConvolution(Convolution):
    """A Conv2d of stride 1 as matrix products of unfolded images, where a GPU has no better kernels for it.

    In float32 it is such products, forward and backward: 3.0 ms where cuDNN's kernels take 5.4 ms, and nearer to the
    exact result. Where products are rounded to TF32 or bfloat16, cuDNN has kernels for tensor cores, which are faster;
    there only the gradient of the weight of a layer with few channels is one (TF32; 30 µs, 140 µs with cuDNN). The
    gradient of the bias, in all precisions, is a product with ones: 45 µs where torch's sums take 140 µs.

    What unfolded images take, up to `AT_ONCE` of a layer, is kept from the forward to the backward pass: in fp32 the
    slim VGG's activations take 2.4 times the memory with it, ResNet-18's 1.6 times.

    Attributes:
        is_exact: whether float32 is that, and is not rounded to TF32.
    """

    is_exact = True

    def forward(self, input: Tensor) -> Tensor:
        """From N×C×H×W to N×filters×height×width."""
        if not self.training or not self._takes(input):
            return super().forward(input)
        place = input.device.type
        kind = torch.get_autocast_dtype(place) if torch.is_autocast_enabled(place) else self.weight.dtype
        tensors = (tensor if tensor is None else tensor.to(kind) for tensor in (input, self.weight, self.bias))
        outputs: Tensor = _Convolution.apply(*tensors, self.padding, self.is_exact and kind is torch.float32)
        return outputs

    def _takes(self, images: Tensor) -> bool:
        """Whether these are images N×C×H×W of which outputs can be made; of others Conv2d says what is wrong."""
        assert not isinstance(self.padding, str)
        return (
            images.dim() == 4
            and images.shape[1] == self.in_channels
            and images.numel() > 0
            and all(
                size + 2 * pad >= extent
                for size, pad, extent in zip(images.shape[2:], self.padding, self.kernel_size, strict=True)
            )
        )


def lay_out(model: nn.Module, *, is_exact: bool) -> None:
    """Have `GpuConvolution` stand for the layers of a model that it can stand for, in place.

    Parameters stay the same objects and keep their names.

    Args:
        model: what is trained.
        is_exact: whether float32 is that, and is not rounded to TF32.
    """
    for parent in model.modules():
        for name, layer in parent._modules.items():
            if layer is not None and fits(layer):
                stand_in = GpuConvolution.of(layer)
                stand_in.is_exact = is_exact
                setattr(parent, name, stand_in)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], is_exact: bool
    ) -> Tensor:
        inputs, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (inputs, weight))
        channels, kernel = weight.shape[1], weight.shape[2:]
        ctx.is_exact, ctx.padding = is_exact, padding
        ctx.is_weight_product = is_exact or (channels < FEW and weight.dtype is torch.float32)
        pieces = _pieces(inputs, kernel)
        # One piece is kept for the backward pass; several are made again, for they would take too much memory.
        rows = _unfold(inputs, kernel, padding) if ctx.is_weight_product and len(pieces) == 1 else None
        ctx.save_for_backward(inputs, weight, rows)
        if is_exact:
            return _convolve(pieces, _flat(weight), bias, kernel, padding, rows)
        return F.conv2d(inputs, weight, bias, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, rows = ctx.saved_tensors
        of_inputs, of_weight, of_bias, *_ = ctx.needs_input_grad
        outputs = gradients[0].contiguous(memory_format=torch.channels_last)
        kernel = weight.shape[2:]
        # Each output's inputs are an input's outputs, with the kernel turned about.
        around = [size - 1 - pad for size, pad in zip(kernel, ctx.padding, strict=True)]
        is_inputs_product = ctx.is_exact and min(around) >= 0
        for_inputs = for_weight = for_bias = None
        wanted = (of_inputs and not is_inputs_product, of_weight and not ctx.is_weight_product, False)
        if any(wanted):
            for_inputs, for_weight, _ = torchs_backward(outputs, inputs, weight, 1, ctx.padding, wanted)
        if of_inputs and is_inputs_product:
            turned = _flat(weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last))
            for_inputs = _convolve(_pieces(outputs, kernel), turned, None, kernel, around)
        if of_weight and ctx.is_weight_product:
            for_weight = _weight(inputs, outputs, weight.shape, ctx.padding, rows)
        if of_bias:
            made = _pixels(outputs)
            for_bias = (made.new_ones(1, len(made)) @ made).flatten()
        return for_inputs, for_weight, for_bias, None, None


def _convolve(
    pieces: list[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    kernel: Sequence[int],
    padding: Sequence[int],
    rows: Tensor | None = None,
) -> Tensor:
    """Outputs, in channels_last, of images in pieces and a weight filters×(height×width×channels)."""
    height, width = (
        size + 2 * pad - extent + 1 for size, pad, extent in zip(pieces[0].shape[2:], padding, kernel, strict=True)
    )
    shape = (sum(map(len, pieces)), len(weight), height, width)
    made = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last)
    for piece, part in zip(pieces, torch.split(made.permute(0, 2, 3, 1), len(pieces[0])), strict=True):
        unfolded = _unfold(piece, kernel, padding) if rows is None else rows
        flat = part.view(-1, len(weight))
        if bias is None:
            torch.mm(unfolded, weight.t(), out=flat)
        else:
            torch.addmm(bias, unfolded, weight.t(), out=flat)
    return made


def _weight(
    inputs: Tensor, outputs: Tensor, weight: torch.Size, padding: tuple[int, int], rows: Tensor | None
) -> Tensor:
    """Gradient of a weight filters×channels×kernel, from the gradient of outputs in channels_last."""
    filters, channels, *kernel = weight
    pieces = _pieces(inputs, kernel)
    total: Tensor | None = None
    for piece, made in zip(pieces, torch.split(outputs, len(pieces[0])), strict=True):
        unfolded = _unfold(piece, kernel, padding) if rows is None else rows
        one, other = (unfolded, _pixels(made)) if filters < FEW_FILTERS else (_pixels(made), unfolded)
        total = one.t() @ other if total is None else total.addmm_(one.t(), other)
    assert total is not None
    if filters < FEW_FILTERS:
        return total.view(*kernel, channels, filters).permute(3, 2, 0, 1)
    return total.view(filters, *kernel, channels).permute(0, 3, 1, 2)


def _pieces(images: Tensor, kernel: Sequence[int]) -> list[Tensor]:
    """Images in pieces that can be unfolded at once."""
    size = images[0].numel() * math.prod(kernel) * images.element_size()
    return list(torch.split(images, max(1, AT_ONCE // size)))


def _unfold(images: Tensor, kernel: Sequence[int], padding: Sequence[int]) -> Tensor:
    """From N×C×H×W, in channels_last, to a row of height×width×C of the kernel for each output."""
    count, channels, height, width = images.shape
    pixels = images.permute(0, 2, 3, 1)
    if any(padding):
        inside = pixels
        pixels = images.new_zeros(count, height + 2 * padding[0], width + 2 * padding[1], channels)
        pixels[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = inside
    # Copied as wider numbers, it takes half the time.
    together = WIDE // images.element_size()
    if all(each % together == 0 for each in (channels, pixels.storage_offset(), *pixels.stride()[:3])):
        pixels = pixels.view(torch.complex128)
    windows = pixels.unfold(1, kernel[0], 1).unfold(2, kernel[1], 1).permute(0, 1, 2, 4, 5, 3)
    rows = windows.reshape(windows.shape[:3].numel(), -1).contiguous()
    return rows.view(images.dtype) if rows.is_complex() else rows


def _flat(weight: Tensor) -> Tensor:
    """A weight in channels_last as filters×(height×width×channels)."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _pixels(images: Tensor) -> Tensor:
    """Images in channels_last as a row of channels for each pixel."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])
