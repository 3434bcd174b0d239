"""Targets of what a bundle holds: manifests, launch plans and their expressions, cached embeddings."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from exporter.models import MODELS
from exporter.torch_backend.runner import stage_functions
from plugins.errors import UserError
from plugins.expr import OPERATORS, evaluate, from_plain, to_plain
from plugins.plan import FORMAT_VERSION, MAGIC, KernelImage, LaunchSpec, Plan, TensorSpec, decode, encode, shape_of
from plugins.tensorrt_plugin import tensorrt_dims
from runtime.backends.tensorrt import TENSORRT
from runtime.bundle import FileInfo, encode_manifest, load_manifest
from runtime.checks import rebuild_command
from runtime.media.parts.plan import bundle_parts, plan_parts, planned
from runtime.media.text.embeds_cache import EmbedsCache
from tests.fuzz.mutations import NUMBERS, bytes_of, hostile, structure
from tests.fuzz.target import Case, Target
from tests.support.media_bundle import bare_manifest


def _manifests(_: Path) -> Case:
    made = bare_manifest(MODELS["wan-tiny"])
    stages = tuple(msgspec.structs.replace(s, engine=s.onnx, activation_bytes=1 << 20) for s in made.stages)
    data = encode_manifest(msgspec.structs.replace(made, stages=stages))
    whole = json.loads(data)
    small = json.dumps(whole, separators=(",", ":")).encode()

    def case(dice: random.Random, folder: Path) -> None:
        text = bytes_of(small, dice) if dice.random() < 0.3 else json.dumps(_steered(whole, dice)).encode()
        (folder / "manifest.json").write_bytes(text)
        manifest = load_manifest(folder)
        rebuild_command(manifest, folder)
        vram = dice.choice((None, 1 << 20, 1 << 30))
        plan_parts(manifest, planned(TENSORRT, manifest), bundle_parts(manifest), vram=vram).lines()
        if dice.random() < 0.2:
            stage_functions(manifest)

    return case


def _steered(whole: Any, dice: random.Random) -> Any:
    """A manifest changed anywhere, as often in its few figures as in its thousands of tensors."""
    if dice.random() < 0.5:
        return structure(whole, dice)
    part = dice.choice(("model", "sampler", "gpu", "stages", "files", "schema_version"))
    if part == "stages":
        stages = list(whole["stages"])
        at = dice.randrange(len(stages))
        few = {name: value for name, value in stages[at].items() if name != "inputs"}
        changed = structure(few, dice)
        stages[at] = {**changed, "inputs": stages[at]["inputs"]} if isinstance(changed, dict) else changed
        return {**whole, "stages": stages}
    return {**whole, part: structure(whole[part], dice)}


PLAN = Plan(
    op="Tiny",
    sm=90,
    attributes={"topk": 3, "precision": "int8"},
    symbols={"L": (0, 0)},
    inputs=[TensorSpec("x", "bf16", ["L", 8])],
    outputs=[TensorSpec("y", "int8", [["ceil_div", "L", 128], 8])],
    buffers=[TensorSpec("b", "fp32", ["L", ["max", 3, ["//", "L", 4]]])],
    kernels=[KernelImage("tiny", b"\x7fELF", 4, 1024, 384, 128, 40, 0)],
    launches=[LaunchSpec(0, ["L", 2, 1], [["tensor", "x"], ["i32", ["*", "L", 2]]])],
)


class _Builder:
    """TensorRT's builder of shape expressions and its operators, in integers."""

    SUM, SUB, PROD, FLOOR_DIV, CEIL_DIV, MAX, MIN = OPERATORS
    DimensionOperation: Any

    def constant(self, value: int) -> int:
        return value

    def operation(self, operator: str, a: int, b: int) -> int:
        return OPERATORS[operator](a, b)


def _plans(_: Path) -> Case:
    data, plain = encode(PLAN), msgspec.to_builtins(PLAN)
    builder = _Builder()
    builder.DimensionOperation = _Builder

    def case(dice: random.Random, folder: Path) -> None:
        if dice.random() < 0.3:
            plan = decode(bytes_of(data, dice))
        else:
            changed = structure(plain, dice, texts=False)
            body = msgspec.msgpack.encode(changed)
            plan = decode(MAGIC + FORMAT_VERSION.to_bytes(4, "little") + len(body).to_bytes(8, "little") + body)
        length = dice.choice((1, 100, 2**31))
        shapes = [[length if isinstance(d, str) else 8 for d in spec.shape] for spec in plan.inputs]
        for spec in plan.outputs:
            for dim in spec.dims():
                tensorrt_dims(builder, dim, shapes, plan, builder)
        symbols = plan.bind(shapes)
        for spec in (*plan.outputs, *plan.buffers):
            shape_of(spec, symbols)
        evaluate(plan.workspace_bytes, symbols)
        for launch in plan.launches:
            for dim in (*launch.grid, *(value for kind, value in launch.args if kind == "i32")):
                evaluate(from_plain(dim), symbols)

    return case


def _expressions(_: Path) -> Case:
    def made(dice: random.Random, depth: int) -> Any:
        if depth == 0 or dice.random() < 0.2:
            return dice.choice(("L", 1, 128, dice.choice(NUMBERS), hostile(dice)))
        sides = [made(dice, depth - 1), made(dice, min(depth - 1, 2))]
        return [dice.choice((*OPERATORS, "symbol", "**", 1)), *dice.sample(sides, 2)]

    def case(dice: random.Random, folder: Path) -> None:
        dim = from_plain(made(dice, dice.choice((1, 2, 4, 6, 14))))
        symbols: dict[str, int] = defaultdict(lambda: 7)
        assert evaluate(from_plain(to_plain(dim)), symbols) == evaluate(dim, symbols)

    return case


def _embeds(_: Path) -> Case:
    made = bare_manifest(MODELS["wan-tiny"])
    files = {**made.files, "text.safetensors": FileInfo(sha256="1" * 64, bytes=1)}
    manifest = msgspec.structs.replace(made, files=files, media_weights={"text": "text.safetensors"})
    embeds = np.arange(4096, dtype=np.uint16).reshape(1, 4096)

    def case(dice: random.Random, folder: Path) -> None:
        cache = EmbedsCache(folder / "embeds", manifest)
        assert cache.put("a cat", embeds) is None
        path = cache.path("a cat")
        data = path.read_bytes()
        changed = bytes_of(data[:300], dice) + data[300:] if dice.random() < 0.7 else bytes_of(data, dice)
        path.write_bytes(changed)
        found = cache.get("a cat")
        if found is None:
            raise UserError("no entry")
        assert np.array_equal(found, embeds)  # whatever was changed, it is never other embeddings

    return case


BUNDLE_TARGETS = (
    Target("manifests", _manifests, 120),
    Target("plans", _plans, 800, (ValueError,)),
    Target("expressions", _expressions, 1000, (ValueError,)),
    Target("embeds", _embeds, 100),
)
