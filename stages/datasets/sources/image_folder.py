"""The user's own images: a folder for each class, from a folder or an archive."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from stages.datasets.arrays import Dataset, Split, stored
from stages.datasets.sources import Archive
from stages.program.options import OptionError, Options, UserError

MODES = {"grey": "L", "rgb": "RGB"}
AT_ONCE = 1 << 25  # bytes of decoded images in memory
PARTS = ("train", "test")
LEFT_BEHIND = ("thumbs.db", "desktop.ini", "__macosx")  # by file managers, in letters of any case


class Source(Options):
    """Images in `train/<class>/` and `test/<class>/`, or in `<class>/` with a fraction kept for testing.

    They are turned as their EXIF orientation says, so that they stand as a person sees them.
    """

    kind: Literal["image_folder"] = Field(description="Your own images, a folder for each class.")
    path: str = Field(
        min_length=1,
        description="A folder, or a .tar.gz, .tgz or .zip archive: a path, or the http(s) URL of an archive.",
    )
    sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="Checksum of the archive, or of the folder's content. Of what lies on this machine, "
        "download says it where it is left out.",
    )
    size: list[Annotated[int, Field(ge=1, le=4096)]] = Field(
        min_length=2, max_length=2, description="Height and width to which every image is resized, in pixels."
    )
    color: Literal["rgb", "grey"] = Field(description="Three channels or one.")
    test_fraction: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Part of each class kept for testing, where there is no test folder.",
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Seed of the split by `test_fraction`.")

    def shape(self) -> list[int]:
        """Channels, height and width of the images."""
        return [3 if self.color == "rgb" else 1, *self.size]


def archives(source: Source) -> list[Archive]:
    """The archive, where it must be fetched; what lies on this machine is read where it is."""
    if not _remote(source):
        return []
    if source.sha256 is None:
        raise OptionError("sha256", "is missing: an archive from the network needs its checksum (`sha256sum FILE`).")
    return [Archive(_file_name(source), "sha256", source.sha256, (source.path,))]


def verify(source: Source) -> None:
    """See to it that what lies on this machine is what its checksum is of.

    Raises:
        OptionError: it is not, or is not there at all.
    """
    if not _remote(source):
        _verify(source, Path(source.path).expanduser())


def read(source: Source, folder: Path) -> Dataset:
    """Unpack if need be, find the classes, and decode every image.

    Raises:
        OptionError: the path, checksum or split does not fit what is there.
        UserError: the archive is broken or unsafe, or images can't be read (each one is named).
    """
    path = folder / _file_name(source) if _remote(source) else Path(source.path).expanduser()
    _verify(source, path)
    root = _top(path if path.is_dir() else _extract(path, folder / "extracted"))
    parts = [name for name in PARTS if (root / name).is_dir()]
    if len(parts) == 1:
        raise OptionError("path", f"is {source.path!r}, which has a folder {parts[0]}, but train and test go together.")
    if parts:
        if source.test_fraction is not None:
            raise OptionError("test_fraction", "must be left out, as there are train and test folders already.")
        train, test = _files(root / "train"), _files(root / "test")
        if train.keys() != test.keys():
            odd = ", ".join(sorted(train.keys() ^ test.keys()))
            raise OptionError("path", f"is {source.path!r}, whose train and test folders differ in classes: {odd}.")
    else:
        if source.test_fraction is None:
            raise OptionError(
                "test_fraction",
                "is missing: there are no train and test folders, so say which part to test on.",
            )
        train, test = _split(_files(root), source.test_fraction, source.seed)
    if len(train) < 2:
        raise OptionError("path", f"is {source.path!r}, but there are no two folders with images of a class each.")
    unreadable: list[str] = []
    training, testing = (
        _decode(files, root, source, unreadable, folder / f"{name}.npy")
        for name, files in (("train", train), ("test", test))
    )
    if unreadable:
        raise UserError(
            f"{len(unreadable)} files in {source.path} can't be read as images; mend or remove them:\n"
            + "\n".join(unreadable)
        )
    return Dataset(training, testing, list(train))


def _remote(source: Source) -> bool:
    return urlsplit(source.path).scheme in ("http", "https")


def _file_name(source: Source) -> str:
    return PurePosixPath(unquote(urlsplit(source.path).path)).name


def _verify(source: Source, path: Path) -> None:
    if not path.exists():
        raise OptionError("path", f"is {source.path!r}, but there is no such file or folder.")
    if not (path.is_dir() or path.is_file()):
        raise OptionError("path", f"is {source.path!r}, which is neither a file nor a folder.")
    if path.is_dir():
        _check_digest(source, _folder_digest(_top(path)))
    else:
        with path.open("rb") as file:
            _check_digest(source, hashlib.file_digest(file, "sha256").hexdigest())


def _check_digest(source: Source, found: str) -> None:
    if source.sha256 is None:
        raise OptionError(
            "sha256",
            f"is missing; it pins the images, so that no run takes others for them. Add: sha256: {found}",
        )
    if source.sha256 != found:
        raise OptionError(
            "sha256",
            f"is {source.sha256}, but {source.path} has {found}. If the new images are right, write that.",
        )


def _folder_digest(root: Path) -> str:
    """Checksum of every file's relative path and content."""
    digest = hashlib.sha256()
    for path in sorted(_visible(root.rglob("*"), root)):
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(os.fsencode(path.relative_to(root)) + f"\0{content}\n".encode())
    return digest.hexdigest()


def _extract(archive: Path, target: Path) -> Path:
    """Unpack into `target`; a member that would be written outside of it stops everything."""
    name = archive.name.lower()
    try:
        if name.endswith((".tar.gz", ".tgz")):
            with tarfile.open(archive, "r:gz") as tar:
                tar.extractall(target, filter="data")
        elif name.endswith(".zip"):
            with zipfile.ZipFile(archive) as zipped:
                for member in zipped.infolist():
                    member.filename = member.filename.replace("\\", "/")  # as some programs for Windows write them
                    pure = PurePosixPath(member.filename)
                    if pure.is_absolute() or ".." in pure.parts:
                        raise UserError(_outside(archive, member.orig_filename))
                for member in zipped.infolist():
                    zipped.extract(member, target)
        else:
            raise OptionError("path", f"is {archive.name!r}, but should be a folder, a .tar.gz, a .tgz or a .zip.")
    except (tarfile.OutsideDestinationError, tarfile.AbsolutePathError, tarfile.LinkOutsideDestinationError) as error:
        raise UserError(_outside(archive, error.tarinfo.name)) from None
    except tarfile.FilterError as error:
        raise UserError(f"{archive}: member {error.tarinfo.name!r} is neither file nor folder; not opened.") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LookupError) as error:
        raise UserError(f"{archive} is no readable archive: {error}.") from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise UserError(f"{archive} can't be unpacked: a member's name is too long.") from None
    except (RuntimeError, NotImplementedError) as error:  # what zipfile says of passwords and odd compressions
        raise UserError(f"{archive} can't be unpacked: {error}.") from None
    return target


def _outside(archive: Path, member: str) -> str:
    return f"{archive}: member {member!r} would be written outside its folder; not opened."


def _top(root: Path) -> Path:
    """Step into the one folder, or the folders in each other, in which an archive often wraps everything."""
    while True:
        children = _visible(root.iterdir(), root)
        if len(children) != 1 or not children[0].is_dir() or children[0].name in PARTS:
            return root
        if not any(each.is_dir() for each in _visible(children[0].iterdir(), root)):
            return root  # it is the folder of a class
        root = children[0]


def _visible(paths: Iterable[Path], root: Path) -> list[Path]:
    """Leave out hidden files, and what file managers leave behind."""
    return [
        path
        for path in paths
        if not any(part.startswith(".") or part.lower() in LEFT_BEHIND for part in path.relative_to(root).parts)
    ]


def _files(root: Path) -> dict[str, list[Path]]:
    """Class name → its files, both sorted; hidden files are none of ours."""
    folders = sorted(folder for folder in _visible(root.iterdir(), root) if folder.is_dir())
    files = {
        folder.name: sorted(p for p in _visible(folder.rglob("*"), folder) if not p.is_dir()) for folder in folders
    }
    if empty := [name for name, paths in files.items() if not paths]:
        raise OptionError("path", f"leads to folders of classes without an image: {', '.join(empty)}. Remove them.")
    return files


def _split(
    files: dict[str, list[Path]], test_fraction: float, seed: int
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    random = np.random.default_rng(seed)
    train, test = {}, {}
    for name, paths in files.items():
        kept = max(1, round(len(paths) * test_fraction))
        if kept == len(paths):
            raise OptionError("test_fraction", f"leaves no image of class '{name}' to train on: it has {len(paths)}.")
        order = random.permutation(len(paths))
        test[name] = [paths[i] for i in sorted(order[:kept])]
        train[name] = [paths[i] for i in sorted(order[kept:])]
    return train, test


def _decode(files: dict[str, list[Path]], root: Path, source: Source, unreadable: list[str], target: Path) -> Split:
    """Read all images into the file `target`; a line about each that can't be read is added to `unreadable`."""
    height, width = source.size
    mode = MODES[source.color]
    shape = (len(Image.new(mode, (1, 1)).getbands()), height, width)

    def decode(path: Path) -> NDArray[np.uint8] | str:
        if path.exists() and not path.is_file():  # to open a pipe is to wait for somebody who writes into it
            return f"  {path.relative_to(root)}: neither a file nor a folder"
        try:
            with Image.open(path) as image:
                resized = _eight_bit(ImageOps.exif_transpose(image)).convert(mode)
                if resized.size != (width, height):
                    resized = resized.resize((width, height), Image.Resampling.BILINEAR)
                return np.asarray(resized).reshape(height, width, -1).transpose(2, 0, 1)
        except Exception as error:  # decoders of damaged files raise whatever they come upon
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
            return f"  {path.relative_to(root)}: {reason or type(error).__name__}"

    def images() -> Iterator[NDArray[np.uint8]]:
        many = max(1, AT_ONCE // math.prod(shape))
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(paths), many):
                for image in pool.map(decode, paths[start : start + many]):
                    if isinstance(image, str):
                        unreadable.append(image)
                    yield np.zeros(shape, np.uint8) if isinstance(image, str) else image

    paths = [path for paths in files.values() for path in paths]
    pixels = stored(target, images(), (len(paths), *shape))
    labels = np.repeat(np.arange(len(files), dtype=np.int64), [len(p) for p in files.values()])
    return Split(pixels, labels)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey levels to 8 bits, which Pillow would cut off instead.

    Raises:
        ValueError: the image's numbers have no known range.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are {'floats' if image.mode == 'F' else '32-bit numbers'} of unknown range")
    return image
