"""Makes the torch ops run the kernels of RTX parts on a Hopper GPU, by the proxy that benchmarks use."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from exporter.bench.proxy import proxy_plan_bytes
from plugins import torch_op
from plugins.op import AttrValue, Op


def run_kernels_of(monkeypatch: pytest.MonkeyPatch, sm: int) -> None:
    """From here on the torch ops run the plans of an RTX part on the Hopper GPU that is there."""

    def plan_bytes(op: Op, dims: Mapping[str, int], attributes: Mapping[str, AttrValue], _sm: int) -> bytes:
        return proxy_plan_bytes(op, dims, attributes, sm)

    monkeypatch.setattr(torch_op, "plan_bytes", plan_bytes)
