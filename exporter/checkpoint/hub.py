"""A ``--checkpoint`` value → a path on this machine, by way of Hugging Face's cache where it is a repository's id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.checkpoint.download import Download
from exporter.checkpoint.foreign import foreign_error
from exporter.checkpoint.hub_id import HubId, Part, parse_hub_id, wanted_files
from plugins.errors import UserError
from plugins.temporary import temporary
from runtime.input_files import user_path

_SECONDS = 10  # that the Hub has to answer


@dataclass(frozen=True)
class _Repository:
    """What the Hub says of a repository: file → bytes, its licence, and the commit that this is."""

    sizes: dict[str, int]
    licence: str | None
    revision: str | None


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


def resolve(checkpoint: str, part: Part = "dit") -> Path:
    """The local file or folder that a path or a Hugging Face id means. Raises UserError.

    ``part``: what is fetched of a repository that holds a whole release.
    """
    parsed = None if is_local(checkpoint) else parse_hub_id(checkpoint)
    return user_path(checkpoint) if parsed is None else _download(parsed, part)


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
    return _download(parsed._replace(file=parsed.file or name), "text")


def look_for(
    text: str, note: Callable[[str], None], file: str | None = None, part: Part = "dit"
) -> tuple[Download, ...] | None:
    """None for a path on this machine; a Hugging Face id is asked for, once, and what it still has to fetch returned.

    ``file``: what is wanted of a repository whose id names none. ``note`` hears that the Hub cannot be reached: its
    cache may hold the repository all the same. Raises UserError for what neither is here nor on the Hub.
    """
    if is_local(text):
        return None
    hub_id = parse_hub_id(text) or HubId(text)
    if hub_id.file is not None and hub_id.file.endswith(".gguf"):
        raise foreign_error(text, "GGUF")
    repository = _ask(hub_id)
    if isinstance(repository, Exception):
        note(f"{text}: Hugging Face cannot be reached ({_words(repository)}); looked for in its cache later on")
        return ()
    _check_cache(hub_id.repo)
    wanted = wanted_files(hub_id._replace(file=hub_id.file or file), list(repository.sizes), part)
    return (_missing(hub_id, wanted, repository),)


def pinned(path: Path) -> str | None:
    """``org/repo@commit:file`` for a path in Hugging Face's cache, which names its folders so; None for any other."""
    for folder in path.parents:
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            repo = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
            return str(HubId(repo, path.relative_to(folder).as_posix(), folder.name))
    return None


def _missing(hub_id: HubId, wanted: Sequence[str], repository: _Repository) -> Download:
    from huggingface_hub import constants, try_to_load_from_cache

    def cached(name: str) -> bool:
        return isinstance(try_to_load_from_cache(hub_id.repo, name, revision=repository.revision), str)

    files = tuple(name for name in wanted if not cached(name))
    return Download(
        hub_id=str(hub_id),
        files=files,
        bytes=sum(repository.sizes[name] for name in files),
        cache=Path(constants.HF_HUB_CACHE),
        licence=repository.licence,
        revision=repository.revision,
    )


def _download(hub_id: HubId, part: Part) -> Path:
    """The file, or the snapshot's folder, in Hugging Face's cache. Raises UserError.

    Where the Hub does not answer the first question only the cache is read: its client would ask for half a minute.
    """
    repository = _ask(hub_id)
    unreached = repository if isinstance(repository, Exception) else None
    only: dict[str, Any] = {"revision": hub_id.revision}
    if isinstance(repository, Exception):
        only["local_files_only"] = True
    try:
        if isinstance(repository, Exception):
            return _fetched(hub_id, None, only)
        return _fetched(hub_id, wanted_files(hub_id, list(repository.sizes), part), only)
    except UserError:
        raise
    except Exception as error:  # the client raises its own, requests', httpx's and OS errors
        if unreached is None:
            _check_cache()
        raise _unavailable(hub_id, unreached or error) from error


def _fetched(hub_id: HubId, wanted: Sequence[str] | None, only: dict[str, Any]) -> Path:
    """From the client: one file where the id names one, else the folder with the wanted files (None: those there)."""
    hub = _client(hub_id.repo)
    name = hub_id.file
    if name is not None and (wanted == [name] or (wanted is None and "." in name.rpartition("/")[2])):
        return Path(hub.hf_hub_download(hub_id.repo, name, **only))
    folder = Path(hub.snapshot_download(hub_id.repo, allow_patterns=wanted, **only))
    return folder if name is None else folder / name


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


def _ask(hub_id: HubId) -> _Repository | Exception:
    """What a repository holds, by one request; the error where the Hub cannot be asked. UserError: it has none such."""
    hub = _client(hub_id.repo)
    try:
        info = hub.HfApi().model_info(hub_id.repo, revision=hub_id.revision, timeout=_SECONDS, files_metadata=True)
    except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError) as error:  # or private, or gated
        raise _unavailable(hub_id._replace(file=None), error) from error
    except Exception as error:  # requests', httpx's and OS errors
        return error
    licence = getattr(info.card_data, "license", None)
    sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or ()}
    return _Repository(sizes, licence if isinstance(licence, str) else None, info.sha)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _unavailable(hub_id: HubId, error: Exception) -> UserError:
    return UserError(
        f"{hub_id} is neither a path on this machine nor reachable on Hugging Face.",
        expected="a local file or folder, or an id that this machine may download: org/repo, org/repo:file",
        got=_words(error),
        remedy="check the name and the network; set HF_TOKEN for a private or gated repository; or pass a local path",
    )
