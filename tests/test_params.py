"""params.yaml: the shipped file is right, its schema is the shipped schema, and every mistake gets a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field
from ruamel.yaml import YAML

from stages import params
from stages.program.options import Options, UserError, check, read_section
from tests.conftest import ROOT, edit_params, run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def fault(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        params.load(folder / "params.yaml")
    return str(caught.value)


def test_the_shipped_file_is_valid() -> None:
    loaded = params.load(ROOT / "params.yaml")
    assert {"digits", "mnist", "fashion_mnist", "cifar10"} <= loaded.datasets.keys()
    assert {"lenet_digits", "lenet_mnist"} <= loaded.labs.keys()


def test_the_shipped_schema_is_the_one_that_the_code_declares() -> None:
    assert (ROOT / "params.schema.json").read_text() == params.json_schema(), "run `make schema`"


def test_editors_find_the_schema_and_agree_with_it() -> None:
    text = (ROOT / "params.yaml").read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=params.schema.json"
    schema = json.loads((ROOT / "params.schema.json").read_text())
    values = YAML(typ="safe", pure=True).load(text)
    jsonschema.validate(values, schema)
    values["labs"]["lenet_digits"]["train"]["epocs"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, schema)


def test_every_field_has_a_description() -> None:
    def fields(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__module__}.{model.__name__}.{name}"

    pending: list[type[BaseModel]] = [each for each in Options.__subclasses__() if each.__module__.startswith("stages")]
    while pending:
        model = pending.pop()
        pending += model.__subclasses__()
        if not model.__module__.endswith((".statistics", "stages.build", ".train", ".evaluate", ".plot")):
            fields(model)


MISTAKES = [
    (
        {"labs__lenet_digits__dataset": "digit"},
        "labs.lenet_digits.dataset: there is no dataset 'digit'; did you mean 'digits'?",
    ),
    (
        {"labs__lenet_digits__model__name": "lenett"},
        "labs.lenet_digits.model.name: there is no model 'lenett'; did you mean 'lenet'? Known: alexnet, ",
    ),
    (
        {"labs__lenet_digits__train__optimizer__name": "adamm"},
        "labs.lenet_digits.train.optimizer.name: there is no optimizer 'adamm'; did you mean 'adam'? Known: adam, ad",
    ),
    (
        {"labs__lenet_digits__train__epocs": 3, "labs__lenet_digits__train__epochs": None},
        "labs.lenet_digits.train.epocs: there is no key 'epocs'; did you mean 'epochs'?",
    ),
    (
        {"labs__lenet_digits__train__optimizer__momentun": 0.9},
        "labs.lenet_digits.train.optimizer.momentun: there is no key 'momentun'.",
    ),
    (
        {"labs__lenet_digits__train__batch_size": "64"},
        "labs.lenet_digits.train.batch_size is '64', but should be a valid integer.",
    ),
    (
        {"labs__lenet_digits__train__epochs": 0},
        "labs.lenet_digits.train.epochs is 0, but should be greater than or equal to 1.",
    ),
    (
        {"labs__lenet_digits__train__shuffle": "yes"},
        "labs.lenet_digits.train.shuffle is 'yes', but should be a valid boolean.",
    ),
    (
        {"labs__lenet_digits__train__optimizer__lr": float("nan")},
        "labs.lenet_digits.train.optimizer.lr is nan, but should be a finite number.",
    ),
    (
        {"labs__lenet_digits__train__epochs": None},
        "labs.lenet_digits.train.epochs is missing: Passes over the training images.",
    ),
    (
        {"labs__lenet_digits__model__activation": "relo"},
        "labs.lenet_digits.model.activation: there is no activation 'relo'; did you mean 'relu'? Known: relu, ",
    ),
    (
        {"datasets__mnist__kind": "torchvison"},
        "datasets.mnist.kind: there is no kind 'torchvison'; did you mean 'torchvision'?",
    ),
    ({"datasets__mnist__kind": None}, "datasets.mnist.kind is missing"),
    (
        {"datasets__mnist__name": "MINST"},
        "datasets.mnist.name: there is no name 'MINST'; did you mean 'MNIST'? Known: MNIST, FashionMNIST, CIFAR10.",
    ),
    ({"labs__lenet_digits": 7}, "labs.lenet_digits is 7, but should be a block of keys and values."),
    ({"labs": []}, "labs is [], but should be a block of keys and values."),
    (
        {"labs__lenet_digits__train__optimizer": "adam"},
        "labs.lenet_digits.train.optimizer is 'adam', but should be a block of keys and values.",
    ),
    (
        {"labs__lenet_digits__model__input_shape": [1, 28]},
        "labs.lenet_digits.model.input_shape is [1, 28], but should have 3 values.",
    ),
    (
        {"labs__lenet_digits__transform__normalize": {"by": "values", "mean": [0.5] * 4, "std": [0.5]}},
        "labs.lenet_digits.transform.normalize.mean is [0.5, 0.5, 0.5, 0.5], but should have at most 3 values.",
    ),
    (
        {"labs__lenet_digits__transform__normalize": {"by": "values", "mean": [], "std": [0.5]}},
        "labs.lenet_digits.transform.normalize.mean is [], but should have at least 1 value.",
    ),
    (
        {"labs__lenet_digits__transform__resize": [28]},
        "labs.lenet_digits.transform.resize is [28], but should have 2 values.",
    ),
    (
        {"compare": {"one": {"labs": ["lenet_digits"]}}},
        "compare.one.labs is ['lenet_digits'], but should have at least 2 values.",
    ),
    (
        {"compare": {"all": {"labs": ["x"] * 13}}},
        f"compare.all.labs is {['x'] * 13}, but should have at most 12 values.",
    ),
    (
        {"labs__lenet_digits__transform__random_crop": {"paddin": 2}},
        "labs.lenet_digits.transform.random_crop.paddin: there is no key 'paddin'; did you mean 'padding'?",
    ),
    ({"labs__a b": {}}, "labs.a b: a name may hold letters, digits, _ and -, and may not begin with -."),
    ({"labs__a;touch b": {}}, "labs.a;touch b: a name may hold letters, digits, _ and -"),
    ({"datasets__..": {"kind": "torchvision", "name": "MNIST"}}, "datasets...: a name may hold letters, digits"),
]


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES, ids=[sentence for _, sentence in MISTAKES])
def test_a_mistake_gets_a_sentence(folder: Path, changes: dict[str, Any], sentence: str) -> None:
    edit_params(folder, **changes)
    assert fault(folder).splitlines()[0].startswith(f"params.yaml: {sentence}")


class Toy(Options):
    """Kinds of values that params.yaml has none of, or not yet."""

    pairs: dict[str, int] = Field(default={}, min_length=1, max_length=1, description="Of one length.")
    few: dict[str, int] | None = Field(default=None, max_length=2, description="Of several lengths.")
    rows: list[Annotated[list[int], Field(min_length=2, max_length=2)]] = Field(default=[], description="Of pairs.")
    steps: list[Annotated[int, Field(ge=1)] | Literal["M"]] | None = Field(default=None, description="Of two types.")
    size: int | Literal["auto", "off"] = Field(default=1, description="Of two types.")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"pairs": {}}, "toy.pairs is {}, but should have 1 value."),
        ({"few": {"a": 1, "b": 2, "c": 3}}, "toy.few is {'a': 1, 'b': 2, 'c': 3}, but should have at most 2 values."),
        ({"rows": [[1, 2], [1]]}, "toy.rows.1 is [1], but should have 2 values."),
        ({"steps": [1, "N"]}, "toy.steps.1 is 'N', but should be a valid integer, or 'M'."),
        ({"steps": [-1]}, "toy.steps.0 is -1, but should be greater than or equal to 1, or 'M'."),
        ({"size": "of"}, "toy.size is 'of', but should be a valid integer, or 'auto' or 'off'."),
    ],
)
def test_a_value_of_any_type_and_length_gets_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check(Toy, values, "toy")
    assert str(caught.value) == f"params.yaml: {sentence}"


def test_a_misspelt_key_is_not_told_as_missing_too(folder: Path) -> None:
    edit_params(folder, labs__lenet_digits__train__epocs=3, labs__lenet_digits__train__epochs=None)
    assert len(fault(folder).splitlines()) == 1


def test_a_lab_may_not_have_the_name_of_a_dataset(folder: Path) -> None:
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("  lenet_digits:", "  digits:"))
    assert fault(folder) == ("params.yaml: labs.digits: a dataset has this name already; a lab needs one of its own.")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labs__lenet_digits__model__input_shape": [3, 28, 28]}, "the images of digits are [1, 28, 28]."),
        ({"labs__lenet_digits__dataset": "cifar10"}, "the images of cifar10 are [3, 32, 32]."),
        ({"labs__lenet_digits__transform__resize": [32, 32]}, "the images of digits are [1, 32, 32] when resized."),
        (
            {
                "datasets__photos": {"kind": "image_folder", "path": "x", "size": [20, 30], "color": "rgb"},
                "labs__lenet_digits__dataset": "photos",
            },
            "the images of photos are [3, 20, 30].",
        ),
    ],
)
def test_a_model_for_other_images_than_the_datasets_is_told(
    changes: dict[str, Any], sentence: str, folder: Path
) -> None:
    shape = changes.get("labs__lenet_digits__model__input_shape", [1, 28, 28])
    edit_params(folder, **changes)
    assert fault(folder) == f"params.yaml: labs.lenet_digits.model.input_shape is {shape}, but {sentence}"


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    edit_params(folder, labs__lenet_digits__train__epochs=0, labs__lenet_mnist__plot__dpi=-1)
    assert len(fault(folder).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("labs: {a: 1\n", "line 2, column 1: "),
        ("labs: 1\nlabs: 2\n", 'line 2, column 1: found duplicate key "labs"; put its blocks together under one.'),
        ("- 1\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("labs: \0", "params.yaml: "),
    ],
)
def test_a_file_that_is_no_mapping_gets_a_sentence(folder: Path, text: str, sentence: str) -> None:
    (folder / "params.yaml").write_text(text)
    assert sentence in fault(folder)


def test_numbers_are_read_as_dvc_reads_them(folder: Path) -> None:
    loaded = params.load(folder / "params.yaml")
    assert loaded.labs["lenet_digits"].train.optimizer.lr == 0.001  # `1e-3` is a string to YAML 1.1


def test_a_stage_checks_its_own_section_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Section(Options):
        seed: int

    monkeypatch.chdir(folder)
    edit_params(folder, labs__lenet_digits__train=None)
    assert read_section("labs", "lenet_digits", Section).seed == 1
    edit_params(folder, labs__lenet_digits__seed="one")
    with pytest.raises(UserError, match=r"labs\.lenet_digits\.seed is 'one', but should be a valid integer"):
        read_section("labs", "lenet_digits", Section)
    with pytest.raises(UserError, match=r"there is no lab 'lenet_digit'; did you mean 'lenet_digits'\?"):
        read_section("labs", "lenet_digit", Section)


@pytest.mark.parametrize("stage", ["download", "stats", "build", "train", "evaluate", "plot"])
def test_a_stage_tells_an_unknown_name_in_one_sentence(stage: str, folder: Path) -> None:
    done = run("python", "-m", f"stages.{stage}", "lenet_digitz", cwd=folder, check=False, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
