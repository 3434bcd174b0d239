"""Text encoder and VAE at full size on a CUDA device, random weights: against transformers and diffusers, timed.

Figures are printed as one JSON at the end, and written to the file that TURBOTRT_FIGURES names. Run alone:
pytest -m gpu -s tests/runtime/media/test_gpu_media.py. Where diffusers or transformers are not installed, the figures
say so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.bench.stopwatch import Stopwatch
from exporter.bench.text import bench_text
from exporter.bench.vae import OURS, WAYS, bench_vae
from exporter.models import MODELS
from exporter.networks.vae.frames import to_bytes
from exporter.networks.vae.layers import norm_silu
from exporter.networks.vae.norm_kernel import launch
from exporter.torch_backend.runner import TorchRunner
from runtime.media.vae.decoder import Vae
from tests.support.media_bundle import bare_manifest, random_tensors, vae_table
from tests.support.media_parts import weights_of_vae
from tests.support.progress import SilentProgress

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

MODEL = replace(MODELS["wan2.1-14b-720p"], in_channels=36)
LATENTS = {"480p": (21, 60, 104), "720p": (21, 90, 160)}
#: Between two orders of bf16 rounding through some 40 convolutions of random weights: 1.7e-2 on the CPU, 1.9e-2 as
#: bytes. cuDNN may take another kernel for a tile than for the whole picture.
BF16_BOUND = 3e-2
REPEATS = 3


def decode_all(vae: Vae, latents: Any) -> None:
    for _ in vae.decode(latents):
        pass


def timed(function: Callable[[], Any]) -> dict[str, float]:
    """Best seconds of some runs after one that is not counted, and the peak of torch's memory."""
    started = time.perf_counter()
    function()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        function()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return {"seconds": min(seconds), "first_seconds": first, "peak_gb": torch.cuda.max_memory_allocated() / 1e9}


@pytest.fixture(scope="module")
def vae_weights() -> dict[str, Any]:
    return random_tensors(vae_table(MODEL), 1)


@pytest.mark.parametrize("size", LATENTS)
def test_vae_against_diffusers(size: str, figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """81 frames decoded, and [image, zeros…] encoded, on the device from end to end, in every way that bench knows but
    torch.compile, which takes minutes.
    """
    monkeypatch.setattr("exporter.bench.vae.WAYS", tuple(way for way in WAYS if not way.compiled))
    watch = Stopwatch(torch.device("cuda"), REPEATS, SilentProgress())
    bench_vae(MODEL, [LATENTS[size]], watch)
    figures[f"VAE {size}"] = watch.rows
    for task in {row["task"] for row in watch.rows}:
        rows = {row["name"]: row for row in watch.rows if row["task"] == task}
        assert "failed" not in rows[OURS], rows[OURS]
        if "failed" in rows["diffusers"]:
            continue  # the reason is in the figures
        assert rows[OURS]["distance"] < BF16_BOUND, rows[OURS]
        assert rows[OURS]["speedup"] >= 1, rows


@pytest.fixture(scope="module")
def vae_file(vae_weights: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    path: Path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    save_file(vae_weights, path)
    return path


@pytest.mark.parametrize("size", LATENTS)
def test_the_runtime_decodes_whole_and_in_tiles(size: str, vae_file: Path, figures: dict[str, Any]) -> None:
    """The runtime's own path, frames on the host: whole, and in half of its memory by tiles; peaks against plans."""
    shape = LATENTS[size]
    manifest = bare_manifest(MODELS["wan2.2-i2v-a14b-720p"])
    runner = TorchRunner(manifest, torch.device("cuda", torch.cuda.current_device()))
    weights = weights_of_vae(runner, manifest, vae_file)
    latents = np.random.default_rng(0).standard_normal((16, *shape), dtype=np.float32)
    found: dict[str, Any] = figures.setdefault(f"runtime decode 81 frames {size}", {})
    whole = Vae(runner, manifest, weights, None)
    half = Vae(runner, manifest, weights, whole.plan("decode", *shape[1:]).peak * 6 // 10)
    frames = {}
    for name, vae in (("whole", whole), ("six tenths of the memory", half)):
        plan = vae.plan("decode", *shape[1:])
        base = torch.cuda.memory_allocated()
        found[name] = timed(partial(decode_all, vae, latents))
        found[name] |= {"planned_gb": plan.peak / 1e9, "tiles": len(plan.tiles)}
        measured = found[name]["peak_gb"] * 1e9 - base
        found[name]["measured_over_planned"] = measured / plan.peak
        frames[name] = np.concatenate(list(vae.decode(latents))).astype(np.float32)
        assert frames[name].shape == (81, 8 * shape[1], 8 * shape[2], 3)
    assert found["six tenths of the memory"]["tiles"] > found["whole"]["tiles"]
    square = (frames["whole"] - frames["six tenths of the memory"]) ** 2
    error, contrast = square.mean((0, 3)), frames["whole"].var()
    worst = max(error.mean(axis).max() for axis in (0, 1))  # a seam shows in its row or column
    found["tiles against whole"] = float((error.mean() / contrast) ** 0.5)
    found["worst row or column"] = float((worst / contrast) ** 0.5)
    assert found["tiles against whole"] < BF16_BOUND
    assert found["worst row or column"] < 2 * BF16_BOUND


def test_text_encoder_against_transformers(figures: dict[str, Any]) -> None:
    """umT5-xxl, 60 tokens; transformers pads to 512 as pipelines do, and does not."""
    watch = Stopwatch(torch.device("cuda"), REPEATS, SilentProgress())
    bench_text(MODEL, watch)
    figures["umT5-xxl"] = watch.rows
    for row in watch.rows:
        if row["name"] == "ours":
            assert "failed" not in row, row
        if row.get("distance") is not None:
            assert row["distance"] < BF16_BOUND, row
            assert row["speedup"] >= 1, row


@pytest.mark.parametrize("channels", [96, 192, 384, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_norm_and_silu_in_one_pass(channels: int, dtype: Any) -> None:
    """Rows that no block divides, all zeros among them; what lies before the result stays."""
    generator = torch.Generator("cuda").manual_seed(channels)
    x = torch.randn(1, channels, 3, 37, 53, device="cuda", generator=generator).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    x[:, :, 1, 2, 3] = 0
    gamma = torch.rand(channels, 1, 1, 1, device="cuda", generator=generator) + 0.5
    joined = torch.full((1, channels, 5, 37, 53), 7.0, device="cuda").to(dtype)
    joined = joined.contiguous(memory_format=torch.channels_last_3d)
    end = torch.full_like(x[:, :, :2], 7.0)
    launch(x, gamma.reshape(-1), joined[:, :, 2:], end)
    want = norm_silu(x.float(), gamma)  # fp32 all through
    torch.testing.assert_close(joined[:, :, 2:].float(), want, rtol=1e-2, atol=1e-2 if dtype != torch.float32 else 1e-5)
    assert (joined[:, :, :2] == 7).all()
    assert torch.equal(end, joined[:, :, -2:])


def test_frames_become_bytes_on_the_device_as_on_the_host() -> None:
    """The clamp, the rounding and the order of a chunk, against numpy; NaN and infinity show in the sum."""
    chunk = torch.rand(1, 3, 4, 32, 48, device="cuda") * 3 - 1.5
    frames, total = to_bytes(chunk)
    scaled = (chunk[0].permute(1, 2, 3, 0).cpu().numpy().clip(-1, 1) + 1) * np.float32(127.5)
    assert np.array_equal(frames.cpu().numpy(), np.rint(scaled).astype(np.uint8))
    assert torch.isfinite(total).all()
    for bad in (float("nan"), float("inf")):
        chunk[0, 1, 2, 3, 4] = bad
        assert not torch.isfinite(to_bytes(chunk)[1]).any()
