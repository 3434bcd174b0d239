"""The CUDA device that benchmarks and tuning run on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from exporter.gpus import GpuSpec
from plugins.errors import UserError
from plugins.plan import shape_of
from plugins.sms import capability, sm_number
from plugins.torch_dtypes import torch_dtype
from plugins.torch_op import executor

_SLEEP_CYCLES = (
    20_000_000  # about 10 ms: time for the host to enqueue what is measured, so that no launch is waited for
)
_TARGET_MS = 200.0


def present_gpu(wanted: GpuSpec) -> tuple[int, str]:
    """SM and name of the present device. Raises UserError where there is none."""
    if not torch.cuda.is_available():
        raise UserError(
            "This runs on the GPU it is about, and there is no CUDA GPU here.",
            expected=wanted.product,
            remedy="run it on a machine that has one",
        )
    major, minor = torch.cuda.get_device_capability()
    return sm_number(major, minor), torch.cuda.get_device_name()


def other_gpu(wanted: GpuSpec, sm: int, name: str, *, proxied: bool) -> UserError:
    """The refusal of a present device; ``proxied``: a Hopper GPU would do for the wanted one."""
    stand_in = ", or a Hopper GPU, which runs its kernels by proxy" if proxied else ""
    return UserError(
        f"The GPU here is not a {wanted.product}.",
        expected=f"compute capability {wanted.compute_capability}{stand_in}",
        got=f"{capability(sm)} ({name})",
        remedy="name the GPU that is present with --gpu",
    )


def prepared(plan: bytes, inputs: Sequence[torch.Tensor]) -> tuple[Callable[[], None], list[torch.Tensor]]:
    """(a function that enqueues the plan on these CUDA tensors, its outputs): nothing is allocated in a call."""
    device = inputs[0].device
    loaded = executor(plan, device.index)
    given = [tensor.contiguous() for tensor in inputs]
    shapes = [tuple(tensor.shape) for tensor in given]
    symbols = loaded.plan.bind(shapes)
    outputs = [
        torch.empty(shape_of(s, symbols), dtype=torch_dtype(s.dtype), device=device) for s in loaded.plan.outputs
    ]
    workspace = torch.empty(max(1, loaded.workspace_bytes(shapes)), dtype=torch.uint8, device=device)

    def run() -> None:
        pointers = [t.data_ptr() for t in given], [t.data_ptr() for t in outputs]
        loaded.run(shapes, *pointers, workspace.data_ptr(), torch.cuda.current_stream(device).cuda_stream)

    return run, outputs


def _times(run: Callable[[], None], count: int) -> list[float]:
    marks: list[tuple[Any, Any]] = []
    torch.cuda._sleep(_SLEEP_CYCLES)
    for _ in range(count):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in marks]


def median_ms(run: Callable[[], None]) -> float:
    """Median time of a call on the GPU by CUDA events, after three calls to warm up; 5 to 50 calls, about 0.2 s."""
    first = min(_times(run, 3))
    return float(median(_times(run, max(5, min(50, int(_TARGET_MS / max(first, 1e-3)))))))
