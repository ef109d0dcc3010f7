"""Convolutions computed another way: the same function and the same gradients as torch's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages import params
from stages.learning import convolution, gpu_convolution, loop, winograd
from stages.learning.convolution import Convolution, PooledConvolution, Way, choose_way, lay_out
from stages.learning.gpu_convolution import GpuConvolution
from stages.learning.recipe import Compute
from stages.models import build_model
from tests.test_learning import lenet, recipe

LABS = params.load(Path(__file__).parents[1] / "params.yaml").labs
EXACT = torch.float64


def layers(channels: int, filters: int, kernel: Any, padding: Any, bias: bool) -> tuple[nn.Conv2d, nn.Conv2d]:
    """A convolution in float32 and channels_last, and the same one in float64."""
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, filters, kernel, padding=padding, bias=bias).to(memory_format=torch.channels_last)
    exact = nn.Conv2d(channels, filters, kernel, padding=padding, bias=bias, dtype=EXACT)
    exact.load_state_dict(layer.state_dict())
    return layer, exact


def gradients(model: nn.Module, inputs: Tensor, made: Tensor, precision: torch.dtype) -> list[Tensor]:
    """Outputs, and the gradients of inputs and parameters where the outputs' gradient is `made`."""
    model.zero_grad()
    inputs = inputs.clone(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
        outputs = model(inputs)
    outputs.backward(made.to(outputs.dtype))
    assert inputs.grad is not None
    return [outputs, inputs.grad, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def assert_near(found: list[Tensor], exact: list[Tensor], precision: torch.dtype, most: float | None = None) -> None:
    """Hold tensors against those computed in float64, within what `precision` rounds."""
    assert len(found) == len(exact)
    most = most or (1e-5 if precision is torch.float32 else 0.02)
    for one, other in zip(found, exact, strict=True):
        assert (one.to(EXACT) - other).abs().max() <= most * other.abs().max()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "padding", "size"),
    [
        (6, 16, 5, 0, (14, 14)),  # few channels
        (1, 6, 3, (1, 2), (9, 7)),
        (160, 48, 3, 1, (4, 3)),  # small and wide
        (128, 16, 5, 2, (4, 2)),  # a kernel that reaches beyond the image on both sides
        (128, 32, 3, 1, (2, 2)),
        (128, 16, (3, 5), (1, 2), (1, 2)),
        (144, 160, 3, 1, (1, 1)),
        (24, 40, 3, 1, (8, 8)),  # Conv2d's own way
        (128, 16, 1, 0, (2, 2)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_each_way_has_the_outputs_and_gradients_of_conv2d(
    channels: int, filters: int, kernel: Any, padding: Any, size: tuple[int, int], bias: bool, precision: torch.dtype
) -> None:
    layer, exact = layers(channels, filters, kernel, padding, bias)
    inputs = torch.randn(8, channels, *size)
    made = torch.randn_like(layer(inputs))
    found = gradients(Convolution.of(layer), inputs, made, precision)
    assert_near(found, gradients(exact, inputs.to(EXACT), made, EXACT), precision)


@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "padding", "size"),
    [
        (1, 6, 5, 2, (28, 28)),
        (6, 16, 5, 0, (14, 14)),
        (8, 12, 3, 1, (9, 7)),
        (8, 256, (3, 4), (1, 0), (6, 5)),  # many filters
        (4, 8, 3, 3, (4, 4)),  # more zeros around the image than the kernel reaches
        (12, 16, 1, 0, (5, 5)),
        (12, 16, 2, 1, (1, 1)),
        (8, 8, 1, 0, (1, 1)),
        (4, 4, (3, 1), (0, 3), (3, 1)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("at_once", [1, 40_000, gpu_convolution.AT_ONCE])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_products_of_unfolded_images_are_the_convolution(
    channels: int, filters: int, kernel: Any, padding: Any, size: tuple[int, int], bias: bool, at_once: int,
    precision: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As on a GPU: in one piece and in several, and where but some of it is products."""
    monkeypatch.setattr(gpu_convolution, "AT_ONCE", at_once)
    layer, exact = layers(channels, filters, kernel, padding, bias)
    inputs = torch.randn(7, channels, *size)
    made = torch.randn_like(layer(inputs))
    gpu_convolution.lay_out(model := nn.Sequential(layer), is_exact=precision == "fp32")
    assert isinstance(model[0], GpuConvolution)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    assert_near(gradients(model, inputs, made, kind), gradients(exact, inputs.to(EXACT), made, EXACT), kind)


def test_a_layer_laid_out_for_a_gpu_takes_and_gives_what_conv2d_does() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    twin = GpuConvolution.of(layer)
    memory = torch.randn(2 * 4 * 5 * 5 + 1)
    odd = memory[1:].view(2, 5, 5, 4).permute(0, 3, 1, 2)  # which begins at no multiple of 16 bytes
    torch.testing.assert_close(twin(odd), layer(odd))
    torch.testing.assert_close(F.relu(twin(odd), inplace=True), F.relu(layer(odd)))
    assert torch.equal(twin.eval()(odd), layer(odd))
    twin.train()
    assert twin(odd[:0]).shape == (0, 4, 5, 5)
    assert torch.equal(twin(odd[0]), layer(odd[0]))
    for wrong in (torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5)):
        with pytest.raises(RuntimeError, match="expected input") as theirs:
            layer(wrong)
        with pytest.raises(RuntimeError) as ours:
            twin(wrong)
        assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("size", [(9, 9), (4, 4), (2, 2)])
@pytest.mark.parametrize("is_bf16", [True, False])
@pytest.mark.parametrize("channels", [4, 128])
def test_a_layer_laid_out_takes_and_gives_what_conv2d_does(channels: int, is_bf16: bool, size: tuple[int, int]) -> None:
    layer = nn.Conv2d(channels, 8, 3, padding=1)
    twin = Convolution.of(layer)
    inputs = torch.randn(3, channels, *size, requires_grad=True)
    close = partial(torch.testing.assert_close, rtol=0.02 if is_bf16 else 1e-4, atol=0.02 if is_bf16 else 1e-5)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        close(F.relu(twin(inputs), inplace=True), F.relu(layer(inputs)))
        made = twin(inputs)
        made += 1
        close(made, layer(inputs) + 1)
        assert twin(inputs[:0]).shape == (0, 8, *size)
        assert torch.equal(twin(inputs[0]), layer(inputs[0]))
        for wrong in (torch.randn(2, 3, *size), torch.randn(2, channels, size[0])):
            with pytest.raises(RuntimeError, match="expected input") as theirs:
                layer(wrong)
            with pytest.raises(RuntimeError) as ours:
                twin(wrong)
            assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(2, 2), (2, 4), (4, 2), (4, 4), (8, 8), (7, 7), (3, 5), (5, 6), (9, 12)])
@pytest.mark.parametrize(("bias", "layout"), [(True, torch.channels_last), (False, torch.contiguous_format)])
@pytest.mark.parametrize("part", [slice(None), slice(1, None, 2)])
def test_winograds_algorithm_has_the_outputs_and_gradients_of_a_convolution(
    size: tuple[int, int], bias: bool, layout: torch.memory_format, part: slice, precision: torch.dtype
) -> None:
    """Of images that are whole tiles, and of those that end within one; in one piece, and as a part of others."""
    layer, exact = layers(24, 40, 3, 1, bias)
    inputs = torch.randn(6, 24, *size).to(precision).contiguous(memory_format=layout)[part].requires_grad_()
    made = torch.randn(6, 40, *size).to(precision).contiguous(memory_format=layout)[part]
    outputs = winograd.convolve(inputs, layer.weight, layer.bias)
    assert outputs.dtype is precision
    found = [outputs, *torch.autograd.grad(outputs, [inputs, *layer.parameters()], made)]
    # Beside a product in bfloat16 of numbers that it holds: what differs is the algorithm's rounding alone.
    expected = gradients(exact, inputs.detach().to(EXACT), made.to(EXACT), EXACT)
    assert_near(found, expected, precision, 0.03 if precision is torch.bfloat16 else None)
    assert_near(found[3:], expected[3:], torch.float32)  # of the bias: a sum in float32
    assert found[2].stride() == layer.weight.stride()


def test_winograds_algorithm_goes_by_its_inputs_precision_alone() -> None:
    """Not by what stands about it, and the matrices that it keeps not by what stood about the first call."""
    layer, inputs = layers(8, 8, 3, 1, bias=True)[0], torch.randn(2, 8, 8, 8, requires_grad=True)

    def computed(*, within: bool) -> list[Tensor]:
        winograd._strips.cache_clear()
        winograd._of_kernels.cache_clear()
        torch.set_default_dtype(torch.bfloat16 if within else torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=within):
            outputs = winograd.convolve(inputs, layer.weight, layer.bias)
            return [outputs, *torch.autograd.grad(outputs.sum(), [inputs, *layer.parameters()])]

    before = torch.get_default_dtype()
    try:
        found = computed(within=True)
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(one, other) for one, other in zip(found, computed(within=False), strict=True))


def test_winograds_algorithm_gives_the_gradients_that_are_wanted() -> None:
    inputs, weight, bias = torch.randn(2, 8, 4, 4), torch.randn(8, 8, 3, 3), torch.randn(8)
    tensors = [inputs.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    wanted = torch.autograd.grad(winograd.convolve(inputs, weight, bias).sum(), tensors)
    for number, (one, gradient) in enumerate(zip(tensors, wanted, strict=True)):
        alone = [tensor if tensor is one else tensor.detach() for tensor in tensors]
        outputs = winograd.convolve(alone[0], alone[1], alone[2])
        kept = [tensor for tensor in outputs.grad_fn.saved_tensors if tensor is not None]  # type: ignore[union-attr]
        assert len(kept) == (2 if one is weight else 1)  # what the gradient of the weight alone needs
        assert torch.equal(torch.autograd.grad(outputs.sum(), one)[0], gradient), number


def test_a_model_with_winograds_algorithm_has_the_gradients_of_one_without() -> None:
    options = LABS["vgg_cifar10"].model
    torch.manual_seed(1)
    inputs, labels = torch.rand(64, *options.input_shape), torch.arange(64) % 10

    def computed(kind: torch.dtype, *, laid_out: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = build_model(options).to(kind).to(memory_format=torch.channels_last)
        if laid_out:
            lay_out(model)
        loss = F.cross_entropy(model.train()(inputs.to(kind).contiguous(memory_format=torch.channels_last)), labels)
        weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        return [loss.detach(), *torch.autograd.grad(loss, weights)]

    exact, ours, theirs = (
        computed(EXACT, laid_out=False), computed(torch.float32, laid_out=True), computed(torch.float32, laid_out=False)
    )  # fmt: skip
    assert any(not torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    errors = [float((one - other).norm() / other.norm()) for one, other in zip(ours, exact, strict=True)]
    # Torch's own are off as much: rounding has some units of ReLU, and some maxima of pooling, fall the other way.
    assert max(errors) < 0.03
    assert errors[0] < 1e-5


@pytest.mark.parametrize("is_bf16", [True, False])
@pytest.mark.parametrize("size", [(2, 2), (4, 4), (8, 8)])
def test_a_layer_by_winograds_algorithm_takes_and_gives_what_conv2d_does(size: tuple[int, int], is_bf16: bool) -> None:
    layer = nn.Conv2d(192, 256, 3, padding=1)
    twin = Convolution.of(layer)
    inputs = torch.randn(64, 192, *size, requires_grad=True)
    kind = torch.bfloat16 if is_bf16 else torch.float32
    assert choose_way(inputs.shape, layer.weight.shape, (1, 1), kind) is Way.WINOGRAD
    close = partial(torch.testing.assert_close, rtol=0.03 if is_bf16 else 1e-4, atol=0.03 if is_bf16 else 1e-4)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        close(F.relu(twin(inputs), inplace=True), F.relu(layer(inputs)))
        assert twin(inputs).dtype is layer(inputs).dtype
        assert torch.equal(twin.eval()(inputs), layer(inputs))
        assert torch.equal(twin.train()(inputs.detach()), layer(inputs))  # as where it is a model's first layer
        wrong = torch.randn(64, 128, *size, requires_grad=True)
        for module in (layer, twin):
            with pytest.raises(RuntimeError, match="to have 192 channels, but got 128 channels instead"):
                module(wrong)
            with pytest.raises(RuntimeError, match=r"Input type .* and \w+ type .* should be the same"):
                module(inputs.double())


def test_a_layer_with_something_attached_is_left_alone() -> None:
    heard, masked = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
    heard.register_full_backward_hook(lambda *_: None)
    masked.register_buffer("mask", torch.ones(3))
    lay_out(model := nn.Sequential(heard, masked))
    assert list(model) == [heard, masked]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "padding", "size"),
    [(1, 6, 5, 2, (28, 28)), (1, 6, 5, 0, (28, 28)), (3, 8, (3, 4), (1, 0), (11, 14)), (2, 1, 1, 0, (3, 2))],
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("processor", ["AVX2", "AVX512"])
def test_a_convolution_with_its_pooling_has_the_outputs_and_gradients_of_both(
    channels: int, filters: int, kernel: Any, padding: Any, size: tuple[int, int], bias: bool, precision: torch.dtype,
    processor: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    layer, exact = layers(channels, filters, kernel, padding, bias)
    inputs = torch.randn(8, channels, *size)
    made = torch.randn_like(F.max_pool2d(layer(inputs), 2))
    found = gradients(PooledConvolution.of(layer), inputs, made, precision)
    # In float32 whatever the precision.
    assert_near(found, gradients(nn.Sequential(exact, nn.MaxPool2d(2)), inputs.to(EXACT), made, EXACT), torch.float32)


def test_of_equal_outputs_the_first_gets_the_gradient_as_in_torchs_pooling() -> None:
    """An image's even background makes them equal: were all four to get it, a bias would get four times as much."""
    layer = nn.Conv2d(1, 2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]], [[[0.0, 0.0], [0.0, 1.0]]]]))
        layer.bias.copy_(torch.zeros(2))  # type: ignore[union-attr]
    # Sums of small whole numbers are exact, so equal ones are equal, whatever their order.
    inputs = torch.zeros(1, 1, 9, 9)
    inputs[0, 0, 4:, 4:] = torch.randint(0, 3, (5, 5), generator=torch.Generator().manual_seed(0))
    made = torch.arange(1.0, 33.0).view(1, 2, 4, 4)
    theirs = gradients(nn.Sequential(layer, nn.MaxPool2d(2)), inputs, made, torch.float32)
    ours = gradients(PooledConvolution.of(layer), inputs, made, torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("lab", ["lenet_mnist", "cnn_mnist", "lenet_cifar10", "vgg_cifar10", "alexnet_cifar10"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lays_out", [lay_out, partial(gpu_convolution.lay_out, is_exact=True)], ids=["cpu", "gpu"])
def test_a_model_laid_out_is_the_same_model(lays_out: Any, lab: str, precision: str) -> None:
    """Names of the state dict, and the very bits in evaluation mode; in training what differs is rounding."""
    options, rounded = LABS[lab].model, torch.float32 if precision == "fp32" else torch.bfloat16
    models = []
    for laid_out in (False, True):
        torch.manual_seed(0)
        model = build_model(options).to(memory_format=torch.channels_last)
        if laid_out:
            parameters = list(model.parameters())
            names = list(model.state_dict())
            lays_out(model)
            assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
            assert list(model.state_dict()) == names
            assert any(isinstance(module, Convolution) for module in model.modules())
        models.append(model)
    inputs = torch.rand(4, *options.input_shape).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast("cpu", rounded, enabled=precision == "bf16"):
        one, other = (model.eval()(inputs) for model in models)
        assert torch.equal(one, other)
        if lab in ("lenet_mnist", "cnn_mnist", "lenet_cifar10"):  # no dropout and no batch normalisation in them
            torch.testing.assert_close(models[1].train()(inputs).float(), other.float(), rtol=0.02, atol=0.02)


def test_what_cannot_be_computed_another_way_is_left_alone() -> None:
    strided, grouped = nn.Conv2d(1, 6, 3, stride=2), nn.Conv2d(4, 4, 3, groups=2)
    mirrored, same = nn.Conv2d(1, 6, 3, padding=1, padding_mode="reflect"), nn.Conv2d(1, 6, 3, padding="same")
    wide, deep = nn.Conv2d(3, 16, 3), nn.Conv2d(4, 6, 3)
    model = nn.Sequential(
        strided, nn.MaxPool2d(2), grouped, mirrored, same, nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(1, 6, 3), nn.MaxPool2d(3, 2)),
        nn.Sequential(nn.Conv2d(1, 6, 3), nn.MaxPool2d(2, ceil_mode=True)),
        nn.Sequential(nn.Conv2d(1, 6, 3), nn.MaxPool2d(2, padding=1)),
        nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(wide, nn.MaxPool2d(2)), nn.Sequential(deep, nn.MaxPool2d(2)),
    )  # fmt: skip
    lay_out(model)
    assert list(model)[:6] == [strided, model[1], grouped, mirrored, same, model[5]]
    assert not any(isinstance(module, PooledConvolution | nn.Identity) for module in model.modules())


def test_a_layer_that_stands_in_a_model_twice_stays_where_it_is() -> None:
    """What is between a convolution and a pooling may have come before, too."""
    twice = nn.ReLU()
    model = nn.Sequential(twice, nn.Conv2d(1, 6, 3), twice, nn.MaxPool2d(2))
    inputs = torch.randn(2, 1, 8, 8)
    before = model(inputs)
    lay_out(model)
    assert [type(module) for module in model] == [nn.ReLU, Convolution, nn.ReLU, nn.MaxPool2d]
    torch.testing.assert_close(model(inputs), before)


@pytest.mark.parametrize(
    ("shape", "filters", "way"), [((2, 3, 8, 8), 4, Way.FEW_CHANNELS), ((64, 128, 4, 4), 128, Way.WINOGRAD)]
)
def test_a_gradient_of_a_gradient_is_refused(shape: tuple[int, ...], filters: int, way: Way) -> None:
    inputs = torch.randn(*shape, requires_grad=True)
    layer = Convolution.of(nn.Conv2d(shape[1], filters, 3, padding=1))
    assert choose_way(inputs.shape, layer.weight.shape, (1, 1), torch.float32) is way
    outputs = layer(inputs)
    (gradient,) = torch.autograd.grad(outputs.pow(2).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()  # type: ignore[no-untyped-call]


def test_the_way_is_chosen_by_shape_and_precision_alone() -> None:
    kernel = torch.Size([512, 256, 3, 3])
    ways = {
        (size, count, precision): choose_way(torch.Size([count, 256, *size]), kernel, (1, 1), precision)
        for size in [(2, 2), (3, 3), (4, 4), (7, 7), (8, 8), (33, 33)]
        for count in (4, 128)
        for precision in (torch.float32, torch.bfloat16, torch.float64)
    }
    by_winograd = {key for key, way in ways.items() if way is Way.WINOGRAD}
    assert by_winograd == {
        ((2, 2), 128, torch.float32), ((2, 2), 128, torch.bfloat16),
        ((4, 4), 128, torch.float32), ((4, 4), 128, torch.bfloat16),
        ((7, 7), 128, torch.float32), ((7, 7), 128, torch.bfloat16),
        ((8, 8), 128, torch.float32), ((8, 8), 128, torch.bfloat16),
    }  # fmt: skip
    small = {((side, side), 4, torch.bfloat16) for side in (2, 3, 4)} | {((3, 3), 128, torch.bfloat16)}
    assert {key for key, way in ways.items() if way is Way.SMALL_IMAGES} == small
    for precision in (torch.float32, torch.bfloat16):
        for shape in ([512, 256, 5, 5], [512, 256, 1, 1], [32, 256, 3, 3]):
            assert choose_way(torch.Size([128, 256, 8, 8]), torch.Size(shape), (1, 1), precision) is None
        assert choose_way(torch.Size([128, 256, 8, 8]), kernel, (0, 1), precision) is None
        for size in ((2, 40), (40, 2), (1, 8), (8, 1)):
            assert choose_way(torch.Size([128, 256, *size]), kernel, (1, 1), precision) is None
    few = torch.Size([192, 160, 3, 3])
    assert choose_way(torch.Size([128, 160, 4, 4]), few, (1, 1), torch.float32) is Way.WINOGRAD
    assert choose_way(torch.Size([128, 160, 4, 4]), few, (1, 1), torch.bfloat16) is Way.SMALL_IMAGES


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_training_lays_its_model_out_unless_torchs_own_bits_are_asked_for(channels_last: bool) -> None:
    model = lenet()
    loop.begin(model, recipe(), Compute(threads=1, precision="fp32", channels_last=channels_last), seed=1)
    assert any(isinstance(module, convolution.PooledConvolution) for module in model.modules()) is channels_last
