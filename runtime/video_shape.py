"""From a video's pixels and frames to its latents' shape, and to the number of tokens."""

from __future__ import annotations

from plugins.errors import UserError


def latents_of(size: tuple[int, int], frames: int) -> tuple[int, int, int]:
    """Latent (T, H, W) of a video of (width, height) pixels and 4n+1 frames. Raises UserError."""
    width, height = size
    if frames < 1 or frames % 4 != 1:
        raise UserError(
            "This number of frames cannot be encoded.", expected="4n+1 frames (1, 5, … 81)", got=str(frames)
        )
    if width < 16 or height < 16 or width % 16 or height % 16:
        raise UserError("This size cannot be patchified.", expected="multiples of 16 pixels", got=f"{width}x{height}")
    return (frames - 1) // 4 + 1, height // 8, width // 8


def tokens_of(shape: tuple[int, int, int]) -> int:
    """L of latents (T, H, W)."""
    return shape[0] * (shape[1] // 2) * (shape[2] // 2)
