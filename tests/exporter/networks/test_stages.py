"""The stages compute the DiT of semantics.md, their ONNX graphs what the stages do; runtime.numerics its formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from exporter.checkpoint.reader import open_checkpoint
from exporter.graphs.trace import trace_stage
from exporter.models import MODELS, ModelSpec
from exporter.networks.dit import functions as stages
from exporter.networks.dit.options import BlockOptions
from exporter.networks.dit.stages import dit_stages
from exporter.networks.dit.weights import Stage, stage_weights
from exporter.networks.weight_spec import LinearMode
from exporter.packing.packer import pack
from plugins.onnx_schema import register_schemas
from runtime import numerics
from runtime.bundle import OUTPUT_SUFFIX
from tests.support import checkpoints as ck
from tests.support import plain_dit
from tests.support.onnx_reference import run_onnx

TINY = MODELS["wan-tiny"]
I2V = replace(TINY, name="wan-tiny-i2v", in_channels=36)
SHAPE = (5, 10, 16)  # latent T, H, W: 200 tokens, so the last q and k blocks are short
T = 0.853
STATE_SEED, TOPK = 3, 500
SDE = numerics.update(T, 0.609)
Tensors = dict[str, torch.Tensor]


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative L2 distance."""
    return float((got.double() - want.double()).norm() / want.double().norm())


@cache
def state_dict(model: ModelSpec) -> Tensors:
    """A checkpoint whose error bounds bite: open gates and peaked attention, so that leaving out or misplacing RoPE,
    a block selection, proj_l, cross-attention or the FFN moves v by 27 % or more."""
    state = ck.canonical_state_dict(model, STATE_SEED)
    for name, value in state.items():
        if name.startswith("blocks.") and name.endswith("modulation"):
            value[:, 2::3] += 0.5
        elif "norm_q" in name or "norm_k" in name:
            value *= 2
    return state


@cache
def inputs(model: ModelSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [C, T, H, W] fp32 and text [512, 4096] bf16 with zero rows past the prompt."""
    generator = torch.Generator().manual_seed(11)
    latents = torch.randn(model.in_channels, *SHAPE, generator=generator)
    text = torch.randn(512, 4096, generator=generator)
    text[40:] = 0
    return latents, text.bfloat16()


class Packed:
    """Packed weights by model and mode, each packed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: dict[tuple[str, str], Tensors] = {}

    def __call__(self, model: ModelSpec, linear: LinearMode) -> Tensors:
        key = (model.name, linear)
        if key not in self.done:
            source = ck.save_safetensors(self.folder / f"{model.name}.safetensors", state_dict(model))
            out = self.folder / f"{model.name}-{linear}.safetensors"
            pack(open_checkpoint(source, model), model, out, linear=linear)
            self.done[key] = load_file(out)
        return self.done[key]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return Packed(tmp_path_factory.mktemp("packed"))


def weights_of(all_weights: Tensors, model: ModelSpec, stage: Stage, linear: LinearMode, layer: int = 0) -> Tensors:
    prefix = f"blocks.{layer}." if stage == "block" else ""
    return {name: all_weights[prefix + name] for name in stage_weights(model, stage, linear)}


@dataclass(frozen=True)
class Case:
    """One way of running the DiT, and its bound on the relative error of v."""

    model: ModelSpec
    options: BlockOptions
    bound: float

    @property
    def name(self) -> str:
        return f"{self.model.name}-{self.options.attention}-{self.options.topk_milli}-{self.options.linear}"


def activations(case: Case, packed: Packed) -> dict[Stage, tuple[Tensors, Tensors]]:
    """Inputs and outputs by name of embed, the first block and the head, run on CPU through all blocks."""
    model, linear = case.model, case.options.linear
    everything = packed(model, linear)
    latents, text = inputs(model)
    tokens = torch.from_numpy(numerics.to_tokens(latents[:16].numpy()))
    features = torch.from_numpy(numerics.time_features(T))
    taken: Tensors = {"tokens": tokens, "time_features": features, "text": text}
    if model.image_to_video:
        taken["condition"] = torch.from_numpy(numerics.to_tokens(latents[16:].numpy()))
    w = weights_of(everything, model, "embed", linear)
    x, context, e, e0 = stages.embed(tokens, features, text, w, taken.get("condition"))
    done: dict[Stage, tuple[Tensors, Tensors]] = {
        "embed": (taken, {"x": x, "context": context, "e": e, "e0": e0}),
    }
    cos, sin = (torch.from_numpy(table) for table in numerics.rope_tables(SHAPE))
    for layer in range(model.layers):
        w = weights_of(everything, model, "block", linear, layer)
        taken = {"x": x, "context": context, "e0": e0, "cos": cos, "sin": sin}
        x = stages.block(x, context, e0, cos, sin, w, case.options)
        if layer == 0:
            done["block"] = (taken, {"x": x})
    noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(5))
    a, b, c = (torch.tensor([value], dtype=torch.float32) for value in (SDE.a, SDE.b, SDE.c))
    w = weights_of(everything, model, "head", linear)
    updated, v = stages.head(x, e, tokens, noise, a, b, c, w)
    taken = {"x": x, "e": e, "tokens": tokens, "noise": noise, "a": a, "b": b, "c": c}
    done["head"] = (taken, {"tokens": updated, "v": v})
    return done


BF16, INT8 = BlockOptions("sla", TOPK, "bf16"), BlockOptions("sagesla", TOPK, "int8")
CASES = [
    Case(TINY, BF16, 3e-2),  # measured 1.06e-2
    Case(TINY, replace(BF16, topk_milli=1000), 3e-2),  # measured 1.00e-2
    Case(TINY, INT8, 6e-2),  # measured 2.74e-2
    Case(TINY, replace(INT8, topk_milli=1000), 6e-2),  # measured 2.68e-2
    Case(I2V, BF16, 3e-2),  # measured 1.02e-2
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_stages_compute_the_dit(case: Case, packed: Packed) -> None:
    latents, text = inputs(case.model)
    state = state_dict(case.model)
    taken, given = activations(case, packed)["head"]
    v = torch.from_numpy(numerics.to_latents(given["v"].numpy(), SHAPE))
    options = {"layers": case.model.layers, "topk_milli": case.options.topk_milli}
    known = ck.quantized(state) if case.options.linear == "int8" else state
    error = relative(v, plain_dit.velocity(known, latents, T, text, **options))
    assert error <= case.bound
    step = (1 - 0.609) * (taken["tokens"] - T * given["v"]) + 0.609 * taken["noise"]
    torch.testing.assert_close(given["tokens"], step, rtol=1e-5, atol=1e-5)


# ONNX: the traced graphs run by onnx.reference, our nodes by the ops' references.


TRACED: list[tuple[Case, Stage]] = [
    (CASES[2], "embed"),
    (CASES[2], "block"),
    (CASES[0], "block"),
    (CASES[2], "head"),
    (CASES[4], "embed"),
]


@pytest.mark.parametrize(("case", "stage"), TRACED, ids=lambda value: getattr(value, "name", value))
def test_graphs_compute_what_the_stages_do(case: Case, stage: Stage, packed: Packed) -> None:
    (declared,) = (s for s in dit_stages(case.model, case.options) if s.name == stage)
    proto = trace_stage(declared)
    register_schemas()
    onnx.checker.check_model(proto, full_check=True)
    taken, expected = activations(case, packed)[stage]
    w = weights_of(packed(case.model, case.options.linear), case.model, stage, case.options.linear)
    assert list(taken) == list(declared.inputs)
    assert [value.name for value in proto.graph.input] == [*taken, *w]
    assert [value.name for value in proto.graph.output] == [name + OUTPUT_SUFFIX for name in declared.outputs]

    outputs = run_onnx(proto, {**taken, **w})
    for name, got in zip(declared.outputs, outputs, strict=True):
        assert got.dtype == expected[name].dtype
        assert got.shape == expected[name].shape
        error = relative(got, expected[name])
        assert error <= 1e-2, name


# runtime.numerics: the host's mathematics.


def test_tokens_are_in_frame_row_column_order() -> None:
    latents = np.random.default_rng(0).standard_normal((3, 2, 4, 6)).astype(np.float32)
    rows = []
    for t in range(2):
        for h in range(2):
            for w in range(3):
                cells = [(c, i, j) for c in range(3) for i in range(2) for j in range(2)]
                rows.append([latents[c, t, 2 * h + i, 2 * w + j] for c, i, j in cells])
    tokens = numerics.to_tokens(latents)
    np.testing.assert_array_equal(tokens, np.array(rows))
    np.testing.assert_array_equal(numerics.to_latents(tokens, (2, 4, 6)), latents)


@pytest.mark.parametrize("shape", [(16, 1, 3, 4), (16, 1, 4, 3)])
def test_odd_latents_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="even"):
        numerics.to_tokens(np.zeros(shape, np.float32))


def test_times() -> None:
    times = numerics.times(4, 200.0)
    assert [round(t, 3) for t in times] == [0.995, 0.934, 0.853, 0.609, 0.0]
    assert numerics.times(1, 80.0) == pytest.approx([80 / 81, 0.0])
    assert numerics.times(2, 200.0)[:2] == times[:2]


@pytest.mark.parametrize("steps", [0, 5])
def test_steps_are_one_to_four(steps: int) -> None:
    with pytest.raises(ValueError, match="1 to 4"):
        numerics.times(steps, 80.0)


def test_round_to_bf16() -> None:
    values = torch.cat(
        (
            torch.randn(500, generator=torch.Generator().manual_seed(0)) * 1000,
            torch.tensor([0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 995.0249, 1e-30, 3e38]),
        )
    )
    assert [numerics.round_to_bf16(float(value)) for value in values] == values.bfloat16().tolist()


@pytest.mark.parametrize("t", [0.0, 0.609, 0.934, 0.995])
def test_time_features(t: float) -> None:
    angles = torch.tensor(t * 1000).bfloat16().double() * 10000 ** (-torch.arange(128, dtype=torch.float64) / 128)
    want = torch.cat((angles.cos(), angles.sin()))[None]
    got = numerics.time_features(t)
    assert got.dtype == np.float32
    assert got.shape == (1, 256)
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-6)


def test_update() -> None:
    x, v, noise = np.random.default_rng(1).standard_normal((3, 100))
    for t, after in zip(numerics.times(4, 80.0), numerics.times(4, 80.0)[1:], strict=False):
        sde, ode = numerics.update(t, after), numerics.update(t, after, ode=True)
        want = (1 - after) * (x - t * v) + after * noise
        np.testing.assert_allclose(sde.a * x + sde.b * v + sde.c * noise, want, atol=1e-12)
        np.testing.assert_allclose(ode.a * x + ode.b * v + ode.c * noise, x - (t - after) * v, atol=1e-12)


def test_rope_tables() -> None:
    cos, sin = numerics.rope_tables((3, 4, 6))
    token = (2 * 2 + 1) * 3 + 2  # frame 2, row 1, column 2
    angles = [p * 10000 ** (-2 * j / n) for p, n in ((2, 44), (1, 42), (2, 42)) for j in range(n // 2)]
    assert cos.shape == sin.shape == (18, 64)
    np.testing.assert_allclose(cos[token], [math.cos(a) for a in angles], atol=1e-6)
    np.testing.assert_allclose(sin[token], [math.sin(a) for a in angles], atol=1e-6)
