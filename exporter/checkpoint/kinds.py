"""What a checkpoint is that does not fit: its kind and size, by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from exporter.checkpoint.names import from_diffusers, unwrapped
from exporter.checkpoint.source import TensorMeta
from exporter.checkpoint.text_names import text_name
from exporter.checkpoint.tiny_names import described_tiny
from exporter.models import PATCH
from plugins.errors import UserError

_ADAPTER = re.compile(r"(^|[._])(lora|hada|lokr|dora)[_.]|\.diff(_b)?$")
_VAE = re.compile(r"(encoder|decoder)\.(conv_in|conv1|middle|mid_block|downsamples|upsamples|down_blocks|up_blocks)\.")
#: (D, blocks, input channels) of Wan's other DiTs, and marks of what some of them have besides.
_RELATIVES: Mapping[tuple[int, int, int], str] = {(3072, 30, 48): "Wan2.2-TI2V-5B"}
_MARKS: Mapping[str, str] = {
    "img_emb.": "with CLIP's image embedding, as Wan2.1's image-to-video",
    "vace_blocks.": "with VACE's blocks",
}

Tensors = Mapping[str, TensorMeta]


def refuse_adapter(path: object, names: Iterable[str]) -> None:
    """Raises UserError for a LoRA and its like: what was added to a model, without the model."""
    if found := [name for name in names if _ADAPTER.search(name)]:
        raise UserError(
            f"{path} is a LoRA, not a model.",
            expected="the weights of a whole model",
            got=f"{len(found)} tensors such as {found[0]}",
            remedy="merge it into the model that it was trained for, and pass the result",
        )


def described(tensors: Tensors) -> str:
    """A DiT, a text encoder, a VAE or a tiny decoder, and its size: from any publication's names."""
    bare = {unwrapped(name): meta for name, meta in tensors.items()}
    return (
        _dit({from_diffusers(name): meta for name, meta in bare.items()})
        or _text({text_name(name): meta for name, meta in bare.items()})
        or _vae(bare)
        or described_tiny(bare)
        or "nothing that is known here"
    )


def _dit(tensors: Tensors) -> str | None:
    patch = tensors.get("patch_embedding.weight")
    if patch is None or len(patch.shape) < 2:
        return None
    features = patch.shape[1] // (PATCH[1] * PATCH[2]) if len(patch.shape) == 2 else patch.shape[1]
    blocks = _count(tensors, r"blocks\.(\d+)\.")
    name = _RELATIVES.get((patch.shape[0], blocks, features))
    marks = [said for mark, said in _MARKS.items() if any(stored.startswith(mark) for stored in tensors)]
    size = f"a DiT of {blocks} blocks, D {patch.shape[0]} and {features} input channels"
    return ", ".join([f"{name}: {size}" if name else size, *marks])


def _text(tensors: Tensors) -> str | None:
    embedding = tensors.get("token_embedding.weight")
    if embedding is None or len(embedding.shape) != 2:
        return None
    blocks = _count(tensors, r"blocks\.(\d+)\.")
    return f"a text encoder of {blocks} blocks, D {embedding.shape[1]} and {embedding.shape[0]} tokens"


def _vae(tensors: Tensors) -> str | None:
    if not any(_VAE.match(name) for name in tensors):
        return None
    latent = next((tensors[n] for n in ("conv2.weight", "post_quant_conv.weight") if n in tensors), None)
    return "a VAE" + (f" of {latent.shape[0]} latent channels" if latent is not None and latent.shape else "")


def _count(tensors: Tensors, pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})
