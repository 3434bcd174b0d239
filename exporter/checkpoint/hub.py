"""A ``--checkpoint`` value → a path on this machine, by way of Hugging Face's cache where it is a repository's id."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from plugins.errors import UserError

_WANTED = ["*.safetensors", "*.pth", "*.json"]
# A Wan or diffusers repository also carries the text encoder (11 GB) and the VAE, which the exporter does not read.
_UNWANTED = ["text_encoder/*", "text_encoder_2/*", "image_encoder/*", "vae/*", "tokenizer/*", "*t5*", "*VAE*", "*clip*"]
_PART = r"[A-Za-z0-9][\w.\-]*"
_HUB_ID = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:[:/](?P<file>[\w.\- ]+(?:/[\w.\- ]+)*))?")
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")


def parse_hub_id(text: str) -> tuple[str, str | None] | None:
    """("org/repo", file or None) for org/repo, org/repo/file and org/repo:file; None for anything else."""
    match = _HUB_ID.fullmatch(text)
    if match is None or ".." in text.split(":")[-1].split("/"):
        return None
    if match["file"] is None and text.endswith((".safetensors", ".pth", ".pt")):
        return None  # a file in a folder, mistyped: no repository is named so
    return match["repo"], match["file"]


def is_local(checkpoint: str) -> bool:
    """Whether this is a path on this machine; if not, it has the form of a Hugging Face id. Raises UserError."""
    if Path(checkpoint).expanduser().exists():
        return True
    if parse_hub_id(checkpoint) is None:
        raise UserError(
            f"There is no checkpoint at {checkpoint}.",
            expected="a file or folder, or a Hugging Face id: org/repo, org/repo:file",
            got="no such file or folder, and no such form of id",
            remedy="check the path",
        )
    return False


def resolve(checkpoint: str) -> Path:
    """The local file or folder that a path or a Hugging Face id means. Raises UserError."""
    parsed = None if is_local(checkpoint) else parse_hub_id(checkpoint)
    return Path(checkpoint).expanduser() if parsed is None else _download(*parsed)


def resolve_file(text: str, name: str) -> Path:
    """The local file that a path, a folder holding ``name``, or a Hugging Face id means. Raises UserError."""
    path = Path(text).expanduser()
    if path.is_dir():
        path = path / name
    if path.is_file():
        return path
    parsed = parse_hub_id(text)
    if parsed is None or Path(text).expanduser().exists():
        raise UserError(f"There is no {name} at {text}.", expected=f"{name}, a folder holding it, or org/repo")
    repo, file = parsed
    return _download(repo, file or name)


def _download(repo: str, file: str | None) -> Path:
    """The file, or the snapshot's folder, in Hugging Face's cache. Raises UserError."""
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise UserError(
            f"{repo} is not a path on this machine, and huggingface_hub is not installed.",
            remedy='pip install "turbotrt[export]", or pass a local path',
        ) from error
    try:
        if file is not None and (file.endswith((".safetensors", ".pth", ".pt")) or file.endswith("tokenizer.json")):
            return Path(hub.hf_hub_download(repo, file))
        if file is not None:  # a folder of the repository, or an index with its shards
            folder = file.rpartition("/")[0] if file.endswith(".json") else file
            wanted = [f"{folder}/{pattern}" if folder else pattern for pattern in _WANTED]
            ignored = [] if folder else _UNWANTED  # a folder that is asked for by name may be the text encoder's
            return Path(hub.snapshot_download(repo, allow_patterns=wanted, ignore_patterns=ignored)) / file
        _refuse_two_variants(repo, _files_of(repo))
        return Path(hub.snapshot_download(repo, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except UserError:
        raise
    except Exception as error:  # the client raises its own, requests', httpx's and OS errors
        raise UserError(
            f"{repo}{':' + file if file else ''} is neither a path on this machine nor reachable on Hugging Face.",
            expected="a local file or folder, or an id that this machine may download: org/repo, org/repo:file",
            got=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}",
            remedy="check the name and the network; set HF_TOKEN for a private or gated repository; or pass a "
            "local path",
        ) from error


def _files_of(repo: str) -> list[str]:
    """The repository's files; none where the Hub cannot be asked, since the cache may still hold the snapshot."""
    import huggingface_hub as hub

    try:
        return list(hub.HfApi().list_repo_files(repo))
    except Exception:  # the download that follows reports what is wrong
        return []


def _refuse_two_variants(repo: str, files: Iterable[str]) -> None:
    """Raises UserError before gigabytes are fetched from a repository that holds X.pth and X-quant.pth."""
    weights = [name for name in files if name.endswith((".pth", ".safetensors")) and not _SHARD.search(name)]
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
