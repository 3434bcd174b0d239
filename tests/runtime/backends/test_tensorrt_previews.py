"""The tiny decoder on the TensorRT backend, by the stand-in: beside the DiT in one activation memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")
Image = pytest.importorskip("PIL.Image")

from exporter.models import MODELS
from exporter.torch_backend.backend import TORCH
from runtime.media.video_pipeline import VideoPipeline
from tests.runtime.backends.test_runtime_tensorrt import TEXT, HostDevice, stand_in_kind
from tests.support.lazy_device import POLICIES, Policy
from tests.support.media_bundle import add_media
from tests.support.random_bundle import make_random_bundle
from tests.support.stand_in_tensorrt import add_engines

SIZE: dict[str, Any] = {"size": (48, 32), "frames": 9, "steps": 2}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    add_engines(folder, add_media(folder, make_random_bundle(folder, MODELS["wan-tiny"])))
    return folder


@pytest.mark.parametrize("policy", POLICIES)
def test_previews_and_frames_are_the_torch_backends(bundle: Path, tmp_path: Path, policy: Policy) -> None:
    """The decoder prepares its stages in the midst of the DiT's run, which finds its own prepared as before."""
    shown = tmp_path / "live.png"
    with VideoPipeline.load(bundle, backend=TORCH) as video:
        want = video(embeds=TEXT, decoder="tiny", preview=shown, **SIZE)
    preview = np.asarray(Image.open(shown))
    shown.unlink()
    device = HostDevice(policy)
    with VideoPipeline.load(bundle, backend=stand_in_kind(device, [])) as video:
        got = video(embeds=TEXT, decoder="tiny", preview=shown, **SIZE)
        planned = max(part.planned or 0 for part in video.times)
    assert np.array_equal(got.latents, want.latents)
    assert got.frames is not None
    assert want.frames is not None
    assert np.array_equal(got.frames, want.frames)
    assert np.array_equal(np.asarray(Image.open(shown)), preview)
    assert device.peak["device"] <= planned
    assert device.live == {"device": 0, "pinned": 0}
