"""Every mode that a picture's file can have is seen as a person sees it, or refused by name."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Image = pytest.importorskip("PIL.Image")
from PIL import ImageCms, ImageFile, TiffImagePlugin

from plugins.errors import UserError
from runtime.media.files.picture import MAX_PIXELS, open_image

RAMP = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
GREY = np.rint(RAMP * 255).astype(np.uint8)


def saved(path: Path, image: Any, **options: Any) -> npt.NDArray[np.uint8]:
    image.save(path, **options)
    return np.asarray(open_image(path))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_of_grey_are_not_cut(tmp_path: Path, kind: str) -> None:
    values = np.rint(RAMP * 65535).astype(np.uint16)
    seen = saved(tmp_path / f"grey.{kind}", Image.fromarray(values))
    assert seen.shape == (16, 16, 3)
    assert np.array_equal(seen, np.stack([GREY] * 3, -1))


def test_sixteen_bits_of_grey_beside_a_clear_value(tmp_path: Path) -> None:
    """tRNS: one value of grey is transparent, and white is behind it."""
    values = np.full((2, 3), 257 * 40, np.uint16)
    values[0, 0] = 5
    data = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 16, 0, 0, 0, 0)), (b"tRNS", struct.pack(">H", 5))]
    (tmp_path / "clear.png").write_bytes(png([*parts, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]))
    seen = np.asarray(open_image(tmp_path / "clear.png"))
    assert seen[0, 0].tolist() == [255, 255, 255]
    assert seen[0, 1].tolist() == [40, 40, 40]


def png(parts: list[tuple[bytes, bytes]], *, damaged: bytes = b"") -> bytes:
    """A PNG of these chunks; the checksum of a damaged one is wrong."""
    out = b"\x89PNG\r\n\x1a\n"
    for name, data in parts:
        check = zlib.crc32(name + data) ^ (name == damaged)
        out += struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)
    return out


@pytest.mark.parametrize("photometric", [0, 1])
def test_floats_from_0_to_1(tmp_path: Path, photometric: int) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = photometric  # 0: white is zero
    seen = saved(tmp_path / "float.tiff", Image.fromarray(RAMP), tiffinfo=tags)
    assert np.array_equal(seen[..., 1], GREY if photometric else 255 - GREY)


def test_sixteen_bits_whose_zero_is_white(tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    values = np.rint(RAMP * 65535).astype(np.uint16)
    seen = saved(tmp_path / "negative.tiff", Image.fromarray(values), tiffinfo=tags)
    assert np.array_equal(seen[..., 0], 255 - GREY)


def _half_clear(mode: str) -> Any:
    image = Image.new("RGBA", (4, 4), (10, 200, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 2, 4))  # black, and not to be seen
    return image.convert(mode)


@pytest.mark.parametrize(
    ("make", "kind", "want"),
    [
        (lambda: _half_clear("RGBA"), "png", [(255, 255, 255), (10, 200, 30)]),
        (lambda: _half_clear("RGBA"), "webp", [(255, 255, 255), (10, 200, 30)]),
        (lambda: _half_clear("RGBA").quantize(4), "png", [(255, 255, 255), (10, 200, 30)]),
        (lambda: _half_clear("LA"), "png", [(255, 255, 255), (124, 124, 124)]),
        (lambda: _half_clear("RGBA"), "tiff", [(255, 255, 255), (10, 200, 30)]),
        (lambda: Image.new("RGBA", (4, 4), (0, 0, 0, 51)), "png", [(204, 204, 204)]),  # a fifth of black on white
        (lambda: Image.new("P", (4, 4), 3), "gif", None),
        (lambda: Image.new("1", (4, 4), 1), "png", [(255, 255, 255)]),
        (lambda: Image.new("1", (4, 4), 1), "tiff", [(255, 255, 255)]),
        (lambda: Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "tiff", [(255, 0, 0)]),
        (lambda: Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "jpeg", [(0, 0, 0)]),
        (lambda: Image.new("YCbCr", (4, 4), (128, 128, 128)), "tiff", [(128, 128, 128)]),
        (lambda: Image.new("LAB", (4, 4), (255, 128, 128)), "tiff", [(255, 255, 255)]),
        (lambda: Image.new("L", (4, 4), 77), "bmp", [(77, 77, 77)]),
        (lambda: Image.new("RGB", (4, 4), (9, 8, 7)), "bmp", [(9, 8, 7)]),
    ],
)
def test_modes_are_seen(
    tmp_path: Path, make: Callable[[], Any], kind: str, want: list[tuple[int, int, int]] | None
) -> None:
    image = make()
    want = [tuple(image.convert("RGB").getpixel((0, 0)))] if want is None else want
    options = {"lossless": True} if kind == "webp" else {}
    seen = saved(tmp_path / f"image.{kind}", image, **options)
    for colour, x in zip(want, (0, 3), strict=False):
        assert np.abs(seen[1, x].astype(int) - colour).max() <= 1, (image.mode, seen[1, x])


def test_inks_are_seen_by_their_profile(tmp_path: Path) -> None:
    """A profile that says what inks look like is followed: here sRGB's is given where it cannot be, and is refused."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("CMYK", (4, 4)).save(tmp_path / "inks.tiff", icc_profile=srgb)
    with pytest.raises(UserError, match="cannot be read as an image"):
        open_image(tmp_path / "inks.tiff")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (RAMP * 255, ["floats", "0 to 255"]),
        (RAMP - np.float32(0.5), ["floats", "-0.5"]),
        (np.full((2, 2), np.nan, np.float32), ["floats", "nan"]),
        (np.full((2, 2), 1 << 20, np.int32), ["32-bit", "white"]),
    ],
)
def test_values_without_a_white_are_refused(tmp_path: Path, values: Any, words: list[str]) -> None:
    Image.fromarray(values).save(tmp_path / "values.tiff")
    with pytest.raises(UserError) as refused:
        open_image(tmp_path / "values.tiff")
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "tiff"])
def test_it_is_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    """Of eight ways to hold a camera the corner that is red when seen comes out at the top left."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8, 0] = 255
    turn: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: x.swapaxes(0, 1)[::-1],
        7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
        8: lambda x: x.swapaxes(0, 1)[:, ::-1],
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turn[orientation](upright)))
    seen = saved(tmp_path / f"photo.{kind}", stored, exif=exif)
    assert seen.shape == upright.shape
    assert seen[2, 2, 0] > 240
    assert max(seen[2, 29, 0], seen[13, 2, 0], seen[13, 29, 0]) < 16


def test_sixteen_bits_are_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    seen = saved(tmp_path / "turned.tiff", Image.fromarray(np.zeros((4, 8), np.uint16)), exif=exif)
    assert seen.shape == (8, 4, 3)


def test_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    for kind in ("gif", "png", "webp", "tiff"):
        seen = saved(tmp_path / f"two.{kind}", frames[0], save_all=True, append_images=frames[1:])
        assert seen[4, 4, 0] > 240, kind
        assert seen[4, 4, 2] < 16, kind


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert open_image(tmp_path / "a.jpg").getpixel((0, 0)) == (1, 2, 3)


def test_what_else_pillow_opens_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript above all: Pillow starts Ghostscript for it, whatever the file's name."""
    for module in ("subprocess.Popen", "subprocess.run", "subprocess.check_call", "os.system"):
        monkeypatch.setattr(module, lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "cat.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n%%EOF\n")
    Image.new("RGB", (4, 4)).save(tmp_path / "icon.png", format="ICO")
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png", format="PPM")
    for name in ("cat.jpg", "icon.png", "photo.png"):
        with pytest.raises(UserError, match="JPEG, PNG, WEBP"):
            open_image(tmp_path / name)


@pytest.mark.parametrize("bad", [b"IHDR", b"gAMA", b"cHRM"])
def test_damaged_chunks(tmp_path: Path, bad: bytes) -> None:
    """Pillow raises SyntaxError and struct.error for these, not only OSError."""
    head = struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(4) for _ in range(4)))
    more = [(b"gAMA", b"\0\1\0\0"), (b"cHRM", bytes(32))]
    parts = [(b"IHDR", head), *more, (b"IDAT", rows), (b"IEND", b"")]
    (tmp_path / "whole.png").write_bytes(png(parts))
    assert open_image(tmp_path / "whole.png").size == (4, 4)
    (tmp_path / "bad.png").write_bytes(png(parts, damaged=bad))
    with pytest.raises(UserError, match="cannot be read as an image"):
        open_image(tmp_path / "bad.png")
    short = [(name, data[:2] if name == bad else data) for name, data in parts]
    (tmp_path / "short.png").write_bytes(png(short))
    with suppress(UserError):  # a picture, or this
        assert open_image(tmp_path / "short.png").size == (4, 4)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_damage_never_ends_in_a_traceback(tmp_path: Path, kind: str) -> None:
    """Cut and overwritten files are pictures or user errors."""
    if kind not in Image.SAVE and (Image.init(), kind)[1] not in Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    stream = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(stream, format=kind)
    whole = stream.getvalue()
    refused = 0
    for _ in range(120):
        data = bytearray(whole)
        for place in rng.integers(0, min(len(data), 400), 3):
            data[place] = rng.integers(0, 256)
        (tmp_path / "x").write_bytes(data[: rng.integers(8, len(data))] if rng.random() < 0.3 else data)
        try:
            assert open_image(tmp_path / "x").mode == "RGB"
        except UserError:
            refused += 1
    assert refused > 10


def test_pixels_are_limited_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of some kilobytes that would take gigabytes."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    rows = zlib.compress(bytes(1000))
    for width, height in ((8193, 8192), (16000, 12000), (1 << 20, 1 << 20), ((1 << 31) - 1, 1)):
        head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
        (tmp_path / "bomb.png").write_bytes(png([(b"IHDR", head), (b"IDAT", rows), (b"IEND", b"")]))
        with pytest.raises(UserError, match=r"more pixels|exceeds limit"):
            open_image(tmp_path / "bomb.png")
    assert MAX_PIXELS == 8192 * 8192


def test_images_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        open_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(UserError, match="cannot be read as an image"):
        open_image(tmp_path / "text.png")
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path, tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(UserError, match="a folder, a pipe or a device"):
            open_image(path)
