"""Pillow, which the base install is without."""

from __future__ import annotations

from typing import Any

from plugins.errors import UserError


def pillow_image() -> Any:
    """The module PIL.Image. Raises UserError."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(
            "Pictures need Pillow, which is not installed.", remedy="pip install 'turbotrt[video]'"
        ) from error
    return Image
