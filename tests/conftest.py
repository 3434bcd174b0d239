"""Fixtures shared by test files: one real bundle of the test model, exported once a session.

What may be missing where tests run: a GPU machine need have no TensorRT for RTX, ONNX GraphSurgeon, Polygraphy,
matplotlib, diffusers, transformers or video libraries. Tests that need one of these skip by importorskip; all else is
imported plainly.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core for each worker; before torch, which reads it when loaded

import torch

from tests.support.exported import Exported, keep, kept
from tests.support.interpreter_process import Interpreter
from tests.support.paths import ROOT
from tests.support.shared import Shared

#: Files that take minutes, the longest first: they begin first, so that at the end no process works on one alone.
LONGEST = ("test_sass.py", "test_attention_kernels.py", "test_components.py", "test_export.py", "test_compare.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; those of one name stay together, and all others in their order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections: looking through it takes a tenth of all tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Where this session's processes leave for each other what is made once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "shared"
    folder.mkdir(exist_ok=True)
    return Shared(folder)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(shared: Shared) -> Iterator[None]:
    """Tests neither read nor fill the cache of who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURBOTRT_CACHE_DIR", str(shared.folder / "user-cache"))
        yield


@pytest.fixture(scope="session")
def interpreter(shared: Shared) -> Iterator[Interpreter]:
    """What runs a case in Triton's interpreter."""
    made = Interpreter(shared)
    yield made
    made.close()


@pytest.fixture(scope="session")
def elsewhere(shared: Shared) -> Path:
    """Another checkout of our sources; the folder ``cache`` beside it is for what Triton compiles from them."""

    def make(folder: Path) -> None:
        for package in ("exporter", "plugins", "runtime"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, folder / "checkout" / package, ignore=ignored)

    return shared.once("elsewhere", make) / "checkout"


@pytest.fixture(scope="session")
def exported(shared: Shared) -> Exported:
    """wan-tiny's DiT for the RTX 5090 with random weights. Read-only: a test that exports again works on a copy."""
    for module in ("onnx_graphsurgeon", "tensorrt_rtx"):
        pytest.importorskip(module)
    from exporter.export import export_bundle
    from exporter.models import model_named
    from exporter.spec import export_spec
    from tests.support.checkpoints import canonical_state_dict, save_safetensors
    from tests.support.progress import SilentProgress

    def make(folder: Path) -> None:
        checkpoint = save_safetensors(folder / "checkpoint.safetensors", canonical_state_dict(model_named("wan-tiny")))
        spec = export_spec(
            model="wan-tiny", gpu="rtx5090", checkpoint=str(checkpoint), out=folder / "engines", components="dit"
        )
        report = SilentProgress()
        keep(folder, export_bundle(spec, report), report)

    return kept(shared.once("exported", make))


@pytest.fixture(scope="module")
def no_gpu() -> Iterator[None]:
    """torch sees no CUDA device, whatever the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture
def torch_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch backend as installed, whatever pyproject.toml this interpreter's installation was made from."""
    from importlib.metadata import EntryPoint

    point = EntryPoint("torch", "exporter.torch_backend.backend:TORCH", "turbotrt.backends")
    monkeypatch.setattr("runtime.backends.registry.entry_points", lambda group: [point])


@pytest.fixture
def cuda() -> Iterator[None]:
    """A CUDA device, or the test is skipped; torch's generators at 0, none of its memory held for nothing."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    torch.cuda.empty_cache()
    yield
    torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def figures() -> Iterator[dict[str, Any]]:
    """What tests measure: printed at the end, and written as JSON where TURBOTRT_FIGURES says."""
    found: dict[str, Any] = {}
    yield found
    text = json.dumps(found, indent=2)
    print("\n" + text)
    if path := os.environ.get("TURBOTRT_FIGURES"):
        Path(path).write_text(text)
