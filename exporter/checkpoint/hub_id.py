"""Hugging Face ids as they are typed, and which of a repository's files one means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import Literal, NamedTuple

from exporter.checkpoint.files import SHARD, TORCH_SUFFIXES
from plugins.errors import UserError

#: What is wanted of a repository that holds a whole release: the DiT, or one of the parts beside it.
Part = Literal["dit", "text", "vae", "tiny"]

_PART = r"[A-Za-z0-9][\w.\-]*"
_HUB_ID = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[\w.\-]+))?(?:[:/](?P<file>[\w.\- ]+(?:/[\w.\- ]+)*))?"
)
_WEIGHTS = (".safetensors", *TORCH_SUFFIXES)
_KEPT = (*_WEIGHTS, ".json")
#: Of a whole release: the folders and files of the parts that are not the DiT.
_BESIDE_DIT = ("text_encoder*/*", "image_encoder/*", "vae/*", "tokenizer/*", "google/*", "*t5*", "*VAE*", "*clip*")
#: diffusers' folders of a part (with what goes along with it), then Wan's own files at the root.
_OF_PART: dict[Part, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "dit": ((), ()),
    "text": (("text_encoder/*", "tokenizer/*"), ("*t5*.pth", "google/umt5-xxl/*.json")),
    "vae": (("vae/*",), ("*VAE*.pth", "*VAE*.safetensors")),
    "tiny": (("taehv/*",), ("*taew2_1*",)),
}


class HubId(NamedTuple):
    """``org/repo[@revision][:file]``; ``file`` may be a folder of the repository."""

    repo: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "") + (f":{self.file}" if self.file else "")


def parse_hub_id(text: str) -> HubId | None:
    """The id in org/repo, org/repo/file and org/repo:file, each with @revision behind repo; None for anything else."""
    match = _HUB_ID.fullmatch(text)
    if match is None or ".." in text.split(":")[-1].split("/"):
        return None
    if match["file"] is None and text.endswith(_WEIGHTS):
        return None  # a file in a folder, mistyped: no repository is named so
    return HubId(match["repo"], match["file"], match["revision"])


def wanted_files(hub_id: HubId, files: Sequence[str], part: Part) -> list[str]:
    """The repository's files that an id means: the one named, a folder's, or those of a part of the whole release.

    Raises UserError where there is none such, or where float and -quant weights lie side by side.
    """
    kept = [name for name in files if name.endswith(_KEPT)]
    if hub_id.file is not None:
        return _named(hub_id, hub_id.file, kept, files)
    _refuse_two_variants(hub_id.repo, files)
    if part == "dit":
        return _of_dit(kept)
    for patterns in _OF_PART[part]:
        found = [name for name in kept if any(fnmatch(name, pattern) for pattern in patterns)]
        if any(name.endswith(_WEIGHTS) for name in found):
            return found
    return kept  # a repository of nothing but this part


def _named(hub_id: HubId, wanted: str, kept: Sequence[str], files: Sequence[str]) -> list[str]:
    index = wanted.endswith(".index.json")  # which stands for the shards beside it
    if wanted in files and not index:
        return [wanted]
    folder = wanted.rpartition("/")[0] if index else wanted
    inside = [name for name in kept if name.startswith(f"{folder}/")] if folder else _of_dit(kept)
    if wanted not in files and not inside:
        raise UserError(
            f"{hub_id.repo} on Hugging Face has no {wanted}.",
            expected="a file or a folder of the repository",
            got=", ".join(sorted(files)[:20]) or "no files",
        )
    return inside


def _of_dit(names: Iterable[str]) -> list[str]:
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in _BESIDE_DIT)]


def _refuse_two_variants(repo: str, files: Iterable[str]) -> None:
    """Raises UserError before gigabytes are fetched from a repository that holds X.pth and X-quant.pth."""
    weights = [name for name in files if name.endswith((".pth", ".safetensors")) and not SHARD.fullmatch(name)]
    both = [
        name for name in weights if name.replace("-quant.", ".") != name and name.replace("-quant.", ".") in weights
    ]
    if both:
        raise UserError(
            f"{repo} holds float and -quant checkpoints.",
            expected="one file for each expert",
            got=", ".join(weights),
            remedy=f"choose one, such as {repo}:{both[0]}",
        )
