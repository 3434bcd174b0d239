"""``turbotrt generate``: a prompt, perhaps an image, to a video. Works on the base install with the extra [video]."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exporter.cli.options import (
    BackendOption,
    BundleOption,
    FramesOption,
    LoraHighOption,
    LoraLowOption,
    LoraOption,
    LoraPartialOption,
    NoVerifyOption,
    OdeOption,
    SizeOption,
    StepsOption,
    VaeDecoderOption,
    VerifyOption,
    VramOption,
    parse_frames,
    parse_size,
    parse_verify,
)
from exporter.cli.videos import Video, names, read_prompts, sampled
from exporter.loras import LoraArguments
from exporter.progress import RichProgress
from exporter.spec import parse_topk
from exporter.terminal import console, printable, say
from plugins.errors import UserError
from runtime.media.decoders import decoder_named
from runtime.media.files.encoders import CODECS, QUALITY, codec_named

if TYPE_CHECKING:
    from runtime.bundle import Manifest
    from runtime.media.parts.times import Part
    from runtime.media.video_pipeline import Video as Made

_FIXED, _ADAPTIVE = "fixed", "adaptive"


def generate(
    bundle: BundleOption,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="NAME.mp4, NAME.webm or NAME.gif, without sound; no suffix for a folder of png frames; NAME.png or "
            "NAME.jpg for a video of one frame; NAME.safetensors for latents, fp32 \\[16, T, H, W]. A batch "
            "adds numbers to the name.",
        ),
    ],
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="What the video shows.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A text file in UTF-8, a prompt a line: one video for each. A line may end in its own --seed N.",
        ),
    ] = None,
    embeds: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="In place of a prompt: a safetensors file whose text_embeds is \\[n ≤ 512, 4096], umT5's output.",
        ),
    ] = None,
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="Refused: distilled models take none.")] = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Image-to-video: the first frame.")] = None,
    image_size: Annotated[
        str,
        typer.Option(
            metavar="fixed|adaptive",
            help="fixed: the image is stretched to --size; adaptive: the video has "
            "--size's area at the image's aspect, in steps of 16 pixels.",
        ),
    ] = _FIXED,
    crop: Annotated[bool, typer.Option("--crop", help="Cut the image to the video's aspect, not stretch it.")] = False,
    condition: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="In place of an image: a safetensors file whose condition is the VAE's "
            "latents of \\[image, zeros…], fp32 \\[16, T, H, W].",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise: the same seed, the same noise on every backend.")] = 0,
    samples: Annotated[
        int, typer.Option(metavar="N", help="Videos of each prompt: with the seed, the next one, and so on.")
    ] = 1,
    noise: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="In place of a seed, another program's noise: a safetensors file whose noise is fp32 "
            "\\[draws, 16, T, H, W]: the start, then one draw for each step that adds noise (with --ode none).",
        ),
    ] = None,
    steps: StepsOption = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    ode: OdeOption = False,
    sigma_max: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Where time starts. [dim]\\[default: the model's][/]")
    ] = None,
    boundary: Annotated[
        float | None,
        typer.Option(
            metavar="TIME",
            help="Of two experts: steps that begin below this time are the second's. [dim]\\[default: the model's][/]",
        ),
    ] = None,
    topk: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Share of kept key blocks. Engines hold theirs, so that another one needs --backend torch or an "
            "export. [dim]\\[default: the bundle's][/]",
        ),
    ] = None,
    vae_decoder: VaeDecoderOption = "full",
    preview: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A small video of what each step takes the result to be, by the tiny decoder, replaced whole step by "
            "step: NAME.mp4, NAME.webm or NAME.gif; NAME.png or NAME.jpg for its middle frame.",
        ),
    ] = None,
    codec: Annotated[
        str,
        typer.Option(
            metavar="|".join(CODECS),
            help="Of a video file. auto: h264 in .mp4, vp9 in .webm. The GPU's own encoder where it has one.",
        ),
    ] = "auto",
    quality: Annotated[
        int | None,
        typer.Option(metavar="N", help=f"Of a video file, 1 to 100. [dim]\\[default: {QUALITY}, visually lossless][/]"),
    ] = None,
    fps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Frames a second of a video file or gif. [dim]\\[default: the model's][/]"),
    ] = None,
    lora: LoraOption = None,
    lora_high: LoraHighOption = None,
    lora_low: LoraLowOption = None,
    lora_partial: LoraPartialOption = False,
    lora_cache: Annotated[
        str, typer.Option(metavar="SIZE", help="The most bytes of weights with LoRAs that stay in the user's cache.")
    ] = "60GB",
    vram: VramOption = None,
    backend: BackendOption = "auto",
    verify: VerifyOption = "auto",
    no_verify: NoVerifyOption = False,
    times: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what each part took, seconds and bytes, as JSON.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Look for NaN after every block: slow.")] = False,
) -> None:
    """Make a video from a prompt, and an image where the model takes one, with a bundle.

    Text encoder, DiT and VAE run one after the other, so that none competes with another for memory. A table at the
    end says what each took.

    Examples:

      turbotrt generate --bundle engines/wan2.1-1.3b-480p-rtx5090 --prompt "A cat on a surfboard" --out cat.mp4

      turbotrt generate --bundle engines/wan2.2-i2v-a14b-720p-rtx5090 --prompt "It waves" --image cat.jpg --out cat.mp4

      turbotrt generate --bundle engines/wan2.1-1.3b-480p-rtx5090 --prompts prompts.txt --out videos.mp4 --samples 4
    """
    if negative is not None:
        raise UserError(
            "Distilled models take no negative prompt: they were trained to need no guidance.",
            remedy="drop --negative, and say in the prompt what the video shall show",
        )
    given = _exactly_one({"--prompt": prompt, "--prompts": prompts, "--embeds": embeds})
    _check_image_options(image, condition, image_size, crop=crop)
    pixels, frames = parse_size(size), parse_frames(frames)
    share = None if topk is None else parse_topk(topk)
    from runtime.atomic import check_place, told, write_atomic
    from runtime.backends.cuda_device import open_early
    from runtime.media.files.kinds import LATENTS
    from runtime.media.request import Request
    from runtime.media.video_pipeline import VideoPipeline

    started = time.perf_counter()
    open_early()  # while torch, or TensorRT, is imported
    loading: dict[str, Any] = {"backend": backend, "vram": vram, "boundary": boundary, "topk_milli": share}
    wanted = sampled([Video(prompt, seed)] if prompts is None else read_prompts(prompts, seed), samples)
    if noise is not None and len(wanted) > 1:
        raise UserError(
            "--noise is the noise of one video.", expected="one prompt and one sample", got=f"{len(wanted)} videos"
        )
    loading["verify"] = parse_verify(verify, no_verify=no_verify)
    report = RichProgress()
    loras = LoraArguments.typed(lora, lora_high, lora_low, lora_partial)
    with (
        _with_loras(bundle, loras, lora_cache, report) as folder,
        VideoPipeline.load(folder, keep=False, report=report, **loading) as pipeline,
    ):
        common = Request(
            embeds=_tensor(embeds, "text_embeds"),
            noise=_tensor(noise, "noise"),
            image=image,
            crop=crop,
            adaptive=image_size == _ADAPTIVE,
            condition=_tensor(condition, "condition"),
            size=pixels,
            frames=frames,
            steps=steps,
            ode=ode,
            sigma_max=sigma_max,
            debug=debug,
            decoder=decoder_named(vae_decoder),
            codec=codec_named(codec),
            quality=quality,
            fps=fps,
            facts=_facts(noise, loras),
        )
        outs, shown = names(out, len(wanted)), [None] if preview is None else names(preview, len(wanted))
        requests = [
            replace(common, prompt=video.prompt, seed=video.seed, out=to, preview=show)
            for video, to, show in zip(wanted, outs, cycle(shown), strict=False)
        ]
        if times is not None:
            check_place(times)
        pipeline.make(requests, lambda made: _tell(made, pipeline.manifest, several=len(wanted) > 1))
        if times is not None:
            with told(times):
                write_atomic(times, json.dumps([asdict(part) for part in pipeline.times], indent=2).encode())
        if given != "--embeds" or out.suffix != LATENTS:
            _show(pipeline.manifest, pipeline.times, time.perf_counter() - started)


@contextmanager
def _with_loras(bundle: Path, loras: LoraArguments, limit: str, report: RichProgress) -> Iterator[Path]:
    """The bundle itself where no LoRA is given, else one of links with other weights, made now or kept from before."""
    if not loras.given:
        yield bundle
        return
    from exporter.models import model_named
    from exporter.packing.lora_cache import bundle_with
    from runtime.bundle import load_manifest
    from runtime.byte_sizes import parse_bytes

    chosen = loras.of(model_named(load_manifest(bundle).model.name))
    with bundle_with(bundle, chosen, report, limit=parse_bytes(limit)) as folder:
        yield folder


def _facts(noise: Path | None, loras: LoraArguments) -> dict[str, str]:
    """What the files' metadata say besides the request's own numbers."""
    facts = {} if noise is None else {"noise": printable(noise.name)}
    if loras.given:
        facts["loras"] = ", ".join(printable(Path(text).name) for text in loras.given)
    return facts


def _check_image_options(image: Path | None, condition: Path | None, image_size: str, *, crop: bool) -> None:
    """Raise UserError for options about the image that do not go together."""
    if image is not None and condition is not None:
        raise UserError("--image and --condition say the same twice.", remedy="give one of them")
    if image_size not in (_FIXED, _ADAPTIVE):
        raise UserError(f"--image-size {image_size!r} is not known.", expected=f"{_FIXED}, {_ADAPTIVE}", got=image_size)
    if image is None and (crop or image_size == _ADAPTIVE):
        raise UserError("--crop and --image-size are about an image, and there is none.", remedy="give --image FILE")


def _exactly_one(options: dict[str, object]) -> str:
    """The one option that is given."""
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        raise UserError(
            "A video is made from one source of text.",
            expected="one of " + ", ".join(options),
            got=", ".join(given) or "none",
        )
    return given[0]


def _tensor(path: Path | None, name: str) -> Any:
    """A file's tensor of that name; None where no file is given."""
    from runtime.tensor_files import read_tensor

    return None if path is None else read_tensor(path, name)


def _tell(made: Made, manifest: Manifest, *, several: bool) -> None:
    """The line of a video that is whole."""
    out, seed = made.request.out, f", seed {made.request.seed}" if several else ""
    if made.latents_alone:
        say(f"{out}: latents {list(made.latents.shape)}{seed}")
        return
    t, h, w = made.latents.shape[1:]
    say(f"{out}: {8 * w}x{8 * h}, {4 * t - 3} frames at {made.request.fps or manifest.model.fps} per second{seed}")


def _show(manifest: Manifest, times: Sequence[Part], total: float) -> None:
    """What each part took."""
    from rich.table import Table

    from runtime.byte_sizes import gigabytes

    def memory(peaks: Iterable[int | None]) -> str:
        """The largest of those known."""
        return gigabytes(max(known)) if (known := [peak for peak in peaks if peak is not None]) else "–"

    table = Table(title=manifest.model.name, caption="peaks of device memory; –: not used, or not counted there")
    for heading in ("part", "seconds", "planned", "measured"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for part in times:
        table.add_row(part.name, f"{part.seconds:.2f}", memory([part.planned]), memory([part.measured]))
    table.add_section()
    planned, measured = ([getattr(part, name) for part in times] for name in ("planned", "measured"))
    table.add_row("total", f"{total:.2f}", memory(planned), memory(measured))
    console().print(table)
