"""A ``--checkpoint`` value → a path on this machine, by way of Hugging Face's cache where it is a repository's id."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from exporter.checkpoint.files import SHARD
from exporter.checkpoint.foreign import foreign_error
from plugins.errors import UserError
from plugins.temporary import temporary
from runtime.input_files import user_path

_WANTED = ["*.safetensors", "*.pth", "*.json"]
# A Wan or diffusers repository also carries the text encoder (11 GB) and the VAE, which the exporter does not read.
_UNWANTED = ["text_encoder/*", "text_encoder_2/*", "image_encoder/*", "vae/*", "tokenizer/*", "*t5*", "*VAE*", "*clip*"]
_SECONDS = 10  # that the Hub has to answer
_PART = r"[A-Za-z0-9][\w.\-]*"
_HUB_ID = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:[:/](?P<file>[\w.\- ]+(?:/[\w.\- ]+)*))?")


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
    if user_path(checkpoint).exists():
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
    return user_path(checkpoint) if parsed is None else _download(*parsed)


def resolve_file(text: str, name: str) -> Path:
    """The local file that a path, a folder holding ``name``, or a Hugging Face id means. Raises UserError."""
    path = user_path(text)
    if path.is_dir():
        path = path / name
    if path.is_file():
        return path
    parsed = parse_hub_id(text)
    if parsed is None or user_path(text).exists():
        raise UserError(f"There is no {name} at {text}.", expected=f"{name}, a folder holding it, or org/repo")
    repo, file = parsed
    return _download(repo, file or name)


def look_for(text: str, note: Callable[[str], None], file: str | None = None) -> bool:
    """Whether this is a path on this machine; a Hugging Face id is asked for, once and without a download.

    ``file``: what is wanted of a repository whose id names none. ``note`` hears that the Hub cannot be reached: its
    cache may hold the repository all the same. Raises UserError for what neither is here nor on the Hub.
    """
    if is_local(text):
        return True
    repo, named = parse_hub_id(text) or (text, None)
    if named is not None and named.endswith(".gguf"):
        raise foreign_error(text, "GGUF")
    files = _files_of(repo)
    if isinstance(files, Exception):
        note(f"{text}: Hugging Face cannot be reached ({_words(files)}); looked for in its cache later on")
        return False
    _check_cache(repo)
    if (wanted := named or file) is not None:
        _require_file(repo, wanted, files)
    else:
        _refuse_two_variants(repo, files)
    return False


def _download(repo: str, file: str | None) -> Path:
    """The file, or the snapshot's folder, in Hugging Face's cache. Raises UserError.

    Where the Hub does not answer the first question only the cache is read: its client would ask for half a minute.
    """
    files = _files_of(repo)
    unreached = files if isinstance(files, Exception) else None
    hub = _client(repo)
    only: dict[str, Any] = {"local_files_only": True} if unreached else {}
    try:
        if file is not None and (file.endswith((".safetensors", ".pth", ".pt")) or file.endswith("tokenizer.json")):
            return Path(hub.hf_hub_download(repo, file, **only))
        if file is not None:  # a folder of the repository, or an index with its shards
            folder = file.rpartition("/")[0] if file.endswith(".json") else file
            wanted = [f"{folder}/{pattern}" if folder else pattern for pattern in _WANTED]
            ignored = [] if folder else _UNWANTED  # a folder that is asked for by name may be the text encoder's
            return Path(hub.snapshot_download(repo, allow_patterns=wanted, ignore_patterns=ignored, **only)) / file
        if not isinstance(files, Exception):
            _refuse_two_variants(repo, files)
        return Path(hub.snapshot_download(repo, allow_patterns=_WANTED, ignore_patterns=_UNWANTED, **only))
    except UserError:
        raise
    except Exception as error:  # the client raises its own, requests', httpx's and OS errors
        if unreached is None:
            _check_cache()
        raise _unavailable(repo, file, unreached or error) from error


def _client(repo: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{repo} is not a path on this machine, and huggingface_hub is not installed.",
            remedy='pip install "turbotrt[export]", or pass a local path',
        ) from error
    return huggingface_hub


def _check_cache(repo: str | None = None) -> None:
    """Raises UserError where the client's cache cannot be written, unless it holds this repository already."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    if repo is not None and (folder / f"models--{repo.replace('/', '--')}").is_dir():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary(folder):
            pass
    except OSError as error:
        raise UserError(
            f"Hugging Face's cache {folder} cannot be written.",
            got=error.strerror,
            remedy="set HF_HUB_CACHE (or HF_HOME) to a folder that can be written",
        ) from error


def _files_of(repo: str) -> list[str] | Exception:
    """The repository's files by one request; the error where the Hub cannot be asked. UserError: it has none such."""
    hub = _client(repo)
    try:
        return [entry.rfilename for entry in hub.HfApi().model_info(repo, timeout=_SECONDS).siblings or ()]
    except hub.errors.RepositoryNotFoundError as error:  # or private, or gated
        raise _unavailable(repo, None, error) from error
    except Exception as error:  # requests', httpx's and OS errors
        return error


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _unavailable(repo: str, file: str | None, error: Exception) -> UserError:
    return UserError(
        f"{repo}{':' + file if file else ''} is neither a path on this machine nor reachable on Hugging Face.",
        expected="a local file or folder, or an id that this machine may download: org/repo, org/repo:file",
        got=_words(error),
        remedy="check the name and the network; set HF_TOKEN for a private or gated repository; or pass a local path",
    )


def _require_file(repo: str, wanted: str, files: Sequence[str]) -> None:
    """Raises UserError where a repository has neither a file nor a folder of this name."""
    if not any(name == wanted or name.startswith(f"{wanted}/") for name in files):
        raise UserError(
            f"{repo} on Hugging Face has no {wanted}.",
            expected="a file or a folder of the repository",
            got=", ".join(sorted(files)[:20]) or "no files",
        )


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
