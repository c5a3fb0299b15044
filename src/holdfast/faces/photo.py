"""Whole photos, in and out: the file that comes out differs from the one that went in only where a face was changed.

:func:`open_photo` reads any usual format into upright RGB pixels and remembers what saving needs; :func:`save_photo`
writes changed pixels back in the layout, orientation, colour profile and compression of the source;
:func:`plan_targets` says which file of a batch goes where.

What a saved photo never carries over, because it can hold the *unprotected* face or names of people: the EXIF thumbnail
and every other embedded picture (MPF frames, HDR gain maps, videos of motion photos, TIFF sub-images), the camera's
MakerNote (previews, lists of recognised persons), XMP, Photoshop and IPTC blocks, comments and text chunks. The rest of
EXIF is kept byte for byte, the position too unless ``drop_location`` is given.

Unchanged pixels come back bit-identical from PNG, TIFF, BMP and lossless WebP. A JPEG is compressed once more with its
own tables and subsampling: in a smooth picture no pixel moves by more than 5 levels of 255 (mean below 0.2), measured
for qualities 30 to 100 and every subsampling; in 125 real photos (quality 90 to 93, 4:2:0) the mean was 0.08 in the
median and 0.34 at most, single pixels moved by up to 17. Sharp colour edges at halved colour resolution move furthest,
because libjpeg's down- and upsampling are not each other's inverse.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from holdfast.core import files
from holdfast.core.errors import DataError, ResourceError, RunError, UsageError, nearest
from holdfast.data.images import require_pillow

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from PIL.JpegImagePlugin import JpegImageFile

    Bytes = NDArray[np.uint8]

MOST_MEGAPIXELS = 200.0  # the largest sensors of phones; about 1.5 GB of memory while it is read
_BAND = 4_000_000  # pixels that are converted at a time
COARSE_QUALITY = 75  # below it a JPEG's own tables round away much of a change of a few levels
JPEG_QUALITY = 95  # of a JPEG that was none before, and of WebP and AVIF, whose source quality nobody can tell
LOSSY_QUALITY = 90

# What a target's suffix means; what is only read goes to the format that loses nothing (from HEIF: that stays small).
WRITTEN = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".avif": "AVIF",
}
_PNG_INSTEAD = "gif apng jp2 j2k jpf jpx jpc j2c ppm pgm pbm pnm tga ico icns pcx psd qoi dib"
READ_ONLY = {f".{name}": ".png" for name in _PNG_INSTEAD.split()}
READ_ONLY |= {".heic": ".jpg", ".heif": ".jpg", ".hif": ".jpg", ".mpo": ".jpg"}
SUFFIXES = (*WRITTEN, *READ_ONLY)
_RAW = "dng nef nrw cr2 cr3 crw arw srf sr2 raf orf rw2 pef srw x3f 3fr iiq"
# Pillow's other readers are left out: EPS and WMF run programs, the rest hold no photos and guess wrongly.
_READERS = "JPEG PNG WEBP TIFF GIF BMP DIB AVIF HEIF JPEG2000 PPM ICO ICNS PCX PSD QOI TGA"
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"8BPS")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"mif1", b"msf1")
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
# Whatever a decoder throws at damaged bytes; a MemoryError is no damage.
_DAMAGE: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError)
_DAMAGE += (TypeError, AttributeError, AssertionError, RuntimeError, struct.error, zlib.error)


@dataclass(frozen=True)
class JpegCoding:
    """How a JPEG was compressed.

    Args:
        tables: quantisation tables, one per channel (the last one goes on for the channels after it).
        subsampling: Pillow's code: 0 full colour resolution, 1 halved across, 2 halved both ways.
        progressive: whether it builds up in passes.
        rgb: whether channels are red, green and blue instead of luma and chroma.
        quality: the quality on libjpeg's scale that comes nearest to the tables.
    """

    tables: tuple[tuple[int, ...], ...]
    subsampling: int
    progressive: bool
    rgb: bool
    quality: int


@dataclass(frozen=True)
class Stored:
    """What saving needs to know of the file that a photo came from.

    Args:
        icc: its colour profile; None where there is none or the pixels were converted.
        exif: its EXIF block (a TIFF structure), without thumbnail and whatever else could show or name people.
        orientation: how its pixels lie, 1 to 8, in the terms of EXIF.
        dpi: pixels per inch, across and down.
        jpeg: how it was compressed, of a JPEG.
        lossless: whether compression lost nothing.
        compression: of a TIFF, in Pillow's words.
        chunks: the chunks of a PNG that say what its colours mean.
    """

    icc: bytes | None = None
    exif: bytes = b""
    orientation: int = 1
    dpi: tuple[float, float] | None = None
    jpeg: JpegCoding | None = None
    lossless: bool = False
    compression: str = ""
    chunks: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, eq=False)
class Photo:
    """An opened photo. Its arrays are read-only: change a copy and hand that to :func:`save_photo`.

    Args:
        source: the file.
        format: what the file is, whatever its name says (``JPEG``, ``PNG``, ...).
        pixels: RGB, upright, uint8 (height, width, 3).
        alpha: opacity, uint8 (height, width); None where everything is opaque by format.
        grey: whether it has no colour: a grey format, or three equal channels everywhere.
        stored: what saving needs.
        notes: what the user should know, one sentence each.
    """

    source: Path
    format: str
    pixels: Bytes
    alpha: Bytes | None
    grey: bool
    stored: Stored
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Saved:
    """A written photo.

    Args:
        path: where; its suffix differs from the target's where that format cannot be written.
        bytes: its size.
        quality: of lossy formats, 1 to 100 (for kept JPEG tables the nearest one); None where nothing is lost.
        notes: what the user should know, one sentence each.
    """

    path: Path
    bytes: int
    quality: int | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Which file goes where.

    Args:
        pairs: (source, target); the targets' folders need not exist yet.
        ignored: how many files were left out because they are no pictures.
    """

    pairs: tuple[tuple[Path, Path], ...]
    ignored: int


# -- opening -------------------------------------------------------------------------------------------


def open_photo(path: str | os.PathLike[str], *, most_megapixels: float = MOST_MEGAPIXELS) -> Photo:
    """Read a photo.

    Args:
        path: a file of any format that Pillow reads as a still picture; HEIC with the package ``pillow-heif``.
        most_megapixels: larger pictures are refused as soon as their header says so.

    Raises:
        DataError: there is no such file, it cannot be read, is no picture, is cut short, moves, or is too large.
        ResourceError: it does not fit into memory.
        UsageError: ``most_megapixels`` is not positive.
        MissingExtra: Pillow is not installed.
    """
    require_pillow()
    if not most_megapixels > 0:
        raise UsageError(f"most_megapixels is {most_megapixels}", hint="give a number above 0, such as 200")
    source = Path(path).expanduser()
    with _stream(source) as stream:
        head = stream.read(64)
        _check_head(source, head)
        try:
            with _careful(most_megapixels):
                return _read(source, stream, head, most_megapixels)
        except MemoryError as error:
            raise ResourceError(f"{source} does not fit into memory", hint="shrink it, or free some memory") from error


def _stream(source: Path) -> BinaryIO:
    if source.is_dir():
        raise DataError(f"{source} is a folder, not a picture", hint="name a file in it")
    if source.exists() and not source.is_file():
        raise DataError(f"{source} is not a regular file", hint="give a picture")
    try:
        return source.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        try:
            siblings = [p.name for p in source.parent.iterdir()]
        except OSError:
            siblings = []
        if source.is_symlink():
            raise DataError(f"{source} is a link to a file that is not there", hint="mend the link") from error
        raise DataError(f"no picture {source}", hint=f"{nearest(source.name, siblings)}check the path") from error
    except PermissionError as error:
        raise DataError(f"no permission to read {source}", hint=f"chmod u+r '{source}', or copy it") from error
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}", hint="check the path") from error


def _check_head(source: Path, head: bytes) -> None:
    if not head:
        raise DataError(f"{source} is empty (0 bytes)", hint="copy or download it again")
    suffix = source.suffix.lower()
    if suffix[1:] in _RAW.split() and not head.startswith(_SIGNATURES[0]):
        raise DataError(f"{source} is a camera's raw file", hint="export it as JPEG or TIFF first")
    if _is_heif(head) and not _heif_reader():
        raise DataError(
            f"{source} is a HEIC/HEIF picture, which needs a plug-in",
            hint="pip install pillow-heif, or export it as JPEG",
        )


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and b"avif" not in head


def _heif_reader() -> bool:
    """Whether HEIF opens; registers the plug-in if it is installed, which is all that a user can be asked to do."""
    from PIL import Image

    if "HEIF" not in Image.OPEN:
        try:
            import pillow_heif  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError:
            return False
        pillow_heif.register_heif_opener()
    return "HEIF" in Image.OPEN


_LOCK = threading.RLock()


@contextmanager
def _careful(most_megapixels: float) -> Iterator[None]:
    """Pillow with our limit on size, no warnings and no patience with cut files; its settings come back afterwards.

    They are the process's, so photos are read one at a time.
    """
    from PIL import Image, ImageFile

    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        # Pillow warns above its setting and refuses above twice that: refusing is what a limit is for.
        Image.MAX_IMAGE_PIXELS = int(most_megapixels * 1e6 + 1) // 2 + 1
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _read(source: Path, stream: BinaryIO, head: bytes, most_megapixels: float) -> Photo:
    from PIL import Image, UnidentifiedImageError

    Image.init()
    # TGA has no signature: anything could be one.
    names = [name for name in _READERS.split() if name != "TGA" or source.suffix.lower() == ".tga"]
    readers = [name for name in names if name in Image.OPEN]
    try:
        with Image.open(stream, formats=readers) as image:
            pixels = image.width * image.height
            if pixels > most_megapixels * 1e6:
                raise _too_large(
                    source, f"{pixels / 1e6:.1f} megapixels ({image.width} × {image.height})", most_megapixels
                )
            if image.format not in ("MPO", "PSD") and getattr(image, "is_animated", False):
                raise DataError(
                    f"{source} has several frames ({image.format}: an animation or a document of pages)",
                    hint="save the frame that you want as a picture of its own",
                )
            return _photo(source, stream, image)
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        size = f"{int(count[0]) / 1e6:.1f} megapixels" if count else "more"
        raise _too_large(source, size, most_megapixels) from error
    except UnidentifiedImageError as error:
        if head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
            raise _damaged(source, "its header does not make sense") from error
        raise DataError(
            f"{source} is not a picture of a known format", hint="give JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or HEIC"
        ) from error
    except _DAMAGE as error:
        raise _damaged(source, str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _too_large(source: Path, size: str, most: float) -> DataError:
    return DataError(
        f"{source} is larger than the limit of {most:g} megapixels: it has {size}", hint="raise the limit, or shrink it"
    )


def _damaged(source: Path, reason: str) -> DataError:
    return DataError(f"{source} is cut short or damaged: {reason}", hint="copy or download it again")


def _photo(source: Path, stream: BinaryIO, image: Image) -> Photo:
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    notes = []
    # Looked at before decoding: Pillow turns a TIFF as it decodes it, and forgets that it did.
    turned = int(getattr(image, "tag_v2", {}).get(0x112, 1)) if kind == "TIFF" else None
    bits16 = _has_16_bits(image)
    coding = _jpeg_coding(image) if kind == "JPEG" else None  # type: ignore[arg-type]
    if kind == "JPEG" and ("mp" in image.info or b"MotionPhoto" in image.info.get("xmp", b"")):
        notes.append(
            "the file holds further pictures or a video (MPO, HDR gain map, motion photo); only the first was read"
        )
    if kind == "PSD":
        notes.append("the layers were merged")
    image.load()
    exif, has_other = _exif_of(stream, image)
    tags = _Tags.read(exif) if exif is not None else None
    if has_other and tags is None:
        notes.append("the EXIF block is damaged or of an unknown kind and is not kept")
    orientation = turned if turned is not None else (tags.orientation if tags else 1)
    pixels, alpha, more = _decoded(source, image)
    converted = image.mode in ("CMYK", "LAB")
    stored = Stored(
        icc=None if converted else image.info.get("icc_profile") or None,
        exif=tags.private().write() if tags else b"",
        orientation=orientation if 1 <= orientation <= 8 else 1,
        dpi=_dpi(image),
        jpeg=coding,
        lossless=kind not in ("JPEG", "AVIF", "HEIF") and (kind != "WEBP" or _webp_is_lossless(stream)),
        compression=str(image.info.get("compression", "")) if kind == "TIFF" else "",
        chunks=_colour_chunks(stream) if kind == "PNG" else (),
    )
    grey = image.mode in _GREY_MODES or _is_grey(pixels)
    if turned is None:
        pixels, alpha = _upright(pixels, stored.orientation), _upright(alpha, stored.orientation)
    if bits16:
        notes.append("16 bits a channel were reduced to 8")
    if coding and coding.quality < COARSE_QUALITY:
        colour = ", colour at half resolution" if coding.subsampling else ""
        notes.append(
            f"this JPEG is strongly compressed (about quality {coding.quality}{colour}); saved the same way it rounds "
            f"off fine changes: a quality of {LOSSY_QUALITY} or more keeps them"
        )
    return Photo(source.absolute(), kind, _frozen(pixels), _frozen(alpha), grey, stored, (*notes, *more))


def _frozen(array: Any) -> Any:
    if array is not None:
        array = np.ascontiguousarray(array)
        array.flags.writeable = False
    return array


def _has_16_bits(image: Image) -> bool:
    """Whether the file has more than 8 bits a channel; Pillow's mode tells that only of grey pictures."""
    if image.mode.startswith("I"):
        return True
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(258, (8,))
        return bool(max(bits if isinstance(bits, tuple) else (bits,)) > 8)
    return image.format == "PNG" and any(";16" in str(tile[3]) for tile in getattr(image, "tile", []))


def _decoded(source: Path, image: Image) -> tuple[Bytes, Bytes | None, list[str]]:
    """Pixels and opacity as they lie in the file, and what was done to them."""
    mode = image.mode
    if mode == "F":
        raise DataError(
            f"{source} holds floating-point numbers, not a photo's colours", hint="export it with 8 or 16 bits"
        )
    if mode.startswith("I"):
        return *_from_16_bits(source, image), []
    if mode == "CMYK":
        rgb, how = _from_cmyk(image)
        return _array(rgb, "RGB"), None, [how]
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        rgb = ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
        return _array(rgb, "RGB"), None, ["Lab colours were converted to RGB (sRGB)"]
    if image.has_transparency_data:
        layers = _array(image, "RGBA")
        return np.ascontiguousarray(layers[:, :, :3]), np.ascontiguousarray(layers[:, :, 3]), []
    return _array(image, "RGB"), None, []


def _array(image: Image, mode: str) -> Bytes:
    """A picture's values in a mode, made in bands: a large one is in memory twice, not four times."""
    layers = np.zeros((image.height, image.width, len(mode)), np.uint8)
    step = max(1, _BAND // image.width)
    for top in range(0, image.height, step):
        band = image.crop((0, top, image.width, min(top + step, image.height)))
        layers[top : top + step] = np.asarray(band if band.mode == mode else band.convert(mode))
    return layers


def _from_16_bits(source: Path, image: Image) -> tuple[Bytes, Bytes | None]:
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 0xFFFF):
        raise DataError(f"{source} has more than 16 bits a channel", hint="export it with 8 or 16 bits")
    hidden = image.info.get("transparency")
    alpha = np.where(values == hidden, 0, 255).astype(np.uint8) if isinstance(hidden, int) else None
    grey = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2), alpha


def _from_cmyk(image: Image) -> tuple[Image, str]:
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if profile:
        try:
            rgb = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
            if rgb is not None:
                return rgb, "CMYK was converted to RGB (sRGB) through its colour profile"
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile that does not read, or is not one of CMYK
    return image.convert("RGB"), "CMYK was converted to RGB; without a colour profile its colours are approximate"


def _is_grey(pixels: Bytes) -> bool:
    # In bands, so that a coloured photo is known after its first rows and nothing large is made.
    for top in range(0, len(pixels), 256):
        band = pixels[top : top + 256]
        if not (np.array_equal(band[..., 0], band[..., 1]) and np.array_equal(band[..., 0], band[..., 2])):
            return False
    return True


def _dpi(image: Image) -> tuple[float, float] | None:
    if image.format == "TIFF" and 282 not in getattr(image, "tag_v2", {}):
        return None  # Pillow says 1 where there is none
    try:
        across, down = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    return (across, down) if 0.5 <= across < 65535 and 0.5 <= down < 65535 else None


# The upright picture of what is stored, and back (the turns by 90 degrees are each other's inverse).
_INVERSE = {6: 8, 8: 6}


def _upright(pixels: Any, orientation: int) -> Any:
    """An array turned as EXIF's orientation says (a view); None stays None."""
    if pixels is None or orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    down = orientation in (3, 4, 7, 8)
    across = orientation in (2, 3, 6, 7)
    return pixels[:: -1 if down else 1, :: -1 if across else 1]


def _as_stored(pixels: Any, orientation: int) -> Any:
    return _upright(pixels, _INVERSE.get(orientation, orientation))


# -- what the containers hold --------------------------------------------------------------------------

# libjpeg's luminance table at quality 50 (ITU-T T.81, table K.1); only its sum is needed.
_LUMINANCE_SUM = 3688


def _jpeg_coding(image: JpegImageFile) -> JpegCoding:
    layers = image.layer[:3]
    tables = [tuple(image.quantization[layer[3]]) for layer in layers]
    while len(tables) > 1 and tables[-1] == tables[-2]:
        tables.pop()
    luma, chroma = layers[0], layers[min(1, len(layers) - 1)]
    factors = luma[1] / chroma[1], luma[2] / chroma[2]
    rgb = image.layers == 3 and (
        image.info.get("adobe_transform") == 0 or [layer[0] for layer in layers] == [ord(letter) for letter in "RGB"]
    )
    return JpegCoding(
        tables=tuple(tables),
        # What Pillow cannot write (4:4:0, 4:1:1) is kept at full resolution: larger, and nothing is lost.
        subsampling={(2.0, 1.0): 1, (2.0, 2.0): 2}.get(factors, 0),
        progressive=bool(image.info.get("progressive")),
        rgb=rgb,
        quality=_quality(tables[0]),
    )


def _quality(table: Sequence[int]) -> int:
    scale = 100 * sum(table) / _LUMINANCE_SUM
    return max(1, min(100, round((200 - scale) / 2 if scale <= 100 else 5000 / scale)))


def _webp_is_lossless(stream: BinaryIO) -> bool:
    stream.seek(12)
    while len(head := stream.read(8)) == 8:
        if head[:4] in (b"VP8L", b"VP8 "):
            return head[:4] == b"VP8L"
        size = struct.unpack("<I", head[4:])[0]
        stream.seek(size + (size & 1), os.SEEK_CUR)
    return False


def _colour_chunks(stream: BinaryIO) -> tuple[tuple[bytes, bytes], ...]:
    stream.seek(8)
    found = []
    while len(head := stream.read(8)) == 8 and head[4:] != b"IDAT":
        size = struct.unpack(">I", head[:4])[0]
        if head[4:] in (b"cHRM", b"cICP", b"gAMA", b"sRGB"):
            found.append((head[4:], stream.read(size)))
            stream.seek(4, os.SEEK_CUR)
        else:
            stream.seek(size + 4, os.SEEK_CUR)
    return tuple(found)


def _exif_of(stream: BinaryIO, image: Image) -> tuple[BinaryIO | None, bool]:
    """The EXIF block as a stream, and whether there is one at all."""
    if image.format == "TIFF":
        return stream, True
    block = image.info.get("exif")
    if block is None and "Raw profile type exif" in image.info:  # as ImageMagick writes it into PNG
        try:
            block = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
        except ValueError:
            return None, True
    if not block:
        return None, False
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    return io.BytesIO(block), True


# -- EXIF ----------------------------------------------------------------------------------------------

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # bytes of a TIFF type
_WORDS = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4}  # what byte order applies to
_EXIF, _GPS, _INTEROP, _ORIENTATION = 0x8769, 0x8825, 0xA005, 0x0112
# How a TIFF lays out its pixels: true of the source file only.
_LAYOUT = {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291}
_LAYOUT |= {
    292,
    293,
    301,
    317,
    318,
    319,
    320,
    321,
    322,
    323,
    324,
    325,
    332,
    334,
    336,
    338,
    339,
    340,
    341,
    342,
    347,
    512,
}
_LAYOUT |= {*range(515, 522), 529, 530, 531, 532}
# SubIFDs, thumbnails, XMP, IPTC, Photoshop (two), ICC (kept apart), MakerNote, PrintIM.
_PRIVATE = {330, 513, 514, 700, 33723, 34377, 37724, 34675, 37500, 50341}
_LARGEST_BLOB = 2048  # no setting of a camera needs more; what does is a picture or a private block of some program


@dataclass(frozen=True)
class _Tag:
    type: int
    count: int
    value: bytes


@dataclass(frozen=True)
class _Tags:
    """The directories of an EXIF block, values as raw bytes: Pillow's own writer turns ``ü`` into ``?``."""

    order: Literal["<", ">"]
    main: dict[int, _Tag] = field(default_factory=dict)
    exif: dict[int, _Tag] = field(default_factory=dict)
    gps: dict[int, _Tag] = field(default_factory=dict)
    interop: dict[int, _Tag] = field(default_factory=dict)

    @classmethod
    def read(cls, stream: BinaryIO) -> _Tags | None:
        """The first directory and those below it, not the second one (the thumbnail's); None if it makes no sense."""
        stream.seek(0)
        head = stream.read(8)
        order: Literal["<", ">"]
        if head[:4] == b"II*\0":
            order = "<"
        elif head[:4] == b"MM\0*":
            order = ">"
        else:
            return None
        if len(head) < 8:
            return None
        main = _directory(stream, order, struct.unpack(order + "I", head[4:])[0])
        exif = _below(stream, order, main, _EXIF)
        return cls(order, main, exif, _below(stream, order, main, _GPS), _below(stream, order, exif, _INTEROP))

    @property
    def orientation(self) -> int:
        tag = self.main.get(_ORIENTATION)
        if tag is None or tag.count != 1 or tag.type not in (1, 3, 4):
            return 1
        return int.from_bytes(tag.value, "little" if self.order == "<" else "big")

    def private(self) -> _Tags:
        """Without pictures, layout, and blocks that can name people."""
        return replace(self, main=_clean(self.main), exif=_clean(self.exif), gps=_clean(self.gps))

    def ordered(self, order: Literal["<", ">"]) -> _Tags:
        """The same in another byte order."""
        if order == self.order:
            return self
        swapped = (
            {key: _swapped(tag) for key, tag in part.items()} for part in (self.main, self.exif, self.gps, self.interop)
        )
        return _Tags(order, *swapped)

    def write(self) -> bytes:
        """As a TIFF structure of its own."""
        body, first = self.body(8)
        return (b"II*\0" if self.order == "<" else b"MM\0*") + struct.pack(self.order + "I", first) + body

    def body(self, start: int) -> tuple[bytes, int]:
        """The directories for that offset in a TIFF structure, and where among them the first one lies."""
        main, exif = dict(self.main), dict(self.exif)
        body = b""
        # Inner directories first: outer ones hold where those begin.
        for part, owner, key in ((self.interop, exif, _INTEROP), (exif, main, _EXIF), (self.gps, main, _GPS)):
            if part:
                owner[key] = _Tag(4, 1, struct.pack(self.order + "I", start + len(body)))
                body += _directory_bytes(part, self.order, start + len(body))
        first = start + len(body)
        return body + _directory_bytes(main, self.order, first), first


def _directory(stream: BinaryIO, order: str, offset: int, *, layout: bool = False) -> dict[int, _Tag]:
    """The tags at an offset, as far as they make sense; with ``layout`` those too that say where the pixels are."""
    stream.seek(offset)
    count = stream.read(2)
    if len(count) < 2:
        return {}
    table = stream.read(12 * struct.unpack(order + "H", count)[0])
    found = {}
    for place in range(0, len(table) - 11, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", table, place)
        size = _SIZES.get(kind, 0) * number
        value = table[place + 8 : place + 12]
        if size > 4:
            if not layout and (tag in _LAYOUT or tag in _PRIVATE or size > 1 << 20):
                continue  # not kept, and the strips of a TIFF can be many
            stream.seek(struct.unpack(order + "I", value)[0])
            value = stream.read(size)
        if 0 < size <= len(value):
            found[tag] = _Tag(kind, number, value[:size])
    return found


def _below(stream: BinaryIO, order: str, above: dict[int, _Tag], key: int) -> dict[int, _Tag]:
    """The directory that a tag points to; the pointer itself goes, as writing makes a new one."""
    pointer = above.pop(key, None)
    if pointer is None or len(pointer.value) != 4:
        return {}
    return _directory(stream, order, struct.unpack(order + "I", pointer.value)[0])


def _directory_bytes(tags: dict[int, _Tag], order: str, offset: int) -> bytes:
    table = struct.pack(order + "H", len(tags))
    room = offset + 2 + 12 * len(tags) + 4
    values = b""
    for key, tag in sorted(tags.items()):
        table += struct.pack(order + "HHI", key, tag.type, tag.count)
        if len(tag.value) <= 4:
            table += tag.value.ljust(4, b"\0")
        else:
            table += struct.pack(order + "I", room + len(values))
            values += tag.value + b"\0" * (len(tag.value) & 1)
    return table + b"\0\0\0\0" + values


def _clean(tags: dict[int, _Tag]) -> dict[int, _Tag]:
    return {
        key: tag
        for key, tag in tags.items()
        if key not in _LAYOUT
        and key not in _PRIVATE
        and b"\xff\xd8\xff" not in tag.value
        and not (tag.type in (1, 6, 7) and len(tag.value) > _LARGEST_BLOB)
    }


def _swapped(tag: _Tag) -> _Tag:
    width = _WORDS.get(tag.type, 1)
    words = (tag.value[place : place + width][::-1] for place in range(0, len(tag.value), width))
    return replace(tag, value=b"".join(words))


# -- saving --------------------------------------------------------------------------------------------


def save_photo(
    photo: Photo,
    pixels: Bytes,
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    drop_location: bool = False,
    quality: int | None = None,
) -> Saved:
    """Write a photo with other pixels, in one step: a kill leaves the old file or the new one.

    The target's suffix chooses the format; without one it is the source's. Formats that are only read become PNG (HEIC
    and MPO: JPEG), with a note. Embedded thumbnails and previews, MakerNotes, XMP, Photoshop and IPTC blocks, comments
    and text chunks are never written: they can show the unprotected face or name people.

    Args:
        photo: what :func:`open_photo` gave.
        pixels: uint8, the shape of ``photo.pixels``, upright.
        target: the new file; its folder must exist. It is never the source, by whatever name or link.
        overwrite: whether a file that is there may be replaced.
        drop_location: leave the GPS block out.
        quality: of lossy formats, 1 to 100, with full colour resolution. None: a JPEG keeps the tables and subsampling
            that it had, lossless WebP stays lossless, what was no JPEG gets 95 as one, WebP and AVIF 90.

    Raises:
        UsageError: the target is the source, exists, is a folder, or has an unknown suffix; the pixels do not fit.
        DataError: there is no folder for it, or the format cannot hold this picture.
        RunError, ResourceError: the operating system refuses, or the disk is full.
    """
    if pixels.dtype != np.uint8 or pixels.shape != photo.pixels.shape:
        raise UsageError(
            f"pixels are {pixels.dtype} {pixels.shape}, the photo's are uint8 {photo.pixels.shape}",
            hint="change a copy of photo.pixels",
        )
    if quality is not None and not 1 <= quality <= 100:
        raise UsageError(f"quality is {quality}", hint="give a whole number from 1 to 100, such as 90")
    kind, path, notes = _destination(photo, Path(target).expanduser())
    _check_target(photo, path, overwrite)
    try:
        content, used, more = _encoded(photo, pixels, kind, quality, drop_location)
    except MemoryError as error:
        raise ResourceError(f"{photo.source} does not fit into memory", hint="free some memory") from error
    except _DAMAGE as error:
        raise DataError(
            f"{photo.source} cannot be stored as {kind}: {error}", hint="choose another suffix: .png"
        ) from error
    try:
        files.write_bytes(path, content)
    except ResourceError as error:
        raise ResourceError(error.message, hint="free some space, or choose another folder") from error
    except RunError as error:
        raise RunError(error.message, hint="choose a folder that you may write to") from error
    return Saved(path, len(content), used, (*notes, *more))


def _destination(photo: Photo, target: Path) -> tuple[str, Path, list[str]]:
    suffix = target.suffix.lower()
    if suffix in WRITTEN:
        return WRITTEN[suffix], target, []
    if suffix in READ_ONLY:
        other = READ_ONLY[suffix]
        return WRITTEN[other], target.with_suffix(other), [f"saved as {WRITTEN[other]}: {suffix} is only read"]
    if not suffix:
        if photo.format in WRITTEN.values():
            return photo.format, target, []
        kind = "JPEG" if photo.format == "HEIF" else "PNG"
        return kind, target, [f"saved as {kind}: {photo.format} is only read"]
    raise UsageError(
        f"{target}: no picture format {target.suffix!r}",
        hint=f"{nearest(suffix, WRITTEN)}valid: {', '.join(WRITTEN)}",
    )


def _check_target(photo: Photo, path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="name a file in it")
    if not path.parent.is_dir():
        what = "is not a folder" if path.parent.exists() else "does not exist"
        raise DataError(f"cannot write {path}: {path.parent} {what}", hint=f"mkdir -p '{path.parent}'")
    if _same(path, photo.source):
        raise UsageError(f"{path} is the photo itself; a source is never overwritten", hint="choose another name")
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"{path} exists", hint="choose another name, or allow overwriting")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)  # sees through links of both kinds, and capitals where those do not count
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def _encoded(
    photo: Photo, pixels: Bytes, kind: str, quality: int | None, drop_location: bool
) -> tuple[bytes, int | None, list[str]]:
    """The file's content, the quality that it got, and notes."""
    from PIL import Image

    stored = photo.stored
    # BMP has no place for an orientation; Pillow would write EXIF anew to move it elsewhere in AVIF.
    orientation = 1 if kind in ("BMP", "AVIF") else stored.orientation
    pixels, alpha, notes = _opaque(photo, pixels, kind)
    grey = photo.grey and _is_grey(pixels) and (stored.icc is None or _space(stored.icc) == b"GRAY")
    layers = [pixels[..., :1] if grey else pixels] + ([] if alpha is None else [alpha[..., None]])
    array = layers[0] if len(layers) == 1 else np.concatenate(layers, axis=2)
    array = np.ascontiguousarray(_as_stored(array, orientation))
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    del array, layers
    tags = _kept_tags(stored, orientation, drop_location)
    options, used = _options(photo, kind, grey, quality)
    if stored.icc and kind != "BMP" and _space(stored.icc) == (b"GRAY" if grey else b"RGB "):
        options["icc_profile"] = stored.icc
    elif stored.icc:
        notes.append(
            "the colour profile was left out: it does not fit what was written, so that colours may look different"
        )
    if stored.dpi and kind not in ("WEBP", "AVIF"):
        options["dpi"] = stored.dpi
    if tags and kind not in ("BMP", "TIFF"):
        block = b"Exif\0\0" + tags.write()
        if kind == "JPEG" and len(block) > 65533:  # the largest segment
            notes.append("the EXIF block is too large for a JPEG and was left out")
            block = b"Exif\0\0" + _oriented(_Tags("<"), orientation).write()
        options["exif"] = block
    content = _compressed(image, kind, options)
    if tags and kind == "TIFF":
        content = _with_tags(content, tags)
    return content, used, notes


def _opaque(photo: Photo, pixels: Bytes, kind: str) -> tuple[Bytes, Bytes | None, list[str]]:
    """Pixels and opacity as the format can hold them: what JPEG and BMP show through is white."""
    if photo.alpha is None or kind not in ("JPEG", "BMP"):
        return pixels, photo.alpha, []
    share = photo.alpha[..., None].astype(np.uint16)
    flat = (pixels * share + 255 * (255 - share) + 127) // 255
    return flat.astype(np.uint8), None, [f"{kind} has no transparency: what was transparent is now white"]


def _space(icc: bytes) -> bytes:
    return icc[16:20]  # the colour space in the header of a profile


def _kept_tags(stored: Stored, orientation: int, drop_location: bool) -> _Tags | None:
    tags = _Tags.read(io.BytesIO(stored.exif)) if stored.exif else None
    if orientation == 1 and stored.orientation == 1 and tags is None:
        return None
    tags = _oriented(tags or _Tags("<"), orientation) if stored.orientation != 1 else tags
    return replace(tags, gps={}) if tags and drop_location else tags


def _oriented(tags: _Tags, orientation: int) -> _Tags:
    return replace(tags, main={**tags.main, _ORIENTATION: _Tag(3, 1, struct.pack(tags.order + "H", orientation))})


def _options(photo: Photo, kind: str, grey: bool, quality: int | None) -> tuple[dict[str, Any], int | None]:
    """Pillow's options of a format, and the quality that they stand for."""
    stored, coding = photo.stored, photo.stored.jpeg
    if kind == "JPEG":
        more: dict[str, Any] = {"progressive": bool(coding and coding.progressive)}
        if coding and quality is None:
            tables = [list(table) for table in coding.tables]
            more |= {"qtables": tables, "subsampling": coding.subsampling, "keep_rgb": coding.rgb and not grey}
            return more, coding.quality
        used = JPEG_QUALITY if quality is None else quality
        return {**more, "quality": used, "subsampling": 0}, used
    if kind == "WEBP":
        if stored.lossless and quality is None:
            return {"lossless": True, "exact": True}, None
        used = LOSSY_QUALITY if quality is None else quality
        return {"quality": used, "exact": True}, used
    if kind == "AVIF":
        used = LOSSY_QUALITY if quality is None else quality
        return {"quality": used, **({} if grey else {"subsampling": "4:4:4"})}, used
    if kind == "TIFF":
        lossless = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")
        return {"compression": stored.compression if stored.compression in lossless else "tiff_adobe_deflate"}, None
    if kind == "PNG" and stored.chunks:
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        for name, value in stored.chunks:
            info.add(name, value)
        return {"pnginfo": info}, None
    return {}, None


def _compressed(image: Image, kind: str, options: dict[str, Any]) -> bytes:
    def attempt(**changed: Any) -> bytes:
        sink = io.BytesIO()
        image.save(sink, format=kind, **{**options, **changed})
        return sink.getvalue()

    try:
        return attempt()
    except OSError:
        if not options.get("progressive"):
            raise
        return attempt(progressive=False)  # Pillow's buffer for progressive files is too small for noise


def _with_tags(content: bytes, tags: _Tags) -> bytes:
    """A TIFF file with further tags: a new first directory at its end, in its own byte order."""
    order: Literal["<", ">"] = "<" if content.startswith(b"II") else ">"
    own = _directory(io.BytesIO(content), order, struct.unpack(order + "I", content[4:8])[0], layout=True)
    merged = tags.ordered(order)
    content += b"\0" * (len(content) & 1)
    body, first = replace(merged, main={**merged.main, **own}).body(len(content))
    return b"".join((content[:4], struct.pack(order + "I", first), memoryview(content)[8:], body))


# -- many ----------------------------------------------------------------------------------------------


def plan_targets(sources: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Plan:
    """Say which file of a batch goes where; the same files give the same plan on every machine.

    A file goes to ``out/NAME``, what lies in a folder to ``out/PATH-BELOW-IT``; with several folders each keeps its own
    name in front. Formats that are only read change their suffix. Where two would meet, the one whose suffix changed
    takes the old suffix into its name (``a.gif`` beside ``a.png`` becomes ``a_gif.png``); if they still meet, the later
    one gets ``-2``. Capitals do not tell names apart, as they do not on every disk. Hidden files, what lies in ``out``,
    and a second mention of a file are passed over.

    Args:
        sources: files and folders (searched to any depth, links to folders are not followed).
        out: the folder for the results; it need not exist.

    Raises:
        DataError: a source does not exist, or there is no picture among them.
        UsageError: a result would land on a source, or ``out`` is a file.
    """
    target = Path(out).expanduser()
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file", hint="give a folder for the results")
    given = [Path(source).expanduser() for source in sources]
    folders = [path for path in given if path.is_dir()]
    _check_sources(given, folders, target)
    found: list[tuple[Path, Path]] = []
    ignored = 0
    seen: set[str] = set()
    for path in given:
        inside = path in folders
        for file in _walk(path, target) if inside else [path]:
            if not (file.suffix.lower() in SUFFIXES and _visible(file)) and (inside or not _signature_suffix(file)):
                ignored += 1
            elif (real := os.path.realpath(file)) not in seen:
                seen.add(real)
                known = file.suffix.lower() in SUFFIXES
                below = (
                    file.relative_to(path) if inside else Path(file.name + ("" if known else _signature_suffix(file)))
                )
                found.append((file, Path(_folder_name(path)) / below if inside and len(folders) > 1 else below))
    if not found:
        raise DataError("no pictures among " + ", ".join(str(path) for path in given), hint=f"{', '.join(SUFFIXES)}")
    pairs = tuple(zip((file for file, _ in found), _names([name for _, name in found], target), strict=True))
    inodes = {_inode(file) for file, _ in pairs}
    for _, place in pairs:
        if place.exists() and _inode(place) in inodes:
            raise UsageError(
                f"{place} is one of the photos; a source is never overwritten", hint="choose another folder"
            )
    return Plan(pairs, ignored)


def _inode(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_dev, state.st_ino


def _check_sources(given: list[Path], folders: list[Path], target: Path) -> None:
    for path in given:
        if not path.exists():
            raise DataError(f"no file or folder {path}", hint="check the path")
    for folder in folders:
        if _same(folder, target):
            raise UsageError(
                f"{target} is the folder of the photos", hint=f"choose another one, such as {target / 'out'}"
            )


def _walk(folder: Path, target: Path) -> Iterator[Path]:
    """Files below a folder, sorted; not what is hidden in folders, nor the results of an earlier run."""
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if _visible(Path(name)) and not _same(Path(place, name), target))
        yield from (Path(place, name) for name in sorted(names))


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")  # macOS leaves ._NAME.jpg beside NAME.jpg on foreign disks


def _signature_suffix(path: Path) -> str:
    """The suffix for the result of a picture whose own name tells nothing; empty if it is no picture."""
    try:
        with path.open("rb") as stream:
            head = stream.read(12)
    except OSError:
        return ""
    if head.startswith(_SIGNATURES[0]) or _is_heif(head):
        return ".jpg"
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return ".webp"
    return ".png" if head.startswith(_SIGNATURES) else ""


def _folder_name(path: Path) -> str:
    return path.name if path.name not in ("", "..") else path.resolve().name


def _names(below: list[Path], target: Path) -> list[Path]:
    """Distinct names; those that keep their suffix are served first, so that they keep all of it."""
    chosen: dict[int, Path] = {}
    taken: set[str] = set()
    for place, name in sorted(enumerate(below), key=lambda pair: pair[1].suffix.lower() in READ_ONLY):
        free = next(option for option in _options_for(name) if str(option).casefold() not in taken)
        taken.add(str(free).casefold())
        chosen[place] = target / free
    return [chosen[place] for place in range(len(below))]


def _options_for(name: Path) -> Iterator[Path]:
    """Names that a result may take, best first, without end."""
    suffix = READ_ONLY.get(name.suffix.lower(), name.suffix)
    yield name.with_suffix(suffix)
    stem = name.stem if suffix == name.suffix else f"{name.stem}_{name.suffix[1:].lower()}"
    if stem != name.stem:
        yield name.with_name(stem + suffix)
    yield from (name.with_name(f"{stem}-{number}{suffix}") for number in itertools.count(2))
