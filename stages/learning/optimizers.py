"""Torch's optimizers and schedules as a recipe names them, without torch.compile, which nothing here uses.

Torch decorates some methods of its optimizers for torch.compile, and at their first call the decorators import the
compiler, with Triton and SymPy, which takes nearly as long again as `import torch`. Here the methods are those beneath
the decorators.
"""

from __future__ import annotations

from collections.abc import Iterable
from inspect import unwrap

import torch
from torch import nn, optim
from torch.optim import lr_scheduler as schedulers

from stages.learning import recipe as recipes


class _Undecorated(optim.Optimizer):
    add_param_group = unwrap(optim.Optimizer.add_param_group)
    load_state_dict = unwrap(optim.Optimizer.load_state_dict)
    state_dict = unwrap(optim.Optimizer.state_dict)
    zero_grad = unwrap(optim.Optimizer.zero_grad)


class Adam(_Undecorated, optim.Adam):
    """torch.optim.Adam, to the bit."""

    step = torch.no_grad()(unwrap(optim.Adam.step))


class AdamW(_Undecorated, optim.AdamW):
    """torch.optim.AdamW, to the bit."""

    step = torch.no_grad()(unwrap(optim.AdamW.step))


class SGD(_Undecorated, optim.SGD):
    """torch.optim.SGD, to the bit."""

    step = torch.no_grad()(unwrap(optim.SGD.step))


def make_optimizer(
    options: recipes.Adam | recipes.AdamW | recipes.SGD, parameters: Iterable[nn.Parameter]
) -> optim.Optimizer:
    """The optimizer that the recipe names, over `parameters`.

    The fused kernel updates all parameters in one call: 1.06 times the speed of the default, for an epoch of LeNet-5 on
    MNIST in batches of 64 (fp32, 2 CPU threads with AVX-512; 1.09 with AVX2; medians of 3).
    """
    # None, and not False, has torch choose as it does by default.
    fused = options.fused or None
    if options.name == "sgd":
        return SGD(parameters, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay, fused=fused)
    kind = Adam if options.name == "adam" else AdamW
    return kind(parameters, lr=options.lr, weight_decay=options.weight_decay, fused=fused)


def make_schedule(recipe: recipes.Recipe, optimizer: optim.Optimizer) -> schedulers.LRScheduler:
    """The recipe's schedule of the learning rate, to be stepped after each epoch."""
    options, warmup = recipe.schedule, recipe.schedule.warmup_epochs
    main: schedulers.LRScheduler
    match options:
        case recipes.Constant():
            main = schedulers.ConstantLR(optimizer, factor=1.0)
        case recipes.Step():
            main = schedulers.StepLR(optimizer, options.step_size, options.gamma)
        case recipes.Cosine():
            main = schedulers.CosineAnnealingLR(optimizer, recipe.epochs - warmup, options.min_lr)
    if warmup == 0:
        return main
    # Of the n epochs of warm-up the first has 1/(n+1) of the rate, and the first one after them all of it.
    rising = schedulers.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return schedulers.SequentialLR(optimizer, [rising, main], milestones=[warmup])
