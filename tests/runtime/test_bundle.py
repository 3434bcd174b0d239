"""The bundle's manifest: what is written comes back, what is wrong is refused, what changed is found."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugins.errors import UserError
from runtime.bundle import (
    MAX_MANIFEST_BYTES,
    encode_manifest,
    load_manifest,
    sha256_of,
    verify_files,
    write_manifest,
)
from tests.support.bundle_factory import make_bundle


def test_manifest_round_trips_and_its_files_verify(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path)
    assert load_manifest(tmp_path) == manifest
    assert verify_files(tmp_path, manifest) == []


def test_bytes_depend_on_content_only(tmp_path: Path) -> None:
    first = make_bundle(tmp_path / "a")
    make_bundle(tmp_path / "elsewhere" / "b")
    data = (tmp_path / "a" / "manifest.json").read_bytes()
    assert data == (tmp_path / "elsewhere" / "b" / "manifest.json").read_bytes()
    backwards = msgspec.structs.replace(first, files=dict(reversed(first.files.items())))
    assert encode_manifest(backwards) == data
    assert list(json.loads(data)["files"]) == sorted(first.files)
    assert data.startswith(b'{\n  "schema_version": 4,\n')


def test_sha256_is_the_files_and_reports_its_parts(tmp_path: Path) -> None:
    data = os.urandom(3_000_001)
    (tmp_path / "x").write_bytes(data)
    parts: list[int] = []
    assert sha256_of(tmp_path / "x", parts.append) == hashlib.sha256(data).hexdigest()
    assert sum(parts) == len(data)
    assert len(parts) > 1


def test_verify_finds_missing_truncated_and_altered_files(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path)
    (tmp_path / "head.engine").unlink()
    (tmp_path / "block.engine").write_bytes(b"short")
    (tmp_path / "embed.onnx").write_bytes(b"e" * manifest.files["embed.onnx"].bytes)
    problems = verify_files(tmp_path, manifest)
    assert [problem.partition(":")[0] for problem in problems] == ["block.engine", "embed.onnx", "head.engine"]
    assert "5 bytes, the manifest says 100" in problems[0]
    assert "sha256" in problems[1]
    assert problems[2] == "head.engine: missing"


def test_failed_write_keeps_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_bundle(tmp_path)
    before = sorted(tmp_path.iterdir())

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(tmp_path, msgspec.structs.replace(manifest, vram_estimate_bytes=1))
    assert load_manifest(tmp_path) == manifest
    assert sorted(tmp_path.iterdir()) == before


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _rename(name: str) -> Callable[[dict[str, Any]], Any]:
    """Call block.engine by another name, everywhere."""

    def change(content: dict[str, Any]) -> None:
        content["files"][name] = content["files"].pop("block.engine")
        content["stages"][1]["engine"] = name

    return change


@pytest.mark.parametrize(
    "name", ["../block.engine", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "C:x", "a\0b", "a\nb", "manifest.json"]
)
def test_a_name_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    make_bundle(tmp_path)
    _edit(tmp_path, _rename(name))
    with pytest.raises(UserError, match="plain name"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("model"), "model"),
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m["stages"][0].update(extra=1), "extra"),
        (lambda m: m["model"].update(dim=0), "dim"),
        (lambda m: m["files"]["block.onnx"].update(sha256="0" * 63), "sha256|files"),
        (lambda m: m["files"]["block.onnx"].update(sha256="0" * 64 + "\n"), "sha256|files"),
        (lambda m: m["files"]["block.onnx"].update(bytes=-1), "bytes|files"),
        (lambda m: m["files"].pop("block.plan"), "block.plan"),
        (lambda m: m["files"].pop("head.onnx"), "head.onnx"),
        (lambda m: m["weights"].update(model="weights.safetensors"), "weights.safetensors"),
        (lambda m: m["weights"].update({"third": "head.onnx"}), "third"),
        (lambda m: m["stages"][0]["profile"].update(min=300), "rise"),
        (lambda m: m["sampler"].update(topk_milli=0), "topk_milli"),
        (lambda m: m["gpu"].update(flavour="other"), "flavour"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    make_bundle(tmp_path)
    _edit(tmp_path, change)
    with pytest.raises(UserError, match=message):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"schema_version": "1"}',
        b"[" * 100_000,
        b" " * (MAX_MANIFEST_BYTES + 1),
    ],
    ids=["empty", "cut", "list", "null", "not-utf8", "text-version", "deep", "huge"],
)
def test_garbage_is_corrupt_not_a_crash(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(UserError, match="corrupt"):
        load_manifest(tmp_path)


def test_a_bundle_of_schema_2_stays_readable(tmp_path: Path) -> None:
    """schema2.json was written by turbotrt 0.1.0 before stages were one record, for the bundle that is made here."""
    pytest.importorskip("torch")
    from exporter.models import MODELS
    from tests.support.media_bundle import add_media
    from tests.support.random_bundle import make_random_bundle

    made = add_media(tmp_path, make_random_bundle(tmp_path, MODELS["wan-tiny"]))
    (tmp_path / "manifest.json").write_bytes(Path(__file__).with_name("schema2.json").read_bytes())
    old = load_manifest(tmp_path)
    weights = set(old.weights.values())  # random ones, made in another way since
    files = {name: msgspec.structs.replace(info, tree_sha256=None) for name, info in made.files.items()}
    files = {name: old.files[name] if name in weights else info for name, info in files.items() if "tiny" not in name}
    then = msgspec.structs.replace(
        made,
        files=files,
        stages=tuple(stage for stage in made.stages if stage.component != "tiny"),  # there was no such decoder
        media_weights={component: name for component, name in made.media_weights.items() if component != "tiny"},
    )
    assert msgspec.structs.replace(old, tools=made.tools) == then
    sound = {name: info for name, info in old.files.items() if name not in weights}
    assert verify_files(tmp_path, msgspec.structs.replace(old, files=sound, weights={})) == []


@pytest.mark.parametrize("stages", ["3", "[3]", "[{}]", '{"a": 1}', "null"])
def test_a_broken_manifest_of_schema_2_is_corrupt(tmp_path: Path, stages: str) -> None:
    (tmp_path / "manifest.json").write_text(f'{{"schema_version": 2, "stages": {stages}}}')
    with pytest.raises(UserError, match="is corrupt"):
        load_manifest(tmp_path)


def test_another_schema_version_names_the_remedy(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    _edit(tmp_path, lambda m: m.update(schema_version=5, something="new"))
    with pytest.raises(UserError, match="upgrade turbotrt"):
        load_manifest(tmp_path)
    _edit(tmp_path, lambda m: m.update(schema_version=1))
    with pytest.raises(UserError, match="export the bundle again"):
        load_manifest(tmp_path)


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json"):
        load_manifest(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_manifest(tmp_path / "nowhere")
