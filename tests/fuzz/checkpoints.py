"""Targets of what is given as weights: safetensors, indices of shards, torch's archives, and LoRA-like names."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from exporter.checkpoint.files import open_source
from exporter.checkpoint.reader import NamedTensors, open_checkpoint
from exporter.checkpoint.safetensors_file import SafetensorsFile
from exporter.models import MODELS
from exporter.networks.text.encoder import TEXT_ENCODERS
from exporter.networks.vae.spec import VAES
from exporter.packing.component import ComponentCheckpoint
from exporter.packing.formats import text_format, vae_format
from exporter.packing.merge import merge
from runtime.safetensors_header import read_header
from runtime.tensor_files import read_tensor
from runtime.weights.file import WeightsFile
from tests.fuzz.mutations import bytes_of, structure
from tests.fuzz.target import Case, Target
from tests.support import checkpoints as ck

TINY = MODELS["wan-tiny"]
ARRAYS = {"x": np.ones((2, 3), np.float32), "y": np.ones((4,), np.int8), "z": np.ones((1, 0), np.float16)}


def _safetensors(_: Path) -> Case:
    whole = save(ARRAYS, {"model": "wan-tiny"})
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    def case(dice: random.Random, folder: Path) -> None:
        path = folder / "a.safetensors"
        if dice.random() < 0.5:
            text = bytes_of(whole[8 : 8 + length], dice)
        else:
            text = json.dumps(structure(header, dice)).encode()
        head = struct.pack("<Q", len(text)) if dice.random() < 0.8 else bytes_of(whole[:8], dice)
        path.write_bytes(head + text + (data if dice.random() < 0.9 else bytes(dice.randrange(40))))
        found = read_header(path)
        by_torch, by_numpy = SafetensorsFile(path), WeightsFile(path)
        for name in found.tensors:
            assert by_torch.load(name).numel() * by_torch.load(name).element_size() == found.tensors[name].nbytes
            by_torch.load_rows(name, 0, 1) if found.tensors[name].shape and found.tensors[name].shape[0] else None
        by_numpy.close()
        for name in ("x", *found.tensors):
            read_tensor(path, name)

    return case


def _indices(made: Path) -> Case:
    state = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    index = ck.save_sharded(made, state, shards=2)
    content = json.loads(index.read_text())
    names = [path.name for path in made.iterdir() if path != index]

    def case(dice: random.Random, folder: Path) -> None:
        for name in names:
            data = (made / name).read_bytes()
            target = (
                name if dice.random() < 0.8 else name.replace("-00001", dice.choice(("-00003", "-0", "", "-1-of-9")))
            )
            (folder / target).write_bytes(bytes_of(data, dice, 1) if dice.random() < 0.2 else data)
        if dice.random() < 0.7:
            text = (
                json.dumps(structure(content, dice)).encode()
                if dice.random() < 0.6
                else bytes_of(index.read_bytes(), dice)
            )
            (folder / index.name).write_bytes(text)
        source = open_source(folder)
        for name in source.tensors:
            source.load(name)

    return case


def _archive(entries: dict[str, bytes], dice: random.Random) -> bytes:
    """A zip of these entries: as they are, or now and then compressed, doubled, or in another place."""
    out = io.BytesIO()
    kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in entries.items():
            kind = dice.choice(kinds) if dice.random() < 0.05 else zipfile.ZIP_STORED
            where = name if dice.random() < 0.97 else dice.choice(("data.pkl", f"b/{name}", "../x", "constants.pkl"))
            archive.writestr(where, data, kind)
    return out.getvalue()


#: Pickles that a reader must not follow: callables, numbers of bytes, memo places, deep and long ones.
EVIL = (
    b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R",
    b"cos\nsystem\nX\x04\x00\x00\x00true\x85R",
    b"ctorch\nTensor\n(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ftR",
    b"r\xff\xff\xff\x7f",
    b"]" * 5000 + b"a" * 4999,
    b"\x8a\xff" + b"\x01" * 255,
    b"ctorch\nload\n(X\x01\x00\x00\x00xtR",
    b"cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R",
    b"Q",
    b"0" * 10,
)


def _torch_files(made: Path) -> Case:
    state: dict[str, Any] = {"x": torch.ones(2, 3), "y": torch.ones(4, dtype=torch.int8), "e": torch.ones(2, 2).t()}
    path = ck.save_pth(made / "a.pth", state)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    whole, name = path.read_bytes(), next(name for name in entries if name.endswith("data.pkl"))
    values: list[Callable[[random.Random], Any]] = [
        lambda dice: torch.ones(1).expand(dice.choice((2, 10**6)), 10**6),
        lambda dice: torch.ones(3).to_sparse(),
        lambda dice: torch.empty(dice.choice((1, 10**9)), device="meta"),
        lambda dice: dice.choice((None, 1, "x", [1], {"a": 1}, bytearray(9), b"x", {1, 2}, 1j)),
        lambda dice: torch.nn.Parameter(torch.ones(2)),
    ]

    def case(dice: random.Random, folder: Path) -> None:
        out, kind = folder / dice.choice(("a.pth", "a.pt", "a.safetensors")), dice.randrange(4)
        if kind == 0:
            out.write_bytes(bytes_of(whole, dice, 12))
        elif kind == 1:
            pickled = entries[name]
            at = dice.randrange(2, len(pickled))
            evil = (
                pickled[:at] + dice.choice(EVIL) + pickled[at:] if dice.random() < 0.6 else bytes_of(pickled, dice, 3)
            )
            out.write_bytes(_archive({**entries, name: evil}, dice))
        elif kind == 2:
            torch.save(state | {dice.choice(("x", "new")): dice.choice(values)(dice)}, out)
        else:
            out.write_bytes(_archive(entries, dice) if dice.random() < 0.9 else pickle.dumps(state))
        source = open_source(out)
        for tensor in source.tensors:
            if np.prod(source.tensors[tensor].shape, dtype=object) < 10**7:
                source.load(tensor).clone()

    return case


_DIT = "blocks 0 1 self_attn cross_attn q to_q attn1 ffn norm3 head modulation patch_embedding token_embedding"
_WRAPPERS = "module _orig_mod _fsdp_wrapped_module model diffusion_model net first_stage_model"
_ADAPTERS = "lora_A lora_B lora_down lora_up alpha diff diff_b hada_w1_a lokr_w1 dora_scale lora_unet_blocks_0_q"
_LEAVES = "weight bias int8_weight scale weight_scale scaled_fp8 spiece_model decoder lm_head"
_OTHERS = "encoder block layer SelfAttention shared conv1 up_blocks up_blocks.99.resnets.7.conv1 mid_block.x.1"
_NAMES = " ".join((_DIT, _WRAPPERS, _ADAPTERS, _LEAVES, _OTHERS)).split()
PARTS = (*_NAMES, "", "\x1b[31m", "Ω", "x" * 300)
PLAIN = tuple(name for name in _NAMES if name not in _ADAPTERS.split())
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, torch.float8_e4m3fn, torch.int8, torch.uint8, torch.int64, torch.bool)
PROJ_L = "blocks.0.self_attn.attn_op.local_attn.proj_l.weight"
VALUES = (0.0, 1.0, float("nan"), float("inf"), 6e4)


def _random_state(dice: random.Random) -> ck.State:
    """A few small tensors, their names of parts that publications use: half of the times neither LoRA nor integers."""
    state, tame = {}, dice.random() < 0.5
    for _ in range(dice.randint(1, 12)):
        name = ".".join(dice.choice(PLAIN if tame else PARTS) for _ in range(dice.randint(1, 6)))
        shape = [dice.choice((0, 1, 2, 3, 8, 20)) for _ in range(dice.randrange(5))]
        value = torch.full(shape, dice.choice(VALUES)) if dice.random() < 0.8 else torch.zeros(shape)
        state[name] = value.to(dice.choice(FLOATS if tame else DTYPES))
    return state


def _loras(made: Path) -> Case:
    whole = {
        name: value[:2, :2] if value.dim() == 2 else value[:2] for name, value in ck.canonical_state_dict(TINY).items()
    }
    text, vae = text_format(TEXT_ENCODERS[TINY.text_encoder]), vae_format(VAES[TINY.vae])

    def saved(dice: random.Random, path: Path, state: ck.State) -> Path:
        return ck.save_safetensors(path, state) if dice.random() < 0.7 else ck.save_pth(path, state)

    def case(dice: random.Random, folder: Path) -> None:
        state = _random_state(dice) if dice.random() < 0.7 else {**whole, **_random_state(dice)}
        path = saved(dice, folder / dice.choice(("a.safetensors", "a.pth", "high.safetensors")), state)
        kind = dice.randrange(4)
        if kind == 0:
            open_checkpoint(path, TINY, allow_missing_proj_l=True)
        elif kind == 1:
            ComponentCheckpoint(path, dice.choice((text, vae)))
        elif kind == 2:
            named = NamedTensors(path)
            for name in named.tensors:
                named.load(name)
                list(named.bands(name))
        else:
            spoilt = [state if dice.random() < 0.8 else {**state, **_random_state(dice)} for _ in range(3)]
            spoilt[1] = {**spoilt[1], PROJ_L: torch.ones(2, 2)}
            paths = [
                saved(dice, folder / f"{role}.safetensors", each) for role, each in zip("abc", spoilt, strict=True)
            ]
            out = folder / "out.safetensors"
            merge(paths[0], paths[1], paths[2], out, weight=dice.choice((0.0, 1.0, -2.0, 1e30)))
            merged = SafetensorsFile(out)
            assert all(bool(merged.load(name).isfinite().all()) for name in merged.tensors)

    return case


CHECKPOINT_TARGETS = (
    Target("safetensors", _safetensors, 400),
    Target("indices", _indices, 400),
    Target("torch-files", _torch_files, 400),
    Target("checkpoints", _loras, 200),
)
