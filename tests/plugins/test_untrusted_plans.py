"""Plan files come with bundles, from anywhere: what does not hold together is a ValueError when it is decoded."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from plugins.expr import MAX_DEPTH, MAX_NUMBER, evaluate, from_plain, to_plain
from plugins.plan import FORMAT_VERSION, MAGIC, Plan, decode
from tests.plugins.test_plans import tiny

PLAIN: dict[str, Any] = msgspec.to_builtins(tiny)


def packed(content: Any) -> bytes:
    """The file of a plan with this content."""
    body = content if isinstance(content, bytes) else msgspec.msgpack.encode(content)
    return MAGIC + FORMAT_VERSION.to_bytes(4, "little") + len(body).to_bytes(8, "little") + body


def nested(depth: int) -> Any:
    """An expression of that depth."""
    plain: Any = "L"
    for _ in range(depth):
        plain = ["+", plain, 1]
    return plain


TENSOR = PLAIN["inputs"][0]
KERNEL = PLAIN["kernels"][0] | {"cubin": b"x"}
LAUNCH = PLAIN["launches"][0]
WRONG: dict[str, dict[str, Any]] = {
    "a dtype": {"inputs": [TENSOR | {"dtype": "bf17"}]},
    "nine dims": {"inputs": [TENSOR | {"shape": [1] * 9}]},
    "a float dim": {"outputs": [TENSOR | {"name": "y", "shape": [1.5]}]},
    "a bool dim": {"outputs": [TENSOR | {"name": "y", "shape": [True]}]},
    "a list for an operator": {"outputs": [TENSOR | {"name": "y", "shape": [[[], 1, 2]]}]},
    "an unknown operator": {"outputs": [TENSOR | {"name": "y", "shape": [["**", "L", 2]]}]},
    "an operator of one": {"outputs": [TENSOR | {"name": "y", "shape": [["+", "L"]]}]},
    "division by zero": {"buffers": [TENSOR | {"name": "b", "shape": [["//", "L", 0]]}]},
    "constants divided by zero": {"buffers": [TENSOR | {"name": "b", "shape": [["ceil_div", 4, ["-", 2, 2]]]}]},
    "division by a symbol": {"launches": [LAUNCH | {"grid": [["ceil_div", 100, ["-", "L", 5]], 1, 1]}]},
    "a division by less than zero": {"launches": [LAUNCH | {"args": [["i32", ["//", "L", -1]]]}]},
    "too deep": {"launches": [LAUNCH | {"grid": [nested(MAX_DEPTH + 1), 1, 1]}]},
    "too large": {"launches": [LAUNCH | {"grid": [["*", MAX_NUMBER, 2], 1, 1]}]},
    "an unknown symbol": {"outputs": [TENSOR | {"name": "y", "shape": ["M"]}]},
    "a symbol of no input": {"symbols": {"L": [1, 0]}},
    "a symbol of no axis": {"symbols": {"L": [0, 2]}},
    "a symbol before the first": {"symbols": {"L": [-1, 0]}},
    "two of one name": {"outputs": [TENSOR]},
    "a name with an escape": {"inputs": [TENSOR | {"name": "\x1b[31m"}]},
    "no name": {"op": ""},
    "65 launches": {"launches": [LAUNCH] * 65},
    "65 inputs": {"inputs": [TENSOR | {"name": f"x{i}"} for i in range(65)]},
    "a kernel that is not there": {"launches": [LAUNCH | {"kernel": 1}]},
    "a grid of two": {"launches": [LAUNCH | {"grid": [1, 1]}]},
    "an argument of three": {"launches": [LAUNCH | {"args": [["tensor", "x", 1]]}]},
    "an argument of no kind": {"launches": [LAUNCH | {"args": [["f32", 1]]}]},
    "an argument that is no tensor": {"launches": [LAUNCH | {"args": [["tensor", "z"]]}]},
    "an argument that is a list": {"launches": [LAUNCH | {"args": [["tensor", []]]}]},
    "no warps": {"kernels": [KERNEL | {"num_warps": 0}]},
    "2**40 bytes of shared memory": {"kernels": [KERNEL | {"shared": 2**40}]},
    "scratch below zero": {"kernels": [KERNEL | {"global_scratch": -1}]},
}


def test_the_plan_of_these_tests_is_sound() -> None:
    assert decode(packed(PLAIN | {"kernels": [KERNEL]})).launches == tiny.launches


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_hold_together_is_refused(case: str) -> None:
    with pytest.raises(ValueError, match="launch plan does not decode") as told:
        decode(packed(PLAIN | {"kernels": [KERNEL]} | WRONG[case]))
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    "body",
    [
        b"\x91" * 200_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x89\xa2op\xa1x\xa7outputs\xdd\xff\xff\xff\xff",
    ],
    ids=["deep", "list", "map", "outputs"],
)
def test_no_depth_and_no_announced_length_matters(body: bytes) -> None:
    shape = msgspec.msgpack.encode(PLAIN).replace(b"\xa5shape\x92\xa1L\x08", b"\xa5shape\x92" + b"\x91" * 100_000, 1)
    for content in (body, shape):
        started = time.process_time()
        with pytest.raises(ValueError, match="does not decode"):
            decode(packed(content))
        assert time.process_time() - started < 1


def test_expressions_of_ours_are_read_up_to_the_depth() -> None:
    dim = from_plain(nested(MAX_DEPTH))
    assert evaluate(dim, {"L": 5}) == 5 + MAX_DEPTH
    assert to_plain(dim) == nested(MAX_DEPTH)
    assert from_plain(["//", ["*", 7, 3], 2]) == 10
    wrong: list[Any] = [nested(MAX_DEPTH + 1), nested(5000), None, 1.0, True, {}, ["+", 1], [{}, 1, 2], MAX_NUMBER + 1]
    for plain in wrong:
        with pytest.raises(ValueError, match="not a dimension expression"):
            from_plain(plain)


def test_a_shape_of_another_rank_is_refused() -> None:
    for shapes in ([(5,)], [()], [(5, 8, 1)], []):
        with pytest.raises(ValueError, match=r"this plan wants|zip\(\)"):
            tiny.bind(shapes)


def test_a_plan_made_here_is_checked_as_well() -> None:
    with pytest.raises(ValueError, match="two tensors of one name"):
        Plan("Copy", 90, {}, {}, tiny.inputs, tiny.inputs, [], [], [])
