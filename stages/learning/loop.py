"""The training loop: epochs of batches, a test after each epoch, the best weights kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from stages.learning import convolution, gpu_convolution, linear
from stages.learning.checkpoint import Checkpoint
from stages.learning.device import memory_format
from stages.learning.graphs import GraphedStep, Step, are_wanted
from stages.learning.history import Epoch, best
from stages.learning.images import Images
from stages.learning.optimizers import make_optimizer, make_schedule
from stages.learning.recipe import Compute, Recipe
from stages.learning.run import EpochSoFar, Run
from stages.learning.scoring import Score, autocast, predict
from stages.learning.shortcuts import pool_before_relu
from stages.program.options import OptionError

REPORT_EVERY = 100


def train(
    model: nn.Module,
    training: Images,
    test: Images,
    recipe: Recipe,
    compute: Compute,
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> tuple[dict[str, Tensor], list[Epoch]]:
    """Train `model` in place by `recipe`.

    Args:
        model: from N×C×H×W to logits N×classes, on the device where the images are.
        training: images to learn from.
        test: images to score after each epoch.
        recipe: epochs, batches, optimizer and the rule that picks the best epoch.
        compute: precision; the thread count must have been set.
        seed: of shuffling, of augmentation, of dropout, and of the choice of validation images where the recipe
            holds some out.
        checkpoint: where the state of the training is kept, to go on from if it is there already.

    Returns:
        The state dict of the best epoch, and the history of all epochs.

    Raises:
        OptionError: the loss is no longer a finite number, an option does not fit the model, or a batch is too large
            for the GPU.
    """
    try:
        return _train(model, training, test, recipe, compute, seed, checkpoint)
    except torch.OutOfMemoryError:
        raise OptionError(
            "train.batch_size",
            f"is {recipe.batch_size}, which is too much for the GPU's memory; take less, or set LABDAG_CUDA_GRAPHS to "
            "off, which needs a part of the memory only.",
        ) from None


def _train(
    model: nn.Module,
    training: Images,
    test: Images,
    recipe: Recipe,
    compute: Compute,
    seed: int,
    checkpoint: Checkpoint | None,
) -> tuple[dict[str, Tensor], list[Epoch]]:
    run = begin(model, recipe, compute, seed)
    validation = None
    if held_out := recipe.held_out(len(training)):
        order = torch.randperm(len(training), generator=run.random)
        training, validation = training.part(order[held_out:]), training.part(order[:held_out])

    device = training.labels.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # dropout begins with the first step
        _check_outputs(model, training, recipe, compute)
        _check_last_batch(model, training, recipe)
    if checkpoint and (state := checkpoint.load()):
        run.load(state)
        print(f"going on from a checkpoint: {run.place()}", flush=True)
    while not _is_over(run, recipe):
        trained = _train_epoch(run, training, recipe, compute, checkpoint)
        number = len(run.history) + 1
        if not math.isfinite(trained.loss):
            raise OptionError(
                "train.optimizer.lr",
                f"is {recipe.optimizer.lr}, too high: the loss is {trained.loss} in epoch {number}.",
            )
        tested = _score(model, test, recipe, compute)
        validated = _score(model, validation, recipe, compute) if validation else None
        if not all(math.isfinite(scored.loss) for scored in (tested, validated) if scored):
            raise OptionError(
                "train.optimizer.lr",
                f"is {recipe.optimizer.lr}, too high: after epoch {number} the model's outputs are no finite numbers.",
            )
        run.end_epoch(
            Epoch(
                number,
                trained.loss,
                trained.accuracy,
                tested.loss,
                tested.accuracy,
                validated.loss if validated else None,
                validated.accuracy if validated else None,
            )
        )
        print(_line(run.history[-1], recipe.epochs), flush=True)
        if checkpoint:
            checkpoint.save(run.state())
    if len(run.history) < recipe.epochs:
        print(f"stopped early: no better epoch since epoch {best(run.history).epoch}", flush=True)
    return run.best_state, run.history


def begin(model: nn.Module, recipe: Recipe, compute: Compute, seed: int) -> Run:
    """A training of `model` before its first step; the global generators are seeded for it."""
    device = next(model.parameters()).device
    augmentation_seed, dropout_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    torch.manual_seed(seed if recipe.loader_order == "torch" else dropout_seed)
    model.to(memory_format=memory_format(compute))
    pool_before_relu(model)
    if compute.channels_last and device.type == "cuda":
        gpu_convolution.lay_out(model, is_exact=compute.precision == "fp32")
    elif compute.channels_last:
        convolution.lay_out(model)
        if compute.precision == "bf16":
            linear.lay_out(model)
    optimizer = make_optimizer(recipe.optimizer, model.parameters())
    return Run(
        model,
        optimizer,
        make_schedule(recipe, optimizer),
        # Shuffling has a generator of its own: labs that differ in dropout or augmentation see one order of images.
        random=torch.Generator().manual_seed(seed),
        augmentation=torch.Generator(device).manual_seed(augmentation_seed),
    )


def steps(run: Run, images: Images, recipe: Recipe, compute: Compute) -> Iterator[EpochSoFar]:
    """Begin an epoch, or go on with the one that has begun, to its last batch: gives it after each step."""
    model, device = run.model, images.labels.device
    model.train()
    if run.epoch is None:
        order = _order(len(images), run.random, recipe).to(device)
        # Sums stay on the device: reading them at every step would make a GPU wait for Python. On a CPU it would cost
        # nothing (LeNet-5, 2 threads: 1.00).
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        run.epoch = EpochSoFar(order, loss_sum, torch.zeros((), dtype=torch.int64, device=device))
    epoch = run.epoch
    step = _step(run, recipe, compute)
    # The optimizers' kernels for each weight compute otherwise where they are to be recorded.
    if are_wanted() and device.type == "cuda" and recipe.optimizer.fused:
        step = GraphedStep(step, run.optimizer)
    batches = torch.split(epoch.order, recipe.batch_size)
    for inputs, labels in images.batches(batches[epoch.step :], run.augmentation):
        loss, right = step(inputs, labels)
        epoch.loss_sum += loss * len(labels)
        epoch.right += right
        epoch.step += 1
        yield epoch


def _step(run: Run, recipe: Recipe, compute: Compute) -> Step:
    """One step of `run`: from inputs and labels of a batch to its mean loss and how many of it were recognised."""
    model, optimizer = run.model, run.optimizer

    def step(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(compute, labels.device):
            outputs = model(inputs)
        loss = _loss(outputs.float(), labels, recipe)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        return loss.detach(), (outputs.argmax(1) == labels).sum()

    return step


def _is_over(run: Run, recipe: Recipe) -> bool:
    done = len(run.history)
    if done and recipe.early_stopping and done - best(run.history).epoch >= recipe.early_stopping.patience:
        return True
    return done >= recipe.epochs


def _check_outputs(model: nn.Module, images: Images, recipe: Recipe, compute: Compute) -> None:
    """Hold what the model makes of an image against what the loss needs.

    Raises:
        OptionError: the loss needs log-probabilities, and the model's outputs are none.
    """
    if recipe.loss == "nll":
        inputs, _ = next(images.batches([slice(0, 1)]))
        with torch.inference_mode(), autocast(compute, inputs.device):
            total = model.eval()(inputs).float().logsumexp(1)
        if total.abs().item() > 0.1:  # bf16 is that rough
            raise OptionError(
                "train.loss",
                "is nll, which needs log-probabilities, but the model's outputs are logits; write cross_entropy, or "
                "have the model's output be log_softmax.",
            )


def _check_last_batch(model: nn.Module, images: Images, recipe: Recipe) -> None:
    """Find out before an epoch of work whether its last batch, where it is one image, can be trained on.

    Raises:
        OptionError: the model normalises over the batch, and of one image there is no spread.
    """
    if len(images) % recipe.batch_size != 1:
        return
    inputs, _ = next(images.batches([slice(0, 1)]))
    try:
        # A copy: batch normalisation would keep what it sees.
        copy.deepcopy(model).train()(inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise OptionError(
            "train.batch_size",
            f"is {recipe.batch_size}, which leaves a last batch of one image, too few for batch normalisation; "
            "take another size.",
        ) from None


def _train_epoch(run: Run, images: Images, recipe: Recipe, compute: Compute, checkpoint: Checkpoint | None) -> Score:
    count = math.ceil(len(images) / recipe.batch_size)
    with _Progress(len(run.history) + 1, recipe.epochs, count) as progress:
        for epoch in steps(run, images, recipe, compute):
            if epoch.step % REPORT_EVERY == 0 or epoch.step == count:
                progress.report(epoch.step, epoch.score(recipe.batch_size))
            if checkpoint and checkpoint.is_due():
                checkpoint.save(run.state())
    assert run.epoch is not None
    return run.epoch.score(recipe.batch_size)


def _order(count: int, random: torch.Generator, recipe: Recipe) -> Tensor:
    """The places of `count` images, int64, in the order in which an epoch takes them."""
    if recipe.loader_order == "torch":
        _draw_as_a_loader()
        if recipe.shuffle:
            random = torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
    return torch.randperm(count, generator=random) if recipe.shuffle else torch.arange(count)


def _draw_as_a_loader() -> None:
    """Draw from the global generator what a DataLoader draws for its workers, whenever somebody iterates over it."""
    torch.empty((), dtype=torch.int64).random_()


def _loss(outputs: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Mean loss of a batch: outputs N×classes, labels N."""
    if recipe.loss == "cross_entropy":
        return F.cross_entropy(outputs, labels, label_smoothing=recipe.label_smoothing)
    return F.nll_loss(outputs, labels)


def _score(model: nn.Module, images: Images, recipe: Recipe, compute: Compute) -> Score:
    if recipe.loader_order == "torch":
        _draw_as_a_loader()
    return predict(model, images, recipe.test_batch_size, compute).score(images.labels)


class _Progress:
    """Running loss and accuracy inside an epoch: a bar on a terminal, a line every 100 batches elsewhere."""

    def __init__(self, epoch: int, epochs: int, batches: int) -> None:
        self._title, self._batches = f"epoch {epoch}/{epochs}", batches
        self._bar = tqdm(total=batches, desc=self._title, unit="batch", leave=False, disable=None, mininterval=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def report(self, step: int, running: Score) -> None:
        """Say how the epoch goes after `step` batches."""
        text = f"loss {running.loss:.4f}, accuracy {running.accuracy:.2%}"
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % REPORT_EVERY == 0:
            print(f"{self._title}, batch {step}/{self._batches}: {text}", flush=True)


def _line(epoch: Epoch, epochs: int) -> str:
    text = (
        f"epoch {epoch.epoch}/{epochs}: train loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.2%}; "
        f"test loss {epoch.test_loss:.4f}, accuracy {epoch.test_accuracy:.2%}"
    )
    if epoch.validation_loss is not None and epoch.validation_accuracy is not None:
        text += f"; validation loss {epoch.validation_loss:.4f}, accuracy {epoch.validation_accuracy:.2%}"
    return text
