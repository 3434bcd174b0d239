"""Plugins of the library through their whole life under sanitizers, and all they answer beside Python's plugins.

A stand-in driver writes down what is launched; PlanExecutor's launches are written down likewise.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

trt = pytest.importorskip("tensorrt_rtx")

from plugins.dtypes import DTYPES
from plugins.expr import evaluate, from_plain
from plugins.plan import Plan, TensorSpec, decode
from plugins.registry import OPS
from plugins.tensorrt_plugin import PLUGIN_VERSION, tensorrt_dims
from tests.support import plugin_life as life
from tests.support.exported import Exported
from tests.support.launch_record import Recorder
from tests.support.native_build import Native, sanitized
from tests.support.native_probe import TENSORRT_10, TENSORRT_11, Probe

SIZES = 25  # of each plan, beside those where something changes
EDGES = (1, 63, 64, 65, 127, 128, 129, 32760, 75600, 131072)


@pytest.fixture(scope="module")
def native() -> Native:
    return sanitized()


@pytest.fixture(scope="module")
def plans(exported: Exported) -> dict[str, bytes]:
    return life.every_ops_plans(exported)


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    with pytest.MonkeyPatch.context() as patch:
        yield Recorder(patch)


@pytest.fixture(params=[TENSORRT_10, TENSORRT_11], ids=["TensorRT 10", "TensorRT 11"])
def probe(native: Native, request: pytest.FixtureRequest) -> Iterator[Probe]:
    with Probe(native, request.param) as made:
        yield made


def symbols_of(plan: Plan, name: str) -> list[dict[str, int]]:
    """Values of a plan's symbols: edges, and random ones for each by itself."""
    dice = random.Random(name)
    found = [dict.fromkeys(plan.symbols, edge) for edge in EDGES]
    return found + [{symbol: dice.randint(1, 40_000) for symbol in plan.symbols} for _ in range(SIZES)]


def _type(spec: TensorSpec) -> int:
    return int(getattr(trt.DataType, DTYPES[spec.dtype].tensorrt))


def _operations(plan: Plan, shapes: list[tuple[int, ...]]) -> list[int]:
    """TensorRT's numbers of the operations that Python's plugin asks for, in their order."""
    builder = life.IntExprBuilder(trt)
    for spec in plan.outputs:
        for dim in spec.shape:
            tensorrt_dims(trt, from_plain(dim), shapes, plan, builder)
    numbers = {
        "+": "SUM",
        "-": "SUB",
        "*": "PROD",
        "//": "FLOOR_DIV",
        "ceil_div": "CEIL_DIV",
        "max": "MAX",
        "min": "MIN",
    }
    return [int(getattr(trt.DimensionOperation, numbers[name])) for name in builder.asked]


def test_every_plan_at_many_sizes(native: Native, plans: dict[str, bytes], recorder: Recorder) -> None:
    """Types, formats, shapes, operations, workspace and launches are Python's; enqueue neither allocates nor locks."""
    assert {decode(data).op for data in plans.values()} == set(OPS)
    with Probe(native) as probe:
        for data, name in {data: name for name, data in plans.items()}.items():
            plan = decode(data)
            executor = recorder.executor(plan)
            assert probe.create(plan.op, data) == "made"
            for symbols in symbols_of(plan, name):
                shapes = life.shapes(plan.inputs, symbols)
                answers = probe.life(shapes)
                assert min(answers.pop("attaching")) > 0, "allocations and locks are counted"
                types = [_type(spec) for spec in plan.inputs], [_type(spec) for spec in plan.outputs]
                assert answers == {
                    "name": plan.op,
                    "version": PLUGIN_VERSION,
                    "namespace": "",
                    "types": types[1],
                    "formats": [[known] for known in (*types[0], *types[1])],
                    "outputs": [list(shape) for shape in life.shapes(plan.outputs, symbols)],
                    "operations": _operations(plan, shapes),
                    "configured": 0,
                    "workspace": evaluate(plan.workspace_bytes, symbols),
                    "serialized": len(data),
                    "attached": True,
                    "changed": 0,
                    "enqueued": 0,
                    "launches": recorder.record(executor, shapes),
                    "enqueuing": [0, 0],
                }, (name, symbols)
                assert probe.log == []


def _first(plans: dict[str, bytes], op: str) -> bytes:
    return next(data for data in plans.values() if decode(data).op == op)


def test_threads_in_many_contexts(native: Native, plans: dict[str, bytes]) -> None:
    """Two threads attach plugins of one plan in five contexts, run them and drop them: the records stay what they are.

    Each plan's kernels are loaded once a context, and unloaded with the last plugin.
    """
    with Probe(native) as probe:
        for op in ("SageSLAQuantize", "LayerNormQuantize"):
            data = _first(plans, op)
            plan = decode(data)
            assert probe.create(op, data) == "made"
            cases = [life.shapes(plan.inputs, symbols) for symbols in symbols_of(plan, op)[:4]]
            text = "|".join(";".join(",".join(map(str, shape)) for shape in shapes) for shapes in cases)
            assert probe.ask(f"threads {text}") == "equal"
            assert probe.ask("drop").split()[0] == "0"


def test_kernels_are_loaded_once_a_plan_and_context(native: Native, plans: dict[str, bytes]) -> None:
    data = _first(plans, "LayerNormQuantize")
    plan = decode(data)
    shapes = life.shapes(plan.inputs, life.symbols_at(plan, 1000))
    with Probe(native) as probe:
        probe.create(plan.op, data)
        probe.ask("context 0")
        answers = probe.life(shapes)  # a builder without a GPU attaches plugins, and runs none
        assert (answers["attached"], answers["changed"], answers["enqueued"]) == (True, 0, -1)
        assert "no CUDA context is current" in probe.log[-1]
        assert probe.ask("drop") == "0 0"
        probe.ask("context 3")
        probe.create(plan.op, data)
        assert probe.life(shapes)["launches"][0]["context"] == 3
        assert probe.ask("drop") == f"0 {len(plan.kernels)}"


@pytest.mark.parametrize(
    ("function", "attached", "words"),
    [
        ("cuLibraryLoadData", False, "loading kernel layer_norm_quantize: CUDA_ERROR_STAND_IN (2)"),
        ("cuLibraryGetKernel", False, "finding kernel "),
        ("cuKernelGetFunction", False, " into the current CUDA context: CUDA_ERROR_STAND_IN"),
        ("cuLaunchKernel", True, "launching kernel zero_counters: CUDA_ERROR_STAND_IN (719)"),
    ],
)
def test_failures_of_the_driver_are_told(
    probe: Probe, plans: dict[str, bytes], function: str, attached: bool, words: str
) -> None:
    """By the logger of either form of TensorRT, with the op's name; what was loaded is unloaded."""
    data = _first(plans, "LayerNormQuantize")
    plan = decode(data)
    shapes = life.shapes(plan.inputs, life.symbols_at(plan, 1000))
    probe.create(plan.op, data)
    probe.ask(f"fail {function}")
    answers = probe.life(shapes)
    assert answers["attached"] == attached
    assert answers.get("enqueued", -1) == -1
    assert words.replace("kernel layer_norm_quantize", "kernel zero_counters") in probe.log[-1]
    assert "LayerNormQuantize: " in probe.log[-1]
    probe.ask("fail")
    assert probe.life(shapes)["enqueued"] == 0
    assert probe.ask("drop").split()[0] == "0"


def test_shapes_that_a_plan_is_not_for_are_refused(probe: Probe, plans: dict[str, bytes]) -> None:
    data = _first(plans, "RmsNorm")
    plan = decode(data)
    right = life.shapes(plan.inputs, life.symbols_at(plan, 64))
    wrong = {
        "this plan wants 512 on axis 1": [(64, 513), *right[1:]],
        "this plan wants 2 dimensions": [(64, 512, 1), *right[1:]],
        "a node of 1 inputs and 1 outputs; its plan has 2 and 1": right[:1],
    }
    assert probe.create(plan.op, data) == "made"
    for words, shapes in wrong.items():
        answers = probe.life(shapes)
        assert (answers["configured"], answers["workspace"], answers["changed"]) == (-1, 0, -1)
        assert any(words in line and "RmsNorm: " in line for line in probe.log), probe.log
    for length, words in ((2**40, "which has 32 bits"), (2**62, "64 bits do not hold"), (0, "a grid of 0")):
        answers = probe.life(life.shapes(plan.inputs, life.symbols_at(plan, length)))
        assert (answers["changed"], answers["enqueued"], answers["launches"]) == (-1, -1, [])
        assert any(words in line for line in probe.log) or "a grid of" in probe.log[-1], probe.log
