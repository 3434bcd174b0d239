"""The parts of a comparison: metrics against written-out formulas, the plain model, ops replayed, thresholds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("polygraphy")

from exporter.checkpoint.reader import open_checkpoint
from exporter.compare.machines.machine import forward
from exporter.compare.machines.ops import Intercept, Recorder, Replay, by_reference, call_label, unrounded
from exporter.compare.machines.plain_model import PlainAttention
from exporter.compare.machines.torch_machines import PlainMachine, StageMachine, UnroundedMachine
from exporter.compare.machines.weights import CheckpointWeights, FloatWeights
from exporter.compare.metrics import distance, frame_distance, ssim
from exporter.compare.scene import Scene, frames, scene
from exporter.compare.spec import CompareSpec, Row
from exporter.compare.thresholds import STAGE_BOUNDS
from exporter.models import MODELS, ModelSpec
from exporter.networks.dit.options import (
    ATTENTIONS,
    DENSE,
    BlockOptions,
)
from exporter.packing.quantize import block_dequantize
from exporter.spec import LINEARS
from plugins.torch_op import call
from runtime.bundle import FileInfo, GpuFacts, Manifest
from runtime.numerics import to_latents, to_tokens
from tests.support import checkpoints as ck
from tests.support import plain_dit
from tests.support.compared import Tensors
from tests.support.random_bundle import facts

TINY = MODELS["wan-tiny"]
CPU = torch.device("cpu")
TOPK = 500


def scene_of(model: ModelSpec, **options: Any) -> Scene:
    named = facts(model)
    files = {stage.onnx: FileInfo(sha256="0" * 64, bytes=0) for stage in named["stages"]}
    gpu = GpuFacts(name="rtx5090", sm=120, flavour="tensorrt_rtx")
    manifest = Manifest(**named, gpu=gpu, tools={}, plans={}, files=files, weights={}, vram_estimate_bytes=0)
    return scene(manifest, CompareSpec(Path(), None, **options))


SCENE = scene_of(TINY, steps=2, seed=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensors, Path]:
    """Open gates and peaked attention, so that no part of a block is too small to be seen."""
    state = ck.canonical_state_dict(TINY, 3)
    for name, value in state.items():
        if name.startswith("blocks.") and name.endswith("modulation"):
            value[:, 2::3] += 0.5
        elif "norm_q" in name or "norm_k" in name:
            value *= 2
    return state, ck.save_safetensors(tmp_path_factory.mktemp("parts") / "checkpoint.safetensors", state)


# Metrics.


def test_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    want = torch.randn(50, 70, generator=generator)
    got = want + 0.01 * torch.randn(50, 70, generator=generator)
    found = distance(got, want)
    a, b = got.numpy().astype(np.float64), want.numpy().astype(np.float64)
    relative = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert found.relative_l2 == pytest.approx(relative)
    assert found.snr_db == pytest.approx(-20 * math.log10(relative))
    assert found.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert found.max_abs == pytest.approx(np.abs(a - b).max())
    exact = distance(want, want)
    assert (exact.relative_l2, exact.snr_db, exact.max_abs) == (0.0, math.inf, 0.0)


def test_distance_of_strange_tensors() -> None:
    one = torch.ones(4)
    assert math.isnan(distance(torch.tensor([1.0, math.nan, 1, 1]), one).relative_l2)
    assert distance(one, torch.zeros(4)).relative_l2 == math.inf
    assert distance(torch.zeros(4), torch.zeros(4)).relative_l2 == 0.0
    with pytest.raises(ValueError, match="compare"):
        distance(one, torch.ones(5))


def test_psnr_and_ssim() -> None:
    generator = torch.Generator().manual_seed(1)
    want = torch.rand(3, 20, 30, generator=generator)
    want[0, 0, 0], want[0, 0, 1] = 0.0, 1.0  # the range is 1
    found = frame_distance(want + 0.1, want)
    assert found.psnr_db == pytest.approx(20.0)
    assert frame_distance(want, want).ssim == pytest.approx(1.0)
    assert frame_distance(want.flip(2), want).ssim < 0.2
    flat, other = torch.full((1, 9, 9), 0.25, dtype=torch.float64), torch.full((1, 9, 9), 0.75, dtype=torch.float64)
    by_means = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)  # no variance: the luminance term alone
    assert ssim(flat, other, 1.0, 7) == pytest.approx(by_means)


@pytest.mark.parametrize(
    ("value", "bound", "higher", "passed", "badness"),
    [
        (0.02, 0.01, False, False, 2.0),
        (0.01, 0.01, False, True, 1.0),
        (20.0, 26.0206, True, False, 2.0),
        (math.nan, 0.01, False, False, math.inf),
        (math.nan, None, False, False, math.inf),
        (5.0, None, False, True, 0.0),
    ],
)
def test_rows(value: float, bound: float | None, higher: bool, passed: bool, badness: float) -> None:
    row = Row("step", "a", "b", "step 1", None, {"m": value}, bound, higher)
    assert row.passed is passed
    assert row.badness == pytest.approx(badness, rel=1e-4)


# Thresholds.


def test_every_mode_has_bounds() -> None:
    assert set(STAGE_BOUNDS) == {(a, b, c) for a in ("fp32", "same") for b in ATTENTIONS for c in LINEARS}


# The plain model and the machines.


def test_the_plain_model_is_the_tests_own(checkpoint: tuple[Tensors, Path]) -> None:
    state, path = checkpoint
    machine = PlainMachine("fp32", {"model": open_checkpoint(path, TINY)}, PlainAttention(TOPK), CPU)
    tokens, v = forward(machine, TINY.layers, SCENE, 0, SCENE.start)
    step = SCENE.steps[0]
    latents = torch.from_numpy(to_latents(SCENE.start.numpy(), SCENE.shape))
    want = plain_dit.velocity(state, latents, step.t, SCENE.text, layers=TINY.layers, topk_milli=TOPK)
    assert distance(v, torch.from_numpy(to_tokens(want.numpy()))).relative_l2 < 1e-5
    after = (1 - step.following) * (SCENE.start - step.t * v) + step.following * SCENE.noise[1]
    torch.testing.assert_close(tokens, after, rtol=1e-5, atol=1e-5)


MODES = [
    BlockOptions("sagesla", TOPK, "int8"),
    BlockOptions("sla", TOPK, "bf16"),
    BlockOptions("sage", 100, "int8"),
    BlockOptions("original", 100, "bf16"),
]


@pytest.mark.parametrize("options", MODES, ids=lambda o: f"{o.attention}-{o.linear}")
def test_unrounded_stages_are_the_plain_model(options: BlockOptions, checkpoint: tuple[Tensors, Path]) -> None:
    """Stages and ops without rounding against the model written a second time: what they approximate is right."""
    readers = {"model": open_checkpoint(checkpoint[1], TINY)}
    weights = FloatWeights(readers, TINY, options.linear)
    plain = PlainMachine("fp32", readers, PlainAttention(None if options.attention in DENSE else TOPK), CPU)
    exact = UnroundedMachine("unrounded", weights, options, CPU)
    want = forward(plain, TINY.layers, SCENE, 0, SCENE.start)[1]
    assert distance(forward(exact, TINY.layers, SCENE, 0, SCENE.start)[1], want).relative_l2 < 1e-5


def test_a_quant_checkpoint_is_its_own_float(tmp_path: Path, checkpoint: tuple[Tensors, Path]) -> None:
    """Its INT8 weights pass through, and in fp32 they are what they stand for."""
    path = ck.save_safetensors(tmp_path / "quant.safetensors", ck.quantized(checkpoint[0]))
    quant, plain = open_checkpoint(path, TINY), open_checkpoint(checkpoint[1], TINY)
    packed = CheckpointWeights({"model": quant}, TINY, "int8")("model", "block", 1)
    again = CheckpointWeights({"model": plain}, TINY, "int8")("model", "block", 1)
    assert all(torch.equal(packed[name], again[name]) for name in again)
    floats = FloatWeights({"model": quant}, TINY, "int8")("model", "block", 1)
    stored = block_dequantize(packed["ffn.0.int8_weight"], packed["ffn.0.scale"])
    assert torch.equal(block_dequantize(floats["ffn.0.int8_weight"], floats["ffn.0.scale"]), stored)


# Ops seen from outside.


def test_labels() -> None:
    assert call_label("Gemm", ["Quantize(x)", None, "ffn.0.int8_weight", "ffn.0.bias"]) == "Gemm ffn.0"
    assert call_label("Quantize", ["Gemm ffn.0"]) == "Quantize(ffn.0)"
    assert call_label("Quantize", ["Attention(self_attn.q)"]) == "Quantize(Attention)"
    assert call_label("Quantize", ["context"]) == "Quantize(context)"


def test_replay_shows_an_error_where_it_is_made() -> None:
    x = torch.randn(200, 256, generator=torch.Generator().manual_seed(4)).bfloat16()
    first, second = torch.ones(256), torch.ones(256)
    wrong = first.clone()
    wrong[7] = -1

    def chain(evaluate: Recorder | Replay, weight: torch.Tensor) -> None:
        with Intercept(evaluate, {"x": x, "first.weight": weight, "second.weight": second}):
            call("RmsNorm", call("RmsNorm", x, weight), second)

    recorder = Recorder(by_reference)
    chain(recorder, wrong)
    replay = Replay(by_reference, recorder.calls)
    chain(replay, first)
    given = {label: out[0] for label, (_, out) in recorder.calls.items()}
    assert list(given) == list(replay.expected) == ["RmsNorm first", "RmsNorm second"]
    assert distance(given["RmsNorm first"], replay.expected["RmsNorm first"]).relative_l2 > 0.05
    assert torch.equal(given["RmsNorm second"], replay.expected["RmsNorm second"])


def test_unrounded_quantization_changes_nothing() -> None:
    x = torch.randn(200, 300, generator=torch.Generator().manual_seed(5))
    recorder = Recorder(unrounded)
    with torch.inference_mode(), Intercept(recorder, {"x": x}):
        call("BlockInt8Quantize", x)
    ((_, (values, scale)),) = recorder.calls.values()
    assert values.dtype == torch.float32
    torch.testing.assert_close(block_dequantize(values, scale), x, rtol=1e-6, atol=1e-6)
    rounded, scale = by_reference(recorder.calls["BlockInt8Quantize(x)"][0])
    assert rounded.dtype == torch.int8
    assert 1e-3 < distance(block_dequantize(rounded, scale), x).relative_l2 < 2e-2


# Scenes.


def test_a_scene_is_the_runtimes() -> None:
    """Noise by Philox in the order of latents: the first draw is the start, the next is for the first step."""
    random = np.random.Generator(np.random.Philox(3))
    first = random.standard_normal((16, 5, 10, 16), dtype=np.float32)
    second = random.standard_normal((16, 5, 10, 16), dtype=np.float32)
    np.testing.assert_array_equal(SCENE.noise[0].numpy(), to_tokens(first))
    np.testing.assert_array_equal(SCENE.noise_of(0).numpy(), to_tokens(second))
    np.testing.assert_allclose(SCENE.start.numpy(), to_tokens(first) * np.float32(SCENE.steps[0].t), rtol=1e-6)
    np.testing.assert_array_equal(frames(SCENE.noise[0], SCENE.shape)[2].numpy(), first[:, 2])


def test_experts_and_condition() -> None:
    model = MODELS["wan2.2-i2v-a14b-720p"]
    made = scene_of(model, size=(128, 80), frames=5)
    assert [step.expert for step in made.steps] == ["high-noise", "high-noise", "low-noise", "low-noise"]
    assert made.condition is not None
    condition = to_latents(made.condition.numpy(), made.shape)
    assert (condition[:4, 0] == 1).all()
    assert (condition[:4, 1:] == 0).all()


def test_ode_draws_no_noise_after_the_start() -> None:
    made = scene_of(TINY, steps=3, seed=3, ode=True)
    assert len(made.noise) == 1
    assert torch.equal(made.start / made.steps[0].t, SCENE.start / SCENE.steps[0].t)
    assert [step.update.a for step in made.steps] == [1.0] * 3
    assert [step.update.c for step in made.steps] == [0.0] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("options", MODES, ids=lambda o: f"{o.attention}-{o.linear}")
def test_compiled_plans_within_their_bounds(options: BlockOptions, checkpoint: tuple[Tensors, Path]) -> None:
    """Every op of a block by its plan, on the same inputs as its oracle on the same GPU."""
    from exporter.compare.machines.machine import BlockInput, embedded, moved
    from exporter.compare.machines.ops import labelled
    from exporter.compare.machines.plan_ops import PlanOps
    from plugins.torch_op import device_sm

    device = torch.device("cuda")
    weights = CheckpointWeights({"model": open_checkpoint(checkpoint[1], TINY)}, TINY, options.linear)
    plans = StageMachine("plans", weights, options, PlanOps((), 0, device_sm()), device)
    oracle = StageMachine("oracle", weights, options, by_reference, device)
    made = embedded(oracle, SCENE, 0, SCENE.start)
    given = moved(BlockInput(made.x, made.context, made.e0, *SCENE.tables()), device)
    recorder = Recorder(plans.evaluate)
    plans.block_by(recorder, "model", 0, given)
    replay = Replay(by_reference, recorder.calls)
    oracle.block_by(replay, "model", 0, given)
    for seen, out in recorder.calls.values():
        for name, got in labelled(seen, out).items():
            assert distance(got, replay.expected[name]).relative_l2 <= seen.op.bound(seen.attributes).compare, name
