"""Every plan of a real bundle through the plugin's whole life, with the real tensorrt_rtx module and no driver."""

from __future__ import annotations

from typing import Any

import pytest
import torch

trt = pytest.importorskip("tensorrt_rtx")

from plugins.expr import evaluate
from plugins.plan import Plan, decode
from plugins.registry import OPS
from plugins.tensorrt_plugin import creator_class
from tests.support import plugin_life as life
from tests.support.exported import Exported

LENGTHS = (16, 127, 128, 129, 1000, 32760)


@pytest.fixture(scope="module")
def plans(exported: Exported) -> dict[str, bytes]:
    return life.every_ops_plans(exported)


def test_the_whole_life(plans: dict[str, bytes]) -> None:
    assert {decode(data).op for data in plans.values()} == set(OPS)
    for name, data in plans.items():
        plan = decode(data)
        built = life.create(trt, plan.op, data, trt.TensorRTPhase.BUILD)
        plugin = built.clone()
        assert plugin is not built
        assert plugin.plugin_name == plan.op
        assert plugin.num_outputs == len(plan.outputs)
        for kind in (trt.PluginCapabilityType.CORE, trt.PluginCapabilityType.BUILD, trt.PluginCapabilityType.RUNTIME):
            assert plugin.get_capability_interface(kind) is plugin
        types = [life.data_type(trt, spec) for spec in plan.inputs]
        assert plugin.get_output_data_types(types) == [life.data_type(trt, spec) for spec in plan.outputs]
        _formats(plugin, plan)
        _shapes(plugin, plan)
        fresh = life.reborn(trt, plugin)
        assert fresh.plan == plan, name
        attached = fresh.attach_to_context(None)
        assert attached is not fresh
        assert attached.plan == plan
        _shapes(attached, plan)


def _formats(plugin: Any, plan: Plan) -> None:
    for position in range(len(plan.inputs) + len(plan.outputs)):
        asked = life.described(trt, plan)
        assert plugin.supports_format_combination(position, asked, len(plan.inputs))
        asked[position].desc.format = trt.TensorFormat.CHW32
        assert not plugin.supports_format_combination(position, asked, len(plan.inputs))
        asked = life.described(trt, plan)
        asked[position].desc.type = trt.DataType.BOOL
        assert not plugin.supports_format_combination(position, asked, len(plan.inputs))


def _shapes(plugin: Any, plan: Plan) -> None:
    sizes = []
    for length in LENGTHS:
        symbols = life.symbols_at(plan, length)
        inputs = life.dims(life.shapes(plan.inputs, symbols))
        outputs = life.dims(life.shapes(plan.outputs, symbols))
        plugin.configure_plugin(inputs, outputs)
        sizes.append(plugin.get_workspace_size(inputs, outputs))
        assert sizes[-1] == evaluate(plan.workspace_bytes, symbols)
        plugin.on_shape_change(inputs, outputs)
    assert sizes == sorted(sizes), f"{plan.op}: the workspace of the largest shape must do for all"


def test_a_shape_the_plan_is_not_for_is_refused(plans: dict[str, bytes]) -> None:
    data = next(iter(plans.values()))
    plan = decode(data)
    plugin = life.create(trt, plan.op, data, trt.TensorRTPhase.RUNTIME)
    wrong = life.shapes(plan.inputs, life.symbols_at(plan, 64))
    wrong[0] = (*wrong[0][:-1], wrong[0][-1] + 1)
    with pytest.raises(ValueError, match="this plan wants"):
        plugin.on_shape_change(life.dims(wrong), [])


def test_a_plan_of_another_op_is_refused(plans: dict[str, bytes]) -> None:
    data = next(iter(plans.values()))
    other = next(op for op in map(lambda d: decode(d).op, plans.values()) if op != decode(data).op)
    with pytest.raises(ValueError, match="its plan is for"):
        life.create(trt, other, data, trt.TensorRTPhase.BUILD)


def test_a_node_without_a_plan_is_refused(plans: dict[str, bytes]) -> None:
    creator = creator_class(trt)("RmsNorm")
    for fields in (trt.PluginFieldCollection([]), life.collection(trt, b"x", name="other")):
        with pytest.raises(ValueError, match="carries no launch plan"):
            creator.create_plugin("node", fields, trt.TensorRTPhase.BUILD)
    with pytest.raises(ValueError, match="launch plan"):
        creator.create_plugin("node", life.collection(trt, b"garbage" * 9), trt.TensorRTPhase.BUILD)


def test_shape_expressions_agree_with_the_plan(plans: dict[str, bytes]) -> None:
    for data in plans.values():
        plan = decode(data)
        for length in LENGTHS:
            wanted = life.shapes(plan.outputs, life.symbols_at(plan, length))
            assert life.output_shapes(trt, plan, length) == wanted, plan.op


def _random(spec: Any, symbols: dict[str, int]) -> Any:
    from plugins.plan import shape_of
    from plugins.torch_dtypes import torch_dtype

    shape, dtype = shape_of(spec, symbols), torch_dtype(spec.dtype)
    if dtype == torch.int8:
        return torch.randint(-127, 128, shape, dtype=dtype, device="cuda")
    return torch.rand(shape, device="cuda").to(dtype)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_enqueue_runs_the_plan_on_raw_pointers(plans: dict[str, bytes]) -> None:
    """The plans are compiled again for the GPU that is here: the same ops, dims and attributes."""
    from plugins.compile import plan_bytes
    from plugins.plan import shape_of
    from plugins.torch_dtypes import torch_dtype
    from plugins.torch_op import run_plan

    major, minor = torch.cuda.get_device_capability()
    stream = torch.cuda.current_stream().cuda_stream
    for theirs in {data: decode(data) for data in plans.values()}.values():
        op = OPS[theirs.op]
        found = life.shapes(theirs.inputs, life.symbols_at(theirs, 192))
        static = {name: found[index][axis] for name, (index, axis) in op.symbol_sources().items()}
        data = plan_bytes(op, static, theirs.attributes, major * 10 + minor)
        plan = decode(data)
        symbols = life.symbols_at(plan, 192)
        inputs = [_random(spec, symbols) for spec in plan.inputs]
        outputs = [torch.zeros(shape_of(s, symbols), dtype=torch_dtype(s.dtype), device="cuda") for s in plan.outputs]
        built = life.create(trt, plan.op, data, trt.TensorRTPhase.BUILD)
        plugin = life.reborn(trt, built).attach_to_context(None)
        described = life.dims([tuple(t.shape) for t in inputs])
        workspace = torch.empty(max(1, plugin.get_workspace_size(described, [])), dtype=torch.uint8, device="cuda")
        plugin.on_shape_change(described, [])
        pointers = [t.data_ptr() for t in inputs], [t.data_ptr() for t in outputs]
        assert plugin.enqueue(described, [], *pointers, workspace.data_ptr(), stream) == 0
        for ours, wanted in zip(outputs, run_plan(data, inputs), strict=True):
            assert torch.equal(ours.view(torch.uint8), wanted.view(torch.uint8)), plan.op
