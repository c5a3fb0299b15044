"""Pictures: opening them, their meaningless twins, and what identifies them.

A picture is named by a text, so that an Item stays a line of JSON:

    path/to/cat.jpg              a file, in any format that Pillow reads
    scene:red-circle-left-17     a generated picture of the sandbox (see holdfast.data.scenes)
    plain:white, plain:#808080   one colour
    noise:7                      uniform noise of a seed

A *twin* of a picture has its size and says less: it stands for the meaningless image of Liu et al. (Findings of
ACL 2025, arXiv:2410.09047), whose effect on the hidden states is what an image does merely by being there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from holdfast.core.errors import DataError, MissingExtra, nearest
from holdfast.core.keys import file_digest
from holdfast.core.records import Item
from holdfast.data import scenes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

TwinKind = Literal["blank", "noise", "blur"]
TWINS: tuple[TwinKind, ...] = ("blank", "noise", "blur")
GENERATED = ("scene:", "plain:", "noise:")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_PLAIN_SIZE = 336  # pixels; models resize what they are given
_BLUR = 0.25  # radius of the blur, as a share of the shorter side: no shape survives it


def require_pillow() -> None:
    """Say which extra to install when Pillow is missing.

    Raises:
        MissingExtra: it is.
    """
    import importlib.util

    if importlib.util.find_spec("PIL") is None:
        raise MissingExtra("vision", "pillow")


def is_generated(name: str) -> bool:
    """Whether a picture is made from its name, so that no file is involved."""
    return name.startswith(GENERATED)


def open_image(name: str) -> Image:
    """The picture of that name in RGB, turned as its camera says.

    Raises:
        DataError: there is no such file, it is not a picture, it is cut short, or it is implausibly large.
        MissingExtra: Pillow is not installed.
    """
    require_pillow()
    from PIL import Image, ImageOps, UnidentifiedImageError

    if is_generated(name):
        return _generated(name)
    path = Path(name).expanduser()
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"no picture {name}", hint=f"{nearest(path.name, siblings)}check the path")
    try:
        with Image.open(path) as found:
            turned = ImageOps.exif_transpose(found)
            return turned.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name} does not open as a picture: {reason}",
            hint=f"give a whole file of a usual format ({', '.join(SUFFIXES)})",
        ) from error


def identity(name: str) -> str:
    """What a key is taken over: a file's content, never its place; a generated picture is its name."""
    if is_generated(name):
        return name
    path = Path(name).expanduser()
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"no picture {name}", hint="check the path") from error
    return _digest(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=65_536)
def _digest(path: Path, size: int, modified: int) -> str:  # noqa: ARG001  (what the cache tells files by)
    return f"sha256:{file_digest(path)}"


def check_images(items: Sequence[Item]) -> None:
    """Open every picture once, so that a broken one is said before a model is loaded.

    Raises:
        DataError, MissingExtra: see :func:`open_image`; the message names the item.
    """
    for item in items:
        if item.image:
            try:
                if not (item.image.startswith("scene:") and _drawable(item.image)):
                    open_image(item.image)
            except DataError as error:
                raise DataError(f"item {item.id!r}: {error.message}", hint=error.hint) from error


@lru_cache(maxsize=65_536)
def _drawable(name: str) -> bool:
    scenes.parse(name)
    return True


def twin(image: Image, kind: TwinKind, seed: int = 0) -> Image:
    """A meaningless picture of the same size.

    Args:
        image: the picture that it stands beside.
        kind: ``blank`` (white), ``noise`` (uniform), ``blur`` (the picture itself, shapeless).
        seed: of the noise.
    """
    from PIL import Image, ImageFilter

    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(_BLUR * min(image.size)))
    if kind == "noise":
        return Image.fromarray(_noise(image.height, image.width, seed))
    return Image.new("RGB", image.size, "white")


def _generated(name: str) -> Image:
    from PIL import Image, ImageColor

    if name.startswith("scene:"):
        return Image.fromarray(scenes.draw(*scenes.parse(name)))
    value = name.partition(":")[2]
    if name.startswith("noise:"):
        if not value.isdecimal():
            raise DataError(f"{name!r} names no picture", hint="write noise:SEED, for example noise:0")
        return Image.fromarray(_noise(_PLAIN_SIZE, _PLAIN_SIZE, int(value)))
    try:
        return Image.new("RGB", (_PLAIN_SIZE, _PLAIN_SIZE), ImageColor.getrgb(value)[:3])
    except ValueError as error:
        raise DataError(f"{name!r} names no colour", hint="write plain:white or plain:#808080") from error


def _noise(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    import numpy as np

    return np.random.default_rng([0x401E, seed]).integers(0, 256, (height, width, 3), dtype=np.uint8)


# -- pictures for prompts ------------------------------------------------------------------------------


def pictures_in(folder: str) -> list[str]:
    """Names of the pictures of a folder, or ``scenes``: generated ones, as many as are asked for.

    Raises:
        DataError: no such folder, or it has none.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise DataError(f"no folder of pictures {folder}", hint="give a folder, or 'scenes' for generated pictures")
    found = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise DataError(f"{folder} has no pictures", hint=f"formats: {', '.join(SUFFIXES)}")
    return found


def paired(items: Sequence[Item], images: str, seed: int) -> list[Item]:
    """The same items, each with a picture that has nothing to do with it; those that have one keep it.

    Args:
        items: prompts.
        images: a folder, ``scenes``, or the name of one generated picture (``plain:white``).
        seed: of the pairing.

    Raises:
        DataError: the folder is not there or has no pictures.
    """
    if images in ("scenes", "sandbox/scenes"):
        rng = random.Random(f"holdfast pictures {seed}")
        names = [scenes.any_picture(rng) for _ in items]
    elif is_generated(images):
        open_image(images)
        names = [images] * len(items)
    else:
        pool = pictures_in(images)
        rng = random.Random(f"holdfast pictures {seed}")
        # Without replacement as long as there are enough: each picture is used about equally often.
        names = [name for _ in range(-(-len(items) // len(pool))) for name in rng.sample(pool, len(pool))]
    return [item if item.image else replace(item, image=name) for item, name in zip(items, names, strict=False)]


def without(items: Sequence[Item]) -> list[Item]:
    """The same prompts, no pictures."""
    return [replace(item, image="") for item in items]
