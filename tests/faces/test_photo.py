"""Photos in and out: every format, orientation and trap is built here with Pillow or by hand."""

from __future__ import annotations

import errno
import io
import os
import struct
import sys
import types
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, features

from holdfast.core.errors import DataError, ResourceError, RunError, UsageError
from holdfast.faces import photo as module
from holdfast.faces.photo import open_photo, plan_targets, save_photo

HEIGHT, WIDTH = 47, 62


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Smooth, coloured, and the same under no turn or flip."""
    y, x = np.mgrid[0:height, 0:width]
    red, green, blue = x * 255 / (width - 1), y * 255 / (height - 1), (x + 2 * y) * 255 / (2 * height + width)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def grey_picture() -> np.ndarray:
    return picture()[..., 2]


def jpeg_bytes(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(array).save(sink, "JPEG", quality=80)
    return sink.getvalue()


THUMBNAIL = jpeg_bytes(np.full((16, 16, 3), (200, 30, 90), np.uint8))
MAKER = b"MAKERNOTE Anna Example"


def ascii_tag(text: str) -> tuple[int, bytes]:
    return 2, text.encode() + b"\0"


def short(order: str, value: int) -> tuple[int, bytes]:
    return 3, struct.pack(order + "H", value)


def exif_block(orientation: int = 1, order: str = "<", thumbnail: bytes = THUMBNAIL) -> bytes:
    """An EXIF block by hand, in plain TIFF terms, with everything that a camera may leave in it."""

    def directory(entries: dict[int, tuple[int, bytes]], at: int, following: bool) -> bytes:
        table, values = struct.pack(order + "H", len(entries)), b""
        room = at + 2 + 12 * len(entries) + 4
        for key, (kind, value) in sorted(entries.items()):
            size = {2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 1: 1}[kind]
            table += struct.pack(order + "HHI", key, kind, len(value) // size)
            if len(value) <= 4:
                table += value.ljust(4, b"\0")
            else:
                table += struct.pack(order + "I", room + len(values))
                values += value
        end = room + len(values)
        return table + struct.pack(order + "I", end if following else 0) + values

    pack = lambda value: (4, struct.pack(order + "I", value))  # noqa: E731
    rational = lambda *v: (5, struct.pack(order + f"{len(v)}I", *v))  # noqa: E731
    exif = {
        36867: ascii_tag("2024:05:06 07:08:09"),
        37500: (7, MAKER),
        33434: rational(1, 250),
        34855: short(order, 400),
    }
    gps = {1: ascii_tag("N"), 2: rational(52, 1, 31, 1, 1234, 100), 29: ascii_tag("2024:05:06")}
    main = {
        271: ascii_tag("Camera"),
        315: ascii_tag("Jörg Müller"),
        0x112: short(order, orientation),
        700: (1, b"<x:xmpmeta/>"),
    }
    main |= {33723: (7, b"IPTC Anna Example"), 34377: (7, b"8BIM" + THUMBNAIL), 37724: (7, b"layers" + THUMBNAIL)}
    main |= {0xC4A5: (7, b"PrintIM\0")}
    # Two passes: the first only tells how long things are.
    places = [0, 0]
    for _ in range(2):
        main |= {0x8769: pack(places[0]), 0x8825: pack(places[1])}
        first = directory(main, 8, True)
        second = {259: short(order, 6), 513: pack(0), 514: pack(len(thumbnail))}
        length = len(directory(second, 8 + len(first), False))
        second[513] = pack(8 + len(first) + length)
        body = first + directory(second, 8 + len(first), False) + thumbnail
        places[0] = 8 + len(body)
        body += directory(exif, places[0], False)
        places[1] = 8 + len(body)
        body += directory(gps, places[1], False)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return b"Exif\0\0" + head + body


def icc(space: str = "RGB") -> bytes:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = space.encode().ljust(4)
    return bytes(profile)


def insert_segment(jpeg: bytes, marker: int, payload: bytes) -> bytes:
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def chunk(name: bytes, value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + name + value + struct.pack(">I", zlib.crc32(name + value))


def png_by_hand(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png16(array: np.ndarray, colour: int, *extra: bytes) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return png_by_hand(array.shape[1], array.shape[0], 16, colour, rows, *extra)


def tiff16(array: np.ndarray) -> bytes:
    """An uncompressed little-endian TIFF of three 16-bit channels."""
    height, width = array.shape[:2]
    data = array.astype("<u2").tobytes()
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8 + len(data)), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 8), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data))]
    bits = struct.pack("<3H", 16, 16, 16)
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + b"\0\0\0\0"
    return b"II*\0" + struct.pack("<I", 8 + len(data) + len(bits)) + data + bits + table


def upright_by_pillow(path: Path) -> np.ndarray:
    """What a viewer shows: an implementation that is not ours."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def close(one: np.ndarray, other: np.ndarray, levels: int) -> bool:
    return one.shape == other.shape and int(np.abs(one.astype(int) - other).max()) <= levels


def resave(path: Path, target: Path, **options: object) -> module.Saved:
    photo = open_photo(path)
    return save_photo(photo, photo.pixels, target, **options)  # type: ignore[arg-type]


# -- opening -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "gif", "jp2", "ppm", "tga", "avif", "qoi"])
def test_every_format_opens(tmp_path: Path, suffix: str) -> None:
    if suffix == "avif" and not features.check("avif"):
        suffix = "png"
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture()).save(path)
    photo = open_photo(path)
    assert close(photo.pixels, picture(), 24 if suffix in ("jpg", "webp", "gif", "avif") else 0)
    assert photo.pixels.dtype == np.uint8
    assert photo.alpha is None
    assert not photo.grey
    assert not photo.pixels.flags.writeable


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_orientation_is_applied_and_written_back(tmp_path: Path, suffix: str, orientation: int) -> None:
    path, target = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 97, "subsampling": 0}}.get(suffix, {})
    Image.fromarray(picture()).save(path, exif=exif.tobytes(), **options)
    photo = open_photo(path)
    assert photo.pixels.shape == ((HEIGHT, WIDTH, 3) if orientation < 5 else (WIDTH, HEIGHT, 3))
    assert np.array_equal(photo.pixels, upright_by_pillow(path))
    changed = photo.pixels.copy()
    changed[2:10, 3:20] = (255, 0, 0)
    save_photo(photo, changed, target)
    assert close(upright_by_pillow(target), changed, 20 if suffix == "jpg" else 0)
    with Image.open(target) as image:
        assert image.getexif().get(0x112, 1) == orientation
        if suffix != "tif":  # Pillow turns those by itself
            assert image.size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_orientation_survives_a_change_of_format(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path, exif=exif_block(orientation))
    photo = open_photo(path)
    for suffix, levels in (("jpg", 16), ("tif", 0), ("bmp", 0), ("webp", 40), ("avif", 40)):
        if suffix == "avif" and not features.check("avif"):
            continue
        target = tmp_path / f"b.{suffix}"
        save_photo(photo, photo.pixels, target)
        assert close(upright_by_pillow(target), photo.pixels, levels), suffix
        assert close(open_photo(target).pixels, photo.pixels, levels), suffix


def test_cmyk_goes_through_its_profile_or_says_that_it_had_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jpg"
    cmyk = Image.fromarray(picture()).convert("CMYK")
    cmyk.save(path, quality=95)
    photo = open_photo(path)
    assert close(photo.pixels, picture(), 12)  # inverted (Adobe) values come out upright
    assert any("CMYK" in note and "approximate" in note for note in photo.notes)

    cmyk.save(path, quality=95, icc_profile=icc("CMYK"))
    calls = []

    def convert(image: Image.Image, given: object, wanted: object, **options: object) -> Image.Image:
        calls.append((image.mode, options))
        return Image.new("RGB", image.size, (1, 2, 3))

    with monkeypatch.context() as patch:  # there is no free CMYK profile to build a file with
        patch.setattr(ImageCms, "profileToProfile", convert)
        photo = open_photo(path)
    assert calls == [("CMYK", {"outputMode": "RGB"})]
    assert (photo.pixels == (1, 2, 3)).all()
    assert photo.stored.icc is None
    assert any("through its colour profile" in note for note in photo.notes)
    assert open_photo(save_photo(photo, photo.pixels, tmp_path / "b.jpg").path).stored.icc is None

    assert close(open_photo(path).pixels, picture(), 12)  # the profile is a sham: the plain way instead
    cmyk.save(tmp_path / "a.tif")
    assert np.array_equal(open_photo(tmp_path / "a.tif").pixels, np.asarray(cmyk.convert("RGB")))


def test_ycck_of_adobe(tmp_path: Path) -> None:
    luma = np.asarray(Image.fromarray(255 - picture()).convert("YCbCr"))  # of the ink that is stored, not of the light
    layers = np.concatenate([luma, np.full((HEIGHT, WIDTH, 1), 255, np.uint8)], axis=2)
    sink = io.BytesIO()
    Image.fromarray(255 - layers, "CMYK").save(sink, "JPEG", quality=97)  # Pillow stores the complement
    data = sink.getvalue()
    place = data.index(b"Adobe") + 11
    assert data[place] == 0
    (tmp_path / "a.jpg").write_bytes(data[:place] + b"\x02" + data[place + 1 :])
    assert close(open_photo(tmp_path / "a.jpg").pixels, picture(), 12)
    assert not close(open_photo_bytes(tmp_path, data), picture(), 60)  # without the mark it is another picture


def open_photo_bytes(folder: Path, data: bytes) -> np.ndarray:
    (folder / "other.jpg").write_bytes(data)
    return open_photo(folder / "other.jpg").pixels


def test_jpeg_that_stores_rgb_stays_one(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.jpg", keep_rgb=True, quality=92)
    photo = open_photo(tmp_path / "a.jpg")
    assert photo.stored.jpeg is not None
    assert photo.stored.jpeg.rgb
    save_photo(photo, photo.pixels, tmp_path / "b.jpg")
    again = open_photo(tmp_path / "b.jpg")
    assert again.stored.jpeg == photo.stored.jpeg
    assert close(again.pixels, photo.pixels, 3)


def test_16_bits_become_8_and_it_is_said(tmp_path: Path) -> None:
    deep = picture().astype(np.uint16) * 257
    path = tmp_path / "a.png"
    opaque = np.full((HEIGHT, WIDTH, 1), 65535, np.uint16)
    opaque[0, 0] = 0x8000
    files = {
        "rgb.png": png16(deep, 2),
        "rgba.png": png16(np.concatenate([deep, opaque], axis=2), 6),
        "rgb.tif": tiff16(deep),
    }
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        photo = open_photo(path)
        assert np.array_equal(photo.pixels, picture()), name
        assert photo.notes == ("16 bits a channel were reduced to 8",), name
        assert (photo.alpha is not None) == (name == "rgba.png")
        if photo.alpha is not None:
            assert photo.alpha[0, 0] == 128
            assert photo.alpha[1, 1] == 255
    grey = grey_picture().astype(np.uint16) * 257
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(grey).save(tmp_path / name)
        photo = open_photo(tmp_path / name)
        assert np.array_equal(photo.pixels, np.repeat(grey_picture()[..., None], 3, axis=2)), name
        assert photo.grey
        assert photo.notes == ("16 bits a channel were reduced to 8",), name
    Image.fromarray(np.array([[1000, 65000, 65535]], np.uint16)).save(tmp_path / "steps.png")
    assert open_photo(tmp_path / "steps.png").pixels[0, :, 0].tolist() == [4, 253, 255]  # rounded, not cut
    Image.fromarray(picture()).save(tmp_path / "plain.png")
    assert open_photo(tmp_path / "plain.png").notes == ()


def test_16_bit_grey_with_a_transparent_value_and_grey_with_alpha(tmp_path: Path) -> None:
    grey = grey_picture().astype(np.uint16) * 257
    (tmp_path / "a.png").write_bytes(png16(grey, 0, chunk(b"tRNS", struct.pack(">H", int(grey[5, 5])))))
    photo = open_photo(tmp_path / "a.png")
    assert photo.alpha is not None
    assert np.array_equal(photo.alpha == 0, grey == grey[5, 5])
    Image.fromarray(np.dstack([grey_picture(), picture()[..., 0]])).save(tmp_path / "b.png")  # LA
    photo = open_photo(tmp_path / "b.png")
    assert photo.grey
    assert np.array_equal(photo.alpha, picture()[..., 0])
    save_photo(photo, photo.pixels, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.mode == "LA"
        assert np.array_equal(np.asarray(image), np.dstack([grey_picture(), picture()[..., 0]]))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_numbers_that_are_no_colours_are_refused(tmp_path: Path, mode: str) -> None:
    values = np.full((4, 5), 1e6, np.float32 if mode == "F" else np.int32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a.tif") as caught:
        open_photo(tmp_path / "a.tif")
    assert "8 or 16 bits" in caught.value.hint


def test_palette_with_transparency(tmp_path: Path) -> None:
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.fromarray(indices, "L").convert("P")
    image.putpalette([value for index in range(12) for value in (index * 20, 255 - index * 20, 7)])
    image.save(tmp_path / "a.png", transparency=bytes([0, 128] + [255] * 10))
    photo = open_photo(tmp_path / "a.png")
    assert photo.alpha is not None
    assert photo.alpha.ravel()[:3].tolist() == [0, 128, 255]
    assert photo.pixels[0, 2].tolist() == [40, 215, 7]
    assert not photo.pixels.flags.writeable
    assert not photo.alpha.flags.writeable
    image.save(tmp_path / "a.gif", transparency=3)
    photo = open_photo(tmp_path / "a.gif")
    assert photo.alpha is not None
    assert (photo.alpha.ravel() == 0).nonzero()[0].tolist() == [3]
    saved = save_photo(photo, photo.pixels, tmp_path / "b.gif")
    assert saved.path == tmp_path / "b.png"
    assert saved.notes == ("saved as PNG: .gif is only read",)
    again = open_photo(saved.path)
    assert np.array_equal(again.pixels, photo.pixels)
    assert np.array_equal(again.alpha, photo.alpha)


@pytest.mark.parametrize("band", [1, WIDTH * 5, WIDTH * (HEIGHT - 1)])
def test_conversion_in_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, band: int) -> None:
    monkeypatch.setattr(module, "_BAND", band)
    Image.fromarray(np.dstack([picture(), grey_picture()])).save(tmp_path / "a.png")
    photo = open_photo(tmp_path / "a.png")
    assert np.array_equal(photo.pixels, picture())
    assert np.array_equal(photo.alpha, grey_picture())


def test_lab(tmp_path: Path) -> None:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(Image.fromarray(picture()), *profiles, outputMode="LAB")
    lab.save(tmp_path / "a.tif")
    photo = open_photo(tmp_path / "a.tif")
    assert np.abs(photo.pixels.astype(int) - picture()).mean() < 3  # 8 bits of Lab hold fewer colours
    assert any("Lab" in note for note in photo.notes)


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tif"])
def test_several_frames_are_refused(tmp_path: Path, kind: str) -> None:
    frames = [Image.fromarray(np.roll(picture(), shift, axis=1)) for shift in (0, 9)]
    path = tmp_path / f"a.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"a\.\w+ has several frames") as caught:
        open_photo(path)
    assert "frame" in caught.value.hint
    frames[0].save(path, save_all=True)
    assert open_photo(path).pixels.shape == (HEIGHT, WIDTH, 3)


def test_mpo_gives_its_first_picture_and_drops_the_rest(tmp_path: Path) -> None:
    second = Image.fromarray(np.full((16, 16, 3), (200, 30, 90), np.uint8))
    path = tmp_path / "a.jpg"
    Image.fromarray(picture()).save(path, "MPO", save_all=True, append_images=[second], quality=90)
    assert path.read_bytes().count(b"\xff\xd8\xff") == 2
    photo = open_photo(path)
    assert photo.format == "JPEG"
    assert close(photo.pixels, picture(), 20)
    assert any("only the first was read" in note for note in photo.notes)
    saved = save_photo(photo, photo.pixels, tmp_path / "b.jpg")
    data = saved.path.read_bytes()
    assert data.count(b"\xff\xd8\xff") == 1
    assert b"MPF" not in data
    assert save_photo(photo, photo.pixels, tmp_path / "c.mpo").path == tmp_path / "c.jpg"


def test_a_motion_photo_loses_its_video(tmp_path: Path) -> None:
    mark = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta GCamera:MotionPhoto="1"/>'
    (tmp_path / "a.jpg").write_bytes(insert_segment(jpeg_bytes(picture()), 0xE1, mark) + b"\0\0\0\x18ftypmp42 a video")
    photo = open_photo(tmp_path / "a.jpg")
    assert any("only the first was read" in note for note in photo.notes)
    assert b"a video" not in save_photo(photo, photo.pixels, tmp_path / "b.jpg").path.read_bytes()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "gif", "bmp"])
def test_what_is_cut_short_is_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for share in (0.9, 0.5, 0.02):
        path.write_bytes(data[: max(20, int(len(data) * share))])
        with pytest.raises(DataError, match=f"a.{suffix} is cut short or damaged") as caught:
            open_photo(path)
        assert "again" in caught.value.hint


def test_a_process_that_tolerates_cut_files_does_not_make_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_bytes(picture(200, 200))[:-800])
    with pytest.raises(DataError, match="cut short"):
        open_photo(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_damage_never_shows_a_traceback(tmp_path: Path) -> None:
    """Bytes of every format turned at random: a picture or a DataError, and no warning."""
    rng = np.random.default_rng(1)
    for suffix in ("jpg", "png", "webp", "tif", "gif", "bmp", "ppm", "jp2"):
        path = tmp_path / f"a.{suffix}"
        options = {} if suffix in ("gif", "bmp", "ppm", "jp2") else {"exif": exif_block(6)}
        Image.fromarray(picture(16, 20)).save(path, **options)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        outcomes = set()
        for _ in range(60):
            broken = whole.copy()
            places = rng.integers(0, min(len(whole), 700), 4)
            broken[places] = rng.integers(0, 256, 4)
            path.write_bytes(broken.tobytes())
            try:
                photo = open_photo(path, most_megapixels=1)
            except DataError:
                outcomes.add("error")
                continue
            outcomes.add("photo")
            save_photo(photo, photo.pixels, tmp_path / "out.png", overwrite=True)
        assert outcomes, suffix


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture at all, only words " * 5)
    (tmp_path / "holiday.jpg").write_bytes(jpeg_bytes(picture()))
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "raw.dng").write_bytes(tiff16(picture()))
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n" + "\n" * 99)
    for name, words, hint in (
        ("empty.jpg", "is empty", "again"),
        ("text.jpg", "not a picture of a known format", "JPEG"),
        ("holidy.jpg", "no picture .*holidy.jpg", "did you mean 'holiday.jpg'"),
        ("holiday.jpg/a.jpg", "no picture", "check"),
        ("none/a.jpg", "no picture", "check"),
        ("gone.jpg", "link to a file that is not there", "mend"),
        (".", "is a folder", "file"),
        ("raw.dng", "raw file", "export"),
        ("a.eps", "not a picture of a known format", "JPEG"),  # its reader would start a program
    ):
        with pytest.raises(DataError, match=words) as caught:
            open_photo(tmp_path / name)
        assert hint in caught.value.hint, name
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match="not a regular file"):
        open_photo(tmp_path / "pipe.jpg")


def test_no_permission_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes(picture()))

    def refuse(self: Path, *args: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:  # root may read everything, so that modes say nothing here
        patch.setattr(Path, "open", refuse)
        with pytest.raises(DataError, match=r"no permission to read .*a.jpg") as caught:
            open_photo(tmp_path / "a.jpg")
    assert "chmod" in caught.value.hint


def test_heic_names_the_plug_in_and_uses_it_once_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"a.heic is a HEIC/HEIF picture") as caught:
        open_photo(path)
    assert "pip install pillow-heif" in caught.value.hint

    class Reader(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self._size, self._mode = (WIDTH, HEIGHT), "RGB"
            self.tile = []
            self.im = Image.fromarray(picture()).im

    fake = types.ModuleType("pillow_heif")
    accepts = lambda head: head[4:12] == b"ftypheic"  # noqa: E731
    fake.register_heif_opener = lambda: Image.register_open("HEIF", Reader, accepts)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    try:
        photo = open_photo(path)
    finally:
        Image.OPEN.pop("HEIF", None)
        if "HEIF" in Image.ID:
            Image.ID.remove("HEIF")
    assert np.array_equal(photo.pixels, picture())
    saved = save_photo(photo, photo.pixels, tmp_path / "b.heic")
    assert saved.path == tmp_path / "b.jpg"
    assert saved.quality == 95
    assert open_photo(saved.path).format == "JPEG"


# -- size ----------------------------------------------------------------------------------------------


def test_100_megapixels_are_refused_or_passed_by_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_by_hand(10_000, 10_000, 8, 2, b""))
    with pytest.raises(DataError, match=r"a.png is larger than the limit of 99 megapixels: it has 100\.0 megapixels"):
        open_photo(path, most_megapixels=99)
    with pytest.raises(DataError, match="cut short"):  # the limit lets it pass, and then there are no pixels
        open_photo(path, most_megapixels=100)
    path.write_bytes(png_by_hand(40_000, 40_000, 8, 2, b""))
    with pytest.raises(DataError, match="larger than the limit of 200 megapixels"):
        open_photo(path)
    with pytest.raises(UsageError, match="most_megapixels"):
        open_photo(path, most_megapixels=0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "gif"])
def test_pillows_own_limit_neither_warns_nor_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture()).save(path)
    for limit in (HEIGHT * WIDTH - 1, 100):  # Pillow warns at the first and refuses at the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            assert open_photo(path).pixels.shape == (HEIGHT, WIDTH, 3)
        assert not seen
        assert limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises(DataError):
        open_photo(tmp_path / f"b.{suffix}")
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(DataError, match="larger than the limit"):
        open_photo(path, most_megapixels=(HEIGHT * WIDTH - 1) / 1e6)
    assert open_photo(path, most_megapixels=HEIGHT * WIDTH / 1e6).pixels.shape == (HEIGHT, WIDTH, 3)


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_bytes(picture()))
    photo = open_photo(path)

    def refuse(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "_decoded", refuse)
    with pytest.raises(ResourceError, match=r"a.jpg does not fit into memory"):
        open_photo(path)
    monkeypatch.setattr(module, "_compressed", refuse)
    with pytest.raises(ResourceError, match="does not fit into memory"):
        save_photo(photo, photo.pixels, tmp_path / "b.jpg")


# -- what is kept and what is not ----------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("target", ["jpg", "png", "webp", "tif"])
def test_exif_stays_but_nothing_that_shows_or_names_people(tmp_path: Path, target: str, order: str) -> None:
    source = tmp_path / "a.jpg"
    data = jpeg_bytes(picture())
    data = insert_segment(
        data, 0xED, b"Photoshop 3.0\x008BIM\x04\x0c\0\0" + struct.pack(">I", len(THUMBNAIL)) + THUMBNAIL
    )
    data = insert_segment(data, 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>Anna Example</x:xmpmeta>")
    data = insert_segment(data, 0xFE, b"a comment about Anna Example")
    source.write_bytes(insert_segment(data, 0xE1, exif_block(6, order)))
    with Image.open(source) as image:  # the block is well formed: Pillow finds everything in it
        exif = image.getexif()
        assert exif.get_ifd(0x8769)[37500] == MAKER
        assert exif.get_ifd(0x8825)[1] == "N"
        assert exif.get_ifd(ExifTags.IFD.IFD1)[514] == len(THUMBNAIL)
    assert source.read_bytes().count(THUMBNAIL) == 4
    for drop in (False, True):
        path = tmp_path / f"{drop}.{target}"
        resave(source, path, drop_location=drop)
        data = path.read_bytes()
        assert THUMBNAIL[20:] not in data
        assert data.count(b"\xff\xd8\xff") == (target == "jpg")
        for words in (b"Anna Example", MAKER, b"xmpmeta", b"8BIM", b"IPTC", b"Photoshop", b"PrintIM", b"layers"):
            assert words not in data, words
        assert "Jörg Müller".encode() in data
        with Image.open(path) as image:
            exif = image.getexif()
            assert exif[271] == "Camera"
            assert exif[0x112] == 6
            assert dict(exif.get_ifd(ExifTags.IFD.IFD1)) == {}
            inner = exif.get_ifd(0x8769)
            assert inner[36867] == "2024:05:06 07:08:09"
            assert inner[33434] == 1 / 250
            assert inner[34855] == 400
            assert set(inner) == {36867, 33434, 34855}
            place = exif.get_ifd(0x8825)
            assert dict(place) == ({} if drop else {1: "N", 2: (52.0, 31.0, 12.34), 29: "2024:05:06"})
        assert (b"2024:05:06\0" in data) is not drop  # gone, not only unlinked


def test_exif_of_a_tiff_stays_too(tmp_path: Path) -> None:
    source = tmp_path / "a.tif"
    Image.fromarray(picture()).save(source, exif=exif_block(8), dpi=(200, 100), icc_profile=icc())
    photo = open_photo(source)
    for name in ("b.tif", "b.jpg", "b.png"):
        save_photo(photo, photo.pixels, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            exif = image.getexif()
            assert exif[271] == "Camera"
            assert exif[0x112] == 8
            assert exif.get_ifd(0x8769)[34855] == 400
            assert exif.get_ifd(0x8825)[1] == "N"
            assert name == "b.tif" or not {256, 258, 259, 273, 279} & set(exif)  # the layout of another file
            assert image.info["icc_profile"] == icc()
            assert [round(value) for value in image.info["dpi"]] == [200, 100]
        assert MAKER not in (tmp_path / name).read_bytes()
    assert np.array_equal(open_photo(tmp_path / "b.tif").pixels, photo.pixels)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg"])
def test_compression_of_a_tiff_is_kept_unless_it_loses(tmp_path: Path, compression: str) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.tif", compression=compression)
    photo = open_photo(tmp_path / "a.tif")
    assert photo.stored.dpi is None  # it has none, whatever Pillow says
    save_photo(photo, photo.pixels, tmp_path / "b.tif")
    with Image.open(tmp_path / "b.tif") as image:
        assert image.info["compression"] == ("tiff_adobe_deflate" if compression == "jpeg" else compression)
    assert np.array_equal(open_photo(tmp_path / "b.tif").pixels, photo.pixels)


def test_directories_of_a_tiff_begin_at_even_places() -> None:
    """As the format demands; compressed pixels may end at an odd one."""
    content = module._compressed(Image.new("RGB", (5, 3)), "TIFF", {}) + b"\0"
    content += b"\0" * (1 - len(content) % 2)
    tags = module._Tags.read(io.BytesIO(exif_block(3)[6:]))
    assert tags is not None
    extended = module._with_tags(content, tags)
    assert struct.unpack("<I", extended[4:8])[0] % 2 == 0
    assert Image.open(io.BytesIO(extended)).getexif()[271] == "Camera"


def test_a_picture_in_an_unknown_tag_goes(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[271] = "Camera"
    exif[0xC7A1] = b"private " + THUMBNAIL
    exif[0xC7A2] = b"p" * 5000
    Image.fromarray(picture()).save(tmp_path / "a.webp", exif=exif.tobytes())
    assert THUMBNAIL in (tmp_path / "a.webp").read_bytes()
    resave(tmp_path / "a.webp", tmp_path / "b.webp")
    data = (tmp_path / "b.webp").read_bytes()
    assert b"Camera" in data
    assert THUMBNAIL not in data
    assert b"private" not in data
    assert b"p" * 100 not in data


def test_damaged_exif_is_dropped_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(insert_segment(jpeg_bytes(picture()), 0xE1, b"Exif\0\0rubbish" + THUMBNAIL))
    photo = open_photo(tmp_path / "a.jpg")
    assert any("EXIF" in note for note in photo.notes)
    assert photo.stored.exif == b""
    # A pointer beyond the end costs its own tag, not the rest.
    block = bytearray(exif_block(3))
    place = block.index(struct.pack("<HHI", 271, 2, 7)) + 8
    block[place : place + 4] = struct.pack("<I", 1 << 30)
    (tmp_path / "b.jpg").write_bytes(insert_segment(jpeg_bytes(picture()), 0xE1, bytes(block)))
    photo = open_photo(tmp_path / "b.jpg")
    assert photo.stored.orientation == 3
    assert b"M\xc3\xbcller" in photo.stored.exif
    left = Image.Exif()
    left.load(photo.stored.exif)
    assert 271 not in left
    assert 315 in left


def test_exif_too_large_for_a_jpeg_leaves_the_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112], exif[270] = 6, "word " * 15_000
    Image.fromarray(picture()).save(tmp_path / "a.png", exif=exif.tobytes())
    saved = resave(tmp_path / "a.png", tmp_path / "b.jpg")
    assert any("too large" in note for note in saved.notes)
    assert close(upright_by_pillow(saved.path), open_photo(tmp_path / "a.png").pixels, 16)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_the_colour_profile_is_kept(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(picture()).save(tmp_path / f"a.{suffix}", icc_profile=icc())
    saved = resave(tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}")
    with Image.open(saved.path) as image:
        assert image.info["icc_profile"] == icc()
    assert saved.notes == ()


def test_profiles_of_grey_and_of_colour_do_not_mix(tmp_path: Path) -> None:
    Image.fromarray(grey_picture()).save(tmp_path / "a.png", icc_profile=icc("GRAY"))
    photo = open_photo(tmp_path / "a.png")
    save_photo(photo, photo.pixels, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert (image.mode, image.info["icc_profile"]) == ("L", icc("GRAY"))
    coloured = photo.pixels.copy()
    coloured[3, 3] = (9, 8, 7)
    saved = save_photo(photo, coloured, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.mode == "RGB"
        assert "icc_profile" not in image.info
    assert any("profile" in note for note in saved.notes)
    # Grey colours under a profile of colours stay RGB, where that profile is valid.
    Image.fromarray(np.repeat(grey_picture()[..., None], 3, axis=2)).save(tmp_path / "d.png", icc_profile=icc())
    photo = open_photo(tmp_path / "d.png")
    assert photo.grey
    save_photo(photo, photo.pixels, tmp_path / "e.png")
    with Image.open(tmp_path / "e.png") as image:
        assert (image.mode, image.info["icc_profile"]) == ("RGB", icc())


def test_grey_photos_are_saved_grey(tmp_path: Path) -> None:
    grey = np.repeat(grey_picture()[..., None], 3, axis=2)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey_picture()).save(tmp_path / "a.jpg")
    Image.fromarray(grey_picture() > 100).save(tmp_path / "a.tif")
    for name in ("a.png", "a.jpg", "a.tif"):
        photo = open_photo(tmp_path / name)
        assert photo.grey
        target = tmp_path / f"b{Path(name).suffix}"
        save_photo(photo, photo.pixels, target)
        with Image.open(target) as image:
            assert image.mode == "L"
        assert close(open_photo(target).pixels, photo.pixels, 3 if name == "a.jpg" else 0)
    Image.fromarray(grey).save(tmp_path / "three.jpg", quality=85)
    save_photo(open_photo(tmp_path / "three.jpg"), open_photo(tmp_path / "three.jpg").pixels, tmp_path / "one.jpg")
    with Image.open(tmp_path / "three.jpg") as three, Image.open(tmp_path / "one.jpg") as one:
        assert (three.mode, one.mode) == ("RGB", "L")
        assert one.quantization == {0: three.quantization[0]}
    photo = open_photo(tmp_path / "a.png")
    changed = photo.pixels.copy()
    changed[-1, -1, 2] ^= 1
    save_photo(photo, changed, tmp_path / "c.png")
    assert np.array_equal(open_photo(tmp_path / "c.png").pixels, changed)
    Image.fromarray(picture()).save(tmp_path / "colour.png")
    assert not open_photo(tmp_path / "colour.png").grey


def test_what_a_png_says_of_its_colours_stays_and_its_texts_go(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in picture())
    extra = chunk(b"gAMA", struct.pack(">I", 100_000)), chunk(b"tEXt", b"Comment\0Anna Example")
    (tmp_path / "a.png").write_bytes(png_by_hand(WIDTH, HEIGHT, 8, 2, rows, *extra))
    resave(tmp_path / "a.png", tmp_path / "b.png")
    data = (tmp_path / "b.png").read_bytes()
    assert extra[0] in data
    assert b"Anna" not in data


# -- compression ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp"])
def test_unchanged_pixels_are_identical_without_loss(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    noise[:4, :, 3] = 0
    layers = noise[..., :3] if suffix == "bmp" else noise
    Image.fromarray(layers).save(
        tmp_path / f"a.{suffix}", **({"lossless": True, "exact": True} if suffix == "webp" else {})
    )
    photo = open_photo(tmp_path / f"a.{suffix}")
    assert np.array_equal(photo.pixels, noise[..., :3])
    saved = save_photo(photo, photo.pixels, tmp_path / f"b.{suffix}")
    assert saved.quality is None
    assert saved.bytes == saved.path.stat().st_size
    again = open_photo(saved.path)
    assert np.array_equal(again.pixels, photo.pixels)
    if suffix == "bmp":
        assert again.alpha is None
    else:
        assert np.array_equal(again.alpha, noise[..., 3])


@pytest.mark.parametrize("quality", [30, 60, 85, 97])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_keeps_its_tables_and_moves_little(
    tmp_path: Path, quality: int, subsampling: int, progressive: bool
) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(picture()).save(
        path, quality=quality, subsampling=subsampling, progressive=progressive, dpi=(300, 300)
    )
    photo = open_photo(path)
    saved = save_photo(photo, photo.pixels, tmp_path / "b.jpg")
    again = open_photo(saved.path)
    assert again.stored.jpeg == photo.stored.jpeg
    assert again.stored.jpeg is not None
    assert (again.stored.jpeg.subsampling, again.stored.jpeg.progressive) == (subsampling, progressive)
    assert again.stored.dpi == (300, 300)
    assert saved.quality is not None
    assert abs(saved.quality - quality) <= 1
    moved = np.abs(again.pixels.astype(int) - photo.pixels)
    assert moved.max() <= 5  # the bound of the module's docstring
    assert moved.mean() <= 0.2
    assert any("strongly compressed" in note for note in photo.notes) == (quality < 75)


def test_a_jpeg_with_tables_of_its_own(tmp_path: Path) -> None:
    tables = [[3 + i % 5 for i in range(64)], [7 + i % 3 for i in range(64)], [5] * 64]
    Image.fromarray(picture()).save(tmp_path / "a.jpg", qtables=tables, subsampling=0)
    resave(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with Image.open(tmp_path / "a.jpg") as one, Image.open(tmp_path / "b.jpg") as other:
        assert len(one.quantization) == 3
        assert one.quantization == other.quantization


def test_a_given_quality_replaces_the_tables(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.jpg", quality=40, subsampling=2)
    saved = resave(tmp_path / "a.jpg", tmp_path / "b.jpg", quality=92)
    coding = open_photo(saved.path).stored.jpeg
    assert saved.quality == 92
    assert coding is not None
    assert abs(coding.quality - 92) <= 1
    assert coding.subsampling == 0
    with pytest.raises(UsageError, match="quality is 0"):
        resave(tmp_path / "a.jpg", tmp_path / "c.jpg", quality=0)
    Image.fromarray(picture()).save(tmp_path / "a.webp", lossless=True)
    small = resave(tmp_path / "a.webp", tmp_path / "small.webp", quality=20)
    assert small.quality == 20
    assert not open_photo(small.path).stored.lossless
    assert resave(tmp_path / "a.jpg", tmp_path / "b.png", quality=50).quality is None


def test_noise_at_full_quality_in_passes(tmp_path: Path) -> None:
    """Pillow's buffer for progressive files is smaller than such a file."""
    noise = np.random.default_rng(3).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", qtables=[[1] * 64], subsampling=0)
    photo = open_photo(tmp_path / "a.jpg")
    coding = photo.stored.jpeg
    assert coding is not None
    progressive = module.replace(
        photo, stored=module.replace(photo.stored, jpeg=module.replace(coding, progressive=True))
    )
    saved = save_photo(progressive, photo.pixels, tmp_path / "b.jpg")
    assert close(open_photo(saved.path).pixels, photo.pixels, 3)


def test_transparency_becomes_white_where_it_cannot_stay(tmp_path: Path) -> None:
    layers = np.dstack([picture(), np.zeros((HEIGHT, WIDTH), np.uint8)])
    layers[:24, :, 3] = 255
    Image.fromarray(layers).save(tmp_path / "a.png")
    for suffix in ("jpg", "bmp"):
        saved = resave(tmp_path / "a.png", tmp_path / f"b.{suffix}")
        again = open_photo(saved.path)
        assert close(again.pixels[:16], picture()[:16], 12)
        assert (again.pixels[-10:] >= 250).all()
        assert any("transparency" in note for note in saved.notes)


def test_a_format_that_cannot_hold_the_picture(tmp_path: Path) -> None:
    Image.new("L", (16_400, 1)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="cannot be stored as WEBP") as caught:
        resave(tmp_path / "a.png", tmp_path / "b.webp")
    assert ".png" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


# -- where it goes -------------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path: Path) -> module.Photo:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    return open_photo(tmp_path / "a.png")


def test_the_source_is_never_overwritten(tmp_path: Path, photo: module.Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    before = photo.source.read_bytes()
    (tmp_path / "soft.png").symlink_to("a.png")
    os.link(tmp_path / "a.png", tmp_path / "hard.png")
    (tmp_path / "sub").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "sub/../a.png", "soft.png", "hard.png", "linked/a.png"):
        for target in (tmp_path / name, name):
            with pytest.raises(UsageError, match="is the photo itself"):
                save_photo(photo, photo.pixels, target, overwrite=True)
    through = open_photo(tmp_path / "soft.png")
    with pytest.raises(UsageError, match="is the photo itself"):
        save_photo(through, photo.pixels, tmp_path / "a.png", overwrite=True)
    assert photo.source.read_bytes() == before


def test_other_files_only_on_demand(tmp_path: Path, photo: module.Photo) -> None:
    target = tmp_path / "b.png"
    target.write_text("mine")
    with pytest.raises(UsageError, match=r"b.png exists"):
        save_photo(photo, photo.pixels, target)
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    with pytest.raises(UsageError, match="exists"):
        save_photo(photo, photo.pixels, tmp_path / "dangling.png")
    assert target.read_text() == "mine"
    save_photo(photo, photo.pixels, target, overwrite=True)
    assert np.array_equal(open_photo(target).pixels, photo.pixels)
    assert not list(tmp_path.glob(".*"))  # no temporary name is left


def test_targets_that_cannot_be(tmp_path: Path, photo: module.Photo) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.png").mkdir()
    for name, kind, words in (
        ("none/b.png", DataError, "none does not exist"),
        ("file/b.png", DataError, "file is not a folder"),
        ("folder.png", UsageError, "is a folder"),
        ("b.jpgg", UsageError, "no picture format '.jpgg'"),
    ):
        with pytest.raises(kind, match=words) as caught:
            save_photo(photo, photo.pixels, tmp_path / name)
        assert caught.value.hint
    assert "did you mean '.jpg'" in caught.value.hint
    with pytest.raises(UsageError, match="pixels are"):
        save_photo(photo, photo.pixels[:-1], tmp_path / "b.png")
    with pytest.raises(UsageError, match="pixels are float64"):
        save_photo(photo, photo.pixels * 1.0, tmp_path / "b.png")
    assert save_photo(photo, photo.pixels, tmp_path / "plain").path == tmp_path / "plain"
    assert open_photo(tmp_path / "plain").format == "PNG"


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EACCES, RunError), (errno.EROFS, RunError), (errno.ENOSPC, ResourceError)]
)
def test_the_system_refuses(
    tmp_path: Path, photo: module.Photo, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:  # as root, no folder is read-only
        patch.setattr("holdfast.core.files.os.fsync" if number == errno.ENOSPC else "tempfile.mkstemp", refuse)
        with pytest.raises(kind, match=r"b.png") as caught:
            save_photo(photo, photo.pixels, tmp_path / "b.png")
    assert "--runs" not in str(caught.value)
    assert "folder" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


# -- many ----------------------------------------------------------------------------------------------


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def planned(sources: list[Path], out: Path, root: Path) -> dict[str, str]:
    return {str(a.relative_to(root)): str(b.relative_to(out)) for a, b in plan_targets(sources, out).pairs}


def test_a_folder_keeps_its_subfolders_and_its_results_are_no_sources(tmp_path: Path) -> None:
    album, out = tmp_path / "album", tmp_path / "album" / "out"
    touch(album / "a.jpg", album / "x" / "a.jpg", album / "y" / "a.JPG", album / "notes.txt", album / "._a.jpg")
    touch(album / ".trash" / "b.jpg", out / "a.jpg", out / "x" / "old.jpg")
    plan = plan_targets([album], out)
    assert planned([album], out, album) == {"a.jpg": "a.jpg", "x/a.jpg": "x/a.jpg", "y/a.JPG": "y/a.JPG"}
    assert plan.ignored == 2
    assert plan_targets([str(album)], str(out)) == plan


def test_clashes_are_resolved_the_same_way_each_time(tmp_path: Path) -> None:
    album, out = tmp_path / "album", tmp_path / "out"
    names = ["a.gif", "a.jpg", "a.png", "b.heic", "b.JPG", "b.jpg", "c.gif", "a_gif.png"]
    touch(*(album / name for name in names))
    plan = planned([album], out, album)
    assert plan["a.jpg"] == "a.jpg"
    assert plan["a.png"] == "a.png"
    assert plan["a_gif.png"] == "a_gif.png"
    assert plan["a.gif"] == "a_gif-2.png"
    assert plan["c.gif"] == "c.png"
    assert {plan["b.JPG"], plan["b.jpg"]} == {"b.JPG", "b-2.jpg"}
    assert plan["b.heic"] == "b_heic.jpg"
    assert len({name.casefold() for name in plan.values()}) == len(names)


def test_files_and_several_folders(tmp_path: Path) -> None:
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "out"
    touch(one / "a.jpg", two / "a.jpg", tmp_path / "a.jpg", tmp_path / "read.me")
    (tmp_path / "nameless").write_bytes(jpeg_bytes(picture()))
    (tmp_path / "same.jpg").symlink_to(tmp_path / "a.jpg")
    files = [tmp_path / name for name in ("a.jpg", "read.me", "nameless", "same.jpg")]
    assert planned([one, two, *files, one / "a.jpg"], out, tmp_path) == {
        "one/a.jpg": "one/a.jpg",
        "two/a.jpg": "two/a.jpg",
        "a.jpg": "a.jpg",
        "nameless": "nameless.jpg",
    }
    assert plan_targets([one, *files], out).ignored == 1
    touch(two / "A.JPG")
    assert planned([one / "a.jpg", two / "A.JPG"], out, tmp_path) == {"one/a.jpg": "a.jpg", "two/A.JPG": "A-2.JPG"}


def test_plans_that_cannot_be(tmp_path: Path) -> None:
    album = tmp_path / "album"
    touch(album / "a.jpg", tmp_path / "read.me", tmp_path / "out" / "b.jpg")
    os.link(album / "a.jpg", tmp_path / "out" / "a.jpg")
    for sources, out, kind, words in (
        ([album], album, UsageError, "folder of the photos"),
        ([album / "a.jpg"], album, UsageError, "never overwritten"),
        ([album], tmp_path / "out", UsageError, "never overwritten"),  # a hard link to the source
        ([album], tmp_path / "read.me", UsageError, "is a file"),
        ([tmp_path / "none"], tmp_path / "new", DataError, "no file or folder"),
        ([tmp_path / "read.me"], tmp_path / "new", DataError, "no pictures"),
    ):
        with pytest.raises(kind, match=words) as caught:
            plan_targets(sources, out)
        assert caught.value.hint
