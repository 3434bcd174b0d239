"""What the authors publish for each model, by the words ``official`` and ``official-quant``: Hugging Face files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from exporter.models import ModelSpec
from plugins.errors import UserError

OFFICIAL = "official"
OFFICIAL_QUANT = "official-quant"
TOKENIZER = "google/umt5-xxl"
_WAN = "Wan-AI/Wan2.1-T2V-1.3B"  # text encoder and VAE are the same in every release of Wan 2.1 and in Wan2.2's A14B
_TURBO = "TurboDiffusion"


@dataclass(frozen=True)
class Release:
    """The files of one model: an id for each expert, float and in INT8 blocks; the text encoder's and the VAE's."""

    float_: tuple[str, ...]
    quantized: tuple[str, ...]
    text: str = f"{_WAN}:models_t5_umt5-xxl-enc-bf16.pth"
    vae: str = f"{_WAN}:Wan2.1_VAE.pth"


def _release(repo: str, *stems: str) -> Release:
    return Release(
        tuple(f"{_TURBO}/{repo}:{stem}.pth" for stem in stems),
        tuple(f"{_TURBO}/{repo}:{stem}-quant.pth" for stem in stems),
    )


_I2V = "TurboWan2.2-I2V-A14B"
RELEASES: Mapping[str, Release] = MappingProxyType(
    {
        "wan2.1-1.3b-480p": _release("TurboWan2.1-T2V-1.3B-480P", "TurboWan2.1-T2V-1.3B-480P"),
        "wan2.1-14b-480p": _release("TurboWan2.1-T2V-14B-480P", "TurboWan2.1-T2V-14B-480P"),
        "wan2.1-14b-720p": _release("TurboWan2.1-T2V-14B-720P", "TurboWan2.1-T2V-14B-720P"),
        "wan2.2-i2v-a14b-720p": _release(f"{_I2V}-720P", f"{_I2V}-high-720P", f"{_I2V}-low-720P"),
    }
)


def is_official(checkpoint: str | None) -> bool:
    """Whether a ``--checkpoint`` value is one of the two words."""
    return checkpoint in (OFFICIAL, OFFICIAL_QUANT)


def official_checkpoint(checkpoint: str, model: ModelSpec) -> str:
    """A ``--checkpoint`` value with the words in their Hugging Face ids, HIGH,LOW for two experts. Raises UserError."""
    if not is_official(checkpoint):
        return checkpoint
    release = _of(model)
    return ",".join(release.quantized if checkpoint == OFFICIAL_QUANT else release.float_)


def official_component(value: str | None, component: Literal["text", "vae"], model: ModelSpec) -> str | None:
    """The same for ``--text-encoder`` and ``--vae``, whose files are published as floats alone. Raises UserError."""
    if value != OFFICIAL:
        return value
    release = _of(model)
    return release.text if component == "text" else release.vae


def _of(model: ModelSpec) -> Release:
    if model.name not in RELEASES:
        raise UserError(
            f"Nobody publishes weights of {model.name}.",
            expected=f"official for one of {', '.join(RELEASES)}",
            got=model.name,
            remedy="pass a checkpoint of your own",
        )
    return RELEASES[model.name]
