"""What the stages take and give besides weights: the tensors that the runtime drives them with, whatever the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

ONE_FILE = "one-file"  # a whole step; nothing here drives it
COMPONENT_STAGES: Mapping[str, tuple[str, ...]] = {
    "dit": ("embed", "block", "head"),
    "text": ("text_block", "text_norm"),
    "vae": ("decode_latent", "decode_first", "decode_next", "encode_first", "encode_next", "encode_latent"),
    "tiny": ("tiny_first", "tiny_next"),
}
TEXT_DIM = 4096
LATENT_CHANNELS = 16
TOKEN = 4 * LATENT_CHANNELS  # features of a token, which is a patch of 1×2×2
_CHUNK = 4  # frames of a chunk after the first
_FACTOR = 8  # pixels per latent

Dims = tuple[int | str, ...]
Tensors = dict[str, tuple[str, Dims]]  # name → dtype, dims


class Model(Protocol):
    """The figures that shapes depend on."""

    @property
    def dim(self) -> int: ...

    @property
    def in_channels(self) -> int: ...

    @property
    def text_length(self) -> int: ...

    @property
    def freq_dim(self) -> int: ...


def declared(model: Model, width: int) -> dict[str, tuple[Tensors, Tensors]]:
    """Stage → inputs and outputs; ``width``: channels of the VAE's features between its halves."""
    return {**_dit(model), **_text(), **_vae(width)}


def _dit(model: Model) -> dict[str, tuple[Tensors, Tensors]]:
    state: tuple[str, Dims] = ("fp32", ("L", TOKEN))
    x: Tensors = {"x": ("bf16", ("L", model.dim))}
    context: Tensors = {"context": ("bf16", (model.text_length, model.dim))}
    e, e0 = ({name: ("fp32", (rows, model.dim))} for name, rows in (("e", 1), ("e0", 6)))
    embed: Tensors = {
        "tokens": state,
        "time_features": ("fp32", (1, model.freq_dim)),
        "text": ("bf16", (model.text_length, TEXT_DIM)),
    }
    if model.in_channels > LATENT_CHANNELS:
        embed["condition"] = ("fp32", ("L", (model.in_channels - LATENT_CHANNELS) * 4))
    angles: Tensors = dict.fromkeys(("cos", "sin"), ("fp32", ("L", 64)))
    scalars: Tensors = dict.fromkeys("abc", ("fp32", (1,)))
    return {
        "embed": (embed, {**x, **context, **e, **e0}),
        "block": ({**x, **context, **e0, **angles}, x),
        "head": ({**x, **e, "tokens": state, "noise": state, **scalars}, {"tokens": state, "v": state}),
    }


def _text() -> dict[str, tuple[Tensors, Tensors]]:
    x: Tensors = {"x": ("fp32", ("L", TEXT_DIM))}
    return {
        "text_block": ({**x, "buckets": ("int32", ("L", "L"))}, x),
        "text_norm": (x, {"embeds": ("bf16", ("L", TEXT_DIM))}),
    }


def _vae(width: int) -> dict[str, tuple[Tensors, Tensors]]:
    latents: Tensors = {"chunk": ("fp32", (1, LATENT_CHANNELS, 1, "H", "W"))}
    features: Tensors = {"chunk": ("bf16", (1, width, 1, "H", "W"))}
    area = f"{_FACTOR}*H", f"{_FACTOR}*W"
    made: dict[str, tuple[Tensors, Tensors]] = {
        "decode_latent": (latents, features),
        "encode_latent": (features, latents),
    }
    for part, frames in (("first", 1), ("next", _CHUNK)):
        pixels: Tensors = {"chunk": ("uint8", (frames, *area, 3)), "total": ("fp32", (1,))}
        made |= {f"decode_{part}": (features, pixels), f"tiny_{part}": (latents, pixels)}
        made[f"encode_{part}"] = {"chunk": ("fp32", (1, 3, frames, *area))}, features
    return made
