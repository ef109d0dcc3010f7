"""Convolutions of a training on a CPU, computed in the way that is fastest for their shape.

On batches of finite numbers the functions are those of torch.nn.Conv2d and MaxPool2d, and so are their gradients; sums
are taken in another order, so the last bits differ, and with Winograd's algorithm some before them (`winograd` says how
much). In evaluation mode a layer does what Conv2d does, to the bit. Which layers can be computed another way is the
same on a GPU (`gpu_convolution`).

Ratios are of a convolution's own time, forward and backward, with 2 CPU threads if not said otherwise (AMD EPYC with
AVX-512).
"""

from __future__ import annotations

import itertools
from enum import Enum
from functools import lru_cache
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stages.learning import winograd

# Numbers that a vector register of AVX-512 holds: layers with fewer channels leave parts of it empty.
VECTOR = 16
# Up to this height and width a third or more of a 3×3 convolution's products are with the zeros around the image.
SMALL = 4


class Way(Enum):
    """How a convolution is computed."""

    FEW_CHANNELS = "the gradient of the inputs in the plain layout, the rest in channels_last"
    SMALL_IMAGES = (
        "forward and the gradient of the inputs in the plain layout, and that of the weights as one matrix product for "
        "each place of the kernel, of nothing but pixels inside the image"
    )
    WINOGRAD = "by Winograd's algorithm, with fewer products"


@lru_cache(maxsize=256)
def choose_way(inputs: torch.Size, weight: torch.Size, padding: tuple[int, int], precision: torch.dtype) -> Way | None:
    """The fastest way for inputs N×C×H×W and weights of stride 1, by their shapes; None where it is Conv2d's own.

    It depends on nothing but shapes and precision, so that it is the same in each run: what a trial would choose
    could be another way each time, and with it other bits.
    """
    filters, channels, *kernel = weight
    if channels < VECTOR and filters <= VECTOR:
        # LeNet's second: the gradient of the inputs 1.8 times as fast in the plain layout, that of the weights 2.4
        # times in channels_last (1 thread; in bf16 2.1 and 1.2). So each in its own.
        return Way.FEW_CHANNELS
    if padding == (1, 1) and winograd.is_faster(inputs, weight, precision):
        # The VGG's 1.6 to 1.9 times as fast, of 2×2 2.4 times; in bf16 1.2 to 1.4, and 2.6.
        return Way.WINOGRAD
    same = all(2 * pad + 1 == size > 1 for pad, size in zip(padding, kernel, strict=True))
    if channels >= 8 * VECTOR and same and max(inputs[2:]) <= SMALL and precision == torch.bfloat16:
        # The VGG's of 4×4 in batches of 16: 1.5 times as fast.
        return Way.SMALL_IMAGES
    return None


class Convolution(nn.Conv2d):
    """A Conv2d of stride 1, computed in the way that is fastest for its shape."""

    @classmethod
    def of(cls, layer: nn.Conv2d) -> Self:
        """`layer`, computed another way; the parameters are the same objects."""
        made = cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            padding=layer.padding,  # type: ignore[arg-type]
            bias=layer.bias is not None,
            device="meta",
        )
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """From N×C×H×W to N×filters×height×width."""
        if not self.training or input.dim() != 4:
            return super().forward(input)
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        way = choose_way(input.shape, self.weight.shape, self.padding, kind)
        # Of a first layer little is left to gain; and what torch refuses it is to refuse in its own words.
        if way is None or not input.requires_grad or input.dtype not in (kind, self.weight.dtype):
            return super().forward(input)
        if way is Way.WINOGRAD:
            return winograd.convolve(input.to(kind), self.weight, self.bias)
        tensors = (tensor if tensor is None else tensor.to(kind) for tensor in (input, self.weight, self.bias))
        outputs: Tensor = _Convolution.apply(*tensors, self.padding, way)
        return outputs


class PooledConvolution(Convolution):
    """A Conv2d of stride 1 and the max-pooling of 2×2 that follows it, in one.

    The four outputs that are pooled are computed as four groups of channels, by one convolution of stride 2: its kernel
    is a pixel larger than the layer's, which lies in each of its corners once, with zeros beside it. With few input
    channels such a convolution costs no more, for it fills the processor's vectors, and the pooling is a maximum of
    whole channels. LeNet's first convolution with its pooling takes 0.6 of the time so (64×1×28×28, 1 thread, fp32);
    on an AMD EPYC with AVX2 the whole training is 1.19 times as fast with one thread, 1.03 times with two.

    It is in float32 also where bf16 is asked for: with so few channels products in bf16 are no faster, and torch's
    backward pass in the plain layout is three times slower in it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """From N×C×H×W to N×filters×height×width, half the height and width of the convolution's outputs."""
        if not self.training or input.dim() != 4:
            return F.max_pool2d(super().forward(input), 2)
        outputs: Tensor = _PooledConvolution.apply(input, self.weight, self.bias, self.padding)
        return outputs


def lay_out(model: nn.Module) -> None:
    """Have `Convolution` and `PooledConvolution` stand for the layers of a model that they can stand for, in place.

    Parameters stay the same objects and keep their names.
    """
    for parent in model.modules():
        # All of them, in order: `named_children` leaves out what stands there for the second time.
        children = [(name, child) for name, child in parent._modules.items() if child is not None]
        for name, layer in children:
            if fits(layer):
                setattr(parent, name, Convolution.of(layer))
        if isinstance(parent, nn.Sequential):
            for (name, layer), (pool_name, pool) in itertools.pairwise(children):
                if fits_pooled(layer, pool):
                    setattr(parent, name, PooledConvolution.of(layer))
                    setattr(parent, pool_name, nn.Identity())


def fits(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether `Convolution` can stand for `layer`."""
    return (
        type(layer) is nn.Conv2d
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and is_bare(layer)
    )


def is_bare(layer: nn.Conv2d | nn.Linear) -> bool:
    """Whether a layer is its weight and bias in float32, and nothing else: no hooks, no buffers, no parametrization."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return (
        type(layer.weight) is nn.Parameter
        and layer.weight.dtype is torch.float32
        and layer._parameters.keys() == {"weight", "bias"}
        and not layer._buffers
        and not any(hooks)
    )


def fits_pooled(layer: nn.Module, pool: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether `PooledConvolution` can stand for `layer` and `pool`, and is faster."""
    return (
        fits(layer)
        and isinstance(pool, nn.MaxPool2d)
        and all(_pair(size) == (2, 2) for size in (pool.kernel_size, pool.stride))
        and _pair(pool.padding) == (0, 0)
        and _pair(pool.dilation) == (1, 1)
        and not pool.ceil_mode
        and not pool.return_indices
        # An image's own channels, and so few filters that half a vector would be empty: with 16 it is slower.
        and layer.in_channels <= 3
        and layer.out_channels <= VECTOR // 2
    )


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _plain(tensor: Tensor) -> Tensor:
    """`tensor` in the plain layout, by its strides, too: with one channel those of both layouts mean the same order,
    but torch goes by them to choose the layout of what it computes."""
    return tensor.contiguous().flatten().view(tensor.shape)


def _channels_last(tensor: Tensor) -> Tensor:
    """`tensor`, N×C×H×W, in channels_last, by its strides, too."""
    count, channels, height, width = tensor.shape
    pixels = tensor.permute(0, 2, 3, 1).contiguous().flatten()
    return pixels.view(count, height, width, channels).permute(0, 3, 1, 2)


def torchs_backward(
    outputs: Tensor, inputs: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's own backward pass of a convolution: the `wanted` gradients of inputs, weight, bias; others are None."""
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        outputs, inputs, weight, [len(weight)], [stride] * 2, padding, [1, 1], False, [0, 0], 1, wanted
    )
    return gradients


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], way: Way
    ) -> Tensor:
        ctx.way, ctx.padding = way, padding
        layout = torch.contiguous_format if way is Way.SMALL_IMAGES else torch.channels_last
        laid_inputs, laid_weight = (tensor.contiguous(memory_format=layout) for tensor in (inputs, weight))
        outputs = F.conv2d(laid_inputs, laid_weight, bias, padding=padding)
        # What the backward pass would lay out once more is kept as it is laid out here.
        ctx.save_for_backward(inputs if way is Way.SMALL_IMAGES else laid_inputs, laid_weight)
        return outputs.contiguous(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        way, padding, (outputs,) = ctx.way, ctx.padding, gradients
        of_inputs, of_weight, of_bias, *_ = ctx.needs_input_grad
        for_inputs = for_weight = for_bias = None
        if of_inputs:
            # What the inputs are does not matter, only their shape and layout do.
            shaped = torch.empty_like(inputs, memory_format=torch.contiguous_format)
            for_inputs, _, _ = torchs_backward(
                outputs.contiguous(), shaped, weight.contiguous(), 1, padding, (True, False, False)
            )
        if way is Way.SMALL_IMAGES:
            for_weight = _weight_by_taps(inputs, outputs, weight.shape, padding) if of_weight else None
            for_bias = outputs.sum((0, 2, 3)) if of_bias else None
        elif of_weight or of_bias:
            laid = [tensor.contiguous(memory_format=torch.channels_last) for tensor in (outputs, inputs, weight)]
            _, for_weight, for_bias = torchs_backward(
                laid[0], laid[1], laid[2], 1, padding, (False, of_weight, of_bias)
            )
        return for_inputs, for_weight, for_bias, None, None


def _weight_by_taps(inputs: Tensor, outputs: Tensor, weight: torch.Size, padding: tuple[int, int]) -> Tensor:
    """Gradient of a weight filters×channels×kernel, from the gradient of outputs as high and wide as the inputs."""
    filters, channels, *kernel = weight
    pixels, made = inputs.permute(0, 2, 3, 1), outputs.permute(0, 2, 3, 1)
    gradient = inputs.new_empty(filters, *kernel, channels)
    for row in range(kernel[0]):
        above, below = _inside(inputs.shape[2], row - padding[0])
        for column in range(kernel[1]):
            left, right = _inside(inputs.shape[3], column - padding[1])
            theirs = made[:, above, left].reshape(-1, filters)
            torch.mm(theirs.t(), pixels[:, below, right].reshape(-1, channels), out=gradient[:, row, column])
    return gradient.permute(0, 3, 1, 2)


def _inside(size: int, shift: int) -> tuple[slice, slice]:
    """Of `size` outputs those whose inputs, `shift` further, lie inside, and these inputs."""
    first, last = max(0, -shift), max(0, min(size, size - shift))
    return slice(first, last), slice(first + shift, max(first, last) + shift)


@lru_cache(maxsize=8)
def _corners(shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Where the numbers of a weight of `shape`, filters×channels×height×width, stand in the four corners' kernels.

    Returns:
        For each number of the corners' kernels its place in the flat weight, or one place more for the zeros beside it;
        and for each corner, in a row of its own, the places of the weight's numbers in the corners' flat kernels.
    """
    count = shape.numel()
    places = torch.arange(count).view(shape)
    # The two left corners, then the two right ones; of each the upper one first.
    corners = [F.pad(places, (right, 1 - right, down, 1 - down), value=count) for right in (0, 1) for down in (0, 1)]
    from_weight = torch.cat(corners)
    inside = (from_weight.flatten() < count).nonzero().view(4, count)
    return from_weight, inside


class _PooledConvolution(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        # In this layout each of the four groups lies in one piece.
        inputs = _plain(inputs)
        from_weight, _ = _corners(weight.shape)
        corners = F.pad(weight.flatten(), (0, 1)).take(from_weight)
        four = F.conv2d(inputs, corners, bias if bias is None else bias.repeat(4), stride=2, padding=padding)
        left, right = four.chunk(2, 1)
        rows = torch.maximum(left, right)
        upper, lower = rows.chunk(2, 1)
        pooled = torch.maximum(upper, lower)
        # Of several that are the largest the first gets the gradient, as in torch's pooling. The choices are kept as
        # numbers 0 and 1: torch's products of numbers with booleans take five times as long.
        is_right, is_lower = torch.empty_like(rows), torch.empty_like(pooled)
        torch.gt(right, left, out=is_right)
        torch.gt(lower, upper, out=is_lower)
        ctx.save_for_backward(inputs, corners, is_right, is_lower)
        ctx.padding, ctx.shape = padding, weight.shape
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, corners, is_right, is_lower = ctx.saved_tensors
        of_inputs, of_weight, of_bias, _ = ctx.needs_input_grad
        pooled, rows = _plain(gradients[0]), torch.empty_like(is_right)
        upper, lower = rows.chunk(2, 1)
        torch.mul(pooled, is_lower, out=lower)
        torch.sub(pooled, lower, out=upper)
        count, channels, height, width = rows.shape
        four = rows.new_empty(count, 2 * channels, height, width)
        left, right = four.chunk(2, 1)
        torch.mul(rows, is_right, out=right)
        torch.sub(rows, right, out=left)
        if torch.backends.cpu.get_cpu_capability() == "AVX2":
            # There the gradient of the weights takes 0.3 of the time so, with the copy (64×1×28×28, 1 thread, fp32).
            four, inputs = _channels_last(four), _channels_last(inputs)
        for_inputs, of_corners, of_biases = torchs_backward(
            four, inputs, corners, 2, ctx.padding, (of_inputs, of_weight, of_bias)
        )
        for_weight = for_bias = None
        if of_weight:
            _, inside = _corners(ctx.shape)
            for_weight = of_corners.take(inside).sum(0).view(ctx.shape)
        if of_bias:
            for_bias = of_biases.view(4, -1).sum(0)
        return for_inputs, for_weight, for_bias, None
