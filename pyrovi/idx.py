"""Sets of images in MNIST's IDX files: from a folder, or fetched with a checksum and cached."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrovi.errors import DataError, SettingsError, nearest

__all__ = ["ENVIRONMENT", "FILES", "SOURCES", "Source", "load", "read"]

ENVIRONMENT = "PYROVI_DATA"
"""The environment variable that names the folder of the sets' folders."""

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
UNSIGNED_BYTES = 8
"""IDX's code for the type of the values."""


class Source(NamedTuple):
    """Where a set can be fetched, and the SHA-256 of each of its compressed files."""

    title: str
    mirrors: tuple[str, ...]
    sha256: dict[str, str]


SOURCES = {
    "mnist": Source(
        "MNIST",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion_mnist": Source(
        "Fashion-MNIST",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}


def load(name: str, split: str, folder: str | os.PathLike[str] | None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images `(n, 28, 28)` and labels `(n,)` of one split of one set of `SOURCES`.

    They come from `folder`; where that is None, from the folder `name` in the folder that the environment variable PYROVI_DATA
    names, where it holds them; else they are fetched once and kept in the user's cache.

    Raises:
        DataError: A file is missing, damaged or of the wrong shape, or cannot be fetched.
    """
    if split not in FILES:
        raise SettingsError(f"unknown split {split!r}; {nearest(split, FILES)}")
    images_name, labels_name = FILES[split]
    images_path, labels_path = (_find(name, file, folder) for file in (images_name, labels_name))
    images, labels = read(images_path), read(labels_path)
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise DataError(f"{str(images_path)!r} holds an array of shape {images.shape}, not images (n, 28, 28)")
    if labels.shape != (len(images),):
        raise DataError(
            f"{str(labels_path)!r} holds an array of shape {labels.shape}, not a label for each of {len(images)} images"
        )
    return images, labels


def read(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, compressed by gzip or not.

    The format: two zero bytes, a byte for the type, a byte for the number of axes, their lengths as big-endian 32-bit integers, and
    the values in C order.

    Raises:
        DataError: The file is not one, or shorter or longer than it says.

    References:
        The MNIST database of handwritten digits (LeCun, Cortes & Burges, 1998) | http://yann.lecun.com/exdb/mnist
    """
    try:
        content = Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{str(path)!r} cannot be read ({error}); get the file anew") from error
    if len(content) < 4 or content[:3] != bytes([0, 0, UNSIGNED_BYTES]):
        raise DataError(f"{str(path)!r} is not an IDX file of unsigned bytes: it begins with {content[:4].hex(' ') or 'nothing'}")
    begin = 4 + 4 * content[3]
    shape = tuple(int(n) for n in np.frombuffer(content[4:begin], ">u4")) if len(content) >= begin else ()
    if len(shape) != content[3] or len(content) - begin != math.prod(shape):
        size = max(0, len(content) - begin)
        raise DataError(f"{str(path)!r} is damaged: it says shape {shape} and holds {size:,} values; get the file anew")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape).copy()


def _find(name: str, file: str, folder: str | os.PathLike[str] | None) -> Path:
    """The file in the folder given or in the environment's, or else fetched."""
    source = SOURCES[name]
    names = (file, f"{file}.gz", file.replace("-idx", ".idx"))  # the last as some archives have it
    if folder is not None:
        found = _first(Path(folder).expanduser(), names)
        if found is None:
            raise DataError(
                f"folder {os.fspath(folder)!r} has no {file}, with or without .gz; give the folder of {source.title}'s files"
            )
        return found
    if root := os.environ.get(ENVIRONMENT):
        found = _first(Path(root).expanduser() / name, names)
        if found is not None:
            return found
    return _fetch(name, f"{file}.gz")


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _fetch(name: str, file: str) -> Path:
    """The file from the user's cache, where the first mirror that answers has put it."""
    import pooch  # here, because hardly anyone needs it

    source, reasons = SOURCES[name], []
    for mirror in source.mirrors:
        try:
            path = pooch.retrieve(mirror + file, f"sha256:{source.sha256[file]}", fname=file, path=pooch.os_cache("pyrovi") / name)
        except (OSError, ValueError) as error:  # no network or no space, a wrong checksum
            reasons.append(f"{mirror}: {_short(error)}")
        else:
            return Path(path)
    raise DataError(
        f"{file} of {source.title} could not be fetched ({'; '.join(reasons)}); put its files into a folder and pass folder=, or "
        f"put that folder, as {name!r}, into the one that the environment variable {ENVIRONMENT} names"
    )


def _short(error: Exception) -> str:
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
