"""The runtime's VAE on the torch runner: against the plain functions, whole and tiled, streamed, within a budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from media_bundle import VAE_NAME, add_media, smooth_latents  # noqa: E402
from random_bundle import make_random_bundle  # noqa: E402

from exporter.models import MODELS  # noqa: E402
from exporter.torch_media import TorchRunner  # noqa: E402
from exporter.vae import halves  # noqa: E402
from exporter.vae.spec import VAES  # noqa: E402
from plugins.errors import UserError  # noqa: E402
from runtime.media import tiles as tiles_module  # noqa: E402
from runtime.media import vae as vae_module  # noqa: E402
from runtime.media.latents import denormalized, normalized  # noqa: E402
from runtime.media.tiles import MARGIN, Tile, cut, spans  # noqa: E402
from runtime.media.vae import Vae, to_uint8  # noqa: E402
from runtime.weights_file import WeightsFile  # noqa: E402

I2V = replace(MODELS["wan-tiny"], in_channels=36)
SPEC = VAES["Wan2.1-tiny"]
H, W = 4, 6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    manifest = add_media(folder, make_random_bundle(folder, MODELS["wan-tiny"]), I2V)
    return folder, manifest


@pytest.fixture(scope="module")
def runner(bundle):
    class I2VRunner(TorchRunner):
        def __init__(self):
            super().__init__(bundle[1], torch.device("cpu"))
            from exporter.components import vae_stages

            self._stages |= {stage.name: stage for stage in vae_stages(SPEC, I2V)}

    return I2VRunner()


@pytest.fixture
def vae(bundle, runner):
    def make(budget=None):
        return Vae(runner, bundle[1], WeightsFile(bundle[0] / VAE_NAME), budget)

    return make


@torch.no_grad()
def plain_decode(bundle, latents):
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
        out.append(to_uint8(x.numpy()))
    return np.concatenate(out)


def test_whole_is_the_plain_function_and_streams(bundle, vae):
    latents = smooth_latents((3, H, W))
    chunks = list(vae().decode(latents))
    assert [len(chunk) for chunk in chunks] == [1, 4, 4]
    assert np.array_equal(np.concatenate(chunks), plain_decode(bundle, latents))


@pytest.fixture
def in_tiles(monkeypatch):
    """Make the next plans cut a picture in two along an axis; the margin is this small VAE's own reach."""

    def force(height, width, rows, columns, margin=5):
        monkeypatch.setattr(tiles_module, "MARGIN", margin)
        made = tuple(Tile(row, column) for row in spans(height, rows) for column in spans(width, columns))
        assert (made[0].rows.length, made[0].columns.length) != (height, width)
        monkeypatch.setattr(vae_module, "cut", lambda *args: made)

    return force


def error(got, want):
    return np.linalg.norm(got.astype(np.float32) - want) / np.linalg.norm(want - want.mean())


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(4, 26, 1, 2), (26, 4, 2, 1)])
def test_tiles_are_seamless(vae, in_tiles, height, width, rows, columns):
    """Tiles with margins give the whole picture; without margins they do not, which this comparison sees."""
    latents = smooth_latents((2, height, width))
    whole = np.concatenate(list(vae().decode(latents))).astype(np.float32)
    in_tiles(height, width, rows, columns)
    assert error(np.concatenate(list(vae().decode(latents))), whole) < 1e-2
    in_tiles(height, width, rows, columns, margin=0)
    assert error(np.concatenate(list(vae().decode(latents))), whole) > 2e-2


def test_encode_tiled_is_whole(vae, in_tiles):
    video = np.random.default_rng(1).uniform(-1, 1, (3, 5, 8 * 4, 8 * 26)).astype(np.float32)
    chunks = [video[:, :1], video[:, 1:]]
    whole = vae().encode(chunks, 4, 26)
    assert whole.shape == (16, 2, 4, 26)
    in_tiles(4, 26, 1, 2)
    assert error(vae().encode(chunks, 4, 26), whole) < 1e-2


def reach(spec, half):
    """How far, in latents, an output of a half depends on its input: half a kernel for each convolution, by scale."""
    parts = halves.plan(spec, half)
    scale = parts.scale
    total = 1 / scale if parts.head is not None else 0
    for layer in parts.layers:
        if isinstance(layer, halves.Residual):
            total += 2 / scale
        elif isinstance(layer, halves.Resample):
            finer = scale * 2 if layer.direction == "up" else scale
            total += 1 / finer
            scale = scale * 2 if layer.direction == "up" else scale // 2
    return total + (1 / scale if parts.tail is not None else 0)


@pytest.mark.parametrize("half", ["decode_pixels", "encode_pixels"])
def test_the_margin_is_as_wide_as_the_reach(half):
    assert reach(VAES["Wan2.1"], half) <= MARGIN - 0.5


def test_a_budget_makes_tiles_and_a_plan_states_the_peak(vae):
    whole = vae().plan("decode", 16, 16)
    assert len(whole.tiles) == 1
    assert len(vae(whole.peak).plan("decode", 16, 16).tiles) == 1
    wide = vae().plan("decode", 16, 30)
    assert len(wide.tiles) > 1  # wan-tiny's engines take 16 latents a side
    with pytest.raises(UserError, match="cannot decode"):
        vae(1000).plan("decode", 16, 30)


def test_every_latent_is_kept_once():
    for height, width in ((9, 16), (90, 160), (33, 47)):
        tiles = cut(height, width, 24, lambda h, w: h * w <= 500)
        seen = np.zeros((height, width), int)
        for tile in tiles:
            seen[tile.rows.placed(1), tile.columns.placed(1)] += 1
            for span, length in ((tile.rows, height), (tile.columns, width)):
                assert span.outer <= max(0, span.start - MARGIN)
                assert span.outer_end >= min(length, span.end + MARGIN)
                assert span.length <= 24
        assert (seen == 1).all()


def test_latents_normalize_back():
    latents = smooth_latents((2, 3, 4))
    assert np.allclose(normalized(denormalized(latents)), latents, atol=1e-5)
    assert denormalized(np.zeros((16, 1, 1, 1), np.float32))[7, 0, 0, 0] == np.float32(1.5508)
