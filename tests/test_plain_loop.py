"""The training loop, told to compute as torch does by default, gives the bits of a plain loop as courses teach it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

from stages.datasets.arrays import Split
from stages.datasets.statistics import Statistics
from stages.datasets.transforms import Pipeline, Transform
from stages.learning import loop
from stages.learning.device import choose_device, memory_format
from stages.learning.images import Images
from stages.learning.recipe import Compute, Recipe
from stages.models import build_model, model_options

LENET = {
    "name": "lenet", "input_shape": [1, 28, 28], "classes": 10, "padding": 2, "activation": "relu", "pool": "max",
}  # fmt: skip
DROPPING = {
    "name": "vgg", "input_shape": [1, 28, 28], "classes": 10, "layers": [8, "M", 8, "M"], "batch_norm": True,
    "classifier": {"inputs": 392, "hidden": [16], "dropout": 0.5},
}  # fmt: skip
EPOCHS, BATCH, SEED = 2, 16, 5


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Images that are PIL's until they are asked for, as in torchvision's own datasets."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.transform = Compose([ToTensor(), Normalize((0.1307,), (0.3081,))])

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.split.images[index][0])), int(self.split.labels[index])


def a_split(count: int) -> Split:
    chance = np.random.default_rng(count)
    return Split(chance.integers(0, 256, (count, 1, 28, 28), np.uint8), chance.integers(0, 10, count))


def model(options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return build_model(model_options(options, "model"))


def plainly_trained(options: dict[str, Any], training: Split, test: Split, shuffle: bool) -> tuple[nn.Module, float]:
    """A plain loop, from `torch.manual_seed` on; tells its last test accuracy, too."""
    net = model(options)
    torch.manual_seed(SEED)
    loader = DataLoader(Pictures(training), batch_size=BATCH, shuffle=shuffle)
    test_loader = DataLoader(Pictures(test), batch_size=50)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    right = 0
    for _ in range(EPOCHS):
        net.train()
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
        net.eval()
        right = 0
        with torch.no_grad():
            for images, labels in test_loader:
                right += int((net(images).argmax(1) == labels).sum())
    return net, right / len(test)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("options", [LENET, DROPPING], ids=["lenet", "dropout"])
def test_with_torchs_order_and_defaults_the_weights_are_those_of_a_plain_loop(
    options: dict[str, Any], shuffle: bool, threads: int
) -> None:
    compute = Compute(threads=threads, precision="fp32", channels_last=False)
    recipe = Recipe.model_validate({
        "epochs": EPOCHS, "batch_size": BATCH, "test_batch_size": 50, "shuffle": shuffle, "loader_order": "torch",
        "optimizer": {"name": "adam", "lr": 1e-3, "fused": False}, "select_on": "test",
    })  # fmt: skip
    device = choose_device(compute)
    transform = {"normalize": {"by": "values", "mean": [0.1307], "std": [0.3081]}}
    known = Statistics(mean=[0.1], std=[0.3], train=1, test=1, classes={"a": 1})
    pipeline = Pipeline(Transform.model_validate(transform), known)
    training, test = a_split(200), a_split(100)
    ours = model(options)
    images = [Images(split, pipeline, device, memory_format(compute)) for split in (training, test)]
    _, history = loop.train(ours, images[0], images[1], recipe, compute, SEED)
    theirs, accuracy = plainly_trained(options, training, test, shuffle)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert history[-1].test_accuracy == accuracy


def test_its_own_order_is_another_one() -> None:
    orders = {}
    for order in ("own", "torch"):
        recipe = Recipe.model_validate({
            "epochs": 1, "batch_size": 4, "test_batch_size": 4, "shuffle": True, "loader_order": order,
            "optimizer": {"name": "sgd", "lr": 1e-3}, "select_on": "test",
        })  # fmt: skip
        torch.manual_seed(1)
        orders[order] = loop._order(50, torch.Generator().manual_seed(1), recipe)
    assert sorted(orders["own"].tolist()) == sorted(orders["torch"].tolist()) == list(range(50))
    assert not torch.equal(orders["own"], orders["torch"])
