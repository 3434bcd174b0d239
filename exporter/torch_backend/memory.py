"""What a stage allocates at its peak under torch, found without running it: its function on meta tensors, followed."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from plugins.expr import evaluate
from plugins.plan import decode
from plugins.plan_cache import local_plan
from plugins.registry import OPS
from plugins.torch_dtypes import torch_dtype
from plugins.torch_op import NAMESPACE
from runtime.bundle import StageEntry, TensorInfo
from runtime.dims import Sizes, shape_of

_ROUND = 512
UNSPLIT = 1 << 20


def allocated(nbytes: int) -> int:
    """What torch's allocator counts for so many bytes at most: whole 512s, and what it would not split off a block."""
    return -(-nbytes // _ROUND) * _ROUND + (UNSPLIT if nbytes > UNSPLIT else 0)


class PeakBytes(TorchDispatchMode):  # type: ignore[misc]
    """Follows storages from birth to death; ``peak`` is the most bytes alive at once, an op's workspace included."""

    def __init__(self, known: list[torch.Tensor], sm: int | None) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sm = sm
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._born(tensor.untyped_storage())
        workspace = self._workspace(func, args)
        self.peak = max(self.peak, self.live + workspace)
        return result

    def _born(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = allocated(storage.nbytes())
        self.live += size
        weakref.finalize(storage, self._died, key, size)

    def _died(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size

    def _workspace(self, func: Any, args: Any) -> int:
        namespace, _, name = func._schema.name.partition("::")
        if namespace != NAMESPACE or self._sm is None:
            return 0
        op = OPS[name]
        shapes = [tuple(tensor.shape) for tensor in args[: len(op.inputs)]]
        attributes = {a.name: value for a, value in zip(op.attributes, args[len(op.inputs) :], strict=False)}
        plan = decode(local_plan(op, op.bind(shapes), attributes, self._sm))
        return allocated(evaluate(plan.workspace_bytes, plan.bind(shapes)))


def meta_tensors(stage: StageEntry, sizes: Sizes) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A stage's inputs, weights among them, and outputs by name at these sizes, with nothing in them."""

    def empty(tensor: TensorInfo) -> torch.Tensor:
        return torch.empty(shape_of(tensor.dims, sizes), dtype=torch_dtype(tensor.dtype), device="meta")

    inputs = {tensor.name: empty(tensor) for tensor in stage.inputs}
    return inputs, {name: empty(tensor) for name, tensor in stage.gives.items()}
