"""One PTX for the SMs of major version 8, and cubins that are made of it once."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton.runtime.errors import PTXASError

from plugins import cubin
from plugins.compile import ONE_PTX, _compiled, compile_kernel
from plugins.op import symbol
from plugins.plan_builder import Launch
from plugins.registry import OPS
from plugins.sms import SMS

PTX = """
.version 8.4
.target sm_{sm}
.address_size 64
.visible .entry adds(.param .u64 to) {{
  .reg .f32 %f<4>; .reg .b16 %h<2>; .reg .u64 %r<2>;
  ld.param.u64 %r1, [to];
  ld.global.f32 %f1, [%r1];
  {instruction}
  st.global.f32 [%r1], %f2;
  ret;
}}
"""
SUM = "add.f32 %f2, %f1, %f1;"
FP8 = "cvt.rn.satfinite.e4m3x2.f32 %h1, %f1, %f1; mov.f32 %f2, %f1;"


def launch_of(name: str, dims: dict[str, int]) -> tuple[Launch, dict[str, str]]:
    """An op's last launch and the dtypes of its tensors."""
    op = OPS[name]
    symbols = {s: symbol(s) if s in op.dynamic else dims[s] for s in op.symbol_sources()}
    plan = getattr(import_module(f"plugins.{op.folder}.kernel"), op.plan_function)(symbols, op.attribute_values({}), 86)
    dtypes = {tensor.name: tensor.dtype for tensor in (*op.inputs, *op.outputs)}
    return plan.launches[-1], dtypes | {buffer.name: buffer.dtype for buffer in plan.buffers}


@pytest.mark.parametrize("name", ["BlockInt8Gemm", "RmsNorm"])
def test_one_ptx_is_what_triton_makes_for_each(name: str) -> None:
    """A Gluon kernel of inline PTX and a Triton one: but for the line that names the SM."""
    launch, dtypes = launch_of(name, {"N": 384, "K": 256, "D": 256, "E": 512})
    texts = {_compiled(launch, dtypes, sm).asm["ptx"] for sm in SMS if sm <= ONE_PTX}
    assert {found for text in texts for found in re.findall(r"\.target (\S+)", text)} == {"sm_80", "sm_86", "sm_89"}
    assert len({re.sub(r"\.target \S+", "", text) for text in texts}) == 1


def test_the_cubin_is_of_the_sm_that_is_asked_for() -> None:
    launch, dtypes = launch_of("RmsNorm", {"D": 256, "E": 512})
    for sm in (80, 86, 89):
        listing = cubin.inspected(compile_kernel(launch, dtypes, sm).cubin, "nvdisasm", "-c")
        assert f"EF_CUDA_SM{sm}" in listing


def test_ptxas_runs_once_for_one_ptx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        made = cubin.assembled(PTX.format(sm=80, instruction=SUM), 80)
        assert made.registers > 0
        assert made.stack == 0
        monkeypatch.setattr(cubin, "_assembled", None)
        assert cubin.assembled(PTX.format(sm=80, instruction=SUM), 80) == made
        with pytest.raises(TypeError):  # another SM's is another cubin
            cubin.assembled(PTX.format(sm=80, instruction=SUM), 86)


def test_what_an_sm_lacks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        assert cubin.assembled(PTX.format(sm=89, instruction=FP8), 89).code
        with pytest.raises(PTXASError, match="e4m3x2"):
            cubin.assembled(PTX.format(sm=80, instruction=FP8), 80)
        assert "e4m3x2" in capsys.readouterr().out
