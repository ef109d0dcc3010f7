"""Datasets of every kind: the same interface, and one clear sentence for whatever is wrong with the images."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import socket
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets as torchvision_datasets

from stages import download
from stages.datasets import arrays, statistics
from stages.datasets.sources import digits, kinds, torchvision
from stages.program.options import UserError
from tests.conftest import MIRRORS, ROOT, run
from tests.misbehaving import serving

SIZE = (8, 10)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def block(**options: Any) -> None:
    """Make `mine`, an image_folder block, the only one of params.yaml."""
    mine = {"kind": "image_folder", "path": "photos", "size": list(SIZE), "color": "rgb"} | options
    Path("params.yaml").write_text(json.dumps({"datasets": {"mine": mine}}))


def picture(path: Path, shade: int, size: tuple[int, int] = (10, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(path)


def photos(root: Path, parts: tuple[str, ...] = ("train", "test"), each: int = 2) -> None:
    for part in parts:
        for label, name in enumerate(("cat", "dog")):
            for number in range(each):
                picture(root / part / name / f"{number}.png", 100 * label + number)


def failure() -> str:
    with pytest.raises(UserError) as caught:
        download.main("mine")
    assert not Path("data/raw/mine").exists()
    assert list(Path().rglob("*.part")) == [], "nothing half-written"
    return str(caught.value)


def pinned(**options: Any) -> None:
    """Make the block with the checksum that download asks for."""
    block(**options)
    block(**options, sha256=failure().rpartition("sha256: ")[2])


def packed(root: Path, archive: str) -> str:
    """Pack a folder, and return the archive's checksum."""
    if archive.endswith(".zip"):
        with zipfile.ZipFile(archive, "w") as zipped:
            for path in sorted(root.rglob("*.png")):
                zipped.write(path, path.relative_to(root.parent))
    else:
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(root, root.name)
    return hashlib.sha256(Path(archive).read_bytes()).hexdigest()


def test_the_digits_are_scikit_learns_split_by_class() -> None:
    source = digits.Source(kind="digits", size=28, test_fraction=0.25, seed=0)
    first, again = digits.read(source, Path()), digits.read(source, Path())
    assert (len(first.train), len(first.test), first.shape) == (1347, 450, (1, 28, 28))
    assert first.classes == [str(digit) for digit in range(10)]
    counts = [np.bincount(split.labels) for split in (first.train, first.test)]
    assert np.abs(counts[0] / counts[0].sum() - counts[1] / counts[1].sum()).max() < 0.005
    assert first.train.images.max() == 255
    assert np.array_equal(first.train.images, again.train.images)
    other = digits.read(source.model_copy(update={"seed": 1}), Path())
    assert not np.array_equal(first.train.labels, other.train.labels)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_torchvision_reads_the_archives_that_a_mirror_gave(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small archives of the true format, under checksums of their own."""
    random = np.random.default_rng(0)
    images = {
        "train": random.integers(0, 256, (20, 28, 28), np.uint8),
        "t10k": random.integers(0, 256, (10, 28, 28), np.uint8),
    }
    labels = {part: random.integers(0, 10, len(pixels), np.uint8) for part, pixels in images.items()}
    raw = Path("mirror") / name / "raw"
    raw.mkdir(parents=True)
    resources = []
    for part in images:
        for kind, values, rank in (("images-idx3", images[part], 3), ("labels-idx1", labels[part], 1)):
            header = bytes([0, 0, 8, rank]) + np.array(values.shape, ">i4").tobytes()
            content = gzip.compress(header + values.tobytes(), mtime=0)
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(content)
            resources.append((f"{part}-{kind}-ubyte.gz", hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(getattr(torchvision_datasets, name), "resources", resources)
    monkeypatch.setenv("LABDAG_MIRRORS", "mirror")
    Path("params.yaml").write_text(json.dumps({"datasets": {"small": {"kind": "torchvision", "name": name}}}))

    download.main("small")
    dataset = arrays.load("small")
    assert np.array_equal(dataset.train.images, images["train"][:, np.newaxis])
    assert np.array_equal(dataset.test.labels, labels["t10k"])
    assert dataset.classes[0] == {"MNIST": "0", "FashionMNIST": "T-shirt/top"}[name]
    assert sorted(path.name for path in Path("data/raw/small").iterdir()) == [
        "classes.json",
        "test_images.npy",
        "test_labels.npy",
        "train_images.npy",
        "train_labels.npy",
    ]


def test_cifar10_is_asked_for_with_torchvisions_own_checksum() -> None:
    (archive,) = torchvision.archives(torchvision.Source(kind="torchvision", name="CIFAR10"))
    assert (archive.name, archive.digest) == ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")


def test_cifar10_without_any_address_fails_with_every_reason() -> None:
    (Path("params.yaml")).write_text((ROOT / "params.yaml").read_text())
    done = run(
        "python", "-m", "stages.download", "cifar10",
        cwd=Path.cwd(), check=False,
        PYTHONPATH=str(ROOT), LABDAG_MIRRORS="/nowhere", HTTPS_PROXY="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("Error: could not get cifar-10-python.tar.gz from any address:\n")
    assert "/nowhere/cifar-10-python.tar.gz: there is no such file" in done.stderr
    assert "cs.toronto.edu" in done.stderr
    assert "LABDAG_MIRRORS" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(MIRRORS is None, reason="needs LABDAG_MIRRORS with the true MNIST archives")
def test_the_true_mnist_has_its_known_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABDAG_MIRRORS", MIRRORS or "")
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    download.main("mnist")
    computed = statistics.compute(arrays.load("mnist"))
    assert (f"{computed.mean[0]:.6f}", f"{computed.std[0]:.6f}") == ("0.130660", "0.308108")
    assert (computed.train, computed.test) == (60_000, 10_000)


def test_a_folder_of_pictures_is_a_dataset() -> None:
    photos(Path("photos"))
    Path("photos/.hidden").write_text("not mine")
    pinned()
    download.main("mine")
    dataset = arrays.load("mine")
    assert dataset.classes == ["cat", "dog"]
    assert dataset.shape == (3, *SIZE)
    assert dataset.train.labels.tolist() == [0, 0, 1, 1]
    assert dataset.train.images[:, :, 0, 0].tolist() == [[0, 0, 255], [1, 0, 254], [100, 0, 155], [101, 0, 154]]


def test_pictures_are_resized_and_made_grey_as_params_say() -> None:
    photos(Path("photos"))
    pinned(size=[4, 5], color="grey")
    download.main("mine")
    assert arrays.load("mine").shape == (1, 4, 5)


def test_one_tree_is_split_within_each_class() -> None:
    photos(Path("photos"), parts=(".",), each=10)
    pinned(test_fraction=0.3, seed=5)
    download.main("mine")
    dataset = arrays.load("mine")
    assert np.bincount(dataset.train.labels).tolist() == [7, 7]
    assert np.bincount(dataset.test.labels).tolist() == [3, 3]


@pytest.mark.parametrize("archive", ["photos.tar.gz", "photos.tgz", "photos.zip"])
def test_an_archive_is_a_dataset(archive: str) -> None:
    photos(Path("photos"))
    block(path=archive, sha256=packed(Path("photos"), archive))
    download.main("mine")
    assert arrays.load("mine").classes == ["cat", "dog"]


def test_an_archive_at_a_url_is_a_dataset() -> None:
    photos(Path("photos"))
    digest = packed(Path("photos"), "photos.tar.gz")
    with serving(Path("photos.tar.gz").read_bytes()) as server:
        block(path=f"{server.url}/good/photos.tar.gz", sha256=digest)
        download.main("mine")
        assert len(arrays.load("mine").test) == 4
        block(path=f"{server.url}/good/photos.tar.gz")
        with pytest.raises(UserError, match=r"datasets\.mine\.sha256 is missing"):
            download.main("mine")


def test_a_changed_folder_is_noticed() -> None:
    photos(Path("photos"))
    pinned()
    picture(Path("photos/train/cat/0.png"), 77)
    assert failure().startswith("params.yaml: datasets.mine.sha256 is ")


def test_an_archive_with_another_checksum_is_not_opened() -> None:
    photos(Path("photos"))
    packed(Path("photos"), "photos.zip")
    block(path="photos.zip", sha256="0" * 64)
    assert failure().startswith(f"params.yaml: datasets.mine.sha256 is {'0' * 64}, but photos.zip has ")


def test_a_tar_that_climbs_out_of_its_folder_is_not_opened() -> None:
    with tarfile.open("evil.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("photos/../../../outside.png")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"bad"))
    block(path="evil.tar.gz", sha256=hashlib.sha256(Path("evil.tar.gz").read_bytes()).hexdigest())
    assert "member 'photos/../../../outside.png' would be written outside its folder" in failure()
    assert list(Path().rglob("outside*")) == []


@pytest.mark.parametrize("member", ["photos/../../outside.png", "/outside.png", "..\\outside.png"])
def test_a_zip_that_climbs_out_of_its_folder_is_not_opened(member: str) -> None:
    with zipfile.ZipFile("evil.zip", "w") as zipped:
        zipped.writestr(member, b"bad")
    block(path="evil.zip", sha256=hashlib.sha256(Path("evil.zip").read_bytes()).hexdigest())
    assert "would be written outside its folder" in failure()
    assert list(Path().rglob("*outside*")) == []


@pytest.mark.parametrize("archive", ["broken.tar.gz", "broken.zip"])
def test_a_truncated_archive_gets_a_sentence(archive: str) -> None:
    photos(Path("photos"), each=20)
    packed(Path("photos"), archive)
    content = Path(archive).read_bytes()[:-200]
    Path(archive).write_bytes(content)
    block(path=archive, sha256=hashlib.sha256(content).hexdigest())
    assert f"{archive} is no readable archive: " in failure()


def test_every_unreadable_image_is_named_in_one_error() -> None:
    photos(Path("photos"), each=3)
    Path("photos/train/cat/1.png").write_text("no picture")
    content = Path("photos/test/dog/2.png").read_bytes()
    Path("photos/test/dog/2.png").write_bytes(content[:40])
    Path("photos/train/dog/notes.db").write_bytes(b"\0" * 10)
    block()
    block(sha256=failure().rpartition("sha256: ")[2])
    message = failure()
    assert message.startswith("3 files in photos can't be read as images; mend or remove them:\n")
    for name in ("train/cat/1.png", "train/dog/notes.db", "test/dog/2.png"):
        assert f"\n  {name}: " in message


@pytest.mark.parametrize(
    ("parts", "options", "sentence"),
    [
        (("train", "test"), {"test_fraction": 0.5}, "datasets.mine.test_fraction must be left out"),
        ((".",), {}, "datasets.mine.test_fraction is missing"),
        (
            (".",),
            {"test_fraction": 0.99},
            "datasets.mine.test_fraction leaves no image of class 'cat' to train on",
        ),
        (
            ("train", "test"),
            {"path": "fotos"},
            "datasets.mine.path is 'fotos', but there is no such file or folder",
        ),
    ],
)
def test_a_split_that_cannot_be_made_gets_a_sentence(
    parts: tuple[str, ...], options: dict[str, Any], sentence: str
) -> None:
    photos(Path("photos"), parts)
    if "path" in options:
        block(**options)
    else:
        pinned(**options)
    assert failure().startswith(f"params.yaml: {sentence}")


def test_a_train_folder_without_a_test_folder_gets_a_sentence() -> None:
    photos(Path("photos"), parts=("train", "val"))
    pinned(test_fraction=0.5)
    assert "which has a folder train, but train and test go together" in failure()


@pytest.mark.parametrize("size", [[0, 5], [-3, 5], [200_000, 200_000]])
def test_a_size_that_no_image_has_gets_a_sentence(size: list[int]) -> None:
    photos(Path("photos"))
    block(size=size)
    assert failure().startswith("params.yaml: datasets.mine.size.0 is ")


def test_pictures_of_every_usual_mode_are_read_as_they_look() -> None:
    photos(Path("photos"), each=5)
    folder = Path("photos/train/cat")
    sixteen = np.full((8, 10), 40_000, np.uint16)
    Image.fromarray(sixteen).save(folder / "0.png")
    Image.new("RGBA", (10, 8), (10, 20, 30, 255)).save(folder / "1.png")
    Image.new("P", (10, 8), 0).save(folder / "2.png")
    sideways = Image.new("L", (8, 10))
    sideways.paste(255, (0, 0, 8, 5))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    sideways.save(folder / "3.jpg", exif=exif)
    (folder / "3.png").unlink()
    pinned()
    download.main("mine")
    images = arrays.load("mine").train.images
    assert images[0].tolist() == np.full((3, 8, 10), 40_000 // 257).tolist()
    assert images[1, :, 0, 0].tolist() == [10, 20, 30]
    assert (images[3, 0, :, 9].min() > 200, images[3, 0, :, 0].max() < 50) == (True, True)


def test_pictures_without_a_known_range_and_links_to_nothing_are_named() -> None:
    photos(Path("photos"))
    Image.fromarray(np.zeros((8, 10), np.float32)).save("photos/train/cat/float.tiff")
    Path("photos/train/dog/gone.png").symlink_to("nowhere.png")
    block()
    message = failure()
    assert "sha256 is missing" in message
    block(sha256=message.rpartition("sha256: ")[2])
    message = failure()
    assert "train/cat/float.tiff: its pixels are floats of unknown range" in message
    assert "train/dog/gone.png: " in message


def test_a_zip_with_a_password_gets_a_sentence() -> None:
    with zipfile.ZipFile("secret.zip", "w") as zipped:
        zipped.writestr("photos/a.png", b"content")
    content = bytearray(Path("secret.zip").read_bytes())
    content[6] |= 1  # the flag of encryption, in the member's header and in the directory's
    content[content.index(b"PK\x01\x02") + 8] |= 1
    Path("secret.zip").write_bytes(content)
    block(path="secret.zip", sha256=hashlib.sha256(content).hexdigest())
    assert failure().startswith("secret.zip can't be unpacked: ")


def test_a_tar_with_a_device_is_not_opened() -> None:
    with tarfile.open("odd.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("photos/pipe")
        member.type = tarfile.FIFOTYPE
        tar.addfile(member)
    block(path="odd.tar.gz", sha256=hashlib.sha256(Path("odd.tar.gz").read_bytes()).hexdigest())
    assert "member 'photos/pipe' is neither file nor folder; not opened" in failure()


def test_the_shadow_files_of_macos_are_left_out() -> None:
    photos(Path("photos"))
    picture(Path("__MACOSX/photos/train/cat/._0.png"), 1)
    with zipfile.ZipFile("photos.zip", "w") as zipped:
        for path in (*Path("photos").rglob("*.png"), *Path("__MACOSX").rglob("*.png")):
            zipped.write(path)
    block(path="photos.zip", sha256=hashlib.sha256(Path("photos.zip").read_bytes()).hexdigest())
    download.main("mine")
    assert arrays.load("mine").classes == ["cat", "dog"]


def test_train_and_test_must_have_the_same_classes() -> None:
    photos(Path("photos"))
    picture(Path("photos/test/bird/0.png"), 3)
    pinned()
    assert "whose train and test folders differ in classes: bird" in failure()


def test_an_empty_folder_gets_a_sentence() -> None:
    Path("photos").mkdir()
    pinned(test_fraction=0.5)
    assert "there are no two folders with images" in failure()


def test_the_kinds_are_the_modules_of_the_folder() -> None:
    assert kinds() == ["digits", "image_folder", "torchvision"]


def test_what_is_no_file_is_named_and_not_waited_for() -> None:
    photos(Path("photos"))
    os.mkfifo("photos/train/cat/pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("photos/test/dog/socket.png")
        pinned()
        said = failure()
    assert "2 files in photos can't be read as images" in said
    assert "train/cat/pipe.png: neither a file nor a folder" in said
    assert "test/dog/socket.png: neither a file nor a folder" in said
    os.mkfifo("pipe.zip")
    block(path="pipe.zip")
    assert "is 'pipe.zip', which is neither a file nor a folder" in failure()


def test_what_the_file_manager_of_windows_leaves_is_left_out() -> None:
    photos(Path("photos"))
    for name in ("photos/desktop.ini", "photos/train/Thumbs.db", "photos/train/cat/Thumbs.db"):
        Path(name).write_text("of no use")
    pinned()
    download.main("mine")
    assert arrays.load("mine").train.images.shape == (4, 3, *SIZE)


@pytest.mark.parametrize("wrap", ["a", "a/b", "a/b/c"])
def test_images_in_folders_in_each_other_are_found(wrap: str) -> None:
    photos(Path("wrapped") / wrap)
    block(path="mine.zip", sha256=packed(Path("wrapped"), "mine.zip"))
    download.main("mine")
    assert arrays.load("mine").classes == ["cat", "dog"]


def test_a_zip_of_windows_with_backslashes_is_a_dataset() -> None:
    photos(Path("photos"))
    with zipfile.ZipFile("mine.zip", "w") as zipped:
        zipped.writestr("photos\\train\\", b"")
        for path in sorted(Path("photos").rglob("*.png")):
            member = zipfile.ZipInfo()
            member.filename = str(path).replace("/", "\\")
            zipped.writestr(member, path.read_bytes())
    block(path="mine.zip", sha256=hashlib.sha256(Path("mine.zip").read_bytes()).hexdigest())
    download.main("mine")
    assert arrays.load("mine").classes == ["cat", "dog"]


def test_a_class_without_an_image_is_told() -> None:
    photos(Path("photos"))
    for part in ("train", "test"):
        Path(f"photos/{part}/emu").mkdir()
    pinned()
    assert "leads to folders of classes without an image: emu" in failure()


def test_a_picture_stands_as_its_exif_orientation_says() -> None:
    photos(Path("photos"))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upright = np.zeros((8, 10, 3), np.uint8)
    upright[:4] = 255
    Image.fromarray(upright[::-1, ::-1]).save("photos/train/cat/0.png", exif=exif)
    pinned()
    download.main("mine")
    assert np.array_equal(arrays.load("mine").train.images[0], upright.transpose(2, 0, 1))
