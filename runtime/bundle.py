"""The bundle: a folder with a manifest that says what every file is, and the checks before any of it is trusted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

from plugins.errors import UserError
from runtime.atomic import told, write_atomic
from runtime.hashing import HashThreads, piece_digest, tree_of, unheard
from runtime.input_files import open_input, read_input
from runtime.manifest_rules import check_manifest
from runtime.old_schemas import OLD_VERSIONS, upgraded

MANIFEST_NAME = "manifest.json"
LOCK_NAME = ".turbotrt.lock"  # there while a process changes the bundle; not in the manifest
SCHEMA_VERSION = 4
OUTPUT_SUFFIX = "_out"  # a stage may give what it takes: ONNX needs two names
MAX_MANIFEST_BYTES = 16 << 20  # a manifest is some tens of kilobytes; anything this long is not one

Attention = Literal["sagesla", "sla", "sage", "original"]
DENSE: frozenset[Attention] = frozenset(("sage", "original"))  # those that keep every key block
Component = Literal["dit", "text", "vae", "tiny"]  # tiny: a smaller decoder of the VAE's latents
COMPONENTS: tuple[Component, ...] = get_args(Component)
USUAL_COMPONENTS: tuple[Component, ...] = ("dit", "text", "vae")  # of an export that was asked for no others
MediaComponent = Literal["text", "vae", "tiny"]  # those whose weights are in one file each
StageName = Literal[
    "embed",
    "block",
    "head",
    "one-file",
    "text_block",
    "text_norm",
    "decode_latent",
    "decode_first",
    "decode_next",
    "encode_first",
    "encode_next",
    "encode_latent",
    "tiny_first",
    "tiny_next",
]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
# A manifest comes from anywhere, and memory and loops are of the size that its numbers say.
Positive = Annotated[int, Meta(gt=0, le=1 << 20)]
Count = Annotated[int, Meta(ge=0, le=1 << 50)]
Side = Annotated[int, Meta(gt=0, le=16384)]  # pixels
Frames = Annotated[int, Meta(gt=0, le=1 << 14)]
Dim = Annotated[int, Meta(gt=0, le=1 << 24)]


class _Record(Struct, frozen=True):
    """What all parts of a manifest have in common: immutable, and an unknown field is an error, not ignored."""


class ModelFacts(_Record, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The architecture and the default video; ``size`` is (width, height) in pixels.

    ``max_size``: the (width, height, frames) of the export's --max-size, None for the model's own.
    """

    name: str
    dim: Positive
    layers: Annotated[int, Meta(gt=0, le=256)]
    heads: Positive
    ffn_dim: Positive
    in_channels: Positive
    text_length: Positive
    freq_dim: Positive
    size: tuple[Side, Side]
    frames: Frames
    fps: Annotated[int, Meta(gt=0, le=240)]
    max_tokens: Positive
    experts: Annotated[tuple[str, ...], Meta(min_length=1, max_length=2)]
    max_size: tuple[Side, Side, Frames] | None = None


class SamplerFacts(_Record, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the loop runs; ``boundary`` is the time below which the second expert takes over, None with one expert."""

    steps: Annotated[int, Meta(gt=0, le=4)]
    sigma_max: Annotated[float, Meta(gt=0, le=1e6)]
    boundary: Annotated[float, Meta(gt=0, lt=1)] | None
    topk_milli: Annotated[int, Meta(ge=1, le=1000)]
    attention: Attention
    linear: Literal["int8", "bf16"]

    @property
    def dense(self) -> bool:
        """Whether attention keeps every key block, so that ``topk_milli`` means nothing."""
        return self.attention in DENSE


class GpuFacts(_Record, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The GPU the engines and plans are for."""

    name: str
    sm: Annotated[int, Meta(gt=0, le=999)]
    flavour: Literal["tensorrt_rtx", "tensorrt"]


class TensorInfo(_Record, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A stage's input or output; a dim is a number, a symbol ("L") or a multiple of one ("8*H").

    ``weight``: an input that comes from the packed weights, the same at every run.
    """

    name: str
    dtype: str
    dims: Annotated[tuple[Dim | str, ...], Meta(max_length=8)]
    weight: bool = False


class Profile(_Record, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The range of each of a stage's symbols that its engine accepts: tokens L, or latents H and W."""

    min: Positive
    opt: Positive
    max: Positive

    def __post_init__(self) -> None:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"a profile must rise: {self.min}, {self.opt}, {self.max}")


class StageEntry(_Record, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One stage of one component: its files, its tensors and what was built of it.

    ``engine`` is None in an ONNX-only bundle; ``activation_bytes`` is the builder's own figure at the profile's
    maximum. ``expert`` says whose weights a one-file engine holds; the other stages take any expert's.
    """

    component: Component
    name: StageName
    expert: str | None = None
    engine: str | None = None
    onnx: str
    inputs: Annotated[tuple[TensorInfo, ...], Meta(max_length=4096)]
    outputs: Annotated[tuple[TensorInfo, ...], Meta(max_length=4096)]
    profile: Profile
    activation_bytes: Count | None = None

    @property
    def activations(self) -> tuple[TensorInfo, ...]:
        """The inputs that are no weights, in the engine's order."""
        return tuple(tensor for tensor in self.inputs if not tensor.weight)

    @property
    def weights(self) -> tuple[TensorInfo, ...]:
        """The inputs that are weights, in the engine's order."""
        return tuple(tensor for tensor in self.inputs if tensor.weight)

    @property
    def gives(self) -> dict[str, TensorInfo]:
        """The outputs by their own names, without the suffix that the engine's have."""
        return {tensor.name.removesuffix(OUTPUT_SUFFIX): tensor for tensor in self.outputs}


class FileInfo(_Record, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Content hashes and size; ``inputs`` is the hash of all that the file was made from: re-export skips it by that.

    ``tree_sha256``: the SHA-256 of the digests of all pieces (``runtime.hashing``), which several threads find at once;
    None in bundles of schema 2 and 3.
    ``source``: the Hugging Face file that weights were packed from, at its commit: ``org/repo@commit:file``.
    """

    sha256: Sha256
    bytes: Count
    tree_sha256: Sha256 | None = None
    inputs: str | None = None
    source: str | None = None


class Manifest(_Record, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything about one bundle: no time, no path. ``plans``: plugin node → file.

    ``weights``: the DiT's, expert → file; ``media_weights``: text encoder's and decoders', component → file;
    ``text_linear``: how the text encoder's Linears are packed and computed; ``embedded_library``: the sha256 of the
    plugin library inside the engines, None where plugins must be registered before they are loaded.
    """

    schema_version: int = SCHEMA_VERSION
    model: ModelFacts
    sampler: SamplerFacts
    gpu: GpuFacts
    tools: dict[str, str]
    stages: tuple[StageEntry, ...]
    plans: dict[str, str]
    files: dict[str, FileInfo]
    weights: dict[str, str]
    media_weights: dict[MediaComponent, str] = {}
    text_linear: Literal["int8", "bf16"] = "bf16"
    tokenizer: str | None = None
    has_proj_l: bool | None = None
    embedded_library: Sha256 | None = None
    vram_estimate_bytes: Count

    def __post_init__(self) -> None:
        for name in self.files:
            _check_plain(name)
        for name in self._referenced():
            if name not in self.files:
                raise ValueError(f"{name!r} is used but not listed under files")
        for expert in self.weights:
            if expert not in self.model.experts:
                raise ValueError(f"weights for {expert!r}, but the experts are {', '.join(self.model.experts)}")

    @property
    def components(self) -> tuple[Component, ...]:
        """The components that the bundle has stages of."""
        have = {stage.component for stage in self.stages}
        return tuple(component for component in COMPONENTS if component in have)

    def stages_of(self, component: Component) -> tuple[StageEntry, ...]:
        """A component's stages that take weights as inputs: all but one-file engines."""
        return tuple(stage for stage in self.stages if stage.component == component and stage.expert is None)

    def stage(self, name: str) -> StageEntry:
        """The entry of a stage that takes weights as inputs. Raises UserError if the bundle was exported without it."""
        for entry in self.stages:
            if entry.name == name and entry.expert is None:
                return entry
        raise UserError(
            f"The bundle has no {name} stage.",
            expected=f"a bundle exported with {name}'s component",
            got="stages " + (", ".join(entry.name for entry in self.stages) or "none"),
            remedy="export the model again without leaving it out by --components",
        )

    def _referenced(self) -> Iterator[str]:
        for stage in self.stages:
            yield stage.onnx
            if stage.engine is not None:
                yield stage.engine
        yield from self.plans.values()
        yield from self.weights.values()
        yield from self.media_weights.values()
        if self.tokenizer is not None:
            yield self.tokenizer


class _Version(Struct):
    schema_version: int


_T = TypeVar("_T")


def _check_plain(name: str) -> None:
    """A manifest comes from anywhere: its names must stay inside the folder, whatever the system's separators."""
    if name in ("", ".", "..", MANIFEST_NAME) or any(c in name for c in "/\\:") or not name.isprintable():
        raise ValueError(f"{name!r} is not the plain name of a file in the bundle")


def sha256_of(path: Path, update: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a file in hexadecimal, read by parts; ``update`` hears the bytes of each part."""
    with _opened(path) as descriptor:
        return piece_digest(descriptor, 0, os.fstat(descriptor).st_size, update or unheard).hex()


def file_info(path: Path, inputs: str | None = None, source: str | None = None) -> FileInfo:
    """The manifest's entry for a file as it is now."""
    with _opened(path) as descriptor, HashThreads() as threads:
        size = os.fstat(descriptor).st_size
        whole = threads.whole(descriptor, size)
        tree = tree_of(digest.result() for digest in threads.pieces(descriptor, size))
        return FileInfo(sha256=whole.result().hex(), bytes=size, inputs=inputs, tree_sha256=tree, source=source)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = open_input(path, "a file")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle. Raises UserError where it is missing, corrupt or of another schema version.

    What it returns holds together: the stages are there, and take and give what the runtime drives them with.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise UserError(
            f"{folder} is not a bundle.",
            expected=f"a folder holding {MANIFEST_NAME}",
            got="no such folder" if not folder.exists() else f"no {MANIFEST_NAME}",
            remedy="give the folder that turbotrt export wrote",
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise _corrupt(path, f"it is longer than {MAX_MANIFEST_BYTES} bytes")
    data = read_input(path, MAX_MANIFEST_BYTES, "a manifest")
    version = _decode(path, data, _Version).schema_version
    if version in OLD_VERSIONS:
        data = _upgraded(path, data)
    elif version != SCHEMA_VERSION:
        newer = version > SCHEMA_VERSION
        raise UserError(
            f"{path} has another schema version.",
            expected=f"{OLD_VERSIONS[0]} to {SCHEMA_VERSION}",
            got=str(version),
            remedy="upgrade turbotrt" if newer else "export the bundle again",
        )
    manifest = _decode(path, data, Manifest)
    try:
        check_manifest(manifest, msgspec.json.decode(data))
    except ValueError as error:
        raise _corrupt(path, str(error)) from error
    return manifest


def _upgraded(path: Path, data: bytes) -> bytes:
    try:
        return msgspec.json.encode(upgraded(_decode(path, data, dict[str, Any]), SCHEMA_VERSION))
    except (KeyError, TypeError, AttributeError) as error:
        raise _corrupt(path, f"it is no manifest of an earlier schema: {error!r}") from error


def _decode(path: Path, data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _corrupt(path, str(error)) from error


def _corrupt(path: Path, why: str) -> UserError:
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in why)  # it may quote the manifest
    return UserError(f"{path} is corrupt: {printable}.", remedy="export the bundle again")


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest's JSON; equal manifests give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write manifest.json: a reader sees the old one or the new one, whole. UserError where it cannot be written."""
    path = folder / MANIFEST_NAME
    with told(path):
        write_atomic(path, encode_manifest(manifest))
    return path


def verify_file(folder: Path, name: str, info: FileInfo, update: Callable[[int], object] | None = None) -> str | None:
    """What is wrong with one file, or None. The size is compared first: reading a truncated file is for nothing."""
    path = folder / name
    if not path.is_file():
        return f"{name}: missing"
    size = path.stat().st_size
    if size != info.bytes:
        return f"{name}: {size} bytes, the manifest says {info.bytes}"
    with _opened(path) as descriptor, HashThreads() as threads:
        return Hashing(name, info, descriptor, threads, update or unheard).problem()


class Hashing:
    """A file being compared with its manifest's entry, by several threads; ``descriptor`` is the caller's.

    By pieces where the entry has their hash, else as a whole.
    """

    def __init__(
        self, name: str, info: FileInfo, descriptor: int, threads: HashThreads, update: Callable[[int], object]
    ) -> None:
        self._name, self._info = name, info
        self.digests = (
            [threads.whole(descriptor, info.bytes, update)]
            if info.tree_sha256 is None
            else threads.pieces(descriptor, info.bytes, update)
        )

    def problem(self) -> str | None:
        """What is wrong with the file, or None; waits for the threads."""
        found = [digest.result() for digest in self.digests]
        wanted = self._info.tree_sha256 or self._info.sha256
        digest = found[0].hex() if self._info.tree_sha256 is None else tree_of(found)
        if digest == wanted:
            return None
        return f"{self._name}: sha256 {digest[:12]}…, the manifest says {wanted[:12]}…"


def verify_files(folder: Path, manifest: Manifest) -> list[str]:
    """What is wrong with the files the manifest lists, one line each; empty where all is well."""
    checks = (verify_file(folder, name, info) for name, info in sorted(manifest.files.items()))
    return [problem for problem in checks if problem is not None]
