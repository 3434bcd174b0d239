"""What a run may choose in place of its bundle's own: noise, the experts' boundary, the share of kept key blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest

from exporter.models import MODELS, ModelSpec
from exporter.torch_backend.backend import TORCH
from plugins.errors import UserError
from runtime import Pipeline
from runtime.bundle import Manifest, load_manifest
from runtime.choices import chosen
from runtime.sampler import Noise, Step, draws_of, given_noise, plan_steps, sample
from tests.support.bundle_factory import make_bundle
from tests.support.random_bundle import make_random_bundle

T2V = MODELS["wan-tiny"]
I2V = replace(T2V, name="tiny-i2v", in_channels=36, experts=("high-noise", "low-noise"), boundary=0.9, sigma_max=200.0)
SHAPE = (3, 4, 6)
ASKED: dict[str, Any] = {"size": (48, 32), "frames": 9}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    for model in (T2V, I2V):
        make_random_bundle(folder / model.name, model, topk_milli=500, seed=7)
    return {model.name: folder / model.name for model in (T2V, I2V)}


@pytest.fixture(scope="module")
def pipe(bundles: dict[str, Path]) -> Iterator[Pipeline]:
    with Pipeline.load(bundles[T2V.name], backend=TORCH, **ASKED) as made:
        yield made


@pytest.fixture(scope="module")
def text() -> Any:
    return np.random.default_rng(3).standard_normal((20, 4096), dtype=np.float32)


def seeds_own(seed: int, draws: int) -> Any:
    random = np.random.Generator(np.random.Philox(seed))
    return np.stack([random.standard_normal((16, *SHAPE), dtype=np.float32) for _ in range(draws)])


def test_the_seeds_draws_given_as_noise_are_the_seeds_video(pipe: Pipeline, text: Any) -> None:
    run: dict[str, Any] = {**ASKED, "steps": 2}
    assert np.array_equal(pipe(text, noise=seeds_own(5, 2), **run), pipe(text, seed=5, **run))


def sampled(manifest: Manifest, steps: int, noise: Any, *, ode: bool = False) -> Any:
    """Latents of a DiT that gives half its state as velocity, from this noise, or from seed 5's where it is None."""
    planned = plan_steps(manifest, steps, ode=ode)
    given = None if noise is None else given_noise(noise, planned, SHAPE)

    def forward(x: Any, step: Step, fresh: Any) -> Any:
        return step.update.a * x + step.update.b * (x / 2) + step.update.c * fresh

    return sample(forward, planned, Noise(5, SHAPE, draws_of(planned), given))


@pytest.mark.parametrize("ode", [False, True], ids=["sde", "ode"])
@pytest.mark.parametrize("steps", [1, 4])
def test_draws_come_in_order(bundles: dict[str, Path], steps: int, ode: bool) -> None:
    manifest = load_manifest(bundles[T2V.name])
    want = sampled(manifest, steps, None, ode=ode)
    noise = seeds_own(5, 1 if ode else steps)
    assert np.array_equal(sampled(manifest, steps, noise, ode=ode), want)
    assert not np.array_equal(sampled(manifest, steps, noise[::-1, ::-1], ode=ode), want)
    if len(noise) == 1:
        assert np.array_equal(sampled(manifest, steps, noise[0], ode=ode), want)


def test_noise_in_half_precision(bundles: dict[str, Path]) -> None:
    manifest, noise = load_manifest(bundles[T2V.name]), seeds_own(5, 1)
    rounded, halved = noise.astype(ml_dtypes.bfloat16), noise.astype(np.float16)
    for given, same in ((rounded.view(np.uint16), rounded), (halved, halved)):
        want = sampled(manifest, 1, same.astype(np.float32))
        assert np.array_equal(sampled(manifest, 1, given), want)


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        (np.zeros((16, *SHAPE), np.float32), r"\[2, 16, 3, 4, 6\].*\n.*float32 of \[16, 3, 4, 6\]"),
        (np.zeros((4, 16, *SHAPE), np.float32), r"\[2, 16, 3, 4, 6\]"),
        (np.zeros((2, 16, 3, 4, 8), np.float32), r"\[2, 16, 3, 4, 6\]"),
        (np.zeros((2, 16, *SHAPE), np.float64), "float64"),
        (np.full((2, 16, *SHAPE), np.nan, np.float32), "NaN or infinity"),
        (np.float32(1.0), "not of this run"),
    ],
)
def test_noise_of_another_run_is_refused(pipe: Pipeline, text: Any, noise: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        pipe(text, noise=np.asarray(noise), **ASKED, steps=2)


@pytest.mark.parametrize(
    ("boundary", "experts"),
    [
        (None, ["high-noise", "high-noise", "low-noise", "low-noise"]),  # t = 0.995, 0.934, 0.853, 0.609
        (0.7, ["high-noise", "high-noise", "high-noise", "low-noise"]),
        (0.0, ["high-noise"] * 4),
        (1.0, ["low-noise"] * 4),
    ],
)
def test_the_boundary_chooses_the_experts(bundles: dict[str, Path], boundary: float | None, experts: list[str]) -> None:
    with Pipeline.load(bundles[I2V.name], backend=TORCH, boundary=boundary, **ASKED) as pipe:
        assert pipe.placement.experts == tuple(dict.fromkeys(experts))  # nothing is loaded for nothing
        assert [step.expert for step in plan_steps(pipe.manifest)] == experts  # what a call runs


@pytest.mark.parametrize(
    ("model", "boundary", "words"),
    [(T2V, 0.9, "one expert"), (I2V, 1.5, "from 0 to 1"), (I2V, -0.1, "from 0 to 1"), (I2V, float("nan"), "nan")],
)
def test_boundaries_that_are_none(bundles: dict[str, Path], model: ModelSpec, boundary: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Pipeline.load(bundles[model.name], backend=TORCH, boundary=boundary)


def test_another_share_is_what_a_bundle_of_it_gives(
    bundles: dict[str, Path], pipe: Pipeline, text: Any, tmp_path: Path
) -> None:
    make_random_bundle(tmp_path, T2V, topk_milli=1000, seed=7)
    run: dict[str, Any] = {"size": (128, 80), "frames": 9, "steps": 1}  # 120 tokens: one or both of two key blocks
    with Pipeline.load(tmp_path, backend=TORCH) as whole:
        want = whole(text, **run)
    with Pipeline.load(bundles[T2V.name], backend=TORCH, topk_milli=1000) as changed:
        assert np.array_equal(changed(text, **run), want)
    assert not np.array_equal(pipe(text, **run), want)


def test_engines_hold_their_share(bundles: dict[str, Path]) -> None:
    folder = bundles[T2V.name]
    manifest = load_manifest(folder)
    none: dict[str, Any] = {"boundary": None, "any_topk": False}
    assert chosen(manifest, folder, topk_milli=500, **none) is manifest
    with pytest.raises(UserError) as refused:
        chosen(manifest, folder, topk_milli=150, **none)
    for words in ("--topk 0.5", "--topk 0.15", "turbotrt export --model wan-tiny", "--backend torch"):
        assert words in str(refused.value)


@pytest.mark.parametrize("attention", ["sage", "original"])
def test_dense_attention_has_no_share(tmp_path: Path, attention: Any) -> None:
    manifest = make_bundle(tmp_path)
    manifest = msgspec.structs.replace(manifest, sampler=msgspec.structs.replace(manifest.sampler, attention=attention))
    with pytest.raises(UserError, match=attention):
        chosen(manifest, tmp_path, boundary=None, topk_milli=500, any_topk=True)


def test_how_often_noise_is_drawn(bundles: dict[str, Path]) -> None:
    manifest = load_manifest(bundles[T2V.name])
    assert [draws_of(plan_steps(manifest, steps)) for steps in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert draws_of(plan_steps(manifest, 4, ode=True)) == 1
