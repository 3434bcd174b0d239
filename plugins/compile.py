"""Launch plan of an op for a target GPU: Triton kernels cross-compiled to cubins, no GPU needed.

A ``host`` is an SM that runs another's kernels from their PTX: PTX runs on every later architecture, and what it says
is the same program down to ptxas. What that proxy leaves out is in exporter/bench/proxy.py.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from plugins.cubin import assembled
from plugins.dtypes import DTYPES
from plugins.expr import Dim, apply, fold, to_plain
from plugins.op import AttrValue, Op, Tensor, symbol
from plugins.plan import KernelImage, LaunchSpec, Plan, TensorSpec, encode
from plugins.plan_builder import Buffer, Launch, LaunchPlan
from plugins.triton_cache import writable_cache

ALIGNED = 16  # pointers in bytes, and the widths that are multiples of it: what loads of 16 bytes need to know
#: SMs of major version 8 have one PTX, that of the newest of them: Triton lowers for all as for one, and ptxas refuses
#: what an older one lacks. It is also the newest of the RTX parts' whose PTX a Hopper SM runs: sm_120's configs are
#: compiled for it there.
ONE_PTX = 89


def build_plan(
    op: Op,
    static_dims: Mapping[str, int],
    attributes: Mapping[str, AttrValue],
    sm: int,
    host: int | None = None,
    stand_ins: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """The compiled plan of an op whose static symbols have these values; its dynamic symbols stay symbolic.

    ``host``: the SM that is to run sm's kernels from their PTX, if not sm itself; ``stand_ins``: what it is to run in
    place of words of that PTX.
    """
    dims = {name: symbol(name) if name in op.dynamic else static_dims[name] for name in op.symbol_sources()}
    values = op.attribute_values(attributes)
    module = importlib.import_module(f"plugins.{op.folder}.kernel")
    body: LaunchPlan = getattr(module, op.plan_function)(dims, values, sm)
    return _compile(op, dims, values, sm, host, body, stand_ins)


@cache
def _cached_plan(
    op_name: str,
    static: tuple[tuple[str, int], ...],
    attributes: tuple[tuple[str, AttrValue], ...],
    sm: int,
    host: int | None,
) -> bytes:
    from plugins.registry import OPS

    return encode(build_plan(OPS[op_name], dict(static), dict(attributes), sm, host))


def plan_bytes(
    op: Op, static_dims: Mapping[str, int], attributes: Mapping[str, AttrValue], sm: int, host: int | None = None
) -> bytes:
    """Encoded plan, compiled once a process for the same op, static dims, attributes, SM and host."""
    static = tuple(sorted((name, int(value)) for name, value in static_dims.items() if name not in op.dynamic))
    return _cached_plan(op.name, static, tuple(sorted(op.attribute_values(attributes).items())), sm, host)


def _compile(
    op: Op,
    dims: Mapping[str, Dim],
    values: Mapping[str, AttrValue],
    sm: int,
    host: int | None,
    body: LaunchPlan,
    stand_ins: Mapping[str, str],
) -> Plan:
    def concrete(tensor: Tensor) -> TensorSpec:
        return TensorSpec(tensor.name, tensor.dtype, [to_plain(_substitute(dim, dims)) for dim in tensor.dims])

    inputs, outputs = [concrete(t) for t in op.inputs], [concrete(t) for t in op.outputs]
    buffers = [_buffer_spec(buffer) for buffer in body.buffers]
    dtypes = {spec.name: spec.dtype for spec in (*inputs, *outputs, *buffers)}
    kernels: list[KernelImage] = []
    launches: list[LaunchSpec] = []
    for launch in body.launches:
        image = compile_kernel(launch, dtypes, sm, host, stand_ins)
        if image not in kernels:
            kernels.append(image)
        launches.append(_launch_spec(launch, kernels.index(image)))
    sources = {name: source for name, source in op.symbol_sources().items() if name in op.dynamic}
    return Plan(op.name, sm, dict(values), sources, inputs, outputs, buffers, kernels, launches)


def _substitute(dim: Dim, dims: Mapping[str, Dim]) -> Dim:
    """The dim with static symbols replaced by their values."""
    return fold(dim, lambda value: value, lambda name: dims[name], apply)


def _buffer_spec(buffer: Buffer) -> TensorSpec:
    return TensorSpec(buffer.name, buffer.dtype, [to_plain(dim) for dim in buffer.shape])


def _launch_spec(launch: Launch, kernel: int) -> LaunchSpec:
    names = [name for name in launch.kernel.arg_names if name not in launch.constants]
    args = []
    for name in names:
        value = launch.args[name]
        args.append(["tensor", value] if isinstance(value, str) else ["i32", to_plain(value)])
    return LaunchSpec(kernel, [to_plain(dim) for dim in launch.grid], args)


def compile_kernel(
    launch: Launch,
    dtypes: Mapping[str, str],
    sm: int,
    host: int | None = None,
    stand_ins: Mapping[str, str] = MappingProxyType({}),
) -> KernelImage:
    """One kernel's cubin for sm, or for the host that runs sm's PTX; pointers are promised 16-byte alignment."""
    target = _target(launch, sm, host)
    compiled = _compiled(launch, dtypes, target)
    meta = compiled.metadata
    if meta.profile_scratch_size or getattr(meta, "num_ctas", 1) != 1:
        raise NotImplementedError(f"{meta.name}: profile scratch and clusters are not part of a launch plan")
    ptx = compiled.asm["ptx"]
    if host is None and target != sm:
        ptx = re.sub(r"(?m)^\.target sm_\d+", f".target sm_{sm}", ptx)
    for word, other in stand_ins.items():
        ptx = ptx.replace(word, other)
    cubin = assembled(ptx, host or sm)
    return KernelImage(
        meta.name,
        cubin.code,
        meta.num_warps,
        meta.shared,
        meta.global_scratch_size,
        meta.global_scratch_align,
        cubin.registers,
        cubin.stack,
    )


def _target(launch: Launch, sm: int, host: int | None) -> int:
    """The SM that Triton compiles for: on a host, one whose PTX it runs. Raises ValueError where there is none."""
    if host is None:
        return max(sm, ONE_PTX)
    target = max(ONE_PTX, min(sm, launch.oldest_sm))
    if target > host:
        raise ValueError(f"{launch.kernel.__name__} needs sm_{launch.oldest_sm}; the host is sm_{host}")
    return target


def _compiled(launch: Launch, dtypes: Mapping[str, str], target: int) -> Any:
    """What Triton makes of a kernel for an SM, down to PTX."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    signature, attrs = _signature(launch, dtypes)
    source = (GluonASTSource if launch.kernel.is_gluon() else ASTSource)(
        launch.kernel, signature, dict(launch.constants), attrs
    )
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    options |= {"maxnreg": launch.max_registers} if launch.max_registers else {}
    writable_cache()
    with triton.knobs.runtime.scope(), triton.knobs.compilation.scope():
        triton.knobs.runtime.add_stages_inspection_hook = _down_to_ptx
        triton.knobs.compilation.disable_line_info = True  # PTX of two checkouts is the same
        return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def _down_to_ptx(*called: Any) -> tuple[str, str] | None:
    """Triton's hook: leave its last stage out, ptxas. Called with nothing it gives what it adds to the cache's key."""
    if not called:
        return "down to PTX", "down to PTX"
    _, stages, *_ = called
    stages["cubin"] = lambda ptx, metadata: b""
    return None


def _signature(
    launch: Launch, dtypes: Mapping[str, str]
) -> tuple[dict[str, str], dict[tuple[int, ...], list[list[str | int]]]]:
    """Triton's types of a kernel's parameters by name, and what is promised of them by index."""
    names = launch.kernel.arg_names
    _check_arguments(launch, names)
    signature: dict[str, str] = {}
    attrs: dict[tuple[int, ...], list[list[str | int]]] = {}
    for index, name in enumerate(names):
        if name in launch.constants:
            signature[name] = "constexpr"
        elif isinstance(value := launch.args[name], str):
            signature[name] = "*" + DTYPES[dtypes[value]].triton
            attrs[(index,)] = [["tt.divisibility", ALIGNED]]
        else:
            signature[name] = "i32"
            if isinstance(value, int) and value % ALIGNED == 0:
                attrs[(index,)] = [["tt.divisibility", ALIGNED]]
    return signature, attrs


def _check_arguments(launch: Launch, names: list[str]) -> None:
    given = set(launch.args) | set(launch.constants)
    if given != set(names):
        name = launch.kernel.__name__
        raise ValueError(f"{name}: missing {set(names) - given or 'none'}, unknown {given - set(names) or 'none'}")
