"""Every model and every lab: exact counts, shapes that fit or a sentence, one step of every lab's own recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from stages import params
from stages.datasets.arrays import Split
from stages.datasets.statistics import Statistics
from stages.datasets.transforms import Pipeline
from stages.learning import loop
from stages.learning.device import choose_device
from stages.learning.images import Images
from stages.learning.optimizers import make_optimizer
from stages.learning.recipe import Compute
from stages.models import build_model, check_fit, families, model_options, output_shape
from stages.program.options import OptionError, UserError
from tests.conftest import ROOT

GREY = {"input_shape": [1, 28, 28], "classes": 10}
COLOUR = {"input_shape": [3, 32, 32], "classes": 10}
SLIM = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
SIXTEEN = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
LENET = GREY | {"name": "lenet", "padding": 2, "activation": "relu", "pool": "max"}
VGG = COLOUR | {"name": "vgg", "layers": SLIM, "batch_norm": True, "classifier": {"inputs": 512, "hidden": []}}
VGG16 = VGG | {"layers": SIXTEEN, "classifier": {"inputs": 512, "hidden": [4096, 4096], "dropout": 0.5}}
RESNET = COLOUR | {"name": "resnet", "residual": True}

COUNTS: dict[str, tuple[dict[str, Any], int]] = {
    "LeNet-5": (LENET, 61_706),
    "LeNet-5 for 3×32×32": (LENET | COLOUR | {"padding": 0}, 62_006),
    "LeNet-5 with batch normalisation": (LENET | {"padding": 0, "batch_norm": True}, 44_878),
    "LeNet-5 with sigmoid and average pooling": (LENET | {"activation": "sigmoid", "pool": "average"}, 61_706),
    "MLP": (GREY | {"name": "mlp", "hidden": [8, 8], "output": "log_softmax"}, 6_442),
    "CNN": (GREY | {"name": "cnn", "features": 6, "output": "log_softmax"}, 6_422),
    "BN-CNN": (GREY | {"name": "bn_cnn", "widths": [16, 32], "head": "fc"}, 29_034),
    "BN-CNN with a 1×1 head": (GREY | {"name": "bn_cnn", "widths": [16, 32], "head": "conv1x1"}, 13_674),
    "slim VGG": (VGG, 9_231_114),
    "VGG-16 with batch normalisation": (VGG16, 33_646_666),
    "VGG-16": (VGG16 | {"batch_norm": False}, 33_638_218),
    "VGG-11 for 1×224×224": (
        VGG | {"input_shape": [1, 224, 224], "batch_norm": False}
        | {"classifier": {"inputs": 25_088, "hidden": [4096, 4096], "dropout": 0.5}},
        128_806_154,
    ),
    "AlexNet": (COLOUR | {"name": "alexnet", "dropout": 0.5}, 29_983_114),
    "NiN": (GREY | {"name": "nin", "input_shape": [1, 224, 224], "dropout": 0.5}, 1_992_166),
    "GoogLeNet": (GREY | {"name": "googlenet", "input_shape": [1, 96, 96]}, 5_977_530),
    "ResNet-18": (RESNET | {"depth": 18}, 11_173_962),
    "ResNet-34": (RESNET | {"depth": 34}, 21_282_122),
    "ResNet-50": (RESNET | {"depth": 50}, 23_520_842),
    "ResNet-101": (RESNET | {"depth": 101}, 42_512_970),
    "ResNet-152": (RESNET | {"depth": 152}, 58_156_618),
}  # fmt: skip


def built(block: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return build_model(model_options(block, "model"))


def test_every_family_is_counted() -> None:
    assert {block["name"] for block, _ in COUNTS.values()} == set(families())


@pytest.mark.parametrize("model", COUNTS)
def test_a_model_has_its_exact_number_of_parameters(model: str) -> None:
    block, count = COUNTS[model]
    network = built(block)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == count


SHAPES = {
    "LeNet-5": {
        "conv1": [6, 28, 28], "pool1": [6, 14, 14], "conv2": [16, 10, 10], "pool2": [16, 5, 5], "flatten": [400],
        "fc1": [120], "fc2": [84], "fc3": [10],
    },
    "CNN": {"pool1": [6, 12, 12], "pool2": [6, 4, 4], "flatten": [96], "fc1": [50], "fc2": [10]},
    "AlexNet": {
        "conv1": [96, 32, 32], "pool1": [96, 15, 15], "pool2": [256, 7, 7], "pool3": [256, 3, 3], "flatten": [2304],
    },
    "NiN": {"block1": [96, 54, 54], "block2": [256, 26, 26], "block3": [384, 12, 12], "block4": [10, 5, 5]},
    "GoogLeNet": {
        "conv1": [64, 48, 48], "conv3": [192, 24, 24], "inception2": [480, 12, 12], "inception7": [832, 6, 6],
        "inception9": [1024, 3, 3], "flatten": [1024],
    },
    "ResNet-18": {"conv": [64, 32, 32], "group2": [128, 16, 16], "group4": [512, 4, 4], "flatten": [512]},
    "ResNet-50": {"group1": [256, 32, 32], "group4": [2048, 4, 4], "flatten": [2048]},
}  # fmt: skip


@pytest.mark.parametrize("model", SHAPES)
def test_a_models_layers_have_their_known_shapes(model: str) -> None:
    block, _ = COUNTS[model]
    network = built(block).eval()
    x, shapes = torch.zeros(4, *block["input_shape"]), {}
    with torch.inference_mode():
        for name, layer in network.named_children():
            x = layer(x)
            assert len(x) == 4
            shapes[name] = list(x.shape[1:])
    assert SHAPES[model].items() <= shapes.items()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            VGG | {"classifier": {"inputs": 2048, "hidden": []}},
            "does not fit: layer fc1 (Linear) gets N×512, but needs N×2048.",
        ),
        (
            VGG | {"layers": [*SLIM, "M"]},
            "does not fit: layer pool6 (MaxPool2d) gets N×512×1×1, but needs a height and width of 2×2 or more.",
        ),
        (
            LENET | {"input_shape": [1, 8, 8], "padding": 0},
            "does not fit: layer conv2 (Conv2d) gets N×6×2×2, but needs a height and width of 5×5 or more.",
        ),
        (
            LENET | {"input_shape": [1, 12, 12], "padding": 0, "pool": "average"},
            "does not fit: layer conv2 (Conv2d) gets N×6×4×4, but needs a height and width of 5×5 or more.",
        ),
        (
            COUNTS["NiN"][0] | {"input_shape": [1, 28, 28]},
            "does not fit: layer pool2 (MaxPool2d) gets N×256×2×2, but needs a height and width of 3×3 or more.",
        ),
    ],
)
def test_a_shape_that_does_not_fit_gets_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    options = model_options(changes, "model")
    with pytest.raises(OptionError) as caught:
        output_shape(build_model(options), options.input_shape)
    assert (caught.value.key, str(caught.value)) == ("model", sentence)


@pytest.mark.parametrize(
    ("layers", "got", "sentence"),
    [
        ([nn.Conv2d(1, 4, 3), nn.Conv2d(5, 4, 3)], [1, 9, 9], "layer 1 (Conv2d) gets N×4×7×7, but needs 5 channels."),
        ([nn.BatchNorm2d(3)], [1, 9, 9], "layer 0 (BatchNorm2d) gets N×1×9×9, but needs 3 channels."),
        ([nn.Unflatten(1, (2, 3))], [7], "layer 0 (Unflatten) gets N×7, but needs "),
        (
            [nn.Flatten(), nn.BatchNorm2d(81)],
            [1, 9, 9],
            "layer 1 (BatchNorm2d) gets N×81, but needs N×channels×height×width.",
        ),
        (
            [nn.Conv2d(1, 4, 11, padding="valid")],
            [1, 9, 9],
            "layer 0 (Conv2d) gets N×1×9×9, but needs a height and width of 11×11 or more.",
        ),
        (
            [nn.Conv2d(1, 4, 5, dilation=3, padding=1)],
            [1, 9, 9],
            "layer 0 (Conv2d) gets N×1×9×9, but needs a height and width of 11×11 or more.",
        ),
    ],
)
def test_layers_of_any_model_get_a_sentence(layers: list[nn.Module], got: list[int], sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        output_shape(nn.Sequential(*layers), got)
    assert str(caught.value).startswith(f"does not fit: {sentence}")


@pytest.mark.parametrize(
    ("network", "made"), [(nn.Conv2d(1, 10, 5), "N×10×24×24"), (nn.Sequential(nn.Flatten(), nn.Linear(784, 7)), "N×7")]
)
def test_a_model_that_makes_no_number_for_each_class_gets_a_sentence(network: nn.Module, made: str) -> None:
    with pytest.raises(OptionError) as caught:
        check_fit(network, model_options(LENET, "model"))
    sentence = f"does not fit: its output is {made}, but should be N×10, a number for each class."
    assert (caught.value.key, str(caught.value)) == ("model", sentence)


def test_an_unknown_model_gets_a_sentence() -> None:
    with pytest.raises(UserError, match=r"m\.name: there is no model 'lenett'; did you mean 'lenet'\?"):
        model_options(LENET | {"name": "lenett"}, "m")


def test_the_initial_weights_are_those_that_the_options_name() -> None:
    def weights(**changes: Any) -> torch.Tensor:
        return next(built(LENET | changes).parameters()).detach()

    torch.manual_seed(0)
    theirs = nn.Conv2d(1, 6, 5, padding=2)
    assert torch.equal(weights(), theirs.weight)
    bound = (6 / (25 + 150)) ** 0.5  # Glorot and Bengio: the root of 6 / (fan-in + fan-out)
    xavier = weights(init="xavier_uniform")
    assert 0.9 * bound < xavier.abs().max() <= bound
    assert not torch.equal(weights(init="xavier_uniform"), weights())
    last: Any = list(built(LENET | {"init": "xavier_uniform"}).parameters())[-2]
    assert 0.9 * (6 / 94) ** 0.5 < last.abs().max() <= (6 / 94) ** 0.5, "fully connected layers too"
    assert torch.equal(weights(init="kaiming_normal"), weights(init="kaiming_normal"))
    kaiming = built(VGG | {"init": "kaiming_normal"})
    convolutions = [layer for layer in kaiming.modules() if isinstance(layer, nn.Conv2d)]
    last = convolutions[-1]
    assert last.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)  # He et al.: 2 / fan-out
    assert last.bias is not None
    assert not last.bias.any()


@pytest.mark.parametrize("size", [28, 32])
def test_a_head_of_a_1x1_convolution_averages_what_it_makes_of_each_pixel(size: int) -> None:
    model = {"name": "bn_cnn", "input_shape": [1, size, size], "classes": 10, "widths": [16, 32], "head": "conv1x1"}
    net = built(model).eval()
    layers = list(net.named_children())
    at = next(
        place for place, (_, layer) in enumerate(layers) if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    )
    weight, bias = layers[at][1].parameters()
    x = torch.rand(3, 1, size, size)
    with torch.inference_mode():
        features = nn.Sequential(*(layer for _, layer in layers[:at]))(x)
        by_hand = F.linear(features.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).mean((1, 2))
        torch.testing.assert_close(net(x), by_hand)


def test_a_residual_block_adds_its_input() -> None:
    block = built(RESNET | {"depth": 18}).eval().get_submodule("group1.0")
    plain = built(RESNET | {"depth": 18, "residual": False}).eval().get_submodule("group1.0")
    plain.load_state_dict(block.state_dict())
    x = torch.rand(2, 64, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), F.relu(block.get_submodule("body")(x) + x))
        torch.testing.assert_close(plain(x), F.relu(block.get_submodule("body")(x)))


def same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Give `theirs` our weights; both have them in the same order."""
    mine, others = ours.state_dict().values(), theirs.state_dict()
    theirs.load_state_dict(dict(zip(others, mine, strict=True)))


def assert_same_function(ours: nn.Module, theirs: Any, shape: list[int], training: bool = False) -> None:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    ours.train(training)
    if isinstance(theirs, nn.Module):
        theirs.train(training)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_a_resnet_computes_what_torchvisions_does(depth: int) -> None:
    ours = built(RESNET | {"depth": depth})
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    same_weights(ours, theirs)
    # In training, batch normalisation takes the batch's own statistics, so that it matters where it stands.
    assert_same_function(ours, theirs, [3, 32, 32], training=True)


@pytest.mark.parametrize(("name", "batch_norm"), [("vgg16", False), ("vgg16_bn", True)])
def test_a_vgg_computes_what_torchvisions_does(name: str, batch_norm: bool) -> None:
    ours = built(VGG16 | {"batch_norm": batch_norm})
    theirs = getattr(torchvision.models, name)(num_classes=10)
    theirs.avgpool, theirs.classifier[0] = nn.Identity(), nn.Linear(512, 4096)
    same_weights(ours, theirs)
    assert_same_function(ours, theirs, [3, 32, 32])
    kinds = [type(layer) for layer in (*theirs.features, nn.Flatten(), *theirs.classifier)]
    assert [type(layer) for layer in ours.children()] == kinds, "dropout too"


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(
    ("activation", "act"), [("relu", torch.relu), ("sigmoid", torch.sigmoid), ("tanh", torch.tanh)]
)
@pytest.mark.parametrize(("pool", "pooled"), [("max", F.max_pool2d), ("average", F.avg_pool2d)])
def test_a_lenet_computes_what_its_options_say(
    activation: str, act: Any, pool: str, pooled: Any, batch_norm: bool
) -> None:
    net = built(LENET | {"activation": activation, "pool": pool, "batch_norm": batch_norm})
    layer: dict[str, Any] = dict(net.named_children())

    def norm(number: int, x: torch.Tensor) -> torch.Tensor:
        return layer[f"norm{number}"](x) if batch_norm else x

    def by_hand(x: torch.Tensor) -> Any:
        x = pooled(act(norm(1, F.conv2d(x, layer["conv1"].weight, layer["conv1"].bias, padding=2))), 2)
        x = pooled(act(norm(2, F.conv2d(x, layer["conv2"].weight, layer["conv2"].bias))), 2)
        x = act(norm(3, layer["fc1"](x.flatten(1))))
        return layer["fc3"](act(norm(4, layer["fc2"](x))))

    for layer_ in net.modules():  # so that batch normalisation in evaluation changes something
        if isinstance(layer_, nn.BatchNorm1d | nn.BatchNorm2d):
            layer_.running_mean, layer_.running_var = torch.rand(2, layer_.num_features)
    assert_same_function(net, by_hand, [1, 28, 28])


def test_a_nin_computes_convolutions_with_two_1x1_ones_after_each() -> None:
    net = built(COUNTS["NiN"][0]).eval()
    weights: list[Any] = list(net.parameters())

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        shapes = [(4, 0), (1, 2), (1, 1), (1, 1)]
        for number, (stride, padding) in enumerate(shapes):
            weight, bias, *ones = weights[6 * number : 6 * number + 6]
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            x = F.relu(F.conv2d(F.relu(F.conv2d(x, ones[0], ones[1])), ones[2], ones[3]))
            x = F.max_pool2d(x, 3, 2) if number < 3 else x.mean((2, 3))
        return x

    assert_same_function(net, by_hand, [1, 224, 224])


def test_an_inception_block_lays_four_paths_side_by_side() -> None:
    block = built(COUNTS["GoogLeNet"][0]).get_submodule("inception1")
    weights = list(block.parameters())

    def conv(x: torch.Tensor, number: int, padding: int = 0) -> torch.Tensor:
        return F.relu(F.conv2d(x, weights[2 * number], weights[2 * number + 1], padding=padding))

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        paths = [
            conv(x, 0),
            conv(conv(x, 1), 2, padding=1),
            conv(conv(x, 3), 4, padding=2),
            conv(F.max_pool2d(x, 3, 1, 1), 5),
        ]
        assert [path.shape[1] for path in paths] == [64, 128, 32, 32]
        return torch.cat(paths, 1)

    assert_same_function(block, by_hand, [192, 6, 6])


DROPOUT = {"AlexNet": ["dropout1", "dropout2"], "NiN": ["dropout"], "VGG-16": ["dropout1", "dropout2"]}


@pytest.mark.parametrize("model", DROPOUT)
def test_a_model_drops_out_where_its_source_does(model: str) -> None:
    layers = dict(built(COUNTS[model][0]).named_children())
    dropped = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Dropout)}
    assert list(dropped) == DROPOUT[model]
    assert all(layer.p == 0.5 for layer in dropped.values())


def test_an_alexnet_computes_convolutions_and_overlapping_poolings() -> None:
    net = built(COUNTS["AlexNet"][0])
    weights: list[Any] = list(net.parameters())

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        for number, (padding, pooled) in enumerate([(2, True), (2, True), (1, False), (1, False), (1, True)]):
            x = F.relu(F.conv2d(x, weights[2 * number], weights[2 * number + 1], padding=padding))
            x = F.max_pool2d(x, 3, 2) if pooled else x
        x = F.relu(F.linear(x.flatten(1), *weights[10:12]))
        return F.linear(F.relu(F.linear(x, *weights[12:14])), *weights[14:16])

    assert_same_function(net, by_hand, [3, 32, 32])


PARAMS = params.load(ROOT / "params.yaml")
IMAGE = {"digits": (1, 28, 28), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
COMPUTE = Compute(threads=1, precision="fp32")


def synthetic(dataset: str, count: int) -> tuple[Split, Statistics]:
    shape = IMAGE[dataset]
    random = np.random.default_rng(0)
    split = Split(random.integers(0, 256, (count, *shape), np.uint8), np.arange(count) % 10)
    known = Statistics(mean=[0.5] * shape[0], std=[0.25] * shape[0], train=count, test=count, classes={"any": count})
    return split, known


@pytest.mark.parametrize("name", PARAMS.labs)
def test_every_lab_learns_a_batch_by_heart(name: str) -> None:
    """A whole epoch of one step by the lab's own recipe; then ten steps on one small batch, whose loss falls."""
    lab = PARAMS.labs[name]
    choose_device(COMPUTE)
    split, known = synthetic(lab.dataset, 2)
    images = Images(split, Pipeline(lab.transform, known), torch.device("cpu"))
    torch.manual_seed(lab.seed)
    model = build_model(lab.model)
    recipe = lab.train.model_copy(update={"epochs": 1, "test_batch_size": 2})
    before = [p.detach().clone() for p in model.parameters()]
    state, history = loop.train(model, images, images, recipe, COMPUTE, lab.seed)
    assert len(history) == 1
    assert state.keys() == model.state_dict().keys()
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))

    inputs, labels = next(images.batches([slice(0, 2)]))
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    optimizer = make_optimizer(lab.train.optimizer, model.parameters())
    losses = []
    for _ in range(11):
        loss = F.cross_entropy(model(inputs), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert losses[-1] < losses[0], losses
