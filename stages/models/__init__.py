"""Models, one module for each family: the folder is the registry.

A model module has two public names:

- `Model`: the typed options of a lab's `model` block, a `Family` with `name` as a literal equal to the
  module's name;
- `build(model)`: the network, an nn.Module from N×C×H×W float32 to logits N×classes. What it draws from
  torch's global generator on being made are torch's default weights; `build_model` then draws others where
  the options say so.

Importing one does not import torch; building does. So whoever only checks params.yaml stays light.
"""

from __future__ import annotations

import importlib
import pkgutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from stages.program.options import OptionError, Options, UserError, check, unknown

if TYPE_CHECKING:
    from torch import nn

# A slip of the finger (10**12 for 10, a zero too many) is told of its key, long before memory runs out.
Size = Annotated[int, Field(ge=1, le=4096)]
Width = Annotated[int, Field(ge=1, le=65_536)]


class Family(Options):
    """What the options of every family of models have in common."""

    input_shape: list[Size] = Field(
        min_length=3, max_length=3, description="Channels, height and width of an image, as the transform leaves it."
    )
    classes: int = Field(ge=2, le=100_000, description="Number of classes.")
    init: Literal["torch", "xavier_uniform", "kaiming_normal"] = Field(
        default="torch",
        description="Initial weights of convolutions and fully connected layers: torch's default (uniform, by "
        "fan-in), Xavier uniform (Glorot and Bengio, 2010), or Kaiming normal by fan-out (He et al., 2015).",
    )


def families() -> list[str]:
    """Names of all families of models."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def family(name: str) -> Any:
    """The module of a family, which has `Model` and `build`.

    Raises:
        UserError: it can't be imported, or lacks one of them.
    """
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}.") from None
    except Exception as error:  # whatever the code of a model raises
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(f"{place.filename}, line {place.lineno}: {type(error).__name__}: {error}.") from None
    for wanted in ("Model", "build"):
        if not hasattr(module, wanted):
            raise UserError(
                f"{module.__file__} has no {wanted}; a family of models has `Model`, its options, and "
                "`build(model)`, which makes the network."
            )
    return module


def model_options(block: dict[str, Any], where: str) -> Any:
    """Validate a `model` block, which stands at `where` of params.yaml: a `Model` of the family it names.

    Raises:
        UserError: the block names no family, its module can't be taken, or its options are wrong.
    """
    name = block.get("name")
    if name is None:
        raise UserError(f"params.yaml: {where}.name is missing: the model's family. Known: {', '.join(families())}.")
    if name not in families():
        raise UserError(f"params.yaml: {where}.name: {unknown('model', str(name), families())}")
    options: type[Options] = family(name).Model
    return check(options, block, where)


def build_model(options: Any) -> nn.Module:
    """Build the network that validated options describe, initialised from torch's global generator.

    Raises:
        OptionError: a layer does not fit its input, or the model does not fit into memory.
    """
    with _within_memory():
        network: nn.Module = family(options.name).build(options)
        _initialise(network, options.init)
    return network


def check_fit(network: nn.Module, options: Any) -> None:
    """See that the layers of a network fit each other, and that it makes a number for each class.

    Args:
        network: what `build_model` built.
        options: what it was built from.

    Raises:
        OptionError: as `output_shape` says, or what comes out is not N×classes.
    """
    made = output_shape(network, options.input_shape)
    if made != [options.classes]:
        raise OptionError(
            "model",
            f"does not fit: its output is N×{'×'.join(map(str, made))}, but should be N×{options.classes}, "
            "a number for each class.",
        )


def output_shape(network: nn.Module, shape: list[int]) -> list[int]:
    """Shape of what `network` makes of one image C×H×W, without the batch; the network is left as it is.

    Raises:
        OptionError: a layer does not fit its input; the text names the layer, the shape it got and what it needs.
            Or what the layers make of the image does not fit into memory.
    """
    import torch

    inside: list[tuple[str, nn.Module, list[int]]] = []

    def enter(name: str) -> Any:
        return lambda module, inputs: inside.append((name, module, list(inputs[0].shape[1:])))

    leaves = [(name, module) for name, module in network.named_modules() if not any(module.children())]
    handles = [module.register_forward_pre_hook(enter(name)) for name, module in leaves]
    handles += [module.register_forward_hook(lambda *_: inside.clear()) for _, module in leaves]
    was_training = network.training
    try:
        with _within_memory(), torch.inference_mode():
            return list(network.eval()(torch.zeros(1, *shape)).shape[1:])
    except OptionError:
        raise
    except Exception as error:  # which type it is depends on the layer
        if not inside:
            if not isinstance(error, RuntimeError | ValueError | IndexError):
                raise
            raise OptionError("model", f"does not fit: {error}") from None
        name, module, got = inside[-1]
        shape_got, needs = "×".join(map(str, got)), _needs(module, got) or str(error)
        raise OptionError(
            "model", f"does not fit: layer {name} ({type(module).__name__}) gets N×{shape_got}, but needs {needs}."
        ) from None
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()


@contextmanager
def _within_memory() -> Iterator[None]:
    """Turn a failed allocation inside into an OptionError.

    Raises:
        OptionError: there is not enough memory.
    """
    try:
        yield
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):  # torch has no type of its own for it, only this text
            raise
        raise OptionError(
            "model", "does not fit into memory; it should have narrower layers, or smaller images."
        ) from None


def _needs(module: nn.Module, got: list[int]) -> str | None:
    """What shape of an input a layer needs that did not take an input of shape `got`, as far as that is known."""
    from torch import nn

    match module:
        case nn.Linear():
            return f"N×{module.in_features}"
        case nn.Conv2d() | nn.MaxPool2d() | nn.AvgPool2d() | nn.BatchNorm2d() if len(got) != 3:
            return "N×channels×height×width"
        case nn.Conv2d() if module.in_channels != got[0]:
            return f"{module.in_channels} channels"
        case nn.Conv2d() | nn.MaxPool2d() | nn.AvgPool2d():
            return f"a height and width of {_least(module, 0)}×{_least(module, 1)} or more"
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return f"{module.num_features} channels"
        case _:
            return None


def _least(layer: Any, side: int) -> int:
    """The smallest height (side 0) or width (side 1) of an input that a convolution or pooling can take."""
    padding = 0 if layer.padding == "valid" else layer.padding
    sizes = (layer.kernel_size, padding, getattr(layer, "dilation", 1))
    kernel, padding, dilation = (size if isinstance(size, int) else size[side] for size in sizes)
    return int(dilation * (kernel - 1) + 1 - 2 * padding)


def _initialise(network: nn.Module, how: str) -> None:
    """Draw the weights of convolutions and fully connected layers anew; biases stay torch's, or are 0 for Kaiming."""
    from torch import nn

    if how == "torch":
        return
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if how == "xavier_uniform":
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
