"""ExportSpec: everything one export is asked for, validated once. The only place where choices are made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from exporter.gpus import Flavour, GpuSpec, gpu_named
from exporter.loras import NO_ARGUMENTS, NO_LORAS, LoraArguments, Loras
from exporter.models import ModelSpec, model_named, sized
from exporter.networks.dit.options import ATTENTIONS, BARE, DENSE, Attention
from exporter.networks.weight_spec import LinearMode
from plugins.errors import UserError
from runtime.bundle import USUAL_COMPONENTS, Component
from runtime.media.decoders import decoder_named

LINEARS: tuple[str, ...] = get_args(LinearMode)
DEFAULT_TOPK = "0.1"


@dataclass(frozen=True)
class ExportSpec:
    """One model for one GPU. ``out`` will hold the folder ``<model>-<gpu>/``; ``checkpoint`` None: no weights."""

    model: ModelSpec
    gpu: GpuSpec
    attention: Attention = "sagesla"
    topk_milli: int = 100
    linear: LinearMode = "int8"
    checkpoint: str | None = None
    out: Path = Path("engines")
    onnx_only: bool = False
    one_file: bool = False
    embed_plugins: bool = False
    components: tuple[Component, ...] = USUAL_COMPONENTS
    text_encoder: str | None = None
    tokenizer: str | None = None
    vae: str | None = None
    tiny_vae: str | None = None
    text_linear: LinearMode = "bf16"
    loras: Loras = NO_LORAS

    def __post_init__(self) -> None:
        _one_of("--attention", self.attention, ATTENTIONS)
        _one_of("--linear", self.linear, LINEARS)
        _one_of("--text-linear", self.text_linear, LINEARS)
        if not 1 <= self.topk_milli <= 1000:
            raise UserError(
                "This share of kept blocks cannot be used.", expected="1 to 1000 thousandths", got=str(self.topk_milli)
            )
        for option, value, component in (
            ("--text-encoder", self.text_encoder, "text"),
            ("--tokenizer", self.tokenizer, "text"),
            ("--text-linear int8", self.text_linear if self.text_linear != "bf16" else None, "text"),
            ("--vae", self.vae, "vae"),
        ):
            if value is not None and component not in self.components:
                raise UserError(
                    f"{option} is for a component that --components leaves out.",
                    expected=component,
                    got=",".join(self.components),
                    remedy=f"add {component}, or drop {option}",
                )
        if self.tiny_vae is not None and "tiny" not in self.components:
            raise UserError(
                "--tiny-vae is for a decoder that this bundle is to be without.",
                expected="--vae-decoder tiny",
                remedy="add it, or drop --tiny-vae",
            )
        if self.loras.items and self.checkpoint is None:
            raise UserError(
                "--lora changes a checkpoint's weights, and there is no checkpoint.",
                remedy="give --checkpoint PATH or HF_ID, or drop --lora",
            )
        if self.one_file and self.checkpoint is None:
            raise UserError(
                "A one-file engine holds the weights, and there is no checkpoint.",
                remedy="give --checkpoint PATH or HF_ID, or drop --one-file",
            )
        if self.one_file and self.onnx_only:
            raise UserError(
                "--one-file asks for an engine and --onnx-only for none.", remedy="drop one of the two options"
            )
        if self.embed_plugins and self.onnx_only:
            raise UserError(
                "--embed-plugins is for engines, and --onnx-only asks for none.", remedy="drop one of the two options"
            )

    @property
    def flavour(self) -> Flavour:
        return self.gpu.flavour

    @property
    def allow_missing_proj_l(self) -> bool:
        """Whether a checkpoint without proj_l will do: only where the user chose another attention than ours."""
        return self.attention in BARE

    @property
    def bundle_dir(self) -> Path:
        return self.out / f"{self.model.name}-{self.gpu.name}"


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{option} {value!r} is not known.", expected=", ".join(known), got=value)


def parse_topk(text: str, option: str = "--topk") -> int:
    """Thousandths in a decimal string, exactly: "0.1" → 100. Never through a float, whose product would round."""
    match = re.fullmatch(r"(0|1)?(?:\.([0-9]{1,3}))?", text.strip())
    milli = int(match[1] or 0) * 1000 + int((match[2] or "0").ljust(3, "0")) if match else 0
    if not 1 <= milli <= 1000:
        raise UserError(
            f"{option} {text!r} cannot be used.",
            expected="a decimal from 0.001 to 1 with at most three digits after the point, such as 0.1",
            got=text,
        )
    return milli


def parse_max_size(text: str) -> tuple[int, ...]:
    """(width, height) or (width, height, frames) of "1280x720" and "1280x720x81". Raises UserError."""
    if re.fullmatch(r"[0-9]{1,5}([x×*][0-9]{1,5}){1,2}", text.strip().lower()) is None:
        raise UserError(
            "--max-size cannot be read.", expected="WIDTHxHEIGHT or WIDTHxHEIGHTxFRAMES, such as 1280x720", got=text
        )
    return tuple(int(part) for part in re.split("[x×*]", text.strip().lower()))


def parse_linear(text: str) -> LinearMode:
    """The mode of the Linears. Raises UserError listing the known ones."""
    _one_of("--linear", text, LINEARS)
    return cast(LinearMode, text)


def parse_components(text: str | None) -> tuple[Component, ...]:
    """The components in "dit,vae", in the table's order; None means all of those. Raises UserError listing them."""
    if text is None:
        return USUAL_COMPONENTS
    asked = [part.strip() for part in text.split(",")]
    for part in asked:
        _one_of("--components", part, USUAL_COMPONENTS)
    if "dit" not in asked:
        raise UserError(
            "--components leaves out the DiT, which a bundle is made around.", expected="dit, and more", got=text
        )
    return tuple(component for component in USUAL_COMPONENTS if component in asked)


def export_spec(
    *,
    model: str,
    gpu: str,
    attention: str = "sagesla",
    topk: str | None = None,
    linear: str = "int8",
    checkpoint: str | None = None,
    out: Path = Path("engines"),
    onnx_only: bool = False,
    one_file: bool = False,
    embed_plugins: bool = False,
    components: str | None = None,
    text_encoder: str | None = None,
    tokenizer: str | None = None,
    vae: str | None = None,
    vae_decoder: str = "full",
    tiny_vae: str | None = None,
    text_linear: str = "bf16",
    max_size: str | None = None,
    loras: LoraArguments = NO_ARGUMENTS,
) -> ExportSpec:
    """The spec for options as they are typed; ``checkpoint`` None or "none" means engines only. Raises UserError."""
    if topk is not None and attention in DENSE:
        raise UserError(
            f"--attention {attention} is dense: it keeps every block, so --topk has no meaning.",
            remedy="drop --topk, or choose --attention sagesla or sla",
        )
    if checkpoint is not None and not checkpoint.strip():
        raise UserError("--checkpoint is empty.", expected="a path, a Hugging Face id, or none")
    decoder = decoder_named(vae_decoder)
    named = model_named(model) if max_size is None else sized(model_named(model), *parse_max_size(max_size))
    return ExportSpec(
        model=named,
        gpu=gpu_named(gpu),
        attention=cast(Attention, attention),
        topk_milli=parse_topk(topk or DEFAULT_TOPK),
        linear=cast(LinearMode, linear),
        checkpoint=None if checkpoint in (None, "none") else checkpoint,
        out=out,
        onnx_only=onnx_only,
        one_file=one_file,
        embed_plugins=embed_plugins,
        components=parse_components(components) + (("tiny",) if decoder == "tiny" else ()),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        vae=vae,
        tiny_vae=tiny_vae,
        text_linear=cast(LinearMode, text_linear),
        loras=loras.of(named),
    )
