"""An image file → upright RGB, as a person sees it. Whatever is in the file, it ends in pixels or in a UserError."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plugins.errors import UserError
from runtime.input_files import read_input
from runtime.media.files.pillow import pillow_image

if TYPE_CHECKING:
    from PIL import Image

#: What Pillow may open, by content and never by name; those that this Pillow has. Its other readers start programs
#: (PostScript's) or are of files that nobody has.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF")
#: 8192 × 8192: seventy times the largest frame of a video, and any photograph but those of 100 megapixels and more.
MAX_PIXELS = 1 << 26
MAX_BYTES = 8 * MAX_PIXELS + (1 << 20)  # of a file: four channels of 16 bits that are not compressed
_MINISWHITE, _PHOTOMETRIC = 0, 262  # TIFF: the tag that says how values are meant, and its value for 0 as white
_WHITE = (255, 255, 255, 255)


def open_image(path: Path) -> Image.Image:
    """The image in RGB, upright by its EXIF orientation (which the authors' code leaves out). Raises UserError.

    Of an animation it is the first frame. What is transparent is seen on white.
    """
    Image = pillow_image()
    from PIL import ImageOps

    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage that Pillow reads past
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Not by its path, which Pillow maps: a mapped TIFF that lies on its side keeps the size of the lying one.
            data = io.BytesIO(read_input(path, MAX_BYTES, f"a picture: {', '.join(formats)}"))
            with Image.open(data, formats=formats) as image:
                _check_pixels(path, image)
                ImageOps.exif_transpose(image, in_place=True)
                return _seen(path, image)
    except UserError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly everything: SyntaxError, struct.error, …
        raise UserError(
            f"{path} cannot be read as an image.",
            got=str(error) or type(error).__name__,
            expected=f"a whole file of one of {', '.join(formats)}",
            remedy="save it again as PNG or JPEG",
        ) from error


def _check_pixels(path: Path, image: Image.Image) -> None:
    """Raise UserError for more pixels than are decoded; nothing was decoded yet."""
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"{path} has more pixels than a video's frame can use.",
            expected=f"at most {MAX_PIXELS:,}",
            got=f"{image.width}x{image.height}",
            remedy="scale it down",
        )


def _seen(path: Path, image: Image.Image) -> Image.Image:
    """RGB of an image of any mode that a file can have."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return _sixteen_bits(image)
    if image.mode == "F":
        return _floats(path, image)
    if image.mode == "I":
        raise UserError(
            f"{path} holds 32-bit or signed integers, of which nothing says what is white.",
            expected="8 or 16 bits a channel, or floats from 0 to 1",
            remedy="save it again as PNG or JPEG",
        )
    if image.mode == "CMYK" and "icc_profile" in image.info:
        return _printed(image)
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, _WHITE), shown).convert("RGB")
    return image.convert("RGB")


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits; Pillow's own conversion cuts at 255."""
    values = np.asarray(image)
    grey = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if _white_is_zero(image):
        grey = 255 - grey
    if "transparency" in image.info:
        grey = np.where(values == image.info["transparency"], np.uint8(255), grey)
    return _from_grey(grey)


def _floats(path: Path, image: Image.Image) -> Image.Image:
    """Grey of floats from 0 to 1; what rounds to 0 or 255 may lie beside them. Raises UserError."""
    values = np.asarray(image, np.float32)
    low, high, half = float(values.min()), float(values.max()), 0.5 / 255
    if not (-half <= low and high <= 1 + half):  # NaN too
        raise UserError(
            f"{path} holds floats of which nothing says what is white.",
            expected="values from 0 to 1",
            got=f"{low:g} to {high:g}",
            remedy="scale them, or save it again as PNG or JPEG",
        )
    values = 1 - values if _white_is_zero(image) else values
    return _from_grey(np.rint(values.clip(0, 1) * 255).astype(np.uint8))


def _printed(image: Image.Image) -> Image.Image:
    """RGB of printing inks, by the profile that says what they look like."""
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    made = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    if made is None:
        raise ValueError("its colour profile gave no image")
    return made


def _white_is_zero(image: Image.Image) -> bool:
    """Whether it is a TIFF whose 0 is white: of 16 bits and floats Pillow does not turn that round."""
    tags: Any = getattr(image, "tag_v2", {})
    return bool(tags.get(_PHOTOMETRIC) == _MINISWHITE)


def _from_grey(grey: np.typing.NDArray[np.uint8]) -> Image.Image:
    from PIL import Image

    return Image.fromarray(grey).convert("RGB")
