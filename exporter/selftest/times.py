"""The part "times": one block and one step of a model of real size on random weights, beside what was estimated."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median

import numpy as np

from exporter.bench.estimate import step_ms as estimated_step_ms
from exporter.bench.synthetic import random_weights
from exporter.networks.components import component_stages
from exporter.selftest.alone import Raw, opened
from exporter.selftest.rows import Case
from exporter.selftest.stages import raw, stage_inputs
from exporter.selftest.step import Finding, Setting, Step, backend_of, variant_of
from exporter.selftest.variants import Variant
from runtime.backends.protocol import DeviceTensor, Memory, Runner, tensors
from runtime.bundle import OUTPUT_SUFFIX, Manifest, load_manifest
from runtime.byte_sizes import gigabytes
from runtime.layout import Layout, run_layout, weight_layout
from runtime.pipeline import RESERVE
from runtime.video_shape import latents_of, tokens_of
from runtime.weights.storage import STAGES

_WARM, _STEPS = 2, 3
#: Videos to time a model on, the first that fits: its own, and the smaller one of 480p.
_SMALLER = (832, 480, 81)


def steps(setting: Setting, case: Case) -> Iterator[Step]:
    """One step: both times."""
    yield Step("a block and a step", partial(_time, setting, case))


def _time(setting: Setting, case: Case) -> Iterator[Finding]:
    variant = variant_of(case)
    model, folder = variant.model, setting.bundle(variant)
    manifest = load_manifest(folder)
    lacking = ""
    with opened(folder, manifest, backend_of(case)) as runner:
        for video in dict.fromkeys(((*model.size, model.frames), _SMALLER)):
            shape = latents_of(video[:2], video[2])
            need, free = _need(runner, manifest, tokens_of(shape)), runner.device.free_bytes()
            if free is not None and need + RESERVE > free:
                lacking = f"needs {gigabytes(need)} beside the driver's, {gigabytes(free)} are free"
                continue
            name = f"{'×'.join(map(str, video))}, L = {tokens_of(shape):,}"
            with _Timed(runner, manifest, variant, shape) as timed:
                figures = timed.measure()
            yield Finding(name, figures=figures | _estimated(setting, variant, tokens_of(shape)))
            return
    yield Finding("a block and a step", detail=lacking, skipped=True)


def _estimated(setting: Setting, variant: Variant, tokens: int) -> dict[str, float | None]:
    """ms by the same rule as ``turbotrt estimate``."""
    step = estimated_step_ms(variant.model, setting.target, variant.options, tokens)
    return {"estimated_block_ms": step / variant.model.layers, "estimated_step_ms": step}


def _need(runner: Runner, manifest: Manifest, tokens: int) -> int:
    """Bytes of device memory that the two times take: one block's weights, not all."""
    sizes = {"L": tokens}
    weights = sum(weight_layout(manifest.stage(name)).nbytes for name in STAGES)
    activations = max(runner.activation_bytes(name, sizes) for name in STAGES)
    return run_layout(map(manifest.stage, STAGES), sizes).nbytes + weights + activations + runner.overhead_bytes


class _Timed:
    """A context: all inputs, outputs and one block's weights on the device, which every layer runs on."""

    def __init__(self, runner: Runner, manifest: Manifest, variant: Variant, shape: tuple[int, int, int]) -> None:
        self._runner, self._manifest, self._layers = runner, manifest, variant.model.layers
        self._held: list[Memory] = []
        self._stages = component_stages(variant.model, "dit", variant.options)
        self._sizes, self._shape = {"L": tokens_of(shape)}, shape

    def __enter__(self) -> _Timed:
        try:
            self._runner.prepare(dict.fromkeys(STAGES, self._sizes))
            where = run_layout(map(self._manifest.stage, STAGES), self._sizes)
            self._tensors = self._placed(where, {})
            self._weights: dict[str, dict[str, DeviceTensor]] = {}
            for stage in self._stages:
                for name, array in stage_inputs(stage, self._sizes, self._shape).items():
                    self._upload(self._tensors[name], array)
                made = {name: raw(tensor) for name, tensor in random_weights(stage.weights, 1, "cpu").items()}
                self._weights[stage.name] = self._placed(weight_layout(self._manifest.stage(stage.name)), made)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def measure(self) -> dict[str, float | None]:
        """ms of a block among a step's others, and of the step. Raises ArithmeticError where it gives no numbers."""
        found = [self._step() for _ in range(_WARM + _STEPS)][_WARM:]
        tokens = self._tensors["tokens" + OUTPUT_SUFFIX]
        got = np.empty(tokens.place.nbytes, np.uint8)
        self._runner.device.download(tokens.memory, tokens.place.offset, got)
        if not np.isfinite(got.view(np.float32)).all():
            raise ArithmeticError("a step on random weights gave values that are not finite")
        return {"block_ms": median(block for block, _ in found), "step_ms": median(step for _, step in found)}

    def _step(self) -> tuple[float, float]:
        """ms of a block and of the step: embed, every layer's block behind the other, head."""
        device = self._runner.device
        device.finish()
        marks = [device.record("compute")]
        self._run("embed", "x_out", "x")
        marks.append(device.record("compute"))
        for layer in range(self._layers):
            self._run("block", *(("x", "x_out") if layer % 2 == 0 else ("x_out", "x")))
        marks.append(device.record("compute"))
        self._run("head", "x" if self._layers % 2 == 0 else "x_out", "x")
        marks.append(device.record("compute"))
        device.finish()
        return 1e3 * device.elapsed(marks[1], marks[2]) / self._layers, 1e3 * device.elapsed(marks[0], marks[3])

    def _run(self, name: str, read: str, write: str) -> None:
        """A stage that reads and writes x at these two places."""
        entry, places = self._manifest.stage(name), self._tensors
        taken, given = {**places, "x": places[read]}, {**places, "x": places[write]}
        given["tokens"] = places["tokens" + OUTPUT_SUFFIX]
        inputs = {tensor.name: taken[tensor.name] for tensor in entry.activations}
        self._runner.run(name, {**inputs, **self._weights[name]}, {key: given[key] for key in entry.gives})

    def _placed(self, where: Layout, arrays: dict[str, Raw]) -> dict[str, DeviceTensor]:
        """The tensors of a layout in memory of their own, with these values."""
        self._held.append(self._runner.device.allocate(max(1, where.nbytes)))
        made = tensors(self._held[-1], where)
        for name, array in arrays.items():
            self._upload(made[name], array)
        return made

    def _upload(self, tensor: DeviceTensor, array: Raw) -> None:
        device, source = self._runner.device, np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        device.upload(tensor.memory, tensor.place.offset, source, "compute")
        device.finish()  # the source may go now

    def _close(self) -> None:
        self._runner.device.finish()
        while self._held:
            self._held.pop().free()
        self._runner.release()
