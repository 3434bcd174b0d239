"""The runtime's VAE on the torch runner: against the plain functions, whole and tiled, streamed, within a budget."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from exporter.models import MODELS
from exporter.networks.vae import halves
from exporter.networks.vae.halves import Half
from exporter.networks.vae.spec import VAES, Resample, Residual, VaeSpec
from exporter.torch_backend.runner import TorchRunner
from plugins.errors import UserError
from runtime.bundle import Manifest
from runtime.media.files.writer import BackgroundWriter
from runtime.media.vae import plan as plan_module
from runtime.media.vae import tiles as tiles_module
from runtime.media.vae.decoder import Vae
from runtime.media.vae.latents import denormalized, normalized
from runtime.media.vae.tiles import MARGIN, Tile, cut, spans
from runtime.media.vae.weights import VaeWeights
from runtime.weights.file import WeightsFile
from runtime.weights.upload import CHUNK, Staging
from tests.support.media_bundle import VAE_NAME, add_media, smooth_latents
from tests.support.media_parts import vae_on
from tests.support.random_bundle import make_random_bundle

I2V = replace(MODELS["wan-tiny"], in_channels=36)
SPEC = VAES["Wan2.1-tiny"]
H, W = 4, 6
Bundle = tuple[Path, Manifest]
MakeVae = Callable[..., Vae]  # of a budget in bytes
InTiles = Callable[..., None]
Pixels = npt.NDArray[Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    manifest = add_media(folder, make_random_bundle(folder, MODELS["wan-tiny"]), I2V)
    return folder, manifest


@pytest.fixture(scope="module")
def runner(bundle: Bundle) -> TorchRunner:
    class I2VRunner(TorchRunner):
        def __init__(self) -> None:
            super().__init__(bundle[1], torch.device("cpu"))
            from exporter.networks.vae.stages import vae_stages

            self._functions |= {stage.name: stage.function for stage in vae_stages(SPEC, I2V)}

    return I2VRunner()


@pytest.fixture
def vae(bundle: Bundle, runner: TorchRunner) -> MakeVae:
    def make(budget: int | None = None) -> Vae:
        return vae_on(runner, bundle[1], bundle[0] / VAE_NAME, budget)

    return make


@torch.no_grad()
def plain_decode(bundle: Bundle, latents: Pixels) -> Pixels:
    from safetensors.torch import load_file

    weights = load_file(bundle[0] / VAE_NAME)
    z = torch.from_numpy(denormalized(latents))[None]
    h, w = latents.shape[2:]
    features = {
        name: torch.zeros(1, c.channels, c.frames, h, w, dtype=torch.bfloat16)
        for name, c in halves.caches(SPEC, "decode_latent").items()
    }
    pixels, out = None, []
    for chunk in z.split(1, 2):
        x, features = halves.run("decode_latent", chunk, features, weights, SPEC)
        x, pixels = halves.run("decode_pixels", x, pixels, weights, SPEC)
        scaled = (x[0].permute(1, 2, 3, 0).numpy().clip(-1, 1) + 1) * np.float32(127.5)
        out.append(np.rint(scaled).astype(np.uint8))
    return np.concatenate(out)


def test_whole_is_the_plain_function_and_streams(bundle: Bundle, vae: MakeVae) -> None:
    latents = smooth_latents((3, H, W))
    chunks = list(vae().decode(latents))
    assert [len(chunk) for chunk in chunks] == [1, 4, 4]
    assert np.array_equal(np.concatenate(chunks), plain_decode(bundle, latents))


def test_pixels_that_are_no_numbers_are_an_error(bundle: Bundle, runner: TorchRunner, tmp_path: Path) -> None:
    """As bytes they would be black frames: the sum that comes beside them says what they were."""
    from safetensors.torch import load_file, save_file

    for bad in (math.nan, math.inf):
        weights = load_file(bundle[0] / VAE_NAME)
        weights["decoder.head.2.bias"][1] = bad
        save_file(weights, tmp_path / "bad.safetensors")
        vae = vae_on(runner, bundle[1], tmp_path / "bad.safetensors")
        with pytest.raises(UserError, match="NaN or infinity"):
            list(vae.decode(smooth_latents((2, H, W))))


@pytest.fixture
def in_tiles(monkeypatch: pytest.MonkeyPatch) -> InTiles:
    """Make the next plans cut a picture in two along an axis; the margin is this small VAE's own reach."""

    def force(height: int, width: int, rows: int, columns: int, margin: int = 5, by_chunk: bool = True) -> None:
        monkeypatch.setattr(tiles_module, "MARGIN", margin)
        made = tuple(Tile(row, column) for row in spans(height, rows) for column in spans(width, columns))
        assert (made[0].rows.length, made[0].columns.length) != (height, width)
        answers = cycle([made] if by_chunk else [None, made])  # the way chunk by chunk is asked about first
        monkeypatch.setattr(plan_module, "cut", lambda *args: next(answers))

    return force


def error(got: Pixels, want: Pixels) -> float:
    return float(np.linalg.norm(got.astype(np.float32) - want) / np.linalg.norm(want - want.mean()))


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns", "by_chunk"), [(2, 26, 1, 2, True), (26, 2, 2, 1, False)]
)
def test_tiles_are_seamless(
    vae: MakeVae, in_tiles: InTiles, height: int, width: int, rows: int, columns: int, by_chunk: bool
) -> None:
    """Tiles with margins give the whole picture; without margins they do not, which this comparison sees."""
    latents = smooth_latents((2, height, width))
    whole = np.concatenate(list(vae().decode(latents))).astype(np.float32)
    in_tiles(height, width, rows, columns, by_chunk=by_chunk)
    assert error(np.concatenate(list(vae().decode(latents))), whole) < 1e-2
    in_tiles(height, width, rows, columns, margin=0, by_chunk=by_chunk)
    assert error(np.concatenate(list(vae().decode(latents))), whole) > 2e-2


class Told:
    """A sink, and a runner around another, that note what happens in one list."""

    def __init__(self, runner: TorchRunner) -> None:
        self.events: list[str] = []
        self._runner, self.device = runner, runner.device
        self.got = threading.Condition()

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        self.events.append("end")

    def write(self, frames: Pixels) -> None:
        with self.got:
            self.events.append(f"write {len(frames)}")
            self.got.notify_all()

    def wait_for(self, count: int) -> None:
        """Decoding waits here until the writer's thread has had so many chunks: who comes first is not left to luck."""
        with self.got:
            assert self.got.wait_for(lambda: sum(e.startswith("write") for e in self.events) >= count, timeout=20)

    def run(self, stage: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        self.events.append(stage)
        self._runner.run(stage, inputs, outputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


@pytest.mark.parametrize("tiles", [1, 2])
def test_frames_are_written_while_later_chunks_decode(
    bundle: Bundle, runner: TorchRunner, in_tiles: InTiles, tiles: int
) -> None:
    """The file has frames of chunk 0 before chunk 1 is begun, whole and in tiles, by the writer's own thread."""
    told = Told(runner)
    if tiles > 1:
        in_tiles(4, 26, 1, 2)
    vae = vae_on(told, bundle[1], bundle[0] / VAE_NAME)
    with BackgroundWriter(told) as writer:
        for count, frames in enumerate(vae.decode(smooth_latents((3, 4, 26 if tiles > 1 else 6))), 1):
            writer.write(frames)
            told.wait_for(count)
    first = ["decode_latent", *["decode_first"] * tiles, "write 1"]
    later = ["decode_latent", *["decode_next"] * tiles, "write 4"]
    assert told.events == [*first, *later, *later, "end"]


def test_tiles_whose_caches_do_not_fit_go_one_after_the_other(vae: MakeVae) -> None:
    """The budget decides, and both ways keep within it; what is done is said."""
    by_chunk = vae().plan("decode", 16, 30)
    assert by_chunk.by_chunk
    assert "15 tiles of 128x128, chunk by chunk: at most" in by_chunk.line("The VAE decodes")
    smaller = vae(by_chunk.peak - 1).plan("decode", 16, 30)
    assert smaller.peak < by_chunk.peak
    assert not smaller.by_chunk
    assert "one after the other: the caches of all do not fit" in smaller.line("The VAE decodes")


@pytest.mark.parametrize("by_chunk", [True, False])
def test_what_is_allocated_is_what_was_planned(
    bundle: Bundle, runner: TorchRunner, in_tiles: InTiles, by_chunk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All allocations alive at once, without activations, which torch makes on its own, are within the plan."""
    live, most = 0, 0
    allocate = runner.device.allocate

    def counted(nbytes: int) -> Any:
        nonlocal live, most
        memory = allocate(nbytes)
        live, free = live + nbytes, memory.free
        most = max(most, live)

        def freed() -> None:
            nonlocal live
            live -= nbytes
            free()

        monkeypatch.setattr(memory, "free", freed)
        return memory

    monkeypatch.setattr(runner.device, "allocate", counted)
    monkeypatch.setattr(runner, "activation_bytes", lambda stage, sizes: 0)
    in_tiles(4, 26, 1, 2, by_chunk=by_chunk)
    halves = [bundle[1].stage(f"decode_{half}") for half in ("latent", "next")]
    weights = VaeWeights(runner.device, halves, WeightsFile(bundle[0] / VAE_NAME), Staging(runner.device, CHUNK))
    vae = Vae(runner, bundle[1], weights, None)
    list(vae.decode(smooth_latents((2, 4, 26))))
    weights.unload()
    assert live == 0
    planned = vae.plan("decode", 4, 26)
    assert planned.by_chunk == by_chunk
    assert 0.99 * planned.peak < most <= planned.peak


def test_encode_tiled_is_whole(vae: MakeVae, in_tiles: InTiles) -> None:
    video = np.random.default_rng(1).uniform(-1, 1, (3, 5, 8 * 2, 8 * 26)).astype(np.float32)
    chunks = [video[:, :1], video[:, 1:]]
    whole = vae().encode(chunks, 2, 26)
    assert whole.shape == (16, 2, 2, 26)
    in_tiles(2, 26, 1, 2)
    assert error(vae().encode(chunks, 2, 26), whole) < 1e-2


def reach(spec: VaeSpec, half: Half) -> float:
    """How far, in latents, an output of a half depends on its input: half a kernel for each convolution, by scale."""
    parts = halves.parts_of(spec, half)
    scale = parts.scale
    total = 1 / scale if parts.head is not None else 0
    for layer in parts.layers:
        if isinstance(layer, Residual):
            total += 2 / scale
        elif isinstance(layer, Resample):
            finer = scale * 2 if layer.direction == "up" else scale
            total += 1 / finer
            scale = scale * 2 if layer.direction == "up" else scale // 2
    return total + (1 / scale if parts.tail is not None else 0)


@pytest.mark.parametrize("half", ["decode_pixels", "encode_pixels"])
def test_the_margin_is_as_wide_as_the_reach(half: Half) -> None:
    assert reach(VAES["Wan2.1"], half) <= MARGIN - 0.5


def test_a_budget_makes_tiles_and_a_plan_states_the_peak(vae: MakeVae) -> None:
    whole = vae().plan("decode", 16, 16)
    assert len(whole.tiles) == 1
    assert len(vae(whole.peak).plan("decode", 16, 16).tiles) == 1
    wide = vae().plan("decode", 16, 30)
    assert len(wide.tiles) > 1  # wan-tiny's engines take 16 latents a side
    with pytest.raises(UserError, match="cannot decode"):
        vae(1000).plan("decode", 16, 30)


def test_every_latent_is_kept_once() -> None:
    for height, width in ((9, 16), (90, 160), (33, 47)):
        tiles = cut(height, width, 24, lambda h, w, count: h * w <= 500)
        seen = np.zeros((height, width), int)
        for tile in tiles or ():
            seen[tile.rows.placed(1), tile.columns.placed(1)] += 1
            for span, length in ((tile.rows, height), (tile.columns, width)):
                assert span.outer <= max(0, span.start - MARGIN)
                assert span.outer_end >= min(length, span.end + MARGIN)
                assert span.length <= 24
        assert (seen == 1).all()


def test_latents_normalize_back() -> None:
    latents = smooth_latents((2, 3, 4))
    assert np.allclose(normalized(denormalized(latents)), latents, atol=1e-5)
    assert denormalized(np.zeros((16, 1, 1, 1), np.float32))[7, 0, 0, 0] == np.float32(1.5508)
