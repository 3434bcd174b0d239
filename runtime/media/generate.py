"""Prompts (and an image) → videos: text encoder, VAE encoder, DiT, VAE decoder, one after the other on one device.

Each gives its memory back before the next takes its own. In a batch each part loads once: all prompts are encoded, then
all latents made, then all videos decoded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plugins.errors import UserError
from runtime.atomic import check_place
from runtime.backends.kind import BackendKind
from runtime.backends.protocol import Runner
from runtime.backends.registry import backend_kind
from runtime.bundle import Manifest, MediaComponent, load_manifest
from runtime.byte_sizes import parse_bytes
from runtime.checks import check_files
from runtime.choices import chosen
from runtime.inputs import LATENT_CHANNELS, latent_shape
from runtime.media.files.image import adaptive_size, conditioning_chunks, first_frame
from runtime.media.files.kinds import LATENTS, check_frames, sink_for
from runtime.media.files.picture import open_image
from runtime.media.files.video_file import PngFolder
from runtime.media.files.writer import BackgroundWriter
from runtime.media.part_times import Part, StepParts
from runtime.media.parts import DECODE, DIT, ENCODE, TEXT, plan_parts
from runtime.media.text.embeds_cache import FOLDER, EmbedsCache
from runtime.media.text.encoder import Embeds, TextEncoder
from runtime.media.text.prompt import MAX_TOKENS, PromptTokenizer
from runtime.media.vae.decoder import Frames, Vae
from runtime.media.vae.plan import FACTOR
from runtime.numerics import Array
from runtime.pipeline import RESERVE, Pipeline
from runtime.report import Report, Update
from runtime.sampler import Step, check_seed, given_noise, plan_steps
from runtime.weights.file import WeightsFile


@dataclass(frozen=True)
class Asked:
    """What a generation is to make, as far as memory depends on it; ``prompts``: those to encode."""

    prompts: Sequence[str]
    image: bool
    video: bool
    size: tuple[int, int] | None
    frames: int | None
    steps: int | None


@dataclass
class VideoMaker:
    """A bundle, a backend and a budget for all parts of a generation. ``parts`` tells what each took, in order."""

    folder: Path
    report: Report
    backend: str | BackendKind = "auto"
    vram: str | int | None = None
    verify: bool = True
    boundary: float | None = None
    topk_milli: int | None = None
    parts: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._kind = backend_kind(self.backend)
        self._choices: dict[str, Any] = {"boundary": self.boundary, "topk_milli": self.topk_milli}
        found = load_manifest(self.folder)
        self.manifest: Manifest = chosen(found, self.folder, any_topk=self._kind.any_topk, **self._choices)
        self._budget = None if self.vram is None else parse_bytes(self.vram)
        self._cache = EmbedsCache(self.folder / FOLDER, self.manifest)
        self._tokenizer: PromptTokenizer | None = None
        self._claimed: dict[Path, PngFolder] = {}  # from before the work, so that no other process takes them meanwhile

    def check_source(self, image: Path | None, *, condition: bool) -> None:
        """Raise UserError before anything is loaded, where the model and what it is given do not fit, or the image."""
        name, takes_none = self.manifest.model.name, self.manifest.model.in_channels == LATENT_CHANNELS
        if takes_none and (image is not None or condition):
            raise UserError(
                f"{name} makes video from text alone: it takes no image.",
                remedy="leave it out, or use a bundle of an image-to-video model",
            )
        if not takes_none and image is None and not condition:
            raise UserError(f"{name} makes video from an image, and there is none.", remedy="give --image FILE")
        if image is not None:
            open_image(image)

    def check_outputs(self, outs: Sequence[Path], frames: int | None = None, *, image: bool) -> None:
        """Raise UserError before anything is loaded, where an output's name or the bundle's parts will not do."""
        videos = [out for out in outs if out.suffix != LATENTS]
        for out in outs:
            if out not in videos:
                check_place(out)
                continue
            sink = sink_for(out, (16, 16), self.manifest.model.fps)
            sink.check()
            check_frames(out, self.manifest.model.frames if frames is None else frames)
            if isinstance(sink, PngFolder):
                self._claimed[out] = sink
        if not videos and not image:
            return
        if "vae" not in self.manifest.media_weights:
            raise UserError(
                "The bundle has no VAE's weights.",
                expected="weights for videos and for images",
                remedy="export again with --vae PATH_OR_HF_ID; latents go to NAME.safetensors",
            )
        for name in (["decode_next"] if videos else []) + (["encode_next"] if image else []):
            self.manifest.stage(name)

    def check_size(self, size: tuple[int, int] | None, frames: int | None) -> None:
        """Raise UserError before anything is loaded, where the engines cannot run a video of this size."""
        latent_shape(self.manifest, size, frames)

    def check_run(self, steps: int | None, sigma_max: float | None, seeds: Sequence[int]) -> None:
        """Raise UserError before anything is loaded, where no run has such numbers."""
        plan_steps(self.manifest, steps, sigma_max)
        for seed in seeds:
            check_seed(seed)

    def check_noise(
        self,
        noise: npt.NDArray[Any],
        size: tuple[int, int] | None,
        frames: int | None,
        steps: int | None,
        *,
        ode: bool,
    ) -> None:
        """Raise UserError before anything is loaded, where another program's noise is not of this run."""
        given_noise(noise, plan_steps(self.manifest, steps, ode=ode), latent_shape(self.manifest, size, frames))

    def state_plan(self, asked: Asked) -> None:
        """Say what each part will need of device memory, before anything is loaded. Raises UserError if one cannot."""
        started = time.perf_counter()
        self._require(self._kind.check(self.folder, self.manifest))
        lengths = self._lengths(asked.prompts)
        parts = ([TEXT] if lengths else []) + ([ENCODE] if asked.image else []) + [DIT]
        parts += [DECODE] if asked.video else []
        if parts == [DIT]:
            return  # nothing comes before the pipeline, which states its own plan
        limit = self._budget
        if limit is None:
            with self._opened() as runner:
                limit = self._limit(runner)
        wanted: dict[str, Any] = {"size": asked.size, "frames": asked.frames, "steps": asked.steps, "vram": limit}
        for line in plan_parts(self.manifest, self._kind, parts, lengths=lengths, **wanted).lines():
            self.report.note(line)
        self.parts.append(Part("plan", time.perf_counter() - started))

    def _lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt that is to be encoded; says what of a prompt is not read."""
        lengths = []
        for prompt in dict.fromkeys(prompts):
            known = self._cache.get(prompt)
            if known is None:
                lengths.append(len(self._tokens(prompt)))
            if (known is None or len(known) == MAX_TOKENS) and (note := self._reader().cut(prompt)) is not None:
                self.report.note(note)
        return lengths

    def embeddings(self, prompts: Sequence[str]) -> list[Embeds]:
        """bf16 bits [n, 4096] of each prompt: from the bundle's cache, or from the text encoder."""
        started = time.perf_counter()
        known = {prompt: self._cache.get(prompt) for prompt in prompts}
        missing = [prompt for prompt, found in known.items() if found is None]
        planned, measured = None, None
        if missing:
            made, planned, measured = self._encode(missing)
            for prompt, embeds in zip(missing, made, strict=True):
                known[prompt] = embeds
                if problem := self._cache.put(prompt, embeds):
                    self.report.note(problem)
        if count := len(known) - len(missing):
            known_ones = "The prompt is known: its" if len(known) == 1 else f"{count} of {len(known)} are known: their"
            self.report.note(f"{known_ones} embeddings come from the cache.")
        self.parts.append(Part(TEXT, time.perf_counter() - started, planned, measured))
        return [found for prompt in prompts if (found := known[prompt]) is not None]

    def _tokens(self, prompt: str) -> list[int]:
        return self._reader()(prompt)

    def _reader(self) -> PromptTokenizer:
        if self.manifest.tokenizer is None or "text" not in self.manifest.media_weights:
            raise UserError(
                "The bundle cannot read prompts: it has no text encoder's weights or no tokenizer.",
                remedy="export again with --text-encoder PATH_OR_HF_ID, or give --embeds",
            )
        if self._tokenizer is None:
            self._tokenizer = PromptTokenizer(self.folder / self.manifest.tokenizer)
        return self._tokenizer

    def size_for(self, image: Path, size: tuple[int, int] | None, *, adaptive: bool) -> tuple[int, int]:
        """(width, height) of the video of an image: the size asked for, or of its area at the image's aspect."""
        target = size or self.manifest.model.size
        return adaptive_size(open_image(image).size, target) if adaptive else target

    def condition(self, image: Path, size: tuple[int, int], frames: int | None, *, crop: bool) -> Array:
        """The VAE's latents fp32 [16, T, H, W] of [image, zeros…]."""
        started = time.perf_counter()
        t, h, w = latent_shape(self.manifest, size, frames)
        frame = first_frame(open_image(image), size, crop=crop)
        with self._runner("vae") as (runner, file), self.report.stage("encode the image"):
            vae = Vae(runner, self.manifest, file, self._limit(runner))
            plan = vae.plan("encode", h, w)
            self.report.note(plan.line("The VAE encodes"))
            latents = vae.encode(conditioning_chunks(frame, t), h, w)
            measured = runner.device.take_peak()
        self.parts.append(Part(ENCODE, time.perf_counter() - started, plan.peak, measured))
        return latents

    def latents(
        self,
        embeds: Sequence[npt.NDArray[np.generic]],
        seeds: Sequence[int],
        *,
        size: tuple[int, int] | None,
        frames: int | None,
        steps: int | None,
        **options: Any,
    ) -> list[Array]:
        """Clean latents of each video's embeddings and seed; ``options`` go to the pipeline."""
        started = time.perf_counter()
        made = []
        loading: dict[str, Any] = {"vram": self.vram, "backend": self._kind, "verify": self.verify}
        loading |= {"size": size, "frames": frames, "steps": steps, "report": self.report, **self._choices}
        with Pipeline.load(self.folder, **loading) as pipe:
            device = pipe.runner.device
            seconds = time.perf_counter() - started
            self.parts.append(Part("load", seconds, pipe.placement.weights, device.take_peak()))
            rows = StepParts(pipe, self.parts)
            total = steps or self.manifest.sampler.steps
            for number, (text, seed) in enumerate(zip(embeds, seeds, strict=True), 1):
                title = "generate" if len(embeds) == 1 else f"generate {number} of {len(embeds)}"
                rows.begin("" if len(embeds) == 1 else f"video {number}, ")
                with self.report.stage(title) as update:

                    def on_step(step: Step, _: Array, update: Update = update) -> None:
                        rows.add(step)
                        update(step.index + 1, total)

                    asked: dict[str, Any] = {"size": size, "frames": frames, "steps": steps, "on_step": on_step}
                    made.append(pipe(text, seed=seed, **asked, **options))
        return made

    def write(self, latents: Sequence[Array], outs: Sequence[Path]) -> None:
        """Decode latents into videos: mp4, or folders of png frames."""
        started = time.perf_counter()
        encoding, peak, measured = 0.0, 0, None
        with self._runner("vae") as (runner, file):
            vae = Vae(runner, self.manifest, file, self._limit(runner))
            for clean, out in zip(latents, outs, strict=True):
                plan = vae.plan("decode", *clean.shape[2:])
                if plan.peak != peak:
                    self.report.note(plan.line("The VAE decodes"))
                peak = max(peak, plan.peak)
                encoding += self._write_one(vae, clean, out)
            measured = runner.device.take_peak()
        self.parts.append(Part(DECODE, time.perf_counter() - started, peak, measured))
        self.parts.append(Part("encode frames (behind the VAE)", encoding))

    def frames(self, latents: Sequence[Array]) -> Iterator[Frames]:
        """Each video's frames uint8 [n, h, w, 3], decoded as they are asked for."""
        with self._runner("vae") as (runner, file):
            vae = Vae(runner, self.manifest, file, self._limit(runner))
            for clean in latents:
                yield np.concatenate(list(vae.decode(clean)))

    def _write_one(self, vae: Vae, latents: Array, out: Path) -> float:
        size = FACTOR * latents.shape[3], FACTOR * latents.shape[2]
        sink = self._claimed.pop(out, None) or sink_for(out, size, self.manifest.model.fps)
        total = 1 + 4 * (latents.shape[1] - 1)
        with self.report.stage(f"decode {out.name}") as update, BackgroundWriter(sink) as writer:
            done = 0
            for frames in vae.decode(latents):
                writer.write(frames)
                done += len(frames)
                update(done, total)
        return writer.seconds

    def _encode(self, prompts: Sequence[str]) -> tuple[list[Embeds], int, int | None]:
        """Embeddings, and the peak of memory planned and measured."""
        ids = [self._tokens(prompt) for prompt in prompts]
        title = "encode the prompt" if len(ids) == 1 else f"encode {len(ids)} prompts"
        with self._runner("text") as (runner, file), self.report.stage(title) as update:
            encoder = TextEncoder(runner, self.manifest, file)
            peak = encoder.nbytes([len(tokens) for tokens in ids])
            return encoder.encode(ids, update), peak, runner.device.take_peak()

    @contextmanager
    def _runner(self, component: MediaComponent) -> Iterator[tuple[Runner, WeightsFile]]:
        """What runs a component, and its weights; both closed at the end."""
        name = self.manifest.media_weights.get(component)
        if name is None:
            option = "--vae" if component == "vae" else "--text-encoder"
            raise UserError(
                f"The bundle has no weights of the component {component}.",
                remedy=f"export again with {option} PATH_OR_HF_ID",
            )
        files = [name, *self._kind.files(self.manifest, component)]
        self._require(self._kind.check(self.folder, self.manifest))
        self._require(check_files(self.folder, self.manifest, files, verify=self.verify, report=self.report))
        with self._opened() as runner, closing(WeightsFile(self.folder / name)) as file:
            yield runner, file

    @contextmanager
    def _opened(self) -> Iterator[Runner]:
        """A runner whose device is current; both are given up at the end."""
        runner = self._kind.open(self.folder, self.manifest, self.report)
        try:
            with runner.device.current(), closing(runner):
                yield runner
        finally:
            runner.device.close()

    @staticmethod
    def _require(reason: str | None) -> None:
        if reason is not None:
            raise UserError(reason)

    def _limit(self, runner: Runner) -> int | None:
        free = runner.device.free_bytes()
        return self._budget if self._budget is not None or free is None else free - RESERVE
