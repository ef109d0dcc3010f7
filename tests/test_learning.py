"""Models, transforms, scores and the training loop, held against torchvision, NumPy, scikit-learn and exact counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import Compose, Normalize, ToTensor

from stages.datasets import statistics
from stages.datasets.arrays import Dataset, Split
from stages.datasets.transforms import Transform, normalization, normalize
from stages.learning import history, loop, weights
from stages.learning.classes import confusion_matrix, per_class
from stages.learning.history import Epoch
from stages.learning.images import Images
from stages.learning.recipe import Compute, Recipe, choose_device
from stages.learning.scoring import predict, score
from stages.models import build_model, model_options
from stages.program.options import OptionError, UserError

LENET = {
    "name": "lenet", "input_shape": [1, 28, 28], "classes": 10, "padding": 2, "activation": "relu", "pool": "max",
}  # fmt: skip
CPU = torch.device("cpu")
COMPUTE = Compute(threads=1, precision="fp32")
RANDOM = np.random.default_rng(0)


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
    return Images(Split(pixels, labels), [0.1], [0.3], CPU)


@pytest.mark.parametrize(
    ("changes", "parameters"), [({}, 61_706), ({"input_shape": [3, 32, 32], "padding": 0}, 62_006)]
)
def test_lenet_has_its_exact_number_of_parameters(changes: dict[str, Any], parameters: int) -> None:
    assert sum(p.numel() for p in lenet(**changes).parameters()) == parameters


def test_lenets_layers_have_their_known_shapes() -> None:
    x, shapes = torch.zeros(4, 1, 28, 28), {}
    for name, layer in lenet().named_children():
        x = layer(x)
        shapes[name] = tuple(x.shape)
    assert {name: shape for name, shape in shapes.items() if not name.startswith("act")} == {
        "conv1": (4, 6, 28, 28),
        "pool1": (4, 6, 14, 14),
        "conv2": (4, 16, 10, 10),
        "pool2": (4, 16, 5, 5),
        "flatten": (4, 400),
        "fc1": (4, 120),
        "fc2": (4, 84),
        "fc3": (4, 10),
    }


def test_an_image_too_small_for_lenet_gets_a_sentence() -> None:
    with pytest.raises(OptionError, match="too small: nothing is left of the image after pool2") as caught:
        lenet(input_shape=[1, 8, 8], padding=0)
    assert caught.value.key == "model.input_shape"


def test_an_unknown_model_gets_a_sentence() -> None:
    with pytest.raises(UserError, match=r"m\.name: there is no model 'lenett'; did you mean 'lenet'\?"):
        model_options(LENET | {"name": "lenett"}, "m")


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_equals_torchvisions_bit_for_bit(channels: int) -> None:
    mean, std = [0.4914, 0.4822, 0.4465][:channels], [0.2023, 0.1994, 0.2010][:channels]
    pixels = RANDOM.integers(0, 256, (20, channels, 32, 32), np.uint8)
    transform = Compose([ToTensor(), Normalize(mean, std)])
    theirs = [transform(Image.fromarray(p[0] if channels == 1 else p.transpose(1, 2, 0))) for p in pixels]
    assert torch.equal(normalize(torch.from_numpy(pixels), mean, std), torch.stack(theirs))


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


def test_scores_equal_torchs_and_scikit_learns() -> None:
    logits, labels = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 3
    predicted, actual = logits.argmax(1).numpy(), labels.numpy()
    scored = score(logits, labels)
    assert scored.loss == nn.CrossEntropyLoss()(logits, labels).item()
    assert scored.accuracy == sklearn.metrics.accuracy_score(actual, predicted)
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
    scored = score(predict(again, test, 50, COMPUTE), test.labels)
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


def test_a_device_that_is_not_there_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABDAG_DEVICE", "gpu")
    with pytest.raises(UserError, match="LABDAG_DEVICE is 'gpu', but should be auto, cpu or cuda"):
        choose_device(COMPUTE)
    monkeypatch.setenv("LABDAG_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no usable GPU"):
        choose_device(COMPUTE)
