"""A LoRA file as changes to a model's tensors: strength · (alpha / rank) · up · down, and whole differences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod, sqrt
from pathlib import Path

import torch

from exporter.checkpoint.files import open_source
from exporter.checkpoint.finite import all_finite
from exporter.checkpoint.lora_names import LoraKey, Role, lora_keys
from exporter.checkpoint.source import TensorMeta, TensorSource
from plugins.errors import UserError
from runtime.input_files import read_input

_LISTED = 20
_MAX_CONFIG = 1 << 20  # bytes; they are of a few hundred
#: Forms of an adapter that are another arithmetic than up · down.
_OTHER_KINDS: Mapping[str, str] = {
    ".hada_w": "LoHa",
    ".lokr_w": "LoKr",
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".lora_mid": "a LoRA of convolutions (lora_mid)",
}


Rows = Callable[[int, int], torch.Tensor]


@dataclass(frozen=True)
class Change:
    """What one LoRA adds to one tensor [N, …]: scale · up [N, r] · down [r, K], or scale · a whole difference.

    ``keys`` are the file's names of ``up`` and ``down``, or of ``difference``. Nothing is read before ``loaded``.
    """

    path: Path
    source: TensorSource
    keys: Mapping[Role, str]
    shape: tuple[int, ...]
    scale: float

    def loaded(self) -> Rows:
        """Read it: (start, count) → fp32 rows [count, …] of what is added. Raises UserError on NaN or infinity."""
        if "difference" in self.keys:
            whole = self._load("difference").reshape(self.shape)
            return lambda start, count: self.scale * whole[start : start + count]
        down = self._load("down").flatten(1)
        up = self._load("up").reshape(self.shape[0], down.shape[0])
        return lambda start, count: self.scale * (up[start : start + count] @ down)

    def _load(self, role: Role) -> torch.Tensor:
        tensor = self.source.load(self.keys[role]).float()
        if not all_finite(tensor):
            raise UserError(
                f"{self.path} holds NaN or infinity.",
                got=self.keys[role],
                remedy="the file is damaged: take another copy",
            )
        return tensor


def lora_changes(
    path: Path,
    source: TensorSource,
    strength: float,
    tensors: Mapping[str, TensorMeta],
    *,
    partial: bool,
    note: Callable[[str], None],
) -> dict[str, Change]:
    """What a LoRA adds to the model's ``tensors`` (canonical names, float shapes): tensor → change.

    alpha is the file's own tensor, else its header's or adapter_config.json's lora_alpha, else the rank: scale 1.
    ``partial``: keys that match nothing are passed over with a note. Raises UserError otherwise, and for a LoRA of a
    model of another size, of another kind, or without its halves.
    """
    _refuse_other_kinds(path, source.tensors)
    keys = lora_keys(source.tensors, tensors)
    _unmatched(path, [key for key, found in keys.items() if found is None], len(keys), partial, note)
    grouped: dict[str, dict[Role, str]] = {}
    for key, found in keys.items():
        if found is not None:
            _place(grouped.setdefault(found.target, {}), found, key, path)
    ranks = _Ranks.of(path, source)
    return {
        target: _change(path, source, target, parts, tensors[target].shape, strength, ranks)
        for target, parts in grouped.items()
    }


def _place(parts: dict[Role, str], found: LoraKey, key: str, path: Path) -> None:
    if found.role in parts:
        raise UserError(
            f"{path} changes {found.target} twice.", got=f"{parts[found.role]} and {key}", remedy="keep one of the two"
        )
    parts[found.role] = key


@dataclass(frozen=True)
class _Ranks:
    """What a file says of alpha outside its tensors, for all modules; ``rooted``: over the rank's root, not it."""

    alpha: float | None = None
    rooted: bool = False

    @classmethod
    def of(cls, path: Path, source: TensorSource) -> _Ranks:
        """From diffusers' header entry, else from peft's adapter_config.json beside the file. Raises UserError."""
        text, where = source.metadata.get("lora_adapter_metadata"), "its header"
        config = path.parent / "adapter_config.json" if path.is_file() else path / "adapter_config.json"
        if text is None and config.is_file():
            text, where = (
                read_input(config, _MAX_CONFIG, "peft's adapter_config.json").decode(errors="replace"),
                str(config),
            )
        if text is None:
            return cls()
        try:
            said = json.loads(text)
            values = {str(name).rpartition(".")[2]: value for name, value in said.items()}
            alpha = values.get("lora_alpha")
            if values.get("alpha_pattern"):
                raise ValueError("alpha_pattern, which is not read here")
            return cls(None if alpha is None else float(alpha), bool(values.get("use_rslora")))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: {where} does not say the LoRA's alpha.", got=str(error)[:200]) from error

    def scale(self, rank: int, stored: float | None) -> float:
        alpha = stored if stored is not None else self.alpha
        return 1.0 if alpha is None else alpha / (sqrt(rank) if self.rooted else rank)


def _change(
    path: Path,
    source: TensorSource,
    target: str,
    parts: Mapping[Role, str],
    shape: tuple[int, ...],
    strength: float,
    ranks: _Ranks,
) -> Change:
    """One tensor's change, with every check that the file's header allows."""
    stored = {role: source.tensors[key].shape for role, key in parts.items()}
    if "difference" in parts:
        if set(parts) - {"difference", "alpha"}:
            raise UserError(f"{path} changes {target} in two ways.", got=", ".join(sorted(parts.values())))
        given = stored["difference"]
        if prod(given) != prod(shape) or (len(given) == len(shape) > 1 and given[0] != shape[0]):
            raise _misfit(path, target, shape, str(list(given)))
        return Change(path, source, {"difference": parts["difference"]}, shape, strength)
    if not {"up", "down"} <= set(parts):
        raise UserError(
            f"{path} holds half of its change to {target}.",
            expected="lora_down and lora_up (lora_A and lora_B)",
            got=", ".join(parts.values()),
        )
    up, down = stored["up"], stored["down"]
    rank = down[0] if len(down) > 1 else 0
    if len(shape) != 2 or rank == 0 or prod(up) != shape[0] * rank or prod(down) != rank * shape[1]:
        raise _misfit(path, target, shape, f"up {list(up)} and down {list(down)}")
    alpha = float(source.load(parts["alpha"]).float().reshape(-1)[0]) if "alpha" in parts else None
    keys: dict[Role, str] = {"up": parts["up"], "down": parts["down"]}
    return Change(path, source, keys, shape, strength * ranks.scale(rank, alpha))


def _misfit(path: Path, target: str, shape: tuple[int, ...], got: str) -> UserError:
    return UserError(
        f"{path} is a LoRA for a model of another size.",
        expected=f"a change to {target}, {list(shape)}",
        got=got,
        remedy="pass the LoRA that was trained for this model",
    )


def _unmatched(path: Path, keys: list[str], total: int, partial: bool, note: Callable[[str], None]) -> None:
    if not keys:
        return
    if partial and len(keys) < total:
        note(f"{path.name}: {len(keys)} of {total} tensors match nothing in the model, such as {keys[0]}: passed over")
        return
    listed = "\n".join(f"    {key}" for key in keys[:_LISTED])
    more = f"\n    ... and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    raise UserError(
        f"{path} changes what the model does not have.",
        expected="tensors of the model's Linears, norms and modulations, in peft's, diffusers', kohya's or Wan's names",
        got=f"{len(keys)} of {total} that match nothing\n{listed}{more}",
        remedy="pass a LoRA of this model"
        + (", or add --lora-partial to go on without these" if len(keys) < total else ""),
    )


def _refuse_other_kinds(path: Path, names: Iterable[str]) -> None:
    for name in names:
        for mark, kind in _OTHER_KINDS.items():
            if mark in name:
                raise UserError(
                    f"{path} is an adapter of another kind: {kind}.",
                    expected="a LoRA (up and down), or whole differences (diff, diff_b)",
                    got=name,
                    remedy="merge it with the tool that made it, and pass the result as --checkpoint",
                )


@dataclass(frozen=True)
class LoadedLoras:
    """Several LoRAs together: tensor → changes in their order, the files they came from, and what to call them."""

    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    title: str = ""


NOT_ADAPTED = LoadedLoras()


def load_loras(
    named: Iterable[tuple[Path, float]],
    tensors: Mapping[str, TensorMeta],
    *,
    partial: bool,
    note: Callable[[str], None],
) -> LoadedLoras:
    """LoRA files with their strengths, as changes to the model's ``tensors`` (see ``lora_changes``). UserError."""
    changes: dict[str, tuple[Change, ...]] = {}
    files: list[Path] = []
    titles: list[str] = []
    for path, strength in named:
        source = open_source(path)
        for target, change in lora_changes(path, source, strength, tensors, partial=partial, note=note).items():
            changes[target] = (*changes.get(target, ()), change)
        files += source.files
        titles.append(f"{path.name}:{strength:g}")
    return LoadedLoras(changes, tuple(files), ", ".join(titles))
