"""Which of the kernels that plans launch run on a CPU, in Triton's interpreter, and which are proven on a GPU alone."""

from __future__ import annotations

from importlib import import_module

from exporter.models import MODELS
from plugins.expr import symbol
from plugins.registry import OPS
from plugins.sage_sla.kernel import MAX_BLOCKS
from plugins.sms import SMS
from tests.support import interpret_attention, interpret_linear
from tests.support.interpreter_process import Interpreter

#: sm_90's own kernels, the GEMM and the attention of RTX parts (but SageSLA's in bf16) are written in Gluon, which the
#: interpreter does not know: tests/plugins/test_gpu_ops.py, test_gpu_selection.py and test_gpu_forward.py prove them on
#: a Hopper GPU.
ON_A_GPU_ALONE = {
    "block_int8_gemm_bulk",
    "block_int8_gemm_hopper",
    "block_int8_gemm_mma",
    "clear_counters",
    "flash_attention_mma",
    "flash_attention_mma_bf16",
    "layer_norm_quantize_hopper",
    "sage_sla_hopper",
}
STATIC = {"D": 256, "E": 512, "N": 384, "K": 256}


def launched() -> set[str]:
    """The kernels of every op's plan, for every SM and precision."""
    names = set()
    for op in OPS.values():
        make = getattr(import_module(f"plugins.{op.folder}.kernel"), op.plan_function)
        dims = {name: symbol(name) if name in op.dynamic else STATIC[name] for name in op.symbol_sources()}
        for precision in ("int8", "bf16") if any(a.name == "precision" for a in op.attributes) else (None,):
            values = op.attribute_values({"precision": precision} if precision else {})
            names |= {launch.kernel.__name__ for sm in SMS for launch in make(dims, values, sm).launches}
    return names


def test_every_kernel_runs_in_the_interpreter_or_is_named_here(interpreter: Interpreter) -> None:
    cases = (*interpret_attention.cases(), *interpret_linear.cases())
    interpreted = frozenset[str]().union(*map(interpreter.run, cases))
    assert launched() - interpreted == ON_A_GPU_ALONE


def test_every_model_stays_within_the_selections_blocks() -> None:
    """select_blocks holds a row's scores in registers; engines run no L beyond their profile's maximum."""
    assert max(model.max_tokens for model in MODELS.values()) <= 64 * MAX_BLOCKS
