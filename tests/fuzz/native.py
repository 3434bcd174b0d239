"""Target of the plugin library: launch plans changed in structure and in bytes, read under sanitizers beside Python."""

from __future__ import annotations

import random
import weakref
from pathlib import Path
from typing import Any

import msgspec

from plugins.expr import evaluate
from plugins.plan import FORMAT_VERSION, MAGIC, Plan, decode, encode, shape_of
from plugins.registry import OPS
from runtime.versions import own_version
from tests.fuzz.bundles import PLAN
from tests.fuzz.mutations import bytes_of, structure
from tests.fuzz.target import Case, Target
from tests.support.native_build import can_build, sanitized
from tests.support.native_probe import Probe

OP = next(iter(OPS))  # the library makes plugins of its own ops alone
LARGEST = 2**62  # of what the library computes, and Python without an end


def _read(data: bytes) -> Plan | None:
    try:
        return decode(data)
    except ValueError:
        return None


def _check_reading(data: bytes, plan: Plan | None, made: bool) -> None:
    """The library takes what Python writes, and nothing that Python refuses."""
    assert not made or (plan is not None and plan.op == OP), "the library takes what Python refuses"
    if plan is not None and plan.op == OP and data.startswith(encode(plan)):
        assert made, "the library refuses what Python writes"


def _check_answers(plan: Plan, probe: Probe, length: int) -> None:
    """Output shapes and workspace are Python's, where 64 bits hold them."""
    shapes = [[length if isinstance(dim, str) else 8 for dim in spec.shape] for spec in plan.inputs]
    if not shapes or [] in shapes:  # the probe knows no input without dimensions
        return
    answers = probe.life(shapes)
    try:
        symbols = plan.bind(shapes)
    except ValueError:
        assert answers["configured"] == -1
        return
    workspace = [evaluate(size, symbols) for size in plan.workspace]
    outputs = [list(shape_of(spec, symbols)) for spec in plan.outputs]
    numbers = [*workspace, *(dim for shape in outputs for dim in shape), sum(workspace)]
    if answers["configured"] == 0 and all(abs(number) < LARGEST for number in numbers):
        assert answers["workspace"] == sum(workspace)
        assert answers["outputs"] == outputs


def _native_plans(_: Path) -> Case:
    probe = Probe(sanitized())
    sound = msgspec.structs.replace(PLAN, op=OP)
    data, plain = encode(sound), msgspec.to_builtins(sound, builtin_types=(bytes,))

    def changed(dice: random.Random) -> bytes:
        if dice.random() < 0.4:
            return bytes_of(data, dice)
        body = msgspec.msgpack.encode(structure(plain, dice, texts=False))
        return MAGIC + FORMAT_VERSION.to_bytes(4, "little") + len(body).to_bytes(8, "little") + body

    def case(dice: random.Random, folder: Path) -> None:
        given: Any = changed(dice)
        plan = _read(given)
        answer = probe.create(OP, given)
        assert answer == "made" or probe.log[-1].startswith(f"turbotrt {own_version()}, {OP}: node 'a node': "), (
            probe.log
        )
        _check_reading(given, plan, answer == "made")
        if answer != "made" or plan is None:
            raise ValueError("refused")
        _check_answers(plan, probe, dice.choice((1, 100, 2**31)))

    weakref.finalize(case, probe.close)
    return case


NATIVE_TARGETS = (Target("native-plans", _native_plans, 2000, (ValueError,)),) if can_build() else ()
