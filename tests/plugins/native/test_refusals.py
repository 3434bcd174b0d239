"""What the library does not take, it refuses by name, through the host's logger, and goes on."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from plugins.plan import MAGIC, KernelImage, LaunchSpec, Plan, TensorSpec, encode
from plugins.registry import OPS
from runtime.versions import own_version
from tests.plugins.test_untrusted_plans import WRONG, nested
from tests.support.native_build import sanitized
from tests.support.native_probe import Probe

OP = "RmsNorm"
PLAN = Plan(
    op=OP,
    sm=90,
    attributes={"topk": 3, "precision": "int8"},
    symbols={"L": (0, 0)},
    inputs=[TensorSpec("x", "bf16", ["L", 8])],
    outputs=[TensorSpec("y", "int8", [["ceil_div", "L", 128], 8])],
    buffers=[TensorSpec("b", "fp32", ["L", 3])],
    kernels=[KernelImage("tiny", bytes(range(256)), 4, 1024, 384, 128, 40, 0)],
    launches=[LaunchSpec(0, ["L", 2, 1], [["tensor", "x"], ["i32", ["*", "L", 2]]])],
)
DATA = encode(PLAN)
PLAIN: dict[str, Any] = msgspec.to_builtins(PLAN, builtin_types=(bytes,))


@pytest.fixture(scope="module")
def probe() -> Iterator[Probe]:
    with Probe(sanitized()) as made:
        yield made


def packed(content: object, version: int = 1) -> bytes:
    body = content if isinstance(content, bytes) else msgspec.msgpack.encode(content)
    return MAGIC + struct.pack("<IQ", version, len(body)) + body


def refused(probe: Probe, data: bytes, words: str, op: str = OP) -> None:
    assert probe.create(op, data) == "refused"
    (line,) = probe.log
    assert line.startswith(f"turbotrt {own_version()}, {op}: node 'a node': ")
    assert words in line
    assert line.isprintable()
    assert len(line) < 300
    assert "no op where it belongs" not in line, "the fields are in order"
    assert probe.create(OP, DATA) == "made", "after a refusal all goes on"


@pytest.mark.parametrize("case", WRONG)
def test_what_python_refuses(probe: Probe, case: str) -> None:
    """The cases of tests/plugins/test_untrusted_plans.py, of a plan that is sound otherwise."""
    content = PLAIN | WRONG[case]
    for kernel in content["kernels"]:
        kernel["cubin"] = b"x" if isinstance(kernel["cubin"], str) else kernel["cubin"]
    refused(probe, packed(content), "launch plan does not decode: ")


def test_a_newer_format(probe: Probe) -> None:
    words = f"launch plan of format 2; this library, of turbotrt {own_version()}, reads format 1: take the library of"
    refused(probe, packed(PLAIN, version=2), words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a launch plan"),
        (b"\x7fELF" + bytes(60), "not a launch plan"),
        (packed(b"\x80"), "a map of 0"),
        (packed(b"\xc1\xff\x00"), "no map where one belongs"),
        (packed(b"\x91" * 200_000), "no map where one belongs"),
        (packed(b"\xdf\xff\xff\xff\xff"), "a map of 4294967295"),
        (DATA[:8] + struct.pack("<Q", 2**63) + DATA[16:], "cut short"),
        (packed(DATA[16:] + b"\0"), "bytes after its end"),
        (packed(PLAIN | {"symbols": {}, "zzz": 1}), "a map of 10"),
        (packed(PLAIN | {"sm": 1.0}), "no integer where one belongs"),
    ],
    ids=["empty", "elf", "fields", "msgpack", "deep", "long", "length", "tail", "unknown field", "float"],
)
def test_what_is_no_plan(probe: Probe, data: bytes, words: str) -> None:
    refused(probe, data, words)


def test_every_cut(probe: Probe) -> None:
    for length in range(1, len(DATA)):
        refused(probe, DATA[:length], "launch plan")
    for length in range(len(DATA) - 16):
        refused(probe, packed(DATA[16 : 16 + length]), "launch plan does not decode")


def test_depth_of_expressions(probe: Probe) -> None:
    content = PLAIN | {"buffers": [PLAIN["buffers"][0] | {"shape": [nested(12)]}]}
    assert probe.create(OP, packed(content)) == "made"
    refused(probe, packed(content | {"buffers": [PLAIN["buffers"][0] | {"shape": [nested(13)]}]}), "too deep")


def test_other_nodes(probe: Probe) -> None:
    other = next(op for op in OPS if op != OP)
    refused(probe, DATA, f"its plan is for {OP}", other)
    assert probe.create(OP, DATA, "another") == "refused"
    assert "it carries no launch plan" in probe.log[0]


@pytest.mark.parametrize("cubin", [b"", b"x", bytes(range(256)), b"\x7fELF\x02\x01" + b"\xff" * 200])
def test_what_is_no_cubin_never_reaches_the_driver(probe: Probe, cubin: bytes) -> None:
    content = PLAIN | {"kernels": [PLAIN["kernels"][0] | {"cubin": cubin}]}
    assert probe.create(OP, packed(content)) == "made"
    loads = probe.ask("drop")
    probe.create(OP, packed(content))
    answers = probe.life([(128, 8)])
    assert not answers["attached"]
    assert "kernel tiny is no whole cubin" in probe.log[-1]
    assert probe.ask("drop") == loads


def test_arguments_that_a_kernel_does_not_have(probe: Probe) -> None:
    """The driver reads as many as the kernel has: fewer in the plan would have it read beyond them."""
    from plugins.compile import plan_bytes
    from plugins.plan import decode

    made = decode(plan_bytes(OPS[OP], {"D": 256, "E": 512}, {}, 120))
    (launch,) = made.launches
    for args in (launch.args[:-1], [["i32", 1], *launch.args[1:]]):
        changed = msgspec.structs.replace(made, launches=[msgspec.structs.replace(launch, args=args)])
        assert probe.create(OP, encode(changed)) == "made"
        assert not probe.life([(64, 512), (256,)])["attached"]
        assert re.search(r"parameter \d of kernel rms_norm has [48] bytes, which the plan does not give", probe.log[-1])
