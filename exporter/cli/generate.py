"""``turbotrt generate``: a prompt, perhaps an image, to a video. Works on the base install with the extra [video]."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exporter.cli.command import console
from exporter.cli.options import (
    BackendOption,
    BundleOption,
    FramesOption,
    NoVerifyOption,
    OdeOption,
    SizeOption,
    StepsOption,
    VramOption,
    parse_size,
)
from exporter.progress import RichProgress
from plugins.errors import UserError
from runtime.input_files import read_input

if TYPE_CHECKING:
    from runtime.media.generate import VideoMaker
    from runtime.numerics import Array

_MAX_PROMPTS = 64 << 20  # bytes
_FIXED, _ADAPTIVE = "fixed", "adaptive"


def generate(
    bundle: BundleOption,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="NAME.mp4; a name without a suffix for a folder of png frames; "
            "NAME.safetensors for latents, fp32 \\[16, T, H, W]. A batch adds numbers to the name.",
        ),
    ],
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="What the video shows.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text file of prompts, one a line: one video for each.")
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
    steps: StepsOption = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    ode: OdeOption = False,
    sigma_max: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Where time starts. [dim]\\[default: the model's][/]")
    ] = None,
    vram: VramOption = None,
    backend: BackendOption = "auto",
    no_verify: NoVerifyOption = False,
    debug: Annotated[bool, typer.Option("--debug", help="Look for NaN after every block: slow.")] = False,
) -> None:
    """Make a video from a prompt, and an image where the model takes one, with a bundle.

    Text encoder, DiT and VAE run one after the other, so that none competes with another for memory. A table at the
    end says what each took.

    Examples:

      turbotrt generate --bundle engines/wan2.1-1.3b-480p-rtx5090 --prompt "A cat on a surfboard" --out cat.mp4

      turbotrt generate --bundle engines/wan2.2-i2v-a14b-720p-rtx5090 --prompt "It waves" --image cat.jpg --out cat.mp4

      turbotrt generate --bundle engines/wan2.1-1.3b-480p-rtx5090 --prompts prompts.txt --out videos.mp4 --seed 7
    """
    if negative is not None:
        raise UserError(
            "Distilled models take no negative prompt: they were trained to need no guidance.",
            remedy="drop --negative, and say in the prompt what the video shall show",
        )
    given = _exactly_one({"--prompt": prompt, "--prompts": prompts, "--embeds": embeds})
    _check_image_options(image, condition, image_size, crop=crop)
    pixels = parse_size(size)
    from runtime.inputs import text_bits
    from runtime.media.generate import Asked, VideoMaker

    started = time.perf_counter()
    maker = VideoMaker(bundle, RichProgress(), backend, vram, not no_verify)
    texts: list[str] = [prompt] if prompt is not None else _lines(prompts) if prompts is not None else [""]
    outs = _names(out, len(texts))
    maker.check_source(image, condition=condition is not None)
    maker.check_outputs(outs, image=image is not None)
    if image is not None:
        pixels = maker.size_for(image, pixels, adaptive=image_size == _ADAPTIVE)
    maker.check_size(pixels, frames)
    maker.check_run(steps, sigma_max, seed)
    video = out.suffix != ".safetensors"
    maker.state_plan(Asked(() if embeds is not None else texts, image is not None, video, pixels, frames, steps))
    text = [_tensor(embeds, "text_embeds")] if embeds is not None else maker.embeddings(texts)
    if embeds is not None:
        text_bits(text[0], maker.manifest.model)  # refused before gigabytes of weights are read
    latent = _tensor(condition, "condition") if condition is not None else None
    if image is not None:
        latent = maker.condition(image, pixels or maker.manifest.model.size, frames, crop=crop)
    asked: dict[str, Any] = {"size": pixels, "frames": frames, "steps": steps, "seed": seed, "condition": latent}
    made = maker.latents(text, ode=ode, sigma_max=sigma_max, debug=debug, **asked)
    facts = {"seed": str(seed), "steps": str(steps or maker.manifest.sampler.steps), "ode": str(ode).lower()}
    _finish(maker, made, outs, facts)
    if given != "--embeds" or video:
        _show(maker, time.perf_counter() - started)


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


def _lines(path: Path) -> list[str]:
    """The prompts of a file; empty lines are none."""
    try:
        lines = [line.strip() for line in read_input(path, _MAX_PROMPTS, "a text file").decode("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} cannot be read as prompts.", expected="a text file in UTF-8", got=str(error)
        ) from error
    found = [line for line in lines if line]
    if not found:
        raise UserError(f"{path} holds no prompts.", expected="one a line")
    return found


def _names(out: Path, count: int) -> list[Path]:
    """The outputs of a batch: numbers before the suffix, from 1, where there are several."""
    if count == 1:
        return [out]
    digits = len(str(count))
    return [out.with_name(f"{out.stem}-{number:0{digits}d}{out.suffix}") for number in range(1, count + 1)]


def _tensor(path: Path, name: str) -> Any:
    from runtime.tensor_files import read_tensor

    return read_tensor(path, name)


def _finish(maker: VideoMaker, made: list[Array], outs: list[Path], facts: dict[str, str]) -> None:
    """Write latents, or decode them into videos."""
    from runtime.tensor_files import write_tensors

    if outs[0].suffix == ".safetensors":
        for latents, out in zip(made, outs, strict=True):
            write_tensors(out, {"latents": latents}, {"model": maker.manifest.model.name, **facts})
            typer.echo(f"{out}: latents {list(latents.shape)}")
        return
    maker.write(made, outs)
    for latents, out in zip(made, outs, strict=True):
        t, h, w = latents.shape[1:]
        typer.echo(f"{out}: {8 * w}x{8 * h}, {4 * t - 3} frames at {maker.manifest.model.fps} per second")


def _show(maker: VideoMaker, total: float) -> None:
    """What each part took."""
    from rich.table import Table

    from runtime.byte_sizes import gigabytes

    def memory(peaks: Iterable[int | None]) -> str:
        """The largest of those known."""
        return gigabytes(max(known)) if (known := [peak for peak in peaks if peak is not None]) else "–"

    table = Table(title=maker.manifest.model.name, caption="peaks of device memory; –: not used, or not counted there")
    for heading in ("part", "seconds", "planned", "measured"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for part in maker.parts:
        table.add_row(part.name, f"{part.seconds:.2f}", memory([part.planned]), memory([part.measured]))
    table.add_section()
    planned, measured = ([getattr(part, name) for part in maker.parts] for name in ("planned", "measured"))
    table.add_row("total", f"{total:.2f}", memory(planned), memory(measured))
    console().print(table)
