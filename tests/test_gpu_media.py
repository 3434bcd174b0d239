"""Text encoder and VAE at full size on a CUDA device, random weights: against transformers and diffusers, timed.

Figures are printed as one JSON at the end, and written to the file that TURBOTRT_FIGURES names. Run alone:
pytest -m gpu -s tests/test_gpu_media.py. Where diffusers or transformers are not installed their figures are left out.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from media_bundle import media_stages, random_tensors, vae_table  # noqa: E402

from exporter.checkpoint.text_names import text_name, text_sources  # noqa: E402
from exporter.models import MODELS  # noqa: E402
from exporter.text_encoder import TEXT_ENCODERS, block_weights, text_block, text_norm, text_weights  # noqa: E402
from exporter.torch_media import TorchRunner, open_runner  # noqa: E402
from exporter.vae import halves  # noqa: E402
from exporter.vae.names import vae_name  # noqa: E402
from exporter.vae.spec import VAES  # noqa: E402
from runtime.media.vae import Vae, to_uint8  # noqa: E402
from runtime.relative_position import relative_buckets  # noqa: E402
from runtime.weights_file import WeightsFile  # noqa: E402

pytestmark = pytest.mark.gpu

MODEL = replace(MODELS["wan2.1-14b-720p"], in_channels=36)
VAE, TEXT = VAES["Wan2.1"], TEXT_ENCODERS["umt5-xxl"]
LATENTS = {"480p": (21, 60, 104), "720p": (21, 90, 160)}
BF16_BOUND = 3e-2  # between two orders of bf16 rounding through some 40 convolutions of random weights
REPEATS = 3


@pytest.fixture(scope="session")
def figures() -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {}
    yield found
    text = json.dumps(found, indent=2)
    print("\n" + text)  # noqa: T201
    if path := os.environ.get("TURBOTRT_FIGURES"):
        Path(path).write_text(text)


@pytest.fixture(autouse=True)
def _cuda() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.cuda.empty_cache()
    yield
    torch.cuda.empty_cache()


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


def distance(got: Any, want: Any) -> float:
    got, want = torch.as_tensor(got).float().cpu(), torch.as_tensor(want).float().cpu()
    return float((got - want).norm() / want.norm())


@pytest.fixture(scope="module")
def vae_weights() -> dict[str, Any]:
    return {name: tensor.cuda() for name, tensor in random_tensors(vae_table(MODEL), 1).items()}


def diffusers_vae(weights: dict[str, Any]) -> Any:
    """AutoencoderKLWan in bf16 with these weights; its norms' too are bf16, as a pipeline in bf16 runs it."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("cuda"):
        model = diffusers.AutoencoderKLWan().to(torch.bfloat16).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[vae_name(name, VAE)])
    return model


def formats(tensors: dict[str, Any], layout: Any) -> dict[str, Any]:
    """The same tensors, those of five dims in another memory format."""
    return {n: t.contiguous(memory_format=layout) if t.dim() == 5 and layout else t for n, t in tensors.items()}


@torch.no_grad()
def decode(latents: Any, weights: dict[str, Any], layout: Any, run: Any) -> Any:
    """The two halves on the device, chunk by chunk."""
    _, _, count, h, w = latents.shape
    features = {
        name: torch.zeros(1, c.channels, c.frames, h, w, dtype=torch.bfloat16, device="cuda")
        for name, c in halves.caches(VAE, "decode_latent").items()
    }
    features, pixels, out = formats(features, layout), None, []
    for t in range(count):
        chunk = latents[:, :, t : t + 1]
        x, features = run(
            "decode_latent", chunk.contiguous(memory_format=layout) if layout else chunk, features, weights
        )
        x, pixels = run("decode_pixels", x, pixels, weights)
        out.append(x)
    return torch.cat(out, 2)


def plain(half: Any, x: Any, before: Any, weights: Any) -> Any:
    return halves.run(half, x, before, weights, VAE)


@pytest.mark.parametrize("size", LATENTS)
@torch.no_grad()
def test_decode_against_diffusers(size: str, vae_weights: dict[str, Any], figures: dict[str, Any]) -> None:
    """81 frames, whole, on the device from end to end. No variant of ours may be all that slower than diffusers."""
    t, h, w = LATENTS[size]
    latents = torch.randn(1, 16, t, h, w, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    compiled = torch.compile(plain, dynamic=False)
    variants = {
        "ours, contiguous": (None, plain),
        "ours, channels last": (torch.channels_last_3d, plain),
        "ours, channels last, torch.compile": (torch.channels_last_3d, compiled),
    }
    found: dict[str, Any] = figures.setdefault(f"decode 81 frames {size}", {})
    results = {}
    for name, (layout, run) in variants.items():
        weights = formats(vae_weights, layout)
        results[name] = decode(latents, weights, layout, run).half().cpu()
        found[name] = timed(lambda weights=weights, layout=layout, run=run: decode(latents, weights, layout, run))
        torch.cuda.empty_cache()
    for name, result in results.items():
        assert torch.isfinite(result).all(), name
        assert distance(result, results["ours, contiguous"]) < BF16_BOUND, name
    model = diffusers_vae(vae_weights)
    want = model.decode(latents.bfloat16()).sample.half().cpu()
    found["diffusers"] = timed(lambda: model.decode(latents.bfloat16()).sample)
    found["distance to diffusers"] = distance(results["ours, contiguous"], want)
    assert found["distance to diffusers"] < BF16_BOUND
    best = min(found[name]["seconds"] for name in variants)
    assert best <= found["diffusers"]["seconds"], found


@pytest.fixture(scope="module")
def vae_file(vae_weights: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    path: Path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    save_file({name: tensor.cpu() for name, tensor in vae_weights.items()}, path)
    return path


@pytest.mark.parametrize("size", LATENTS)
def test_the_runtime_decodes_whole_and_in_tiles(
    size: str, vae_weights: dict[str, Any], vae_file: Path, figures: dict[str, Any]
) -> None:
    """The runtime's own path, frames on the host: whole, and in half of its memory by tiles; peaks against plans."""
    shape = LATENTS[size]
    manifest: Any = SimpleNamespace(media=media_stages(MODEL), model=SimpleNamespace(name="wan2.2-i2v-a14b-720p"))
    runner: TorchRunner = open_runner(manifest)
    file = WeightsFile(vae_file)
    latents = np.random.default_rng(0).standard_normal((16, *shape), dtype=np.float32)
    found: dict[str, Any] = figures.setdefault(f"runtime decode 81 frames {size}", {})
    whole = Vae(runner, manifest, file, None)
    half = Vae(runner, manifest, file, whole.plan("decode", *shape[1:]).peak * 6 // 10)
    frames = {}
    for name, vae in (("whole", whole), ("six tenths of the memory", half)):
        plan = vae.plan("decode", *shape[1:])
        base = torch.cuda.memory_allocated()
        found[name] = timed(lambda vae=vae: list(vae.decode(latents)))
        found[name] |= {"planned_gb": plan.peak / 1e9, "tiles": len(plan.tiles)}
        measured = found[name]["peak_gb"] * 1e9 - base
        found[name]["measured_over_planned"] = measured / plan.peak
        frames[name] = np.concatenate(list(vae.decode(latents))).astype(np.float32)
        assert frames[name].shape == (81, 8 * shape[1], 8 * shape[2], 3)
    assert found["six tenths of the memory"]["tiles"] > found["whole"]["tiles"]
    error = np.linalg.norm(frames["whole"] - frames["six tenths of the memory"])
    found["tiles against whole"] = float(error / np.linalg.norm(frames["whole"] - frames["whole"].mean()))
    assert found["tiles against whole"] < 1e-2


@torch.no_grad()
def test_encode_against_diffusers(vae_weights: dict[str, Any], figures: dict[str, Any]) -> None:
    """[image, zeros…] of 81 frames at 480p: what image-to-video encodes."""
    video = torch.zeros(1, 3, 81, 480, 832, device="cuda")
    video[:, :, 0] = torch.rand(1, 3, 480, 832, device="cuda", generator=torch.Generator("cuda").manual_seed(1)) * 2 - 1

    def ours() -> Any:
        features = {
            name: torch.zeros(1, c.channels, c.frames, 60, 104, dtype=torch.bfloat16, device="cuda")
            for name, c in halves.caches(VAE, "encode_latent").items()
        }
        pixels, out = None, []
        for chunk in (video[:, :, :1], *video[:, :, 1:].split(4, 2)):
            x, pixels = plain("encode_pixels", chunk, pixels, vae_weights)
            x, features = plain("encode_latent", x, features, vae_weights)
            out.append(x)
        return torch.cat(out, 2)

    found: dict[str, Any] = figures.setdefault("encode 81 frames 480p", {})
    got = ours()
    found["ours, contiguous"] = timed(ours)
    model = diffusers_vae(vae_weights)
    want = model.encode(video.bfloat16()).latent_dist.mode()
    found["diffusers"] = timed(lambda: model.encode(video.bfloat16()).latent_dist.mode())
    found["distance to diffusers"] = distance(got, want)
    assert found["distance to diffusers"] < BF16_BOUND


@torch.no_grad()
def test_text_encoder_against_transformers(figures: dict[str, Any]) -> None:
    """umT5-xxl with a prompt of 60 tokens: transformers pads to 512 as pipelines do; bf16 against bf16 and fp32."""
    transformers = pytest.importorskip("transformers")
    config = transformers.UMT5Config(
        vocab_size=TEXT.vocabulary, d_model=TEXT.dim, d_kv=TEXT.head_dim, d_ff=TEXT.ffn_dim, num_layers=TEXT.layers,
        num_heads=TEXT.heads,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.UMT5EncoderModel(config).to(torch.bfloat16).eval()
    state = {text_name(name): tensor for name, tensor in model.state_dict().items()}
    table = text_weights(TEXT)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    weights = {
        name: torch.cat([state[s] for s in text_sources(name)]).to(dtypes[spec.dtype]) for name, spec in table.items()
    }
    tokens = torch.randint(3, 250_000, (60,), device="cuda", generator=torch.Generator("cuda").manual_seed(2))
    padded = torch.zeros(1, 512, dtype=torch.long, device="cuda")
    padded[0, :60] = tokens
    mask = (torch.arange(512, device="cuda") < 60).long()[None]
    buckets = torch.from_numpy(relative_buckets(60)).cuda()
    layers = [{key: weights[f"blocks.{n}.{key}"] for key in block_weights(TEXT)} for n in range(TEXT.layers)]

    def ours() -> Any:
        x = weights["token_embedding.weight"][tokens].float()
        for own in layers:
            x = text_block(x, buckets, own, TEXT)
        return text_norm(x, weights)

    found: dict[str, Any] = figures.setdefault("umT5-xxl, 60 tokens", {})
    found["ours"] = timed(ours)
    found["transformers"] = timed(lambda: model(padded, attention_mask=mask).last_hidden_state)
    theirs = model(padded, attention_mask=mask).last_hidden_state[0, :60]
    exact = model.float()(padded, attention_mask=mask).last_hidden_state[0, :60]
    found["distance to fp32"] = {"ours": distance(ours(), exact), "transformers": distance(theirs, exact)}
    assert found["distance to fp32"]["ours"] <= max(1e-2, found["distance to fp32"]["transformers"])
    assert found["ours"]["seconds"] <= found["transformers"]["seconds"]


def test_frames_become_bytes_on_the_device_as_on_the_host() -> None:
    """The clamp and the rounding of a chunk, against torch."""
    chunk = torch.rand(1, 3, 4, 32, 48, device="cuda") * 2 - 1
    want = ((chunk[0].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
    got = np.empty((4, 32, 48, 3), np.uint8)
    to_uint8(chunk.cpu().numpy(), got)
    assert np.array_equal(got, want)
