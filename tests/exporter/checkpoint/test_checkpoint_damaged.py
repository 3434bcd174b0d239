"""Checkpoints that are damaged or hostile: each is refused, and nothing in it runs."""

from __future__ import annotations

import json
import os
import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from exporter.checkpoint.reader import NamedTensors, open_checkpoint
from exporter.models import MODELS
from plugins.errors import UserError
from tests.support import checkpoints as ck
from tests.support.checkpoints import refused

TINY = MODELS["wan-tiny"]
STATE = ck.canonical_state_dict(TINY, 7)


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("form", ["torch.save", "bare pickle", "legacy"])
def test_a_pickle_that_runs_code_isrefused(form: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "a.pth"
    state = STATE | {"evil": _Evil(mark)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"evil": _Evil(mark)}))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "torch.save")
    refused(path, "run code" if form == "torch.save" else "not a whole .pth file")
    assert not mark.exists()
    if form == "torch.save":  # the trap is a real one
        torch.load(path, weights_only=False)
        assert mark.exists()


def _zip_garbage(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02garbage")
        archive.writestr("archive/version", b"3")


DAMAGED: dict[str, Callable[[Path], object]] = {
    "empty.pth": lambda path: path.write_bytes(b""),
    "garbage.pth": lambda path: path.write_bytes(b"PK\x03\x04" + os.urandom(1000)),
    "zip.pth": _zip_garbage,
    "truncated.pth": lambda path: path.write_bytes(ck.save_pth(path, STATE).read_bytes()[:-5000]),
    "list.pth": lambda path: torch.save([1, 2], path),
    "nested.pth": lambda path: torch.save({"optimizer": {"lr": 1}, "model": STATE}, path),
    "empty.safetensors": lambda path: path.write_bytes(b""),
    "pointer.safetensors": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
    "truncated.safetensors": lambda path: path.write_bytes(ck.save_safetensors(path, STATE).read_bytes()[:-1]),
    "longer.safetensors": lambda path: path.write_bytes(ck.save_safetensors(path, STATE).read_bytes() + b"x"),
    "random.safetensors": lambda path: path.write_bytes((64).to_bytes(8, "little") + os.urandom(200)),
    "pipe.pth": os.mkfifo,
    "model.onnx": lambda path: path.write_bytes(b"x" * 100),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_arerefused(name: str, tmp_path: Path) -> None:
    DAMAGED[name](tmp_path / name)
    refused(tmp_path / name, name)


def _zipped(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> Path:
    """An archive with this pickle and further entries under data/."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {"data.pkl": data, "version": b"3", **entries}.items():
            archive.writestr(f"archive/{name}", content)
    return path


def _allocating(size: int) -> bytes:
    """A pickle of protocol 2 that makes a bytearray of a size: torch's weights_only reader would run it."""
    return b"\x80\x02c__builtin__\nbytearray\nq\x00J" + size.to_bytes(4, "little") + b"\x85q\x01Rq\x02."


BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "compressed": (
        lambda path: _zipped(path, pickle.dumps({}, 2), zipfile.ZIP_DEFLATED),
        "no archive as torch.save writes it",
    ),
    "compressed data": (
        lambda path: _zipped(path, pickle.dumps({}, 2), zipfile.ZIP_DEFLATED, **{"data/0": bytes(10**7)}),
        "no archive as torch.save writes it",
    ),
    "a pickle of 9 MB": (lambda path: _zipped(path, bytes(9 << 20)), "no archive as torch.save writes it"),
    "a bytearray": (lambda path: _zipped(path, _allocating(2**31 - 1)), "holds Python objects"),
    "one element for billions": (
        lambda path: torch.save({"a": torch.ones(1).expand(2**20, 2**20)}, path),
        "a tensor that cannot be read",
    ),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_torch_file_takes_no_more_than_its_size(case: str, tmp_path: Path) -> None:
    make, words = BOMBS[case]
    make(tmp_path / "a.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=words):
        NamedTensors(tmp_path / "a.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB; a bytearray takes 2 GiB


def _item(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    "header",
    [
        _item(shape=[3]),
        _item(data_offsets=[0, 16]),
        _item(data_offsets=[-8, 0]),
        _item(data_offsets=[8, 0]),
        _item(data_offsets=[4, 12]),
        _item(shape=[-1, -2]),
        _item(shape=[2.0]),
        _item(shape="2"),
        _item(shape=[2**40, 2**40]),
        _item(dtype="Q9"),
        _item(dtype=None),
        _item() | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        {"a": 5},
        [],
        "[" * 100_000,
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    ],
    ids=lambda value: str(value)[:60],
)
def test_lying_safetensors_headers_arerefused(header: object, tmp_path: Path) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(UserError, match="not a whole safetensors file"):
        NamedTensors(tmp_path / "a.safetensors")


def test_header_of_those_tests_is_sound_when_it_does_not_lie(tmp_path: Path) -> None:
    text = json.dumps(_item()).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    assert NamedTensors(tmp_path / "a.safetensors").load("a").tolist() == [0, 0]


def test_file_cut_after_opening_isrefused(tmp_path: Path) -> None:
    path = ck.save_safetensors(tmp_path / "a.safetensors", STATE)
    reader = open_checkpoint(path, TINY)
    os.truncate(path, 1000)
    with pytest.raises(UserError, match="ends too early"):
        reader.load("blocks.0.ffn.0.weight")


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "a/../b.safetensors",
        "..\\x.safetensors",
        "evil.pth",
        "gone.safetensors",
    ],
)
def test_index_names_only_files_of_its_folder(shard: str, tmp_path: Path) -> None:
    ck.save_safetensors(tmp_path / "outside.safetensors", STATE)
    index = ck.save_sharded(tmp_path / "in", STATE)
    content = json.loads(index.read_text())
    content["weight_map"]["head.head.bias"] = shard
    index.write_text(json.dumps(content))
    refused(index, "must not" if shard != "gone.safetensors" else "missing")


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    index = ck.save_sharded(tmp_path, STATE)
    content = json.loads(index.read_text())
    content["weight_map"]["no.such"] = content["weight_map"]["head.head.bias"]
    index.write_text(json.dumps(content))
    refused(index, "does not describe its shards", "no.such")
    digits = '{"weight_map": ' + "9" * 5000 + "}"
    for text in ("{", "[]", '{"weight_map": {"a": 1}}', "[" * 100_000, digits, " " * (17 << 20)):
        index.write_text(text)
        refused(index, "index")


def test_folders_that_do_not_tell(tmp_path: Path) -> None:
    refused(tmp_path, "none")
    ck.save_pth(tmp_path / "a.pth", STATE)
    ck.save_pth(tmp_path / "a-quant.pth", STATE)
    refused(tmp_path, "a-quant.pth, a.pth", "pass the file itself")
    refused(tmp_path / "nowhere", "no checkpoint")
