"""The tiny decoder at full width on a CUDA device, random weights: values, and seconds to frames in host memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from exporter.models import MODELS
from exporter.networks.tiny.channels_last import ChannelsLast
from exporter.networks.tiny.decoder import Layers, decode
from exporter.networks.tiny.spec import TINY_DECODERS, tiny_weights
from exporter.torch_backend.runner import TorchRunner
from runtime.media.files.encoders import Encoding
from runtime.media.files.kinds import sink_for
from runtime.media.files.writer import BackgroundWriter
from tests.support.media_bundle import bare_manifest, random_tensors, smooth_latents
from tests.support.media_parts import tiny_on
from tests.support.plain_tiny import PlainTiny

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

SPEC = TINY_DECODERS["taew2_1"]
WEIGHTS = random_tensors(tiny_weights(SPEC), 3)
VIDEOS = {"480p": ("wan2.1-1.3b-480p", (21, 60, 104)), "720p": ("wan2.1-14b-720p", (21, 90, 160))}
MUST = {"480p": 0.25, "720p": 0.55}  # seconds on one H100


@pytest.fixture
def exact() -> Any:
    """fp32 products in fp32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize(
    ("dtype", "layers", "bound"),
    [(torch.float32, Layers, 1e-4), (torch.float32, ChannelsLast, 1e-4), (torch.float16, ChannelsLast, 1e-2)],
)
@pytest.mark.usefixtures("exact")
@torch.no_grad()
def test_values(dtype: torch.dtype, layers: type[Layers], bound: float) -> None:
    """Of a pixel's range; fp16 was 2.6e-3 at most on an H100."""
    plain = PlainTiny(SPEC)
    plain.load_state_dict({name: weight.float() for name, weight in WEIGHTS.items()})
    z = torch.from_numpy(smooth_latents((3, 16, 24))).cuda()
    want = plain.cuda()(z)
    before, made = None, []
    for t in range(3):
        own = {name: weight.to("cuda", dtype) for name, weight in WEIGHTS.items()}
        pixels, before = decode(z[None, :, t : t + 1], before, own, SPEC, layers())
        made.append(pixels.float())
    assert (torch.cat(made) - want).abs().max() < bound


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_come_to_the_host(name: str, tmp_path: Path, figures: dict[str, Any]) -> None:
    """The third video of a process, within its plan; and the same with its mp4 behind it."""
    model, shape = VIDEOS[name]
    save_file(WEIGHTS, tmp_path / "tiny.safetensors")
    manifest, latents = bare_manifest(MODELS[model]), smooth_latents(shape)
    runner = TorchRunner(manifest, torch.device("cuda"))
    tiny = tiny_on(runner, manifest, tmp_path / "tiny.safetensors")
    seconds = []
    for _ in range(3):
        runner.device.take_peak()
        started = time.perf_counter()
        chunks = list(tiny.decode(latents))
        seconds.append(time.perf_counter() - started)
    frames = np.concatenate(chunks)
    peak = runner.device.take_peak() or 0
    assert frames.shape == (81, 8 * shape[1], 8 * shape[2], 3)
    assert frames.std() > 10
    assert peak <= tiny.plan("tiny", *shape[1:]).peak
    started = time.perf_counter()
    sink = sink_for(tmp_path / "a.mp4", (8 * shape[2], 8 * shape[1]), 16, Encoding())
    with BackgroundWriter(sink) as writer:
        for chunk in tiny.decode(latents):
            writer.write(chunk)
    with_file = time.perf_counter() - started
    figures[f"tiny decoder {name}"] = {"seconds": seconds, "with mp4": with_file, "peak": peak}
    if "H100" in torch.cuda.get_device_name():
        assert seconds[-1] < MUST[name]
