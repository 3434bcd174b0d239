"""The rCM loop through the torch backend on the CPU, against the loop written out in numpy from semantics.md."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from exporter.models import MODELS, ModelSpec
from exporter.networks.dit import functions as stages
from exporter.networks.dit.options import BlockOptions
from exporter.networks.dit.weights import stage_weights
from exporter.torch_backend.backend import TORCH
from plugins.errors import UserError
from runtime import Pipeline
from runtime.inputs import text_bits
from runtime.numerics import rope_tables, to_bf16_bits, to_tokens
from tests.support.random_bundle import make_random_bundle

T2V = MODELS["wan-tiny"]
I2V = replace(T2V, name="tiny-i2v", in_channels=36, experts=("high-noise", "low-noise"), boundary=0.9, sigma_max=200.0)
SIZE, FRAMES, SHAPE = (48, 32), 9, (3, 4, 6)  # 18 tokens
TOPK = 500
#: fp32 sums in another order, through six bf16 layers.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    for model in (T2V, I2V):
        make_random_bundle(folder / model.name, model, topk_milli=TOPK, seed=7)
    return {model.name: folder / model.name for model in (T2V, I2V)}


@pytest.fixture(scope="module")
def pipes(bundles: dict[str, Path]) -> Iterator[dict[str, Pipeline]]:
    made = {name: Pipeline.load(folder, backend=TORCH, size=SIZE, frames=FRAMES) for name, folder in bundles.items()}
    yield made
    for pipe in made.values():
        pipe.close()


@pytest.fixture(scope="module")
def text() -> Any:
    return np.random.default_rng(3).standard_normal((20, 4096), dtype=np.float32)


def patchify(latents: Any) -> Any:
    """[C, T, H, W] → [T·H/2·W/2, C·4], by loops."""
    c, t, h, w = latents.shape
    rows = [
        latents[:, f, y : y + 2, x : x + 2].reshape(c * 4)
        for f in range(t)
        for y in range(0, h, 2)
        for x in range(0, w, 2)
    ]
    return np.stack(rows)


def unpatchify(tokens: Any) -> Any:
    t, h, w = SHAPE
    out = np.empty((16, *SHAPE), tokens.dtype)
    rows = iter(tokens)
    for f in range(t):
        for y in range(0, h, 2):
            for x in range(0, w, 2):
                out[:, f, y : y + 2, x : x + 2] = next(rows).reshape(16, 2, 2)
    return out


class Dit:
    """The velocity of latents, fp64 in and out, by the stage functions on one expert's file."""

    def __init__(self, folder: Path, model: ModelSpec, expert: str, text: Any, extra: Any) -> None:
        everything = load_file(folder / f"weights-{expert}.safetensors")
        self.layers = [
            {name: everything[f"blocks.{n}.{name}"] for name in stage_weights(model, "block")}
            for n in range(model.layers)
        ]
        self.weights = everything
        padded = np.zeros((512, 4096), np.float32)
        padded[: len(text)] = text
        self.text = torch.from_numpy(padded).bfloat16()
        self.extra = None if extra is None else torch.from_numpy(patchify(extra).astype(np.float32))

    def __call__(self, x: Any, t: float) -> Any:
        milli = float(torch.tensor(t * 1000.0).bfloat16())
        angles = np.array([milli * 10000.0 ** (-i / 128) for i in range(128)])
        features = torch.from_numpy(np.concatenate([np.cos(angles), np.sin(angles)])[None].astype(np.float32))
        tokens = torch.from_numpy(patchify(x).astype(np.float32))
        cos, sin = map(torch.from_numpy, rope_tables(SHAPE))
        with torch.no_grad():
            state, context, e, e0 = stages.embed(tokens, features, self.text, self.weights, self.extra)
            for layer in self.layers:
                state = stages.block(state, context, e0, cos, sin, layer, BlockOptions("sagesla", TOPK))
            zero, one = torch.zeros(1), torch.ones(1)
            _, v = stages.head(state, e, tokens, torch.zeros_like(tokens), zero, one, zero, self.weights)
        return unpatchify(v.numpy().astype(np.float64))


def written_out(dits: Any, *, steps: int, sigma_max: float, seed: int, ode: bool) -> list[Any]:
    """The latents after each step."""
    random = np.random.Generator(np.random.Philox(seed))

    def fresh() -> Any:
        return random.standard_normal((16, *SHAPE), dtype=np.float32).astype(np.float64)

    angles = [math.atan(sigma_max), *[1.5, 1.4, 1.0][: steps - 1], 0]
    t = [math.sin(a) / (math.sin(a) + math.cos(a)) for a in angles]
    x = fresh() * t[0]
    states = []
    for now, then in pairwise(t):
        v = dits(now)(x, now)
        sde = (1 - then) * (x - now * v) + (then * fresh() if then and not ode else 0)
        x = x - (now - then) * v if ode else sde
        states.append(x)
    return states


def close(got: Any, want: Any) -> None:
    assert got.dtype == np.float32
    assert got.shape == want.shape
    assert np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)


@pytest.mark.parametrize("ode", [False, True], ids=["sde", "ode"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_text_to_video(bundles: dict[str, Path], pipes: dict[str, Pipeline], text: Any, steps: int, ode: bool) -> None:
    dit = Dit(bundles[T2V.name], T2V, "model", text, None)
    want = written_out(lambda t: dit, steps=steps, sigma_max=80.0, seed=steps, ode=ode)
    seen: list[Any] = []
    got = pipes[T2V.name](
        text,
        seed=steps,
        steps=steps,
        size=SIZE,
        frames=FRAMES,
        ode=ode,
        on_step=lambda step, latents: seen.append(latents),
    )
    assert len(seen) == steps
    # A step starts where ours ended: later steps only agree as far as INT8 rounding does.
    close(seen[0], want[0])
    assert np.linalg.norm(got - want[-1]) <= 3e-2 * np.linalg.norm(want[-1])
    np.testing.assert_array_equal(seen[-1], got)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_each_step_alone(bundles: dict[str, Path], pipes: dict[str, Pipeline], text: Any, steps: int) -> None:
    """Each step from the state that the pipeline was in: what remains is the order of fp32 sums."""
    dit = Dit(bundles[T2V.name], T2V, "model", text, None)
    states: list[tuple[Any, Any]] = []
    pipes[T2V.name](text, seed=5, steps=steps, size=SIZE, frames=FRAMES, on_step=lambda *seen: states.append(seen))
    random = np.random.Generator(np.random.Philox(5))
    x = random.standard_normal((16, *SHAPE), dtype=np.float32) * np.float32(states[0][0].t)
    for step, latents in states:
        noise = random.standard_normal((16, *SHAPE), dtype=np.float32) if step.following else 0
        want = (1 - step.following) * (x - step.t * dit(x, step.t)) + step.following * noise
        close(latents, want)
        x = latents


@pytest.mark.parametrize("steps", [2, 4])
def test_image_to_video_and_the_switch(
    bundles: dict[str, Path], pipes: dict[str, Pipeline], text: Any, steps: int
) -> None:
    condition = np.random.default_rng(9).standard_normal((16, *SHAPE), dtype=np.float32)
    mask = np.zeros((4, *SHAPE), np.float32)
    mask[:, 0] = 1
    extra = np.concatenate([mask, condition])
    dits = {expert: Dit(bundles[I2V.name], I2V, expert, text, extra) for expert in I2V.experts}
    states: list[tuple[Any, Any]] = []
    pipes[I2V.name](
        text,
        seed=2,
        steps=steps,
        size=SIZE,
        frames=FRAMES,
        condition=condition,
        on_step=lambda *seen: states.append(seen),
    )
    assert [step.expert for step, _ in states] == ["high-noise", "high-noise", "low-noise", "low-noise"][:steps]
    random = np.random.Generator(np.random.Philox(2))
    x = random.standard_normal((16, *SHAPE), dtype=np.float32) * np.float32(states[0][0].t)
    for step, latents in states:
        noise = random.standard_normal((16, *SHAPE), dtype=np.float32) if step.following else 0
        v = dits["low-noise" if step.t < 0.9 else "high-noise"](x, step.t)
        close(latents, (1 - step.following) * (x - step.t * v) + step.following * noise)
        x = latents


def test_the_plain_module_of_the_gpu_tests_agrees(tmp_path: Path, text: Any) -> None:
    """Plain torch from the same packed file, every block kept: what differs is INT8 and bf16 rounding."""
    from tests.support.plain_packed import velocity

    model = replace(T2V, name="tiny-dense")
    make_random_bundle(tmp_path, model, topk_milli=1000)
    weights = load_file(tmp_path / "weights-model.safetensors")
    states: list[tuple[Any, Any]] = []
    with Pipeline.load(tmp_path, backend=TORCH) as pipe:
        pipe(text, seed=1, steps=1, ode=True, on_step=lambda *seen: states.append(seen))
        bits = torch.from_numpy(text_bits(text, pipe.manifest.model).view(np.int16)).view(torch.bfloat16)
    ((step, latents),) = states
    noise = np.random.Generator(np.random.Philox(1)).standard_normal((16, 5, 10, 16), dtype=np.float32)
    tokens = to_tokens(noise * np.float32(step.t))
    kept = torch.arange(4).expand(2, 2, 4)  # 200 tokens: two q blocks, four k blocks
    v = velocity(weights.__getitem__, torch.from_numpy(tokens), step.t, bits, (5, 10, 16), [kept, kept])
    got = (to_tokens(latents) - tokens) / step.update.b
    assert np.linalg.norm(got - v.numpy()) <= 4e-2 * np.linalg.norm(v.numpy())


def test_same_inputs_same_bytes_and_another_seed_another_video(pipes: dict[str, Pipeline], text: Any) -> None:
    pipe = pipes[T2V.name]
    runs = [pipe(text, seed=seed, steps=2, size=SIZE, frames=FRAMES) for seed in (1, 1, 2)]
    assert runs[0].tobytes() == runs[1].tobytes()
    assert not np.allclose(runs[0], runs[2], atol=0.1)


def test_embeddings_in_every_dtype(pipes: dict[str, Pipeline], text: Any) -> None:
    import ml_dtypes

    pipe = pipes[T2V.name]
    options: dict[str, Any] = {"steps": 1, "size": SIZE, "frames": FRAMES}
    rounded = text.astype(ml_dtypes.bfloat16)
    want = pipe(text, **options)
    for same in (rounded, rounded.view(np.uint16), to_bf16_bits(text), rounded.astype(np.float32)):
        np.testing.assert_array_equal(pipe(same, **options), want)
    padded = np.zeros((512, 4096), np.float32)
    padded[:20] = text
    np.testing.assert_array_equal(pipe(padded, **options), want)
    half = pipe(text.astype(np.float16), **options)
    assert np.linalg.norm(half - want) <= 1e-2 * np.linalg.norm(want)
    assert not np.array_equal(pipe(2 * text, **options), want)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 5}, "1 to 4"),
        ({"steps": 0}, "1 to 4"),
        ({"sigma_max": 0.0}, "positive"),
        ({"sigma_max": -1.0}, "positive"),
        ({"seed": -1}, "seed"),
        ({"frames": 10}, r"4n\+1"),
        ({"size": (50, 32)}, "multiples of 16"),
        ({"size": (1280, 720)}, "L from 16 to 4,096"),
        ({"condition": np.zeros((16, *SHAPE), np.float32)}, "text alone"),
        ({"text_embeds": np.zeros((20, 4095), np.float32)}, "4096"),
        ({"text_embeds": np.zeros((513, 4096), np.float32)}, "512"),
        ({"text_embeds": np.zeros((0, 4096), np.float32)}, "1 to 512"),
        ({"text_embeds": np.zeros((1, 4096), np.float64)}, "float64"),
        ({"text_embeds": np.full((1, 4096), np.nan, np.float32)}, "NaN"),
        ({"text_embeds": np.full((1, 4096), 0x7FC0, np.uint16)}, "NaN"),
    ],
)
def test_wrong_inputs_are_refused(pipes: dict[str, Pipeline], text: Any, options: dict[str, Any], words: str) -> None:
    given = {"text_embeds": text, "size": SIZE, "frames": FRAMES} | options
    with pytest.raises(UserError, match=words):
        pipes[T2V.name](**given)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (None, "from an image"),
        (np.zeros((16, 3, 4, 5), np.float32), r"\[16, 3, 4, 6\]"),
        (np.full((16, *SHAPE), np.inf, np.float32), "NaN or infinity"),
    ],
)
def test_wrong_conditions_are_refused(pipes: dict[str, Pipeline], text: Any, condition: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        pipes[I2V.name](text, size=SIZE, frames=FRAMES, condition=condition)


def test_a_second_thread_is_told(pipes: dict[str, Pipeline], text: Any) -> None:
    pipe, told = pipes[T2V.name], list[str]()

    def intrude() -> None:
        try:
            pipe(text, steps=1, size=SIZE, frames=FRAMES)
        except UserError as error:
            told.append(str(error))

    def on_step(*_: Any) -> None:
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        with pytest.raises(UserError, match="in use"):
            pipe.close()

    pipe(text, steps=1, size=SIZE, frames=FRAMES, on_step=on_step)
    assert len(told) == 1
    assert "in use" in told[0]
    pipe(text, steps=1, size=SIZE, frames=FRAMES)  # afterwards it is free again


def test_a_closed_pipeline_is_told(bundles: dict[str, Path], text: Any) -> None:
    with Pipeline.load(bundles[T2V.name], backend=TORCH, size=SIZE, frames=FRAMES) as pipe:
        pass
    pipe.close()
    with pytest.raises(UserError, match="closed"):
        pipe(text)


def test_two_pipelines_run_at_once(bundles: dict[str, Path], pipes: dict[str, Pipeline], text: Any) -> None:
    options: dict[str, Any] = {"seed": 4, "steps": 2, "size": SIZE, "frames": FRAMES}
    alone = pipes[T2V.name](text, **options)
    results: dict[int, Any] = {}
    with Pipeline.load(bundles[T2V.name], backend=TORCH, size=SIZE, frames=FRAMES) as second:
        running = [(0, pipes[T2V.name]), (1, second)]
        threads = [
            threading.Thread(target=lambda i=i, p=p: results.update({i: p(text, **options)})) for i, p in running
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(np.array_equal(results[i], alone) for i in (0, 1))
