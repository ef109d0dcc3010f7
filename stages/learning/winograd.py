"""Convolutions of 3×3 with fewer products: Winograd's algorithm, and its gradients, on a CPU.

An image is cut into tiles of outputs. What a tile sees of a channel is turned into sums, and so is each kernel; these
are multiplied place by place, as matrices of channels, and sums of the products are the outputs. A tile of 4×4 outputs
takes 36 products of each channel so instead of 144, or 49 with factors so small that little is rounded away in
bfloat16; one of 2×2 takes 16 instead of 36, or 9 where it is the whole image.

It rounds more than torch does. The root mean square error of outputs and gradients (beside the same in float64; 256
channels of 8×8) is 3e-6 in float32, where torch's own is 1e-6, and 6e-3 in bfloat16, where torch's own is 2.5e-3; with
36 products it would be 3e-2 there. And it keeps the sums for the backward pass, which are 2.25 times the inputs with
36 products, or with 9 for a whole image of 2×2, 3.1 times with 49, 4 times with tiles of 2×2.

Sources: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, arXiv:1509.09308; with complex
points, L. Meng, J. Brothers, "Efficient Winograd Convolution via Integer Arithmetic", 2019, arXiv:1901.01965.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


@dataclass(frozen=True)
class Line:
    """The algorithm for a line of outputs; that of a tile is that of its columns for each number of that of its rows.

    Attributes:
        seen: The sums of what the line sees, the sources' Bᵀ.
        kernel: Those of a kernel's three numbers, G.
        made: Those of the products, Aᵀ, which are the outputs.
        least_tiles: The fewest tiles of a batch with which it is faster than torch, as all of these with 1 and 2 CPU
            threads of an AMD EPYC with AVX-512.
        least_kernels: The fewest kernels of a layer, channels times filters, with which it is.
        most_products: The most products beside 9 for each output; more are where tiles reach beyond an image.
        largest: The longest line of an image with which it is.
    """

    seen: list[list[float]]
    kernel: list[list[float]]
    made: list[list[float]]
    least_tiles: int
    least_kernels: int
    most_products: float
    largest: int


_TWO = Line(
    [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    [[1, 1, 1, 0], [0, 1, -1, -1]],
    least_tiles=256,
    least_kernels=192 * 256,
    most_products=0.45,
    largest=4,
)
_FOUR = Line(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    least_tiles=64,
    least_kernels=128 * 128,
    most_products=0.4,
    largest=32,
)
# With the points 0, ±1, ±i and ∞: the two complex ones are three products, and no factor is larger than 1.
_FOUR_SMALL = Line(
    [
        [1, 0, 0, 0, -1, 0],
        [0, 1, 1, 1, 1, 0],
        [0, -1, 1, -1, 1, 0],
        [0, -1, -1, 1, 1, 0],
        [0, -1, 1, 1, -1, 0],
        [0, 1, 0, -1, 0, 0],
        [0, -1, 0, 0, 0, 1],
    ],
    [
        [1, 0, 0],
        [1 / 4, 1 / 4, 1 / 4],
        [1 / 4, -1 / 4, 1 / 4],
        [1 / 2, 0, -1 / 2],
        [0, 1 / 2, 0],
        [1 / 2, 1 / 2, -1 / 2],
        [0, 0, 1],
    ],
    [[1, 1, 1, 1, 0, 1, 0], [0, 1, -1, 0, 1, 1, 0], [0, 1, 1, -1, 0, -1, 0], [0, 1, -1, 0, -1, -1, 1]],
    least_tiles=256,
    least_kernels=128 * 256,
    most_products=0.45,
    largest=16,
)
# A line of two with nothing but zeros on both sides, as that of an image of 2×2 is, takes three products instead of
# four: w₁(x₀ + x₁), (w₂ - w₁)x₁ and (w₀ - w₁)x₀ make w₁x₀ + w₂x₁ and w₀x₀ + w₁x₁.
_WHOLE_TWO = Line(
    [[0, 1, 1, 0], [0, 0, 1, 0], [0, 1, 0, 0]],
    [[0, 1, 0], [0, -1, 1], [1, -1, 0]],
    [[1, 1, 0], [1, 0, 1]],
    least_tiles=32,
    least_kernels=128 * 128,
    most_products=0.4,
    largest=2,
)


def _line(length: int, precision: torch.dtype) -> Line:
    """What an image's line of `length` pixels is computed by."""
    if length == 2:
        return _WHOLE_TWO
    if precision is torch.float32:
        return _FOUR
    # Of a small image the sums of kernels, the more of them the larger a tile is, take more time than they are worth.
    return _TWO if length <= _TWO.largest else _FOUR_SMALL


def is_faster(inputs: torch.Size, weight: torch.Size, precision: torch.dtype) -> bool:
    """Whether a convolution of inputs N×C×H×W with a padding of 1 takes less time so than as torch computes it."""
    filters, channels, *kernel = weight
    sides = inputs[2:]
    if kernel != [3, 3] or inputs[1] != channels or min(sides) < 2 or precision not in (torch.float32, torch.bfloat16):
        return False
    lines = [_line(side, precision) for side in sides]
    counts = [math.ceil(side / len(line.made)) for side, line in zip(sides, lines, strict=True)]
    products = math.prod(count * len(line.seen) for count, line in zip(counts, lines, strict=True))
    return all(
        inputs[0] * math.prod(counts) >= line.least_tiles
        and channels * filters >= line.least_kernels
        and products <= line.most_products * 9 * math.prod(sides)
        and side <= line.largest
        for side, line in zip(sides, lines, strict=True)
    )


@dataclass(frozen=True)
class Strip:
    """The tiles that lie side by side in an image, from its left edge to its right one.

    What lies outside the image has neither rows nor columns in its matrices: so no zeros are laid around images, and
    their height and width need be no multiples of a tile's.

    Attributes:
        seen: The image's rows that the tiles see.
        made: The rows of outputs that they make.
        from_seen: A matrix (tiles×places)×(rows seen×width), of pixels to sums.
        to_made: A matrix (rows made×width)×(tiles×places), of products to outputs.
    """

    seen: slice
    made: slice
    from_seen: Tensor
    to_made: Tensor


@lru_cache(maxsize=64)
def _strips(height: int, width: int, precision: torch.dtype) -> list[Strip]:
    """The strips of an image, from top to bottom."""
    size = len(_line(height, precision).made)
    columns = _tiles(width, precision)
    strips = []
    for top, (row_seen, row_made) in zip(range(0, height, size), _tiles(height, precision), strict=True):
        seen, made = slice(max(0, top - 1), min(height, top + size + 1)), slice(top, min(height, top + size))
        from_seen = torch.cat([torch.kron(row_seen[:, seen], column) for column, _ in columns])
        to_made = torch.cat([torch.kron(row_made[made], column) for _, column in columns], 1)
        strips.append(Strip(seen, made, from_seen.to(precision), to_made.to(precision)))
    return strips


def _tiles(length: int, precision: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """The matrices of each tile of a line, places×length and length×places."""
    line = _line(length, precision)
    size, places = len(line.made), len(line.seen)
    tiles = []
    for first in range(0, length, size):
        seen, made = _matrix([[0] * (length + size + 2)] * places), _matrix([[0] * places] * (length + size))
        seen[:, first : first + size + 2] = _matrix(line.seen)  # the first column is left of the line
        made[first : first + size] = _matrix(line.made)
        tiles.append((seen[:, 1 : length + 1], made[:length]))
    return tiles


@lru_cache(maxsize=64)
def _of_kernels(height: int, width: int, precision: torch.dtype) -> Tensor:
    """The matrix places×9 that turns a kernel of 3×3 into sums."""
    row, column = (_matrix(_line(length, precision).kernel) for length in (height, width))
    return torch.kron(row, column).to(precision)


def _matrix(rows: list[list[float]]) -> Tensor:
    """A matrix for what is kept for other calls, whatever the default precision and device are in this one."""
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def convolve(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution of stride 1 with a padding of 1, from N×C×H×W to N×filters×H×W in channels_last.

    Args:
        inputs: In float32 or bfloat16, the precision of what is computed; fastest in channels_last.
        weight: Filters×C×3×3, in float32, as `bias` is.
        bias: One for each filter.
    """
    outputs: Tensor = _Winograd.apply(inputs, weight, bias)
    return outputs


class _Winograd(torch.autograd.Function):
    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        precision = inputs.dtype
        count, channels, height, width = inputs.shape
        filters = len(weight)
        strips, of_kernels = _strips(height, width, precision), _of_kernels(height, width, precision)
        places = len(of_kernels)

        seen = _sums(inputs.permute(0, 2, 3, 1), [(strip.seen, strip.from_seen) for strip in strips], places)
        # Rounded and laid out in one go: to pass a weight by takes as long as to compute with it.
        lines = torch.empty(3, 3, filters, channels, dtype=precision).copy_(weight.permute(2, 3, 0, 1))
        kernels = torch.mm(of_kernels, lines.view(9, -1)).view(places, filters, channels)
        # All places' products in one call, as a convolution of 1×1 with a group of channels for each place.
        made = F.conv2d(_as_groups(seen), kernels.view(-1, channels, 1, 1), groups=places)

        # No view of what is computed, for a view that a Function returns can't be changed in place.
        shape = (count, filters, height, width)
        outputs = torch.empty(shape, dtype=precision, memory_format=torch.channels_last)
        rows = outputs.permute(0, 2, 3, 1)
        for strip, part in zip(strips, made.permute(0, 2, 3, 1).view(len(strips), count, -1, filters), strict=True):
            matrix = strip.to_made.expand(count, -1, -1)
            each = torch.bmm(matrix, part) if bias is None else torch.baddbmm(bias.to(precision), matrix, part)
            rows[:, strip.made] = each.view(count, -1, width, filters)
        ctx.save_for_backward(seen if ctx.needs_input_grad[1] else None, kernels)
        ctx.shape = inputs.shape
        return outputs

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        seen, kernels = ctx.saved_tensors
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        count, channels, height, width = ctx.shape
        places, filters, _ = kernels.shape
        strips = _strips(height, width, kernels.dtype)
        outputs = gradients[0].permute(0, 2, 3, 1)
        made = _sums(outputs, [(strip.made, strip.to_made.t()) for strip in strips], places)
        for_inputs = for_weight = for_bias = None
        if of_inputs:
            # What the sums are does not matter here, only their shape does.
            shaped = kernels.new_empty(len(made), places, channels)
            of_seen, _, _ = torch.ops.aten.convolution_backward(
                _as_groups(made), _as_groups(shaped), kernels.view(-1, channels, 1, 1), None,
                [1, 1], [0, 0], [1, 1], False, [0, 0], places, (True, False, False),
            )  # fmt: skip
            parts = of_seen.permute(0, 2, 3, 1).view(len(strips), count, -1, channels)
            for_inputs = _joined(strips, parts, width).permute(0, 3, 1, 2)
        if of_weight:
            of_kernels = _products(made, seen)
            lines = torch.mm(_of_kernels(height, width, kernels.dtype).t(), of_kernels.view(places, -1))
            shape = (filters, channels, 3, 3)
            for_weight = torch.empty(shape, dtype=torch.float32, memory_format=torch.channels_last)
            for_weight.permute(2, 3, 0, 1).copy_(lines.view(3, 3, filters, channels))
        if of_bias:
            for_bias = outputs.sum((0, 1, 2), dtype=torch.float32)
        return for_inputs, for_weight, for_bias


def _sums(images: Tensor, parts: list[tuple[slice, Tensor]], places: int) -> Tensor:
    """Rows of images N×H×W×channels, each strip's times its matrix: tiles×places×channels, strip after strip."""
    count, channels = len(images), images.shape[3]
    sums = images.new_empty(len(parts), count, len(parts[0][1]), channels)
    for (rows, matrix), strip in zip(parts, sums, strict=True):
        torch.bmm(matrix.expand(count, -1, -1), images[:, rows].reshape(count, -1, channels), out=strip)
    return sums.view(-1, places, channels)


def _products(made: Tensor, seen: Tensor) -> Tensor:
    """Of tiles×places×filters and tiles×places×channels the products of each place: places×filters×channels."""
    if made.dtype is torch.float32:
        return torch.bmm(made.permute(1, 2, 0), seen.transpose(0, 1))
    # In bfloat16 one by one: torch's product of many of them takes two to three times as long.
    products = made.new_empty(*made.shape[1:], seen.shape[2])
    for place, product in enumerate(products):
        torch.mm(made[:, place].t(), seen[:, place], out=product)
    return products


def _joined(strips: list[Strip], sums: Tensor, width: int) -> Tensor:
    """Gradient of images N×H×W×channels, from that of the sums that each strip makes of what it sees."""
    _, count, _, channels = sums.shape
    images = sums.new_empty(count, strips[-1].seen.stop, width, channels)
    done = 0
    for strip, part in zip(strips, sums, strict=True):
        rows = torch.bmm(strip.from_seen.t().expand(count, -1, -1), part).view(count, -1, width, channels)
        shared = done - strip.seen.start  # with the strip above, which sees them, too
        images[:, strip.seen.start : done] += rows[:, :shared]
        images[:, done : strip.seen.stop] = rows[:, shared:]
        done = strip.seen.stop
    return images


def _as_groups(sums: Tensor) -> Tensor:
    """Tiles×places×channels as one image 1×(places×channels)×tiles×1, in channels_last."""
    return sums.view(1, len(sums), 1, -1).permute(0, 3, 1, 2)
