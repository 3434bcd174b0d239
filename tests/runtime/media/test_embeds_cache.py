"""A bundle's embeddings on disk: what was changed, renamed or linked from elsewhere is not there."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from exporter.models import MODELS
from runtime.bundle import FileInfo, Manifest
from runtime.media.text.embeds_cache import EmbedsCache
from runtime.numerics import from_bf16_bits
from runtime.tensor_files import write_tensors
from tests.support.media_bundle import bare_manifest

EMBEDS = np.arange(8192, dtype=np.uint16).reshape(2, 4096)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    bare = bare_manifest(MODELS["wan-tiny"])
    files = {**bare.files, "text.safetensors": FileInfo(sha256="1" * 64, bytes=1)}
    return msgspec.structs.replace(bare, files=files, media_weights={"text": "text.safetensors"})


@pytest.fixture
def cache(manifest: Manifest, tmp_path: Path) -> EmbedsCache:
    made = EmbedsCache(tmp_path / "embeds", manifest)
    assert made.put("a cat", EMBEDS) is None
    kept = made.get("a cat")
    assert kept is not None
    assert np.array_equal(kept, EMBEDS)
    return made


def test_every_changed_byte_of_the_tensor_shows(cache: EmbedsCache) -> None:
    path = cache.path("a cat")
    data = path.read_bytes()
    for at in (len(data) - 1, len(data) - 4 * 8192):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert cache.get("a cat") is None
    path.write_bytes(data)
    assert cache.get("a cat") is not None


def test_an_entry_of_another_prompt_is_not_taken(cache: EmbedsCache) -> None:
    cache.path("a cat").rename(cache.path("a dog"))
    assert cache.get("a dog") is None


def test_an_entry_without_a_hash_is_not_taken(cache: EmbedsCache) -> None:
    write_tensors(cache.path("a cat"), {"text_embeds": from_bf16_bits(EMBEDS)}, {})
    assert cache.get("a cat") is None


def test_a_linked_entry_is_not_followed_and_is_replaced(cache: EmbedsCache, tmp_path: Path) -> None:
    path, outside = cache.path("a cat"), tmp_path / "outside.safetensors"
    path.rename(outside)
    path.symlink_to(outside)
    assert cache.get("a cat") is None
    before = outside.read_bytes()
    assert cache.put("a cat", EMBEDS + 1) is None
    assert outside.read_bytes() == before
    assert not path.is_symlink()


def test_a_linked_folder_is_neither_read_nor_written(cache: EmbedsCache, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "embeds").symlink_to(tmp_path / "embeds")
    linked = EmbedsCache(tmp_path / "bundle" / "embeds", manifest)
    assert linked.get("a cat") is None
    said = linked.put("a dog", EMBEDS)
    assert said is not None
    assert "is a link, which is not followed out of a bundle" in said
    assert [path.name for path in (tmp_path / "embeds").iterdir()] == [cache.path("a cat").name]
