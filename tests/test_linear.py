"""Fully connected layers of a training in bf16: small products in float32, all else as torch has it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stages.learning import linear, loop
from stages.learning.linear import Linear
from stages.learning.recipe import Compute
from tests.test_learning import images, lenet, recipe


def outcome(layer: nn.Module, inputs: Tensor, is_bf16: bool) -> list[Tensor]:
    """Outputs, and the gradients of inputs and parameters."""
    inputs = inputs.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        outputs = layer(inputs)
    outputs.float().pow(2).sum().backward()
    found = [outputs.detach(), inputs.grad, *(parameter.grad for parameter in layer.parameters())]
    return [tensor.clone() for tensor in found if tensor is not None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("batch", "is_small"), [(64, True), (65, False)])
def test_only_small_products_of_a_training_are_in_float32(bias: bool, batch: int, is_small: bool) -> None:
    torch.manual_seed(0)
    theirs, inputs = nn.Linear(256, 256, bias=bias), torch.randn(batch, 256)
    assert (batch * 256 * 256 <= linear.SMALL) == is_small
    ours = Linear.of(theirs)
    expected = outcome(theirs, inputs, is_bf16=not is_small)
    found = outcome(ours, inputs, is_bf16=True)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_tests_are_in_bf16() -> None:
    torch.manual_seed(0)
    theirs, inputs = nn.Linear(20, 10).eval(), torch.randn(5, 20)
    ours = Linear.of(theirs)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(inputs).dtype is torch.bfloat16
        assert torch.equal(ours(inputs), theirs(inputs))


def test_inputs_may_be_bf16_and_of_any_shape() -> None:
    layer = Linear.of(nn.Linear(8, 4))
    inputs = torch.randn(2, 3, 8).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(inputs)
    assert outputs.shape == (2, 3, 4)
    outputs.sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.dtype is torch.bfloat16


@pytest.mark.parametrize("is_bf16", [True, False])
@pytest.mark.parametrize("kind", [torch.int64, torch.float64, torch.bool])
def test_what_a_linear_refuses_is_refused(kind: torch.dtype, is_bf16: bool) -> None:
    theirs, inputs = nn.Linear(3, 3), torch.ones(2, 3, dtype=kind)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        with pytest.raises(RuntimeError) as expected:
            theirs(inputs)
        with pytest.raises(RuntimeError) as told:
            Linear.of(theirs)(inputs)
    assert str(told.value) == str(expected.value)


def test_layers_of_a_model_that_is_no_sequence_are_left_alone() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small = nn.Sequential(nn.Linear(8, 4))

    model = Sum()
    linear.lay_out(model)
    assert type(model.small[0]) is nn.Linear


def test_layers_that_differ_from_torchs_are_left_alone() -> None:
    class Other(nn.Linear):
        pass

    hooked = nn.Linear(3, 3)
    hooked.register_forward_hook(lambda *_: None)
    heard = nn.Linear(3, 3)
    heard.register_full_backward_hook(lambda *_: None)
    masked = nn.Linear(3, 3)
    masked.register_buffer("mask", torch.ones(3))
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    others = [Other(3, 3), hooked, heard, masked, parametrized, nn.Linear(3, 3).double(), nn.ReLU()]
    model = nn.Sequential(nn.Linear(3, 3), *others)
    linear.lay_out(model)
    assert isinstance(model[0], Linear)
    assert all(layer is other for layer, other in zip(model[1:], others, strict=True))


@pytest.mark.parametrize(
    ("options", "are_laid_out"),
    [
        ({"precision": "bf16"}, True),
        ({"precision": "fp32"}, False),
        ({"precision": "bf16", "channels_last": False}, False),
    ],
)
def test_a_training_in_bf16_lays_out_its_layers(options: dict[str, object], are_laid_out: bool) -> None:
    model = lenet()
    names, parameters = list(model.state_dict()), list(model.parameters())
    loop.begin(model, recipe(), Compute.model_validate({"threads": 1, "precision": "fp32", **options}), seed=1)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == 3
    assert all(isinstance(layer, Linear) for layer in layers) == are_laid_out
    assert list(model.state_dict()) == names
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))


def test_it_learns_what_bf16_learns() -> None:
    losses = []
    for channels_last in (True, False):
        compute = Compute(threads=1, precision="bf16", channels_last=channels_last)
        _, history = loop.train(lenet(), images(200), images(50), recipe(epochs=3), compute, seed=1)
        losses.append([epoch.train_loss for epoch in history])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
