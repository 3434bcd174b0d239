"""The part "ops": the plan of every op in a bundle's block alone on the device, without TensorRT, against its oracle.

The launches are those that the plugin enqueues. What fails here is a kernel's fault; what fails in a block and not here
is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from exporter.bench.synthetic import random_weights
from exporter.compare.machines.machine import BlockInput
from exporter.compare.machines.ops import Call, Outputs, Recorder, by_reference, labelled
from exporter.compare.machines.plan_ops import PlanOps
from exporter.compare.machines.torch_machines import StageMachine
from exporter.networks.dit.stages import block_stage
from exporter.selftest.alone import downloaded, relative_l2
from exporter.selftest.rows import Case
from exporter.selftest.stages import raw, stage_inputs, tensor_of
from exporter.selftest.step import Finding, Setting, Step, variant_of
from exporter.selftest.variants import SIZES, Variant
from plugins.executor import PlanExecutor
from plugins.plan import decode, shape_of
from runtime.backends.cuda_device import CudaDevice
from runtime.bundle import load_manifest
from runtime.dims import Sizes
from runtime.layout import layout
from runtime.video_shape import latents_of, tokens_of


def steps(setting: Setting, case: Case) -> Iterator[Step]:
    """A step for each op that the block calls, at the first size."""
    variant = variant_of(case)
    folder = setting.bundle(variant)
    manifest = load_manifest(folder)
    plans = PlanOps([folder / file for file in set(manifest.plans.values())], manifest.gpu.sm, manifest.gpu.sm)
    for label, (call, outputs) in recorded(variant).items():
        yield Step(label, partial(_check, plans, call, outputs))


def recorded(variant: Variant) -> dict[str, tuple[Call, Outputs]]:
    """The calls of one block on the CPU, answered by oracles."""
    shape = latents_of(SIZES[0][:2], SIZES[0][2])
    sizes: Sizes = {"L": tokens_of(shape)}
    stage = block_stage(variant.model, variant.options)
    arrays = stage_inputs(stage, sizes, shape)
    given = BlockInput(*(tensor_of(arrays[name], tensor.dtype) for name, tensor in stage.inputs.items()))
    weights = random_weights(stage.weights, 1, "cpu")
    machine = StageMachine("oracle", lambda *_: weights, variant.options, by_reference, torch.device("cpu"))
    recorder = Recorder(by_reference)
    machine.block_by(recorder, variant.model.experts[0], 0, given)
    return recorder.calls


def _check(plans: PlanOps, call: Call, outputs: Outputs) -> Iterator[Finding]:
    got, want = labelled(call, run_plan(plans.plan(call, call.inputs), call)), labelled(call, outputs)
    errors = {name: relative_l2(got[name].float().numpy(), want[name].float().numpy()) for name in want}
    worst = max(errors, key=lambda name: errors[name])
    bound = call.op.bound(call.attributes).compare
    yield Finding(call.label, op=call.op.name, tensor=worst, error=errors[worst], bound=bound)


def run_plan(data: bytes, call: Call) -> Outputs:
    """What a plan's kernels give for a call's inputs on the first GPU, through the CUDA driver alone."""
    device = CudaDevice()
    try:
        with device.current():
            return _run(device, PlanExecutor(decode(data)), call)
    finally:
        device.close()


def _run(device: CudaDevice, executor: PlanExecutor, call: Call) -> Outputs:
    plan, shapes = executor.plan, [tuple(tensor.shape) for tensor in call.inputs]
    symbols = plan.bind(shapes)
    taken = layout((str(i), shape, spec.dtype) for i, (spec, shape) in enumerate(zip(plan.inputs, shapes, strict=True)))
    given = layout((spec.name, shape_of(spec, symbols), spec.dtype) for spec in plan.outputs)
    memories = [device.allocate(max(1, n)) for n in (taken.nbytes, given.nbytes, executor.workspace_bytes(shapes))]
    try:
        for place, tensor in zip(taken.places.values(), call.inputs, strict=True):
            device.upload(memories[0], place.offset, raw(tensor).reshape(-1).view(np.uint8), "compute")
        inputs, outputs = (
            [memory.address + place.offset for place in where.places.values()]
            for memory, where in zip(memories, (taken, given), strict=False)
        )
        executor.run(shapes, inputs, outputs, memories[2].address, device.stream)
        found = downloaded(device, memories[1], given)
        return tuple(tensor_of(found[spec.name], spec.dtype) for spec in plan.outputs)
    finally:
        device.finish()
        for memory in memories:
            memory.free()
