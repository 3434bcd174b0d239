"""Launch plans: the file form, and every op compiled for two SMs here and from another folder, by another process."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.compile import plan_bytes
from plugins.expr import evaluate, from_plain
from plugins.plan import ALIGNMENT, KernelImage, LaunchSpec, Plan, TensorSpec, decode, encode, shape_of
from plugins.registry import OPS
from tests.support.paths import ROOT
from tests.support.shared import Shared

SMS = (90, 120)
GEMM = {"N": 384, "K": 256}
#: Widths of wan-tiny where the kernels are large: other tests have them compiled, too.
STATIC = {
    "BlockInt8Quantize": {"K": 256},
    "LayerNormQuantize": {"D": 256},
    "BlockInt8Gemm": GEMM,
    "BlockInt8GemmGelu": GEMM,
    "BlockInt8GemmResidual": GEMM,
    "QkNormRope": {"D": 256, "E": 512},
    "RmsNorm": {"D": 256, "E": 512},
    "SageSLA": {"D": 256, "E": 256},
    "SageSLAQuantize": {"D": 256, "E": 256},
    "SageAttention": {"D": 256, "E": 256},
    "SageAttentionQuantize": {"D": 256, "E": 256},
}
LENGTHS = (1, 40, 128, 200, 1000, 32760, 75600)
COMPILE = """
import sys
from pathlib import Path
import plugins
from plugins.compile import plan_bytes
from plugins.registry import OPS
static, sms, root, out = eval(sys.argv[1]), eval(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
assert Path(plugins.__file__).parents[1] == root, plugins.__file__
for name, op in OPS.items():
    for sm in sms:
        (out / f"{name}-{sm}").write_bytes(plan_bytes(op, static[name], {}, sm))
"""

tiny = Plan(
    op="Tiny",
    sm=90,
    attributes={"topk": 3, "precision": "int8"},
    symbols={"L": (0, 0)},
    inputs=[TensorSpec("x", "bf16", ["L", 8])],
    outputs=[TensorSpec("y", "int8", [["ceil_div", "L", 128], 8])],
    buffers=[TensorSpec("b", "fp32", ["L", 3])],
    kernels=[KernelImage("tiny", bytes(range(256)), 4, 1024, 384, 128, 40, 0)],
    launches=[LaunchSpec(0, ["L", 2, 1], [["tensor", "x"], ["i32", ["*", "L", 2]]])],
)


def test_round_trip() -> None:
    data = encode(tiny)
    assert decode(data) == tiny
    assert encode(decode(data)) == data


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 17])
def test_trailing_nul_is_ignored(tail: bytes) -> None:
    assert decode(encode(tiny) + tail) == tiny


def test_truncated_bytes_are_refused() -> None:
    data = encode(tiny)
    for length in range(len(data)):
        with pytest.raises(ValueError, match="launch plan"):
            decode(data[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x7fELF" + bytes(60),
        b"TRTP" + struct.pack("<IQ", 2, 1) + b"\x80",
        b"TRTP" + struct.pack("<IQ", 1, 1) + b"\x80",  # an empty map
        b"TRTP" + struct.pack("<IQ", 1, 3) + b"\xc1\xff\x00",  # not msgpack
        b"TRTP" + struct.pack("<IQ", 1, 2**63) + bytes(64),
    ],
    ids=["empty", "elf", "version", "fields", "msgpack", "length"],
)
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="launch plan"):
        decode(data)


def test_workspace_is_aligned_and_holds_the_scratch() -> None:
    assert [evaluate(size, {"L": 100}) for size in tiny.workspace] == [1280, 76800]
    assert evaluate(tiny.workspace_bytes, {"L": 100}) == 78080


def test_bind_refuses_other_shapes() -> None:
    assert tiny.bind([(5, 8)]) == {"L": 5}
    with pytest.raises(ValueError, match="this plan wants"):
        tiny.bind([(5, 9)])


@pytest.fixture(scope="module")
def from_elsewhere(shared: Shared, elsewhere: Path) -> Path:
    """The folder of every op's plans, compiled from another checkout with a Triton cache of its own."""

    def make(folder: Path) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(elsewhere),
            "TRITON_CACHE_DIR": str(elsewhere.parent / "cache"),
        }
        command = [sys.executable, "-c", COMPILE, repr(STATIC), repr(SMS), str(elsewhere), str(folder)]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    return shared.once("plans from elsewhere", make)


each_plan = pytest.mark.parametrize(("name", "sm"), [(name, sm) for name in OPS for sm in SMS])


@each_plan
def test_compiling_again_elsewhere_gives_equal_bytes(from_elsewhere: Path, name: str, sm: int) -> None:
    data = plan_bytes(OPS[name], STATIC[name], {}, sm)
    assert data == (from_elsewhere / f"{name}-{sm}").read_bytes()
    assert str(ROOT).encode() not in data


@each_plan
def test_compiled_plan(name: str, sm: int) -> None:
    """It decodes to the declared op; its expressions evaluate at every length."""
    data = plan_bytes(OPS[name], STATIC[name], {}, sm)
    plan, op = decode(data), OPS[name]
    assert encode(plan) == data
    assert (plan.op, plan.sm, set(plan.symbols)) == (name, sm, set(op.dynamic))
    assert [spec.name for spec in plan.inputs] == [tensor.name for tensor in op.inputs]
    tensors = {spec.name for spec in (*plan.inputs, *plan.outputs, *plan.buffers)}
    for length in LENGTHS:
        symbols = dict.fromkeys(op.dynamic, length)
        shapes = [shape_of(spec, symbols) for spec in plan.inputs]
        assert plan.bind(shapes) == symbols == {s: v for s, v in op.bind(shapes).items() if s in op.dynamic}
        for spec, declared in zip(plan.outputs, op.outputs, strict=True):
            wanted = tuple(evaluate(dim, symbols | STATIC[name]) for dim in declared.dims)
            assert shape_of(spec, symbols) == wanted
        sizes = [evaluate(size, symbols) for size in plan.workspace]
        assert all(size >= 0 and size % ALIGNMENT == 0 for size in sizes)
        assert evaluate(plan.workspace_bytes, symbols) == sum(sizes)
        for launch in plan.launches:
            x, y, z = (evaluate(from_plain(dim), symbols) for dim in launch.grid)
            assert 1 <= x < 2**31
            assert 1 <= y < 2**16
            assert 1 <= z < 2**16
            for kind, value in launch.args:
                if kind == "tensor":
                    assert value in tensors
                else:
                    assert kind == "i32"
                    assert 0 <= evaluate(from_plain(value), symbols) < 2**31
