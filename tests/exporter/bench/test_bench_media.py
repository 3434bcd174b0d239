"""turbotrt bench media on the CPU: what it times is the same function everywhere, and failures cost one row."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from typer.testing import CliRunner

from exporter.bench import media, vae
from exporter.bench.synthetic import random_weights
from exporter.cli.app import app
from exporter.models import MODELS
from exporter.networks.vae import halves
from exporter.networks.vae.layers import Tape
from exporter.networks.vae.spec import VAES
from exporter.networks.vae.weights import packed_weights
from tests.support.progress import SilentProgress

TINY = MODELS["wan-tiny"]


def measured() -> dict[str, Any]:
    return media.bench_media(TINY, [(2, 4, 6)], torch.device("cpu"), 1, SilentProgress())


def test_every_way_is_timed_and_gives_what_the_oracle_gives() -> None:
    found = measured()
    tasks = {row["task"] for row in found["rows"]}
    assert {"VAE decode 48x32x5", "VAE encode 48x32x5", "umT5, 60 tokens"} <= tasks
    for row in found["rows"]:
        assert row["seconds"] > 0, row
        assert row["peak_bytes"] is None
        if row["name"] not in ("diffusers", "transformers"):
            assert row["distance"] < 4e-2, row  # bf16, roundings in another order
            theirs = next(r for r in found["rows"] if r["task"] == row["task"] and "speedup" not in r)
            assert row["speedup"] == theirs["seconds"] / row["seconds"]
    shown = list(media.lines(found))
    assert len(shown) == len(found["rows"])
    assert all(cells[3] == "–" for cells in shown)


def test_without_oracles_ours_is_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name in ("diffusers", "transformers"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    rows = measured()["rows"]
    assert {row["failed"] for row in rows if "failed" in row} == {
        "ImportError: diffusers",
        "ImportError: transformers",
    }
    assert all("speedup" not in row for row in rows)
    assert sum("seconds" in row for row in rows) >= 6


def test_a_way_that_fails_costs_its_own_figures_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("out of luck\nand more")

    broken = vae.Way("broken", tape=fail)
    monkeypatch.setattr(vae, "WAYS", (vae.WAYS[0], broken))
    rows = {(row["task"], row["name"]): row for row in measured()["rows"]}
    assert rows["VAE decode 48x32x5", "broken"]["failed"] == "RuntimeError: out of luck"
    assert "seconds" in rows["VAE decode 48x32x5", vae.OURS]
    assert "seconds" in rows["umT5, 60 tokens", "ours"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it runs")
def test_a_full_model_needs_a_gpu() -> None:
    result = CliRunner().invoke(app, ["bench", "media", "--model", "wan2.1-1.3b-480p"])
    assert result.exit_code == 2
    assert "a CUDA device" in result.stderr


def test_compiled_variants_of_one_size_are_dropped_before_the_next() -> None:
    """torch.compile runs what it has no room for uncompiled, without a word in the figures."""
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list as variants

    spec = VAES[TINY.vae]
    table = packed_weights(spec, "encode_latent")
    weights = random_weights(table, 0, "cpu")
    compiled = torch.compile(halves.run, backend="eager", dynamic=False)
    features = torch.zeros(1, spec.top, 1, 2, 3, dtype=torch.bfloat16)
    with torch.no_grad():
        compiled("encode_latent", features, None, weights, spec)
    assert variants(halves.run.__code__)
    way = vae.Way("compiled", tape=Tape, compiled=True)
    vae.run_way(spec, ("encode_pixels", "encode_latent"), [features], way, weights)
    assert not variants(halves.run.__code__)
