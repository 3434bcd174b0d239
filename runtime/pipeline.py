"""The pipeline: a bundle's engines and weights on one device, called with embeddings, answering with latents.

with Pipeline.load("engines/wan2.1-14b-720p-rtx5090", vram="24GB") as pipe:
    latents = pipe(text_embeds, seed=0, steps=4)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import numpy.typing as npt

from plugins.errors import UserError
from plugins.interrupts import Ending, Exclusive
from runtime.backends.kind import BackendKind
from runtime.backends.protocol import Activations, Runner
from runtime.backends.registry import backend_kind
from runtime.bundle import Manifest, load_manifest
from runtime.byte_sizes import parse_bytes
from runtime.checks import check_size, check_weights
from runtime.choices import chosen
from runtime.file_checks import FileChecks, Verify, parse_verify
from runtime.inputs import condition_tokens, latent_shape, text_bits
from runtime.layout import run_layout
from runtime.numerics import Array, to_latents
from runtime.one_caller import one_caller
from runtime.report import Report, Silent
from runtime.run import Run, UnitTime, rope
from runtime.sampler import Noise, NonFiniteError, Step, draws_of, given_noise, plan_steps, sample
from runtime.video_shape import tokens_of
from runtime.weights.file import WeightsFile
from runtime.weights.memory_plan import MemoryPlan, StageBytes, plan_memory
from runtime.weights.storage import STAGES, Storage, layouts
from runtime.weights.streaming import Kept
from runtime.weights.upload import Staging

#: Called after each step with the step and its latents, fp32 [16, T, H, W].
OnStep = Callable[[Step, Array], None]

#: Bytes of free device memory left alone where no budget is given: kernels are loaded at their first use.
RESERVE = 256 << 20


class Pipeline:
    """A loaded bundle. One thread at a time: a second caller gets a UserError. Many pipelines may share a process.

    Between calls only weights stay on the device. Same inputs, same bytes, on one backend and GPU.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        runner: Runner,
        budget: int | None,
        *,
        checks: FileChecks,
        report: Report,
        shared: Staging | None = None,
        kept: Kept | None = None,
    ) -> None:
        """Use ``load``; or with a runner and the way to its memory that others use too, which then stay theirs."""
        self.folder, self.manifest, self.runner = folder, manifest, runner
        self._budget, self._checks, self._report, self._kept = budget, checks, report, kept
        self._spared = 0
        largest = max(where.nbytes for where in layouts(manifest).values())
        self._held = _Held(runner, checks, shared or Staging(runner.device, largest), own=shared is None)
        # A pipeline that is dropped gives all back too; a process's end does so by itself.
        self._give_back = Ending(self, self._held.close, atexit=False)
        self._callers = Exclusive()

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        vram: str | int | None = None,
        backend: str | BackendKind = "auto",
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        steps: int | None = None,
        boundary: float | None = None,
        topk_milli: int | None = None,
        verify: Verify = "auto",
        report: Report | None = None,
    ) -> Pipeline:
        """Check a bundle, open its engines and bring its weights to the device.

        vram: the most device memory to use, such as "12GB"; None means what is free now. Weights that do not fit
        stream from the file. backend: "auto" or "tensorrt", "torch", or a BackendKind. size (width, height), frames
        and steps are what to make room for; a call may ask for others. boundary: the time below which a model of two
        experts runs the second; topk_milli: thousandths of the key blocks that sparse attention keeps, which only
        the torch backend can choose; None means the bundle's. verify: compare the files with their hashes, "auto" those
        that were not found right before, "always" or "never". Raises UserError for whatever does not fit together, and
        says what would.
        """
        folder, report = Path(bundle), report or Silent()
        kind = backend_kind(backend)
        choices: dict[str, Any] = {"boundary": boundary, "topk_milli": topk_milli, "any_topk": kind.any_topk}
        manifest = chosen(load_manifest(folder), folder, **choices)
        shape = latent_shape(manifest, size, frames)
        planned = _experts(plan_steps(manifest, steps))
        budget = None if vram is None else parse_bytes(vram)
        _require(check_weights(folder, manifest, planned))
        _require(kind.check(folder, manifest))
        checks = FileChecks(folder, manifest, parse_verify(verify), report)
        for expert in planned:
            _require(check_size(folder, manifest, manifest.weights[expert]))
        checks.check(kind.files(manifest, "dit"))
        opened = kind.open(folder, manifest, report)
        pipe = cls(folder, manifest, opened, budget, checks=checks, report=report)
        try:
            with opened.device.current():
                free = opened.device.free_bytes()
                pipe._budget = free - RESERVE if budget is None and free is not None else budget
                pipe._fit(tokens_of(shape), planned).preload(planned[0], report)
                checks.finish()
        except BaseException:
            pipe.close()
            raise
        return pipe

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free all memory of host and device. May be called twice. Raises UserError while a call is running."""
        with one_caller(self._callers):
            self._give_back()

    def unload(self) -> None:
        """Give the weights' device memory back; the next call loads them again."""
        with one_caller(self._callers), self.runner.device.current():
            self._held.unload()

    def prefetch(
        self, size: tuple[int, int] | None = None, frames: int | None = None, steps: int | None = None
    ) -> None:
        """Start to bring the weights of a call of that size, frames and steps to the device, behind what runs there."""
        with one_caller(self._callers), self.runner.device.current():
            self._require_open()
            experts, shape = _experts(plan_steps(self.manifest, steps)), latent_shape(self.manifest, size, frames)
            Thread(target=rope, args=[shape], name="turbotrt-rope", daemon=True).start()
            self._fit(tokens_of(shape), experts).prefetch(experts[0])

    def plan(
        self, size: tuple[int, int] | None = None, frames: int | None = None, steps: int | None = None
    ) -> MemoryPlan:
        """What a call of that size, frames and steps would keep on the device. Raises UserError if nothing fits."""
        self._require_open()
        experts = _experts(plan_steps(self.manifest, steps))
        return self._planned(tokens_of(latent_shape(self.manifest, size, frames)), experts)

    @property
    def placement(self) -> MemoryPlan:
        """The plan by which the weights lie now. Raises UserError where they do no more."""
        self._require_open()
        if self._held.storage is None:
            raise UserError("This pipeline holds no weights now: laying them out failed.", remedy="call it again")
        return self._held.storage.plan

    def _require_open(self) -> None:
        if self._give_back.done:
            raise UserError("This pipeline is closed.", remedy="load it again")

    @property
    def loaded(self) -> bool:
        """Whether weights are on the device, or on their way."""
        return self._held.storage is not None

    @property
    def copied_bytes(self) -> int:
        """Bytes of weights brought to the device since they were last laid out."""
        return 0 if self._held.storage is None else self._held.storage.copied_bytes

    def take_waited_seconds(self) -> float:
        """Seconds that the device waited for weights, streamed or another expert's, since this was asked last.

        For ``on_step``: what counts is the call that is running.
        """
        return 0.0 if self._held.storage is None else self._held.storage.stream.take_waited_seconds()

    def __call__(
        self,
        text_embeds: npt.NDArray[Any],
        *,
        seed: int = 0,
        noise: npt.NDArray[Any] | None = None,
        steps: int | None = None,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        condition: Array | None = None,
        ode: bool = False,
        sigma_max: float | None = None,
        on_step: OnStep | None = None,
        on_estimate: OnStep | None = None,
        debug: bool = False,
        times: list[UnitTime] | None = None,
    ) -> Array:
        """Clean latents fp32 [16, T, H, W] with T = (frames − 1)/4 + 1, H and W = pixels / 8.

        text_embeds: [n ≤ 512, 4096], float32, float16, or bf16's bits as uint16. noise: in place of the seed's, the
        draws of another program (``runtime.sampler.given_noise``). condition: for image-to-video only, the VAE's
        latents fp32 [16, T, H, W] of [image, zeros…]. steps 1 to 4; size (width, height), frames, steps and
        sigma_max default to the bundle's. ode: the deterministic update, without fresh noise. debug: look for NaN after
        every block. on_estimate: called after ``on_step`` with the clean latents that the step went towards. times: a
        list that gets the seconds of every stage run. Raises UserError for inputs that do not
        fit, NonFiniteError where a step gave NaN, BackendError, and whatever ``on_step`` raises: the pipeline can be
        called again after each of them.
        """
        with one_caller(self._callers):
            self._require_open()
            planned = plan_steps(self.manifest, steps, sigma_max, ode=ode)
            shape = latent_shape(self.manifest, size, frames)
            given = None if noise is None else given_noise(noise, planned, shape)
            draws = Noise(seed, shape, draws_of(planned), given)
            text = text_bits(text_embeds, self.manifest.model)
            extra = condition_tokens(condition, self.manifest.model, shape)
            with self.runner.device.current():
                storage = self._fit(tokens_of(shape), _experts(planned))
                run = Run(self.manifest, self.runner, storage, shape, debug=debug, times=times)
                try:
                    with run:
                        run.begin(text, extra, planned)
                        made = self._sample(run, planned, draws, shape, on_step, on_estimate)
                    self._verified(storage)
                    return made
                finally:
                    run.close()  # again: Ctrl-C may have come before it was closed

    def _sample(
        self,
        run: Run,
        steps: Sequence[Step],
        noise: Noise,
        shape: tuple[int, int, int],
        on_step: OnStep | None,
        on_estimate: OnStep | None,
    ) -> Array:
        def telling(told: OnStep | None) -> OnStep | None:
            return None if told is None else lambda step, tokens: told(step, to_latents(tokens, shape))

        try:
            return to_latents(sample(run.forward, steps, noise, telling(on_step), telling(on_estimate)), shape)
        except NonFiniteError as error:
            raise run.located(error) from None

    def spare(self, nbytes: int) -> None:
        """Leave so many bytes of the budget to what runs beside the next calls."""
        self._spared = nbytes

    @property
    def _room(self) -> int | None:
        return None if self._budget is None else max(0, self._budget - self._spared)

    def _planned(self, tokens: int, experts: tuple[str, ...]) -> MemoryPlan:
        return plan_memory(self._sizes(tokens), self.manifest.model.layers, experts, tokens, self._room)

    def _sizes(self, tokens: int) -> StageBytes:
        return _stage_bytes(self.manifest, self.runner.activation_bytes, self.runner.overhead_bytes, tokens)

    def _fit(self, tokens: int, experts: tuple[str, ...]) -> Storage:
        """Storage that leaves room for a run at L tokens and serves these experts: the present one, if it does."""
        held = self._held
        if held.storage is not None:
            plan = held.storage.plan
            need = plan.weights + self._sizes(tokens).running
            if set(experts) <= set(plan.experts) and (self._room is None or need <= self._room):
                self._begin_checks(held.storage)
                return held.storage
        plan = self._planned(tokens, experts)
        _require(check_weights(self.folder, self.manifest, experts))
        held.unload()
        for line in plan.lines():
            self._report.note(line)
        for expert in self.manifest.model.experts:
            if expert not in experts:
                self._report.note(f"These steps never reach the {expert} expert: it is not loaded.")
        held.storage = Storage(
            self.folder, self.manifest, plan, self.runner.device, held.staging, held.files, self._kept
        )
        self._begin_checks(held.storage)
        return held.storage

    def _begin_checks(self, storage: Storage) -> None:
        """Its files may have been changed since they were hashed."""
        for file in storage.files:
            self._checks.begin_open(file)

    def _verified(self, storage: Storage) -> None:
        """Raises UserError where the weights are not the manifest's: none of them stay."""
        try:
            self._checks.finish(file.path.name for file in storage.files)
        except UserError:
            self._held.forget()
            raise


class _Held:
    """What a pipeline holds of the device: it knows nothing of the pipeline, so that dropping that gives it back."""

    def __init__(self, runner: Runner, checks: FileChecks, staging: Staging, *, own: bool) -> None:
        self.runner, self._checks, self.staging, self._own = runner, checks, staging, own
        self.storage: Storage | None = None
        self.files: dict[str, WeightsFile] = {}  # of experts; once open, a weight that comes again is of the same file

    def close(self) -> None:
        with self.runner.device.current():
            self.forget()
            if self._own:
                self._checks.close()
                self.staging.close()
                self.runner.close()
        if self._own:
            self.runner.device.close()

    def unload(self) -> None:
        if self.storage is not None:
            self.storage.close()
            self.storage = None

    def forget(self) -> None:
        """The files too: the next call opens what lies there by then."""
        self.unload()
        while self.files:
            self.files.popitem()[1].close()


def plan_bundle(
    manifest: Manifest,
    activations: Activations,
    overhead: int,
    *,
    vram: int | None = None,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    steps: int | None = None,
) -> MemoryPlan:
    """The plan of a bundle before anything is loaded; ``vram`` in bytes. Raises UserError.

    ``activations`` and ``overhead``: the runner's, or its backend's on any machine.
    """
    tokens = tokens_of(latent_shape(manifest, size, frames))
    experts = _experts(plan_steps(manifest, steps))
    found = _stage_bytes(manifest, activations, overhead, tokens)
    return plan_memory(found, manifest.model.layers, experts, tokens, vram)


def _stage_bytes(manifest: Manifest, activations: Activations, overhead: int, tokens: int) -> StageBytes:
    slots, sizes = layouts(manifest), {"L": tokens}
    return StageBytes(
        embed=slots["embed"].nbytes,
        block=slots["block"].nbytes,
        head=slots["head"].nbytes,
        io=run_layout(map(manifest.stage, STAGES), sizes).nbytes,
        activations={stage: activations(stage, sizes) for stage in STAGES},
        overhead=overhead,
    )


def _require(reason: str | None) -> None:
    if reason is not None:
        raise UserError(reason)


def _experts(steps: Sequence[Step]) -> tuple[str, ...]:
    """The experts that the steps reach, in order."""
    return tuple(dict.fromkeys(step.expert for step in steps))
