"""Safetensors headers that lie: each is refused in words, at once and without memory, by every reader there is."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from exporter.checkpoint.safetensors_file import SafetensorsFile
from plugins.errors import UserError
from runtime.safetensors_header import DTYPE_OF, MAX_HEADER_BYTES, Stored, encoded_header, read_header
from runtime.tensor_files import read_tensor
from runtime.weights.file import WeightsFile
from tests.fuzz.mutations import bytes_of
from tests.support.paths import ROOT

READERS: dict[str, Callable[[Path], object]] = {
    "header": read_header,
    "exporter": SafetensorsFile,
    "runtime": WeightsFile,
    "tensor": lambda path: read_tensor(path, "a"),
}
WHOLE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def item(**changes: object) -> dict[str, object]:
    return {"a": WHOLE | changes}


def written(path: Path, header: object, data: bytes = bytes(8)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def empty(shape: str) -> bytes:
    return b'{"a":{"dtype":"F32","shape":%s,"data_offsets":[0,0]}}' % shape.encode()


TWICE = b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
HOSTILE: dict[str, tuple[object, bytes]] = {
    "of another size": (item(shape=[3]), bytes(8)),
    "past the end": (item(data_offsets=[0, 16]), bytes(8)),
    "before the data": (item(data_offsets=[-8, 0]), bytes(8)),
    "end before start": (item(data_offsets=[8, 0]), bytes(8)),
    "a hole in front": (item(data_offsets=[4, 12]), bytes(12)),
    "bytes left over": (item(), bytes(9)),
    "three offsets": (item(data_offsets=[0, 8, 8]), bytes(8)),
    "overlap": (item() | {"b": WHOLE}, bytes(8)),
    "half an overlap": (item() | {"b": WHOLE | {"data_offsets": [4, 12]}}, bytes(12)),
    "a hole between": (item() | {"b": WHOLE | {"data_offsets": [12, 20]}}, bytes(20)),
    "negative dims": (item(shape=[-1, -2]), bytes(8)),
    "a float dim": (item(shape=[2.0]), bytes(8)),
    "a bool dim": (item(shape=[True, 2]), bytes(8)),
    "a text dim": (item(shape=["2"]), bytes(8)),
    "no list": (item(shape="2"), bytes(8)),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "more than an entry": (item(strides=1), bytes(8)),
    "65 dims": (item(shape=[1] * 65 + [2]), bytes(8)),
    "33 dims": (item(shape=[1] * 32 + [2]), bytes(8)),
    "overflow": (item(shape=[2**40, 2**40]), bytes(8)),
    "overflow to the right size": (item(shape=[2**33, 2**33], dtype="I8", data_offsets=[0, 4]), bytes(4)),
    "zero times 2**70": (empty("[0,1180591620717411303424]"), b""),
    "zero times 2**62 times 2**62": (empty(f"[0,{2**62},{2**62}]"), b""),
    "zero times 2**63": (empty(f"[0,{2**63 - 1}]"), b""),
    "16 GB in 8 bytes": (item(shape=[2**32], data_offsets=[0, 2**34]), bytes(8)),
    "1e999": (empty("[1e999]"), b""),
    "1e0": (empty("[0e0]"), b""),
    "NaN": (empty("[NaN]"), b""),
    "infinity": (empty("[-Infinity]"), b""),
    "minus nought": (empty("[-0]"), b""),
    "ten thousand digits": (empty(f"[0,{'1' * 10_000}]"), b""),
    "unknown dtype": (item(dtype="Q9"), bytes(8)),
    "dtype in small letters": (item(dtype="f32"), bytes(8)),
    "no dtype": (item(dtype=None), bytes(8)),
    "a number": ({"a": 5}, bytes(8)),
    "a list": ([], b""),
    "null": (b"null", b""),
    "nothing": (b"  ", b""),
    "spaces in front": (b" " + json.dumps(item()).encode(), bytes(8)),
    "no JSON": (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}', bytes(8)),
    "two documents": (b"{}{}", b""),
    "no UTF-8": (b'{"\xff":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', b""),
    "half a surrogate pair": (b'{"\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', b""),
    "a name twice": (b"{" + TWICE + b"," + TWICE + b"}", bytes(8)),
    "a key twice": (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "a name twice, one escaped": (b"{" + TWICE + b"," + TWICE.replace(b'"a"', b'"\\u0061"') + b"}", bytes(8)),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', b""),
    "numbers for metadata": ({"__metadata__": {"a": 1}}, b""),
    "metadata of metadata": ({"__metadata__": {"a": {}}}, b""),
    "a list of metadata": ({"__metadata__": []}, b""),
    "no metadata": ({"__metadata__": None}, b""),
    "deep lists": (b"[" * 200_000, b""),
    "deep lists in a shape": (empty("[" * 100_000 + "]" * 100_000), b""),
    "deep objects": (b'{"a":' * 200_000, b""),
    "deep metadata": (b'{"__metadata__":' + b'{"a":' * 100_000 + b"}" * 100_001, b""),
    "deep behind a text": (b'{"\\\\":"' + b'","\\"":' + b"[" * 100_000, b""),
    "many lists": (empty("[" + "[]," * 200_000 + "[]]"), b""),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_wrong_is_told_at_once(case: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", *HOSTILE[case])
    for reader in READERS.values():
        started = time.process_time()
        with pytest.raises(UserError) as told:
            reader(path)
        assert time.process_time() - started < 1
        lines = str(told.value).splitlines()
        assert lines[0] == f"{path} is not a whole safetensors file."
        assert [line.split(":")[0].strip() for line in lines[1:]] == ["expected", "got", "remedy"]
        assert all(map(str.isprintable, lines))
        assert len(str(told.value)) < 800


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\0" * 8, b"\xff" * 64, (2**63).to_bytes(8, "little") * 4])
def test_lengths_that_lie_are_told(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_header(tmp_path / "a")


def test_header_is_bounded_however_large_the_file_is(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.write((2**35).to_bytes(8, "little"))
        file.truncate(2**36)
    with pytest.raises(UserError, match=r"whose header would take 34359738368"):
        read_header(tmp_path / "a")


#: Reads a header in a process of its own: this one may hold more already.
WITHIN_A_GIB = """
import resource, sys
from pathlib import Path
from plugins.errors import UserError
from runtime.safetensors_header import read_header

resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
try:
    read_header(Path(sys.argv[1]))
except UserError:
    sys.exit()
sys.exit("no error")
"""


def test_longest_header_takes_bounded_memory(tmp_path: Path) -> None:
    """Lists of lists, of which JSON's parser would make thirty bytes for every one of the file."""
    path = written(tmp_path / "a", empty("[" + "[]," * (MAX_HEADER_BYTES // 3 - 100) + "[]]"), b"")
    command = [sys.executable, "-c", WITHIN_A_GIB, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_are_opened(reader: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(UserError, match=r"cannot be read(.|\n)*a folder, a pipe or a device"):
            READERS[reader](path)
    for path in (tmp_path / "none", tmp_path / "a" / "b", tmp_path / ("x" * 300), Path("a\0b")):
        with pytest.raises(UserError, match=r"cannot be read(.|\n)*expected: a safetensors file(.|\n)*remedy"):
            READERS[reader](path)
    (tmp_path / "link").symlink_to(written(tmp_path / "a", item()))
    assert READERS[reader](tmp_path / "link") is not None


def test_a_tensor_of_gigabytes_is_no_embedding(tmp_path: Path) -> None:
    path = written(tmp_path / "a", item(shape=[2**32], data_offsets=[0, 2**34]), b"")
    os.truncate(path, path.stat().st_size + 2**34)
    with pytest.raises(UserError, match="is too large"):
        read_tensor(path, "a")


def test_every_dtype_of_the_format_is_known(tmp_path: Path) -> None:
    for dtype, (bits, name) in DTYPE_OF.items():
        size = 24 * bits // 8
        path = written(tmp_path / "a", {"a": {"dtype": dtype, "shape": [24], "data_offsets": [0, size]}}, bytes(size))
        found = read_header(path).tensors["a"]
        assert (found.dtype, found.shape, found.nbytes) == (name, (24,), size)
        with safe_open(path, "np") as theirs:
            assert theirs.get_slice("a").get_dtype() == dtype


def test_headers_of_the_library_are_read_and_ours_are_read_by_it(tmp_path: Path) -> None:
    arrays = {"x": np.ones((2, 3), np.float32), "none": np.ones((0, 5), np.int8), "one": np.array(7, np.int32)}
    (tmp_path / "a").write_bytes(save(arrays, {"said": "ü"}))
    header = read_header(tmp_path / "a")
    assert header.metadata == {"said": "ü"}
    assert {name: (t.dtype, t.shape) for name, t in header.tensors.items()} == {
        "x": ("fp32", (2, 3)),
        "none": ("int8", (0, 5)),
        "one": ("int32", ()),
    }
    assert int(np.asarray(read_tensor(tmp_path / "a", "one"))) == 7
    ours = encoded_header([("b", "bf16", (2, 2)), ("a", "fp32", ())], {"z": "1", "y": '"[{'})
    assert len(ours) % 8 == 0
    (tmp_path / "b").write_bytes(ours + bytes(12))
    with safe_open(tmp_path / "b", "np") as theirs:
        assert theirs.metadata() == {"z": "1", "y": '"[{'}
    start = len(ours)
    assert read_header(tmp_path / "b").tensors == {
        "b": Stored("bf16", (2, 2), start, start + 8),
        "a": Stored("fp32", (), start + 8, start + 12),
    }


def test_brackets_in_texts_are_no_brackets(tmp_path: Path) -> None:
    names = ['[[["', "\\", '\\"{', "}]\\\\", "ключ", "\x1b[31m", ""]
    header: dict[str, Any] = {name: WHOLE | {"shape": [0], "data_offsets": [0, 0]} for name in names}
    metadata = dict.fromkeys(names, '{"a": [[{"\\')
    for ascii_ in (True, False):
        text = json.dumps({"__metadata__": metadata} | header, ensure_ascii=ascii_, indent=2).encode()
        found = read_header(written(tmp_path / "a", text, b""))
        assert list(found.tensors) == names
        assert found.metadata == metadata


def test_there_is_no_other_reader() -> None:
    """Neither exporter nor runtime takes the library's, whose errors do not say what is wrong."""
    files = [path for package in ("exporter", "runtime", "plugins") for path in (ROOT / package).rglob("*.py")]
    library = re.compile(r"^\s*(from|import) safetensors\b", re.MULTILINE)
    assert len(files) > 150
    assert [path for path in files if library.search(path.read_text(encoding="utf-8"))] == []


def test_mutated_files_are_read_as_the_library_reads_them_or_refused(tmp_path: Path) -> None:
    """1,000 files: never another exception than UserError, and nothing accepted that the library refuses."""
    dice, accepted = random.Random(20261124), 0
    arrays = {"x": np.ones((2, 3), np.float32), "y": np.ones((4,), np.int8), "z": np.ones((1, 0), np.float16)}
    whole, path = save(arrays, {"model": "wan-tiny"}), tmp_path / "a.safetensors"
    length = int.from_bytes(whole[:8], "little")
    for _ in range(1000):
        text = bytes_of(whole[8 : 8 + length], dice, 3)
        head = len(text).to_bytes(8, "little") if dice.random() < 0.8 else bytes_of(whole[:8], dice, 3)
        data = whole[8 + length :] if dice.random() < 0.9 else bytes(dice.randrange(40))
        path.write_bytes(head + text + data)
        try:
            found = read_header(path)
        except UserError:
            continue
        accepted += 1
        with safe_open(path, "np") as theirs:
            assert set(theirs.keys()) == set(found.tensors)
            assert (theirs.metadata() or {}) == found.metadata
            for name, tensor in found.tensors.items():
                assert theirs.get_slice(name).get_shape() == list(tensor.shape)
        file = WeightsFile(path)
        for name, tensor in file.tensors.items():
            if tensor.dtype in ("fp32", "int8", "fp16"):
                assert file.read(name).nbytes == tensor.nbytes
        file.close()
    assert 100 < accepted < 500
