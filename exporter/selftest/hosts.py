"""Who runs our ops inside TensorRT: registered before anything else can be."""

from __future__ import annotations

import importlib

from exporter.selftest.rows import Case
from exporter.selftest.step import Setting
from plugins.library import register
from plugins.registry import OPS


def register_host(setting: Setting, case: Case) -> None:
    """Register the case's plugins with TensorRT, one kind a process; embedded ones come with engines. UserError."""
    if case.host in ("python", "library"):
        register(importlib.import_module(setting.target.flavour), OPS, case.host)
