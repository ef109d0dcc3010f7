"""Models, transforms, scores and the training loop, held against torchvision, NumPy, scikit-learn and exact counts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, Resize, ToTensor

from stages import params
from stages.datasets import statistics
from stages.datasets.arrays import Dataset, Split
from stages.datasets.transforms import (
    Pipeline,
    Transform,
    horizontal_flip,
    normalization,
    normalize,
    permute,
    random_crop,
    resize,
)
from stages.learning import history, loop, weights
from stages.learning.classes import confusion_matrix, per_class
from stages.learning.device import choose_device, emulates_bf16
from stages.learning.expectation import Expectation, Verdict, judge
from stages.learning.history import Epoch
from stages.learning.images import Images
from stages.learning.optimizers import make_optimizer, make_schedule
from stages.learning.recipe import Compute, Recipe
from stages.learning.scoring import predict
from stages.learning.shortcuts import pool_before_relu
from stages.models import build_model, model_options
from stages.program.options import OptionError, UserError
from tests.conftest import ROOT, run

LENET = {
    "name": "lenet", "input_shape": [1, 28, 28], "classes": 10, "padding": 2, "activation": "relu", "pool": "max",
}  # fmt: skip
CPU = torch.device("cpu")
COMPUTE = Compute(threads=1, precision="fp32")
RANDOM = np.random.default_rng(0)
NORMALIZE = {"normalize": {"by": "values", "mean": [0.1], "std": [0.3]}}
KNOWN = statistics.Statistics(mean=[0.1], std=[0.3], train=1, test=1, classes={"a": 1})


def lenet(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(model_options(LENET | changes, "model"))


def recipe(**changes: Any) -> Recipe:
    options = {
        "epochs": 2, "batch_size": 16, "test_batch_size": 50, "shuffle": True,
        "optimizer": {"name": "adam", "lr": 1e-3}, "select_on": "test",
    } | changes  # fmt: skip
    return Recipe.model_validate(options)


def images(count: int, seed: int = 0) -> Images:
    """Images in which the class is where the bright column stands."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 60, (count, 1, 28, 28), np.uint8)
    labels = random.integers(0, 10, count)
    for image, label in zip(pixels, labels, strict=True):
        image[:, :, 2 * label + 4] = 250
    return Images(Split(pixels, labels), Pipeline(Transform.model_validate(NORMALIZE), KNOWN), CPU)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_equals_torchvisions_bit_for_bit(channels: int) -> None:
    mean, std = [0.4914, 0.4822, 0.4465][:channels], [0.2023, 0.1994, 0.2010][:channels]
    pixels = RANDOM.integers(0, 256, (20, channels, 32, 32), np.uint8)
    transform = Compose([ToTensor(), Normalize(mean, std)])
    theirs = [transform(Image.fromarray(p[0] if channels == 1 else p.transpose(1, 2, 0))) for p in pixels]
    assert torch.equal(normalize(torch.from_numpy(pixels), mean, std), torch.stack(theirs))


def offsets(crops: torch.Tensor) -> torch.Tensor:
    """Where each crop of the picture in which a pixel's value is its place (row, column) begins."""
    return crops[:, :2, 4, 4].long() - 1


def test_random_crops_are_those_of_torchvision() -> None:
    """The same windows of the same bordered image, and each of the 81 as often as any other."""
    rows, columns = np.meshgrid(np.arange(1, 33), np.arange(1, 33), indexing="ij")
    picture = np.stack([rows, columns, rows]).astype(np.uint8)
    count = 16_200
    ours = random_crop(torch.from_numpy(picture).repeat(count, 1, 1, 1), 4, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    crop = RandomCrop(32, padding=4)
    theirs = torch.stack([crop(torch.from_numpy(picture)) for _ in range(count)])

    windows = {bytes(image.numpy().tobytes()) for image in theirs}
    assert len(windows) == 81
    assert {bytes(image.numpy().tobytes()) for image in ours} == windows
    for crops in (ours, theirs):
        top, left = offsets(crops).T
        seen = torch.bincount((top * 9 + left), minlength=81)
        assert scipy.stats.chisquare(seen).pvalue > 0.001


def test_horizontal_flips_are_those_of_torchvision() -> None:
    pixels = torch.from_numpy(RANDOM.integers(0, 256, (4_000, 3, 8, 8), np.uint8))
    ours = horizontal_flip(pixels, 0.3, torch.Generator().manual_seed(0))
    always = RandomHorizontalFlip(1.0)(pixels)
    flipped = (ours == always).flatten(1).all(1)
    assert torch.equal(ours, torch.where(flipped.view(-1, 1, 1, 1), always, pixels))
    torch.manual_seed(0)
    flip = RandomHorizontalFlip(0.3)
    theirs = sum(torch.equal(flip(image), image.flip(2)) for image in pixels)
    for count in (int(flipped.sum()), theirs):
        assert scipy.stats.binomtest(count, 4_000, 0.3).pvalue > 0.001


@pytest.mark.parametrize(("before", "after"), [((28, 28), (96, 96)), ((40, 30), (16, 20))])
def test_resizing_is_that_of_torchvision_and_of_pillow_within_a_grey_level(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    pixels = RANDOM.integers(0, 256, (5, 1, *before), np.uint8)
    resized = resize(torch.from_numpy(pixels), after)
    assert resized.dtype == torch.uint8
    each = torch.stack([Resize(after)(torch.from_numpy(image)) for image in pixels])
    assert (resized.int() - each.int()).abs().max() <= 1
    pillow = np.stack([np.asarray(Resize(after)(Image.fromarray(image[0]))) for image in pixels])
    assert np.abs(resized[:, 0].numpy().astype(int) - pillow.astype(int)).max() <= 1


def test_a_permutation_is_one_for_all_images_and_channels_and_loses_no_pixel() -> None:
    pixels = torch.arange(2 * 3 * 6 * 5).view(2, 3, 6, 5)
    permuted = permute(pixels, 7)
    order = permuted[0, 0].flatten()
    assert sorted(order.tolist()) == list(range(30))
    assert order.tolist() != list(range(30))
    assert torch.equal(permuted.flatten(2), pixels.flatten(2)[:, :, order])
    assert torch.equal(permuted, permute(pixels, 7))
    assert not torch.equal(permuted, permute(pixels, 8))


def test_only_training_images_are_cropped_and_flipped() -> None:
    options = {"resize": [16, 16], "random_crop": {"padding": 2}, "horizontal_flip": 0.5, "permute": {"seed": 1}}
    transform = Transform.model_validate(NORMALIZE | options)
    pipeline, pixels = Pipeline(transform, KNOWN), torch.from_numpy(RANDOM.integers(0, 256, (9, 1, 8, 8), np.uint8))
    plain = permute(normalize(resize(pixels, (16, 16)), [0.1], [0.3]), 1)
    assert torch.equal(pipeline(pixels), plain)
    assert list(plain.shape[1:]) == transform.shape((1, 8, 8)) == [1, 16, 16]
    random = torch.Generator().manual_seed(0)
    first, second = pipeline(pixels, random), pipeline(pixels, random)
    assert first.shape == plain.shape
    assert not torch.equal(first, second)
    assert torch.equal(first, pipeline(pixels, torch.Generator().manual_seed(0)))


def test_batches_made_together_are_those_made_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split(RANDOM.integers(0, 256, (200, 3, 8, 8), np.uint8), RANDOM.integers(0, 10, 200))
    known = KNOWN.model_copy(update={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]})
    options = NORMALIZE | {"resize": [10, 10], "permute": {"seed": 3}}
    options["normalize"] = {"by": "dataset"}
    data = Images(split, Pipeline(Transform.model_validate(options), known), CPU)
    order = torch.randperm(200)

    together = list(data.batches(torch.split(order, 16)))
    monkeypatch.setattr("stages.learning.images.TOGETHER", 0)
    one_by_one = list(data.batches(torch.split(order, 16)))

    assert [len(labels) for _, labels in together] == [16] * 12 + [8]
    for mine, theirs in zip(together, one_by_one, strict=True):
        assert torch.equal(mine[0], theirs[0])
        assert mine[0].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(mine[1], theirs[1])


def test_augmentation_is_drawn_when_a_batchs_turn_comes() -> None:
    split = Split(RANDOM.integers(0, 256, (64, 1, 8, 8), np.uint8), RANDOM.integers(0, 10, 64))
    options = Transform.model_validate(NORMALIZE | {"random_crop": {"padding": 2}})
    random = torch.Generator().manual_seed(0)
    batches = Images(split, Pipeline(options, KNOWN), CPU).batches(torch.split(torch.arange(64), 16), random)

    next(batches)

    after_one = torch.Generator().manual_seed(0)
    torch.randint(5, (2, 16), generator=after_one)
    assert torch.equal(random.get_state(), after_one.get_state())


def test_statistics_equal_numpys_in_float64() -> None:
    pixels = RANDOM.integers(0, 256, (50, 3, 9, 7), np.uint8)
    split = Split(pixels, RANDOM.integers(0, 2, 50))
    computed = statistics.compute(Dataset(split, split, ["a", "b", "never"]))
    scaled = pixels.astype(np.float64) / 255
    np.testing.assert_allclose(computed.mean, scaled.mean((0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(computed.std, scaled.std((0, 2, 3)), rtol=1e-13)
    assert computed.classes == {
        "a": int((split.labels == 0).sum()),
        "b": int((split.labels == 1).sum()),
        "never": 0,
    }


def test_normalisation_by_values_must_have_one_a_channel() -> None:
    known = statistics.Statistics(mean=[0.1, 0.2, 0.3], std=[1, 1, 1], train=1, test=1, classes={"a": 1})
    by = Transform.model_validate({"normalize": {"by": "values", "mean": [0.5], "std": [0.5]}})
    with pytest.raises(OptionError, match="has 1 values, but the images have 3 channels") as caught:
        normalization(by, known)
    assert caught.value.key == "transform.normalize.mean"


def test_a_channel_without_any_contrast_gets_a_sentence() -> None:
    known = statistics.Statistics(mean=[0.1, 0.2, 0.3], std=[1, 0, 1], train=1, test=1, classes={"a": 1})
    by = Transform.model_validate({"normalize": {"by": "dataset"}})
    with pytest.raises(OptionError, match="channel 1 is the same in every pixel"):
        normalization(by, known)


def test_weights_that_do_not_fit_get_a_sentence(tmp_path: Path) -> None:
    weights.save(lenet().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="is damaged or of another model"):
        weights.load(lenet(classes=3), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="is damaged or of another model"):
        weights.load(lenet(), tmp_path / "w.safetensors")


def test_predictions_and_scores_equal_torchs_and_scikit_learns() -> None:
    test, model = images(200), lenet().to(memory_format=torch.channels_last)
    made = predict(model, test, 64, COMPUTE)
    with torch.inference_mode():
        logits = torch.cat([model(inputs) for inputs, _ in test.in_order(64)])
    assert torch.equal(made.classes, logits.argmax(1))
    assert torch.equal(made.confidence, logits.softmax(1).amax(1))
    scored = made.score(test.labels)
    assert scored.loss == pytest.approx(nn.CrossEntropyLoss()(logits, test.labels).item(), rel=1e-6)
    assert scored.accuracy == sklearn.metrics.accuracy_score(test.labels, made.classes)


def test_scores_of_classes_equal_scikit_learns() -> None:
    predicted, actual = RANDOM.integers(0, 4, 200), np.arange(200) % 3
    matrix = confusion_matrix(actual, predicted, 4)
    assert np.array_equal(matrix, sklearn.metrics.confusion_matrix(actual, predicted, labels=range(4)))
    found = per_class(actual, predicted, ["a", "b", "c", "absent"])
    assert found["b"]["accuracy"] == found["b"]["recall"] == matrix[1, 1] / matrix[1].sum()
    assert found["b"]["precision"] == matrix[1, 1] / matrix[:, 1].sum()
    assert found["absent"] == {"accuracy": 0.0, "precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 0}


def test_training_learns_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    training, test, model = images(400), images(100, seed=1), lenet()
    best_state, epochs = loop.train(model, training, test, recipe(epochs=4), COMPUTE, seed=3)
    assert epochs[-1].train_loss < epochs[0].train_loss
    best = history.best(epochs)
    assert best.test_accuracy > 0.9

    weights.save(best_state, tmp_path / "best.safetensors")
    again = lenet().to(memory_format=torch.channels_last)
    weights.load(again, tmp_path / "best.safetensors")
    scored = predict(again, test, 50, COMPUTE).score(test.labels)
    assert (scored.accuracy, scored.loss) == (best.test_accuracy, best.test_loss)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bits(precision: Any) -> None:
    def trained(seed: int) -> bytes:
        compute = Compute(threads=1, precision=precision)
        choose_device(compute)
        state, _ = loop.train(lenet(), images(100), images(50), recipe(), compute, seed)
        return b"".join(tensor.contiguous().numpy().tobytes() for tensor in state.values())

    assert trained(1) == trained(1)
    assert trained(1) != trained(2)


def test_validation_images_are_held_out_of_training_and_pick_the_epoch() -> None:
    options = recipe(select_on="validation", validation_fraction=0.25)
    _, epochs = loop.train(lenet(), images(200), images(50), options, COMPUTE, seed=1)
    held_out_right = [(epoch.validation_accuracy or 0.5 / 50) * 50 for epoch in epochs]
    assert held_out_right == pytest.approx([round(right) for right in held_out_right]), "a quarter of 200 images"


def test_the_best_epoch_is_the_first_of_equals_by_the_rule() -> None:
    by_test = [Epoch(1, 1, 1, 1, 0.5), Epoch(2, 1, 1, 1, 0.7), Epoch(3, 1, 1, 1, 0.7)]
    assert history.best(by_test).epoch == 2
    by_validation = [Epoch(1, 1, 1, 1, 0.5, 1, 0.9), Epoch(2, 1, 1, 1, 0.7, 1, 0.8)]
    assert history.best(by_validation).epoch == 1


@pytest.mark.parametrize("validation", [(), (0.25, 0.875)])
def test_history_is_read_as_it_was_written(validation: tuple[float, ...], tmp_path: Path) -> None:
    epochs = [Epoch(1, 0.1 + 0.2, 1 / 3, 2.5, 0.9, *validation), Epoch(2, 1e-9, 1.0, 0.0, 0.5, *validation)]
    history.save(epochs, tmp_path / "history.csv")
    assert history.load(tmp_path / "history.csv") == epochs
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    assert header.startswith("epoch,train_loss,train_accuracy,test_loss,test_accuracy")


def test_images_are_held_out_only_to_validate() -> None:
    assert recipe(select_on="test", validation_fraction=0.25).held_out(200) == 0
    assert recipe(select_on="validation", validation_fraction=0.25).held_out(200) == 50
    assert recipe(select_on="validation", validation_fraction=0.001).held_out(200) == 1


def test_a_loss_that_is_no_number_gets_a_sentence() -> None:
    options = recipe(optimizer={"name": "sgd", "lr": 1e30})
    with pytest.raises(OptionError, match="too high: the loss is nan in epoch 1") as caught:
        loop.train(lenet(), images(100), images(50), options, COMPUTE, seed=1)
    assert caught.value.key == "train.optimizer.lr"


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, 10))


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({"name": "adam", "lr": 0.1, "weight_decay": 0.2}, lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.2)),
        ({"name": "adamw", "lr": 0.1}, lambda p: torch.optim.AdamW(p, lr=0.1)),
        ({"name": "adamw", "lr": 0.1, "weight_decay": 0.2}, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2)),
        (
            {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.2},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.2),
        ),
    ],
)
def test_an_optimizer_steps_as_torchs_own(options: dict[str, Any], theirs: Any) -> None:
    ours, other = parameter(), parameter()
    pairs = ((ours, make_optimizer(recipe(optimizer=options).optimizer, [ours])), (other, theirs([other])))
    for weights_, optimizer in pairs:
        for _ in range(5):
            optimizer.zero_grad()
            weights_.pow(3).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    torch.testing.assert_close(ours, other)


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_has_torchs_bits_and_goes_on_from_its_state(fused: bool) -> None:
    for options, theirs in (
        ({"name": "adam", "lr": 0.1}, torch.optim.Adam),
        ({"name": "adamw", "lr": 0.1}, torch.optim.AdamW),
        ({"name": "sgd", "lr": 0.1, "momentum": 0.9}, partial(torch.optim.SGD, momentum=0.9)),
    ):
        ours, other = parameter(), parameter()
        wanted = recipe(optimizer={**options, "fused": fused}).optimizer
        optimizer, torchs = make_optimizer(wanted, [ours]), theirs([other], lr=0.1, fused=fused or None)
        for step in range(4):
            if step == 2:
                state = optimizer.state_dict()
                optimizer = make_optimizer(wanted, [ours])
                optimizer.load_state_dict(state)
            for weights_, each in ((ours, optimizer), (other, torchs)):
                each.zero_grad()
                weights_.pow(3).sum().backward()  # type: ignore[no-untyped-call]
                each.step()
        assert torch.equal(ours, other)


COMPILER = """
import sys, torch
from stages.learning import optimizers, recipe
for kind in (recipe.Adam, recipe.AdamW, recipe.SGD):
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = optimizers.make_optimizer(kind(name=kind.__name__.lower(), lr=0.1), [parameter])
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
assert "torch" in sys.modules and not {"torch._dynamo", "triton", "sympy"} & set(sys.modules)
"""


def test_no_optimizer_loads_torchs_compiler() -> None:
    run("python", "-c", COMPILER, cwd=ROOT)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({"name": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"name": "constant", "warmup_epochs": 3}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"name": "step", "step_size": 2, "gamma": 0.1}, [1, 1, 0.1, 0.1, 0.01, 0.01]),
        ({"name": "step", "step_size": 2, "gamma": 0.5, "warmup_epochs": 1}, [0.5, 1, 1, 0.5, 0.5, 0.25]),
        ({"name": "cosine"}, [(1 + math.cos(math.pi * epoch / 6)) / 2 for epoch in range(6)]),
        (
            {"name": "cosine", "min_lr": 0.2, "warmup_epochs": 2},
            [1 / 3, 2 / 3, *(0.2 + 0.8 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4))],
        ),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule: dict[str, Any], rates: list[float]) -> None:
    options = recipe(epochs=6, schedule=schedule, optimizer={"name": "sgd", "lr": 1.0})
    optimizer = make_optimizer(options.optimizer, [parameter()])
    changes = make_schedule(options, optimizer)
    seen = []
    for _ in range(6):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        changes.step()
    assert seen == pytest.approx(rates)


def trained_weights(**changes: Any) -> torch.Tensor:
    """All weights after an epoch of one step of plain gradient descent."""
    model = lenet()
    options = recipe(epochs=1, batch_size=40, optimizer={"name": "sgd", "lr": 1.0}, **changes)
    loop.train(model, images(40), images(20), options, COMPUTE, seed=1)
    return flat(model)


def test_the_training_follows_the_schedule() -> None:
    start = flat(lenet())
    options = {"epochs": 2, "batch_size": 40, "optimizer": {"name": "sgd", "lr": 1e-4}, "shuffle": False}

    def steps(**changes: Any) -> torch.Tensor:
        model = lenet()
        loop.train(model, images(40), images(20), recipe(**options, **changes), COMPUTE, seed=1)
        return flat(model) - start

    # So small a rate leaves the gradient as it is: two steps, the second of a tenth, are 0.55 of two equal ones.
    reduced = steps(schedule={"name": "step", "step_size": 1, "gamma": 0.1})
    torch.testing.assert_close(reduced, 0.55 * steps(), rtol=0.05, atol=1e-7)


def test_gradients_are_clipped_to_the_norm() -> None:
    start = flat(lenet())
    free, clipped = trained_weights() - start, trained_weights(clip_norm=0.01) - start
    assert free.norm() > 0.1
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), rtol=1e-3, atol=1e-6)


def test_labels_are_smoothed_in_training_only() -> None:
    options = recipe(epochs=1, batch_size=40, label_smoothing=0.3, optimizer={"name": "sgd", "lr": 1e-9})
    training = images(40)
    _, (epoch,) = loop.train(lenet(), training, training, options, COMPUTE, seed=1)
    inputs, _ = next(training.in_order(40))
    logs = lenet().to(memory_format=torch.channels_last)(inputs).log_softmax(1)
    right = logs[torch.arange(40), training.labels]
    assert epoch.train_loss == pytest.approx(-(0.7 * right + 0.3 * logs.mean(1)).mean().item(), rel=1e-5)
    assert epoch.test_loss == pytest.approx(-right.mean().item(), rel=1e-5)


def test_nll_of_log_probabilities_is_cross_entropy_of_logits() -> None:
    def trained(output: str, loss: str) -> torch.Tensor:
        torch.manual_seed(0)
        block = {"name": "mlp", "input_shape": [1, 28, 28], "classes": 10, "hidden": [8], "output": output}
        model = build_model(model_options(block, "model"))
        loop.train(model, images(100), images(50), recipe(loss=loss), COMPUTE, seed=1)
        return flat(model)

    torch.testing.assert_close(trained("log_softmax", "nll"), trained("logits", "cross_entropy"))
    with pytest.raises(OptionError, match="is nll, which needs log-probabilities") as caught:
        trained("logits", "nll")
    assert caught.value.key == "train.loss"


def test_training_stops_early_when_nothing_improves() -> None:
    """At a rate of next to nothing the first epoch is the best one."""
    options = recipe(epochs=9, early_stopping={"patience": 3}, optimizer={"name": "sgd", "lr": 1e-12})
    _, epochs = loop.train(lenet(), images(64), images(50), options, COMPUTE, seed=1)
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4]
    learning = recipe(epochs=3, early_stopping={"patience": 3})
    assert len(loop.train(lenet(), images(400), images(100), learning, COMPUTE, seed=1)[1]) == 3


def test_a_last_batch_of_one_image_is_too_few_for_batch_normalisation() -> None:
    model = lenet(batch_norm=True)
    with pytest.raises(OptionError, match="is 16, which leaves a last batch of one image, too few for batch") as caught:
        loop.train(model, images(33), images(20), recipe(), COMPUTE, seed=1)
    assert caught.value.key == "train.batch_size"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss": "nll", "label_smoothing": 0.1}, "label_smoothing needs the loss cross_entropy"),
        ({"schedule": {"name": "cosine", "min_lr": 0.1}}, "schedule.min_lr is 0.1, but should not be more than"),
        ({"schedule": {"name": "cosine", "warmup_epochs": 2}}, "schedule.warmup_epochs is 2, but should be less than"),
    ],
)
def test_options_that_exclude_each_other_get_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        recipe(**changes)


def test_dropout_and_augmentation_follow_the_seed_and_leave_the_order_of_images_alone() -> None:
    def trained(seed: int, **options: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        block = {"name": "vgg", "input_shape": [1, 28, 28], "classes": 10, "layers": [4, "M"], "batch_norm": True,
                 "classifier": {"inputs": 784, "hidden": [16], "dropout": 0.5}}  # fmt: skip
        seen: list[torch.Tensor] = []
        transform = Transform.model_validate(NORMALIZE | options)
        training = images(60)
        training._pipeline = Pipeline(transform, KNOWN)
        batches = training.batches

        def watched(indices: Any, random: Any = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            seen.extend(indices)
            return batches(indices, random)

        training.batches = watched  # type: ignore[assignment, method-assign]
        model = build_model(model_options(block, "model"))
        loop.train(model, training, images(20), recipe(), COMPUTE, seed)
        return [flat(model), torch.cat(seen)]

    augmented = {"random_crop": {"padding": 2}, "horizontal_flip": 0.5}
    first, again, other = trained(1, **augmented), trained(1, **augmented), trained(2, **augmented)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    plain = trained(1)
    assert not torch.equal(first[0], plain[0])
    assert torch.equal(first[1], plain[1])


@pytest.mark.parametrize(
    ("accuracy", "agrees", "sentence"),
    [
        (0.9888, True, "98.88%, within the expected 99.08% ± 0.20 points"),
        (0.9887, False, "98.87%, outside the expected 99.08% ± 0.20 points"),
        (0.9929, False, "99.29%, outside the expected 99.08% ± 0.20 points"),
    ],
)
def test_a_result_is_held_against_what_is_expected(accuracy: float, agrees: bool, sentence: str) -> None:
    expected = Expectation(accuracy=0.9908, tolerance=0.002)
    assert judge(expected, accuracy) == Verdict(agrees, sentence)


def test_nothing_expected_is_nothing_missed() -> None:
    assert judge(Expectation(), 0.5) == Verdict(None, "50.00%; no accuracy is expected of this lab")
    with pytest.raises(ValidationError, match="accuracy and tolerance go together"):
        Expectation(accuracy=0.9)


def test_outputs_that_are_no_numbers_get_a_sentence() -> None:
    """Of one step the loss is that before it; what the step did shows in the test after it."""
    options = recipe(epochs=1, batch_size=100, optimizer={"name": "sgd", "lr": 1e30})
    with pytest.raises(OptionError, match="too high: after epoch 1 the model's outputs are no finite numbers"):
        loop.train(lenet(), images(100), images(50), options, COMPUTE, seed=1)


class Greedy(nn.Module):
    """Takes more memory than there is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError(f"CUDA out of memory with {len(inputs)} images")


def test_a_batch_too_large_for_a_gpu_gets_a_sentence() -> None:
    with pytest.raises(OptionError, match="is 32, which is too much for the GPU's memory; take less, or set LABDAG_"):
        loop.train(Greedy(), images(100), images(50), recipe(batch_size=32), COMPUTE, seed=1)


def test_a_device_that_is_not_there_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABDAG_DEVICE", "gpu")
    with pytest.raises(UserError, match="LABDAG_DEVICE is 'gpu', but should be auto, cpu or cuda"):
        choose_device(COMPUTE)
    monkeypatch.setenv("LABDAG_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no usable GPU"):
        choose_device(COMPUTE)
    monkeypatch.setenv("LABDAG_DEVICE", "auto")
    with pytest.raises(
        OptionError, match="is tf32, which only GPUs compute in, but torch finds none; write fp32 or bf16"
    ):
        choose_device(Compute(threads=1, precision="tf32"))
    assert choose_device(COMPUTE).type == "cpu"
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("knows", [False, True])
def test_bf16_is_emulated_on_a_processor_that_does_not_know_it(knows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.learning.device._knows_bf16", lambda: knows)
    asked = [Compute(threads=1, precision=precision) for precision in ("fp32", "bf16")]
    assert [emulates_bf16(each, torch.device("cpu")) for each in asked] == [False, not knows]
    assert not any(emulates_bf16(each, torch.device("cuda")) for each in asked)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lab", ["lenet_mnist", "cnn_mnist", "bn_cnn_mnist", "vgg_cifar10", "alexnet_cifar10"])
def test_pooling_before_relu_changes_no_bit(lab: str, precision: torch.dtype, layout: torch.memory_format) -> None:
    options = params.load(Path(__file__).parents[1] / "params.yaml").labs[lab].model
    found = []
    for shortcut in (False, True):
        torch.manual_seed(0)
        model = build_model(options).to(memory_format=layout)
        names = list(model.state_dict())
        if shortcut:
            before = [type(module) for module in model.modules()]
            pool_before_relu(model)
            assert [type(module) for module in model.modules()] != before
            assert list(model.state_dict()) == names
        inputs = torch.randint(0, 5, (8, *options.input_shape)).float().contiguous(memory_format=layout)
        with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
            outputs = model(inputs)
        outputs.float().pow(2).sum().backward()
        found.append([outputs, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
