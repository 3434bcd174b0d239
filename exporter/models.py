"""The table of models: every architectural and sampling fact the exporter needs, by the name given to --model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from plugins.errors import UserError
from runtime.video_shape import latents_of, tokens_of

HEAD_DIM = 128
TEXT_LENGTH = 512
TEXT_DIM = 4096
FREQ_DIM = 256
PATCH = (1, 2, 2)
OUT_CHANNELS = 16
EPS = 1e-6
FPS = 16
MOST_TOKENS = 131_072  # what SageSLA selects from in registers: 2048 blocks of 64 keys

SIZES_480P = ((832, 480), (480, 832), (640, 640), (640, 480), (480, 640))
SIZES_720P = ((1280, 720), (720, 1280), (960, 960), (960, 720), (720, 960))


@dataclass(frozen=True)
class ModelSpec:
    """One distilled Wan video DiT. Sizes are (width, height) in pixels; ``max_tokens`` bounds the engines' profile.

    ``max_size`` is the (width, height, frames) that an export asked for in place of the model's own.
    """

    name: str
    dim: int
    layers: int
    ffn_dim: int
    in_channels: int
    size: tuple[int, int]
    frames: int
    sizes: tuple[tuple[int, int], ...]
    max_tokens: int
    steps: int = 4
    sigma_max: float = 80.0
    experts: tuple[str, ...] = ("model",)
    boundary: float | None = None
    vae: str = "Wan2.1"
    tiny_decoder: str = "taew2_1"
    text_encoder: str = "umt5-xxl"
    max_size: tuple[int, int, int] | None = None

    @property
    def heads(self) -> int:
        return self.dim // HEAD_DIM

    @property
    def image_to_video(self) -> bool:
        return self.in_channels > OUT_CHANNELS

    @property
    def patch_features(self) -> int:
        """Features of one input token: channels × patch volume."""
        return self.in_channels * PATCH[0] * PATCH[1] * PATCH[2]

    def latent_shape(self, size: tuple[int, int] | None = None, frames: int | None = None) -> tuple[int, int, int]:
        """Latent (T, H, W) for a size in pixels (width, height) and a number of frames 4n+1."""
        return latents_of(size or self.size, frames or self.frames)

    def tokens(self, size: tuple[int, int] | None = None, frames: int | None = None) -> int:
        """Number of tokens L for a size in pixels and a number of frames."""
        return tokens_of(self.latent_shape(size, frames))


_WAN_1_3B = ModelSpec(
    name="wan2.1-1.3b-480p",
    dim=1536,
    layers=30,
    ffn_dim=8960,
    in_channels=16,
    size=(832, 480),
    frames=81,
    sizes=SIZES_480P,
    max_tokens=34_560,
)
_WAN_14B_480P = replace(_WAN_1_3B, name="wan2.1-14b-480p", dim=5120, layers=40, ffn_dim=13824)
# Image-to-video picks other multiples of 16 (L up to 76,860): the 720p profile reaches 80,640.
_WAN_14B_720P = replace(_WAN_14B_480P, name="wan2.1-14b-720p", size=(1280, 720), sizes=SIZES_720P, max_tokens=80_640)
_WAN_I2V_A14B = replace(
    _WAN_14B_720P,
    name="wan2.2-i2v-a14b-720p",
    in_channels=36,
    sigma_max=200.0,
    experts=("high-noise", "low-noise"),
    boundary=0.9,
)
_WAN_TINY = replace(
    _WAN_1_3B,
    name="wan-tiny",
    dim=256,
    layers=2,
    ffn_dim=512,
    size=(128, 80),
    frames=17,
    sizes=((128, 80), (80, 128), (96, 96)),
    max_tokens=4_096,
    vae="Wan2.1-tiny",
    tiny_decoder="taew2_1-tiny",
    text_encoder="umt5-tiny",
)

MODELS: Mapping[str, ModelSpec] = MappingProxyType(
    {m.name: m for m in (_WAN_1_3B, _WAN_14B_480P, _WAN_14B_720P, _WAN_I2V_A14B, _WAN_TINY)}
)


def sized(model: ModelSpec, width: int, height: int, frames: int | None = None) -> ModelSpec:
    """The model for engines that run videos up to this size, and no larger ones. Raises UserError.

    Larger engines take more memory at every size: TensorRT keeps a plugin's workspace as the profile's maximum needs
    it. So this is asked for, and not every model's profile. Image-to-video picks other multiples of 16, of up to a
    fifteenth more tokens. A default video that does not fit any more gives way to the largest one.
    """
    frames = model.frames if frames is None else frames
    tokens = model.tokens((width, height), frames)
    if tokens > MOST_TOKENS:
        raise UserError(
            "--max-size is larger than attention runs.",
            expected=f"L of at most {MOST_TOKENS:,}",
            got=f"{width}x{height} with {frames} frames: L = {tokens:,}",
        )
    if tokens == model.tokens():
        return model
    made = replace(model, max_size=(width, height, frames), max_tokens=min(MOST_TOKENS, -(-tokens * 16 // 15)))
    return made if tokens > model.tokens() else replace(made, size=(width, height), frames=frames)


def model_named(name: str) -> ModelSpec:
    """The model of that name. Raises UserError listing the known names."""
    if name not in MODELS:
        raise UserError(f"There is no model named {name!r}.", expected=", ".join(MODELS), got=name)
    return MODELS[name]
