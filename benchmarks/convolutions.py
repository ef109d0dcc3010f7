"""Each convolution of a lab's model on a CPU: as a training computes it beside torch's own, and how much each rounds.

    python -m benchmarks.convolutions                              # vgg_cifar10, fp32
    python -m benchmarks.convolutions resnet18_cifar10 --precision bf16

Both are in channels_last and take turns, in one process, each after 64 MiB of other memory were written: a layer of a
training does not find its inputs in the processor's caches either. Milliseconds are medians of a forward and a backward
pass, on a batch of the lab's recipe. The error is the root mean square of what outputs and gradients are off beside the
same layer in float64, on up to 8 images, as a share of their own; of the three the largest. Let nothing else run
meanwhile.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics as numbers
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.results import machine, positive
from stages import params
from stages.learning.convolution import Convolution, choose_way, fits
from stages.learning.device import choose_device
from stages.models import build_model

ROOT = Path(__file__).parents[1]
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}
WARM_UP = 2  # turns
OTHER = 1 << 24  # numbers of 4 bytes, more than the caches hold
IMAGES = 8


def main() -> None:
    """Print a table of the lab's convolutions."""
    labs = params.load(ROOT / "params.yaml").labs
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lab", nargs="?", choices=labs, metavar="LAB", default="vgg_cifar10")
    parser.add_argument("--precision", choices=KINDS, default="fp32", help="(default: fp32)")
    parser.add_argument("--threads", type=positive, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--rounds", type=positive, default=9, help="turns that count (default: 9)")
    options = parser.parse_args()
    lab = labs[options.lab]
    os.environ["LABDAG_DEVICE"] = "cpu"  # also where there is a GPU
    choose_device(lab.compute.model_copy(update={"threads": options.threads, "precision": options.precision}))
    kind, batch = KINDS[options.precision], lab.train.batch_size
    print(f"{machine()}\n\n{options.lab}, {options.precision}, {options.threads} threads, batches of {batch}\n")
    print("| image, channels, filters, kernel | way | torch, ms | labdag, ms | gain | torch's error | labdag's |")
    print("| :--- | :--- | ---: | ---: | ---: | ---: | ---: |")
    for shape, layer in _convolutions(build_model(lab.model), lab.model.input_shape):
        ours = Convolution.of(layer)
        way = choose_way(torch.Size([batch, *shape]), layer.weight.shape, ours.padding, kind)
        inputs = torch.rand(batch, *shape).to(kind).contiguous(memory_format=torch.channels_last)
        both = [_Timed(layer, inputs, kind), _Timed(ours, inputs, kind)]
        for number in range(-WARM_UP, options.rounds):
            for one in both:
                one.take_a_turn(counts=number >= 0)
        theirs, own = (numbers.median(one.seconds) * 1e3 for one in both)
        name = f"{shape[1]}×{shape[2]}, {shape[0]}, {len(layer.weight)}, {'×'.join(map(str, layer.kernel_size))}"
        errors = " | ".join(f"{one.error():.1e}" for one in both)
        told = way.name.lower() if way else "torch's"
        print(f"| {name} | {told} | {theirs:.1f} | {own:.1f} | {theirs / own:.2f} | {errors} |", flush=True)


def _convolutions(model: nn.Module, shape: tuple[int, int, int]) -> list[tuple[tuple[int, int, int], nn.Conv2d]]:
    """The convolutions that can be computed another way, with the shapes of their images; of equal ones the first.

    A model's first one is not among them: nothing is gained there but together with its pooling.
    """
    found: dict[tuple[object, ...], tuple[tuple[int, int, int], nn.Conv2d]] = {}

    def look(layer: nn.Conv2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        if inputs[0].requires_grad:
            channels, height, width = inputs[0].shape[1:]
            kind = (height, width, layer.weight.shape, layer.padding)
            found.setdefault(kind, ((channels, height, width), layer))

    hooks = [layer.register_forward_hook(look) for layer in [module for module in model.modules() if fits(module)]]
    model.train()(torch.rand(2, *shape))
    for hook in hooks:
        hook.remove()
    return [(shape, layer.to(memory_format=torch.channels_last)) for shape, layer in found.values()]


class _Timed:
    """One layer, its inputs and how long it took."""

    def __init__(self, layer: nn.Conv2d, inputs: Tensor, kind: torch.dtype) -> None:
        self.layer, self.inputs, self.kind = layer.train(), inputs.detach().requires_grad_(), kind
        self.other = torch.zeros(OTHER)
        self.seconds: list[float] = []

    def take_a_turn(self, *, counts: bool) -> None:
        """Compute and time a forward and a backward pass."""
        self.other.add_(1)
        started = time.perf_counter()
        outputs = self._outputs(self.inputs)
        took = time.perf_counter() - started
        gradient = torch.ones_like(outputs)
        self.other.add_(1)
        started = time.perf_counter()
        outputs.backward(gradient)  # type: ignore[no-untyped-call]
        took += time.perf_counter() - started
        self.inputs.grad = self.layer.weight.grad = None
        if counts:
            self.seconds.append(took)

    def error(self) -> float:
        """The largest share that outputs, and gradients of inputs and weight, are off."""
        torch.manual_seed(0)
        # The whole batch, for the way of a layer depends on it; of the weight's gradient only some images have a part.
        inputs = self.inputs.detach().requires_grad_()
        some = slice(0, IMAGES)
        outputs = self._outputs(inputs)
        gradient = torch.zeros_like(outputs)
        gradient[some] = torch.randn_like(outputs[some])
        found = torch.autograd.grad(outputs, [inputs, self.layer.weight], gradient)
        exact = copy.deepcopy(self.layer).double()
        few = inputs.detach()[some].double().requires_grad_()
        expected = nn.functional.conv2d(few, exact.weight, exact.bias, padding=exact.padding)
        true = torch.autograd.grad(expected, [few, exact.weight], gradient[some].double())
        pairs = [(outputs[some], expected.detach()), (found[0][some], true[0]), (found[1], true[1])]
        return float(max((one.detach().double() - other).norm() / other.norm() for one, other in pairs))

    def _outputs(self, inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.kind is torch.bfloat16):
            outputs: Tensor = self.layer(inputs)
        return outputs


if __name__ == "__main__":
    main()
