"""The tiny decoder on the runtime: the plain function's frames, tiles without seams, copies behind compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file

from exporter.models import MODELS
from exporter.networks.tiny.spec import TINY_DECODERS
from exporter.torch_backend.runner import TorchRunner, run_stage, stage_functions
from plugins.errors import UserError
from plugins.torch_dtypes import torch_dtype
from runtime.backends.protocol import DeviceTensor
from runtime.bundle import Manifest
from runtime.media.vae import plan as plan_module
from runtime.media.vae.chunks import Chunks
from runtime.media.vae.decoder import TinyVae
from runtime.media.vae.tiles import TINY_MARGIN, Tile, spans
from tests.support.lazy_device import POLICIES, HostMemory, LazyDevice, Policy
from tests.support.media_bundle import TINY_NAME, add_media, smooth_latents
from tests.support.media_parts import tiny_on, weights_of_vae
from tests.support.plain_tiny import PlainTiny
from tests.support.random_bundle import make_random_bundle

MODEL = MODELS["wan-tiny"]
Bundle = tuple[Path, Manifest]
Pixels = npt.NDArray[Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    return folder, add_media(folder, make_random_bundle(folder, MODEL))


def tiny(bundle: Bundle, budget: int | None = None) -> TinyVae:
    return tiny_on(TorchRunner(bundle[1], torch.device("cpu")), bundle[1], bundle[0] / TINY_NAME, budget)


def decoded(bundle: Bundle, latents: Pixels) -> Pixels:
    return np.concatenate(list(tiny(bundle).decode(latents)))


@torch.no_grad()
def test_frames_are_the_plain_functions(bundle: Bundle) -> None:
    latents = smooth_latents((3, 4, 6))
    chunks = list(tiny(bundle).decode(latents))
    assert [chunk.shape for chunk in chunks] == [(1, 32, 48, 3), (4, 32, 48, 3), (4, 32, 48, 3)]
    plain = PlainTiny(TINY_DECODERS[MODEL.tiny_decoder])
    plain.load_state_dict({name: weight.float() for name, weight in load_file(bundle[0] / TINY_NAME).items()})
    want = (plain(torch.from_numpy(latents)).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(np.concatenate(chunks) - want).max() <= 3  # of fp16


@pytest.mark.parametrize("by_chunk", [True, False])
def test_tiles_are_seamless(bundle: Bundle, by_chunk: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With this small decoder's reach as the margin; with none they are not, which this comparison sees."""
    latents = smooth_latents((2, 2, 24))
    monkeypatch.setattr(plan_module, "cut", lambda *args: whole(2, 24))
    want = decoded(bundle, latents).astype(np.float32)
    for margin, most in ((8, 1), (0, 255)):
        tiles = [Tile(row, column) for row in spans(2, 1, margin) for column in spans(24, 2, margin)]
        answers = iter([tuple(tiles)] if by_chunk else [None, tuple(tiles)])
        monkeypatch.setattr(plan_module, "cut", lambda *args, answers=answers: next(answers))
        far = np.abs(decoded(bundle, latents) - want).max()
        assert far <= most
        assert (far > 1) == (margin == 0)


def whole(height: int, width: int) -> tuple[Tile, ...]:
    return (Tile(spans(height, 1, 0)[0], spans(width, 1, 0)[0]),)


def test_a_plan_is_in_tiles_with_its_own_margin(bundle: Bundle) -> None:
    plan = tiny(bundle).plan("tiny", 16, 16)
    assert plan.how == "whole"
    assert tiny(bundle, plan.peak).plan("tiny", 16, 16) == plan
    with pytest.raises(UserError, match="The tiny decoder cannot decode 128x128"):
        tiny(bundle, plan.peak - 1).plan("tiny", 16, 16)  # no tile is smaller than twice the margin
    assert plan.line("The tiny decoder decodes").startswith("The tiny decoder decodes whole: at most ")
    assert TINY_MARGIN > 16


class LazyRunner:
    """Runs stages when the device's compute queue comes to them, on the memory as it is then."""

    def __init__(self, manifest: Manifest, device: LazyDevice) -> None:
        self.device, self._manifest = device, manifest
        self._functions = stage_functions(manifest)

    def prepare(self, sizes: object) -> None:
        pass

    def run(self, stage: str, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        def work() -> None:
            taken, given = ({n: view(t) for n, t in side.items()} for side in (inputs, outputs))
            with torch.no_grad():
                run_stage(self._manifest.stage(stage), self._functions[stage], taken, given)

        self.device.enqueue("compute", work)


def view(tensor: DeviceTensor) -> torch.Tensor:
    memory, place = tensor.memory, tensor.place
    assert isinstance(memory, HostMemory)
    raw = torch.from_numpy(memory.array)[place.offset : place.offset + place.nbytes]
    return raw.view(torch_dtype(place.dtype)).view(place.shape)


@pytest.mark.parametrize("policy", POLICIES)
def test_copies_behind_compute_never_meet_another_chunk(bundle: Bundle, policy: Policy) -> None:
    """Queues that run as early or as late as their events allow; two tracks in turn. All memory comes back."""
    folder, manifest = bundle
    first, following = manifest.stage("tiny_first"), manifest.stage("tiny_next")
    latents = [smooth_latents((4, 2, 3), seed)[None] for seed in (1, 2)]
    parts = [(latents[track][:, :, t : t + 1], track) for t in range(4) for track in (0, 1)]
    device = LazyDevice(policy)
    runner: Any = LazyRunner(manifest, device)
    weights = weights_of_vae(runner, manifest, folder / TINY_NAME, "tiny")
    with Chunks(runner, weights, first, following, {"H": 2, "W": 3}, 2) as chunks:
        found = list(chunks.steps(parts))
    weights.unload()
    assert device.live["device"] == 0
    for track in (0, 1):
        got = np.concatenate(found[track::2])
        assert np.array_equal(got, decoded(bundle, latents[track][0]))
