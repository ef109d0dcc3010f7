"""Models that no machine can hold, and options that no model can have: each gets a sentence that names its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from stages.models import build_model, model_options, output_shape
from stages.program.options import OptionError, UserError
from tests.conftest import ROOT, run

GREY: dict[str, Any] = {"input_shape": [1, 28, 28], "classes": 10}
MLP = GREY | {"name": "mlp", "hidden": [8], "output": "logits"}
CNN = GREY | {"name": "cnn", "features": 6, "output": "logits"}
BN_CNN = GREY | {"name": "bn_cnn", "widths": [16, 32], "head": "fc"}
VGG = GREY | {"name": "vgg", "layers": [8, "M"], "batch_norm": True, "classifier": {"inputs": 1568, "hidden": []}}
RESNET = GREY | {"name": "resnet", "depth": 18, "residual": True}
# 16 PB of weights: more than a process can address, so that no machine's generosity lets the test begin to fill it.
ENORMOUS = MLP | {"input_shape": [4096, 4096, 4096], "hidden": [65_536]}
NO_MEMORY = "does not fit into memory; it should have narrower layers, or smaller images."


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        (MLP | {"classes": 10**12}, "classes is 1000000000000, but should be less than or equal to 100000."),
        (MLP | {"classes": 10**20}, f"classes is {10**20}, but should be less than or equal to 100000."),
        (MLP | {"hidden": [8, 10**12]}, "hidden.1 is 1000000000000, but should be less than or equal to 65536."),
        (CNN | {"features": 10**7}, "features is 10000000, but should be less than or equal to 65536."),
        (BN_CNN | {"widths": [10**7]}, "widths.0 is 10000000, but should be less than or equal to 65536."),
        (
            VGG | {"classifier": {"inputs": 10**12, "hidden": []}},
            "classifier.inputs is 1000000000000, but should be less than or equal to 10000000.",
        ),
        (
            VGG | {"classifier": {"inputs": 1568, "hidden": [10**7]}},
            "classifier.hidden.0 is 10000000, but should be less than or equal to 65536.",
        ),
        (
            CNN | {"input_shape": [10**9, 28, 28]},
            "input_shape.0 is 1000000000, but should be less than or equal to 4096.",
        ),
        (CNN | {"input_shape": [1, 28]}, "input_shape is [1, 28], but should have 3 values."),
        (CNN | {"input_shape": [1, 28, 28, 1]}, "input_shape is [1, 28, 28, 1], but should have 3 values."),
        (
            VGG | {"classifier": {"inputs": 1568, "hidden": [], "dropout": 0.5}},
            "classifier: dropout is of hidden layers, and there are none; leave it out, or give hidden widths.",
        ),
        (VGG | {"layers": []}, "layers is [], but should have at least 1 value."),
        (VGG | {"layers": ["N", 3]}, "layers.0 is 'N', but should be a valid integer, or 'M'."),
        (VGG | {"layers": [3, 0]}, "layers.1 is 0, but should be greater than or equal to 1, or 'M'."),
        (RESNET | {"depth": "18"}, "depth is '18', but should be the number 18, 34, 50, 101 or 152, without quotes."),
        (RESNET | {"depth": 19}, "depth is 19, but should be 18, 34, 50, 101 or 152."),
    ],
)
def test_an_option_that_no_model_can_have_gets_a_sentence(block: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        model_options(block, "labs.x.model")
    assert str(caught.value) == f"params.yaml: labs.x.model.{sentence}"


def test_a_model_that_does_not_fit_into_memory_gets_a_sentence() -> None:
    with pytest.raises(OptionError) as caught:
        build_model(model_options(ENORMOUS, "model"))
    assert (caught.value.key, str(caught.value)) == ("model", NO_MEMORY)


@pytest.mark.parametrize(
    ("network", "shape"), [(nn.Identity(), [1, 10**9, 10**9]), (nn.ZeroPad2d(500_000_000), [1, 2, 2])]
)
def test_shapes_that_do_not_fit_into_memory_get_a_sentence(network: nn.Module, shape: list[int]) -> None:
    with pytest.raises(OptionError) as caught:
        output_shape(network, shape)
    assert (caught.value.key, str(caught.value)) == ("model", NO_MEMORY)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (ENORMOUS, f"labs.x.model {NO_MEMORY}"),
        (CNN | {"features": 10**20}, f"labs.x.model.features is {10**20}, but should be less than or equal to 65536."),
    ],
)
def test_the_stage_tells_it_in_one_line(model: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(f"labs: {{x: {{seed: 1, model: {model}}}}}\n")
    done = run("python", "-m", "stages.build", "x", cwd=tmp_path, check=False, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"Error: params.yaml: {sentence}\n")


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("class Model:\n    def x(:\n", "stages/models/mine.py, line 2: invalid syntax."),
        ("", "stages/models/mine.py has no Model; a family of models has `Model`, its options, and `build(model)`"),
        ("class Model: ...\n", "stages/models/mine.py has no build; a family of models has"),
        (
            "import math\n\nWIDTH = math.tow\n",
            "stages/models/mine.py, line 3: AttributeError: module 'math' has",
        ),
    ],
)
def test_a_module_that_is_no_family_gets_a_sentence(code: str, sentence: str, project: Path) -> None:
    (project / "stages/models/mine.py").write_text(code)
    done = run("labdag", "list", cwd=project, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
