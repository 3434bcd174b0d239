"""The Python of docs/embedding.md, run as it stands there but for the bundle, the backend and the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.models import MODELS
from exporter.torch_backend.backend import TORCH
from runtime import Pipeline
from runtime.bundle import Manifest
from tests.support.documents import DOCUMENTS, python_blocks
from tests.support.paths import ROOT
from tests.support.random_bundle import make_random_bundle
from tests.support.stand_in_tensorrt import StandIn, add_engines, host_view

EMBEDDING = ROOT / "docs" / "embedding.md"
TEXT = np.random.default_rng(0).standard_normal((5, 4096), dtype=np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """wan-tiny for a small video with random weights, and engines that stand in."""
    folder = tmp_path_factory.mktemp("embedding") / "bundle"
    return folder, add_engines(folder, make_random_bundle(folder, replace(MODELS["wan-tiny"], size=(48, 32), frames=9)))


def run(code: str, replaced: dict[str, str], given: dict[str, Any]) -> dict[str, Any]:
    """The names that a block leaves, after these replacements, each of which must have something to replace."""
    for old, new in replaced.items():
        assert old in code, old
        code = code.replace(old, new)
    names = dict(given)
    exec(compile(code, str(EMBEDDING), "exec"), names)
    return names


def test_all_python_of_the_documents_is_run_here() -> None:
    found = {document: len(python_blocks(ROOT / document)) for document in DOCUMENTS}
    assert {document: count for document, count in found.items() if count} == {"docs/embedding.md": 2}


def test_the_pipeline_as_documented(bundle: tuple[Path, Manifest], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = bundle
    code, _ = python_blocks(EMBEDDING)
    replaced = {"engines/wan2.1-14b-720p-rtx5090": str(folder), 'vram="24GB"': "backend=TORCH", "steps=4": "steps=1"}
    names = run(code, replaced, {"TORCH": TORCH})
    assert names["latents"].shape == (16, 3, 4, 6)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_engines_as_documented_give_what_the_pipeline_gives(bundle: tuple[Path, Manifest]) -> None:
    """The same order, names and arithmetic: the same bytes."""
    folder, manifest = bundle
    _, code = python_blocks(EMBEDDING)
    replaced = {
        "import tensorrt_rtx as trt": "trt = STAND_IN",
        'DEVICE = "cuda"': 'DEVICE = "cpu"',
        "torch.cuda.current_stream().cuda_stream": "0",
        "engines/wan2.1-1.3b-480p-rtx5090": str(folder),
        "steps=4)": "steps=1)",
    }
    stand_in: Any = StandIn(manifest, lambda stream, work: work(), host_view)
    stand_in.__name__ = "tensorrt_rtx"
    names = run(code, replaced, {"STAND_IN": stand_in})
    with Pipeline.load(folder, backend=TORCH) as pipe:
        want = pipe(TEXT, seed=3, steps=2)
    assert np.array_equal(names["generate"](TEXT, seed=3, steps=2), want)
