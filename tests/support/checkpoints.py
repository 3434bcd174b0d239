"""Random checkpoints in every published form, for the tests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from exporter.checkpoint.reader import open_checkpoint
from exporter.checkpoint.table import checkpoint_tensors
from exporter.models import MODELS, ModelSpec
from exporter.packing.quantize import block_quantize
from plugins.errors import UserError

State = dict[str, torch.Tensor]
BLOCK_LINEAR = re.compile(r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])\.weight")


def canonical_state_dict(model: ModelSpec, seed: int = 0) -> State:
    """A checkpoint of ``model`` under canonical names, bf16: matrices of deviation 1/sqrt(K), norm weights around 1."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, want in checkpoint_tensors(model).items():
        values = torch.randn(want.shape, generator=generator)
        if len(want.shape) == 2:
            values *= want.shape[1] ** -0.5
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values *= 0.1 if name.endswith("modulation") else 0.02
        state[name] = values.to(torch.bfloat16)
    return state


def quantized(state: State) -> State:
    """The authors' -quant form of a float state dict."""
    out = {}
    for name, value in state.items():
        if BLOCK_LINEAR.fullmatch(name):
            stem = name.removesuffix("weight")
            out[stem + "int8_weight"], out[stem + "scale"] = block_quantize(value)
        else:
            out[name] = value
    return out


def without_proj_l(state: State) -> State:
    return {name: value for name, value in state.items() if "proj_l" not in name}


def conv3d(state: State) -> State:
    """Wan's own form: the patch embedding as the Conv3d weight [D,C,1,2,2]."""
    weight = state["patch_embedding.weight"]
    return state | {"patch_embedding.weight": weight.reshape(weight.shape[0], -1, 1, 2, 2)}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


# Written out here a second time on purpose, in the other direction than exporter.checkpoint.names.
_TO_DIFFUSERS = (
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^head\.head\.", "proj_out."),
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"\.modulation$", ".scale_shift_table"),
    (r"\.self_attn\.attn_op\.local_attn\.proj_l\.", ".attn1.attn_impl.proj_l."),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"\.([qkv])\.(weight|bias|int8_weight|scale)$", r".to_\1.\2"),
    (r"\.o\.(weight|bias|int8_weight|scale)$", r".to_out.0.\1"),
    (r"\.norm3\.", ".norm2."),
    (r"\.ffn\.0\.", ".ffn.net.0.proj."),
    (r"\.ffn\.2\.", ".ffn.net.2."),
)


def diffusers_name(name: str) -> str:
    """diffusers' name of one of Wan's tensors."""
    for pattern, theirs in _TO_DIFFUSERS:
        name = re.sub(pattern, theirs, name)
    return name


def diffusers(state: State) -> State:
    return {diffusers_name(name): value for name, value in conv3d(state).items()}


def save_pth(path: Path, state: State, *, wrapped: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state} if wrapped else state, path)
    return path


def save_safetensors(path: Path, state: State) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def save_sharded(folder: Path, state: State, shards: int = 3) -> Path:
    """Shards and their index in ``folder``; returns the index."""
    names = list(state)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"diffusion_pytorch_model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard::shards]
        save_safetensors(folder / file, {name: state[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def save_sparse(path: Path, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> Path:
    """A bf16 safetensors file of zeros that takes no disk: its header, then a hole of the full size."""
    header, end = {}, 0
    for name, shape in shapes:
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def refused(path: Path, *messages: str, allow: bool = False) -> str:
    """What open_checkpoint says of a file that is no checkpoint of wan-tiny, which must hold the messages."""
    with pytest.raises(UserError) as caught:
        open_checkpoint(path, MODELS["wan-tiny"], allow_missing_proj_l=allow)
    for message in messages:
        assert message in str(caught.value), str(caught.value)
    return str(caught.value)
