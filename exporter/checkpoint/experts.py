"""Which file or folder holds which expert: one for most models, high-noise and low-noise for Wan2.2."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from exporter.checkpoint.download import Download
from exporter.checkpoint.files import weight_files
from exporter.checkpoint.hub import look_for, resolve
from exporter.checkpoint.table import check_linear
from exporter.loras import NO_LORAS, Loras
from exporter.models import ModelSpec
from exporter.networks.weight_spec import LinearMode
from exporter.releases import official_checkpoint
from plugins.errors import UserError
from runtime.input_files import user_path

# Subfolders of a release: Wan's own, then diffusers' (whose transformer_2 is the low-noise expert).
_FOLDERS = (("high_noise_model", "low_noise_model"), ("transformer", "transformer_2"))


#: What names an expert: words between separators, or diffusers' folder.
_ROLES = (("high", "highnoise"), ("low", "lownoise", "transformer_2"))


def _says(name: str, word: str) -> bool:
    """Whether a name holds the word between separators: "high" is in a-high_noise.pth, not in highway.pth."""
    return re.search(rf"(?<![a-z]){word}(?![a-z])", name.lower()) is not None


def _named(paths: list[Path], words: tuple[str, ...]) -> list[Path]:
    return [path for path in paths if any(_says(path.name, word) for word in words)]


def _pair_in(folder: Path) -> tuple[Path, Path]:
    """The two experts in a folder, high-noise first. Raises UserError if it cannot be told."""
    for high_name, low_name in _FOLDERS:
        if (folder / high_name).is_dir() and (folder / low_name).is_dir():
            return folder / high_name, folder / low_name
    for entries in (weight_files(folder), sorted(path for path in folder.iterdir() if path.is_dir())):
        high, low = (_named(entries, words) for words in _ROLES)
        if len(high) == len(low) == 1 and high != low:
            return high[0], low[0]
    raise UserError(
        f"The folder {folder} does not say which expert is which.",
        expected="high_noise_model and low_noise_model, transformer and transformer_2, or exactly one checkpoint "
        "with high and one with low in its name",
        got=", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "an empty folder",
        remedy="name both: --checkpoint HIGH,LOW",
    )


def look_for_checkpoint(
    checkpoint: str,
    model: ModelSpec,
    note: Callable[[str], None],
    *,
    linear: LinearMode,
    loras: Loras = NO_LORAS,
) -> tuple[Download, ...] | None:
    """None where a ``--checkpoint`` value and its LoRAs are on this machine, else what they still have to fetch.

    Raises UserError for what can be told without a download.
    """
    parts = _parts(checkpoint, model)
    found = [look_for(part, note) for part in parts]
    for part, download in zip(parts, found, strict=True):
        if download is not None and _says(part, "quant"):
            check_linear(part, linear, quantized=True)
    found += [look_for(source, note) for source in dict.fromkeys(lora.source for lora in loras.items)]
    if all(download is None for download in found):
        return None
    return tuple(download for downloads in found for download in downloads or ())


def _parts(checkpoint: str, model: ModelSpec) -> list[str]:
    """The paths or ids of a ``--checkpoint`` value. Raises UserError if they are too many or too few."""
    checkpoint = official_checkpoint(checkpoint, model)
    whole = user_path(checkpoint).exists()  # a path may hold a comma
    parts = [checkpoint] if whole else [part.strip() for part in checkpoint.split(",")]
    count = len(model.experts)
    if len(parts) not in (1, count):
        raise UserError(
            f"--checkpoint names {len(parts)} checkpoints.",
            expected=f"{count} for {model.name} ({', '.join(model.experts)})",
            got=checkpoint,
        )
    if len(parts) == count == len(_ROLES):
        _check_order(parts)
    return parts


def _check_order(parts: list[str]) -> None:
    """Raise UserError where the names of HIGH,LOW say another order: a swap gives videos that are wrong, not errors."""
    high, low = (_role(part) for part in parts)
    if high != low and (high == 1 or low == 0):  # both may lie in a folder called high-res
        raise UserError(
            "The two experts are not in the order HIGH,LOW, by their names.",
            expected="the high-noise checkpoint, then the low-noise one",
            got=", ".join(parts),
            remedy="swap them",
        )


def _role(part: str) -> int | None:
    """0 for a path or id whose name, or else whose folder, says that it is the high-noise expert, 1 for the low one."""
    for name in re.split(r"[/:]", part.rstrip("/"))[:-3:-1]:
        said = {role for role, words in enumerate(_ROLES) for word in words if _says(name, word)}
        if len(said) == 1:
            return said.pop()
    return None


def expert_paths(checkpoint: str, model: ModelSpec) -> dict[str, Path]:
    """Expert → file or folder for a ``--checkpoint`` value: a path or Hugging Face id, or "HIGH,LOW" for two experts.

    Raises UserError if the value does not give every expert its own checkpoint.
    """
    count = len(model.experts)
    paths = [resolve(part) for part in _parts(checkpoint, model)]
    if count == 1:
        return {model.experts[0]: paths[0]}
    if len(paths) == 1:
        if not paths[0].is_dir():
            raise UserError(
                f"{model.name} has two experts, and {paths[0]} is one file.",
                expected="HIGH,LOW: two checkpoints, or a folder holding both",
                got=checkpoint,
            )
        paths = list(_pair_in(paths[0]))
    if paths[0].resolve() == paths[1].resolve():
        raise UserError("Both experts would come from the same checkpoint.", expected="two checkpoints", got=checkpoint)
    return dict(zip(model.experts, paths, strict=True))
