"""The static bar of issue 3, from the machine code of every kernel of the real models, for every SM, without a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.compile import plan_bytes
from plugins.cubin import inspected
from plugins.plan import KernelImage, decode
from plugins.registry import OPS
from plugins.sass.control_flow import loops, parse
from plugins.sass.listing import listings
from plugins.sass.report import main_loops, resident_blocks
from plugins.sms import SHARED_LIMIT, SMS
from tests.support.kernel_bounds import Bounds, bounds, committed, distinct_calls, shared_rows
from tests.support.shared import Shared

#: Tensor-core instructions of INT8 products: mma, Hopper's warpgroup form, data-center Blackwell's.
INT8_MMA = frozenset({"IMMA", "IGMMA", "UTCIMMA"})
#: The least share of the tensor cores in the main loops of kernels that multiply, by the model, and by how many points
#: of a hundred ptxas releases may differ.
FLOORS = {80: 0.40, 86: 0.55, 89: 0.55, 120: 0.55}
SLACK = 5
#: A kernel as nvdisasm prints it: a loop in a loop whose wait spins behind the end, a spill in the outer one, and a
#: function that is called; then a loop that only an indirect branch reaches.
LISTING = """
.text.kernel:
        /*0000*/                   STL [R1], R2 ;
.L_x_0:
        /*0010*/                   LDL.LU R2, [R1] ;
        /*0020*/                   BSSY.RECONVERGENT B0, `(.L_x_1) ;
.L_x_1:
        /*0030*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R5 ;
        /*0040*/              @!P0 BRA `(.L_x_3) ;
.L_x_2:
        /*0050*/                   IMMA.16832.S8.S8 R4, R8.ROW, R10.COL, R4 ;
        /*0060*/                   CALL.REL.NOINC `($__internal_0) ;
        /*0070*/                   HFMA2.MMA R7, -RZ, RZ, 0, 0 ;
        /*0080*/                   BRA.U UP0, `(.L_x_1) ;
        /*0090*/               @P1 BRA `(.L_x_0) ;
        /*00a0*/                   EXIT ;
.L_x_3:
        /*00b0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R5 ;
        /*00c0*/              @!P0 BRA `(.L_x_3) ;
        /*00d0*/                   BRA `(.L_x_2) ;
$__internal_0:
        /*00e0*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
        /*00f0*/                   RET.REL.NODEC R2 `(kernel) ;
.L_x_4:
        /*0100*/                   QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR4], R24 ;
        /*0110*/               @P0 BRA `(.L_x_4) ;
        /*0120*/                   EXIT ;
"""


def test_loops_are_found_from_the_control_flow() -> None:
    code = parse(LISTING)
    assert len(code) == 19
    role = {16, 17}
    spin, inner = {11, 12}, {3, 4, 5, 6, 7, 8, 11, 12, 13}
    found = loops(code)
    assert {frozenset(loop) for loop in (spin, inner, inner | {1, 2, 9}, role)} == set(found)
    assert len(found) == 4
    assert set(main_loops(code, found)) == {frozenset(inner), frozenset(role)}


@pytest.mark.parametrize("sm", [90, 120])
def test_listings_of_several_are_those_of_each_alone(sm: int) -> None:
    plans = [plan_bytes(OPS[name], {"N": 384, "K": 256}, {}, sm) for name in ("BlockInt8Gemm", "BlockInt8GemmGelu")]
    cubins = [kernel.cubin for plan in plans for kernel in decode(plan).kernels]
    assert len(cubins) >= 2
    for cubin, listing in zip(cubins, listings(cubins), strict=True):
        together, alone = parse(listing), parse(inspected(cubin, "nvdisasm", "-c"))
        assert [i.mnemonic for i in together] == [i.mnemonic for i in alone]
        assert set(loops(together)) == set(loops(alone))


@pytest.mark.parametrize(
    ("sm", "warps", "registers", "bytes_", "blocks"),
    [
        (90, 8, 255, 0, 1),  # 8,192 registers a warp: two warps in each quarter
        (90, 4, 255, 98304, 2),
        (90, 4, 32, 100 * 1024, 2),  # 101 KiB with the driver's: two in 228
        (89, 4, 32, 0, 12),  # 48 warps
        (86, 1, 16, 0, 16),
        (120, 8, 128, 99 * 1024, 1),
    ],
)
def test_resident_blocks(sm: int, warps: int, registers: int, bytes_: int, blocks: int) -> None:
    assert resident_blocks(KernelImage("k", b"", warps, bytes_, 0, 0, registers, 0), sm) == blocks


@pytest.fixture(scope="module", params=SMS, ids=lambda sm: f"sm_{sm}")
def rows(request: pytest.FixtureRequest, shared: Shared) -> list[dict[str, Any]]:
    """The kernels of an SM."""
    return shared_rows(shared, request.param)


def _named(row: dict[str, Any]) -> str:
    return f"sm_{row['sm']} {row['name']} of {', '.join(row['ops'])}: {row['main_local']} in main loops"


def test_every_op_is_in_a_model() -> None:
    assert {call.op.name for call in distinct_calls()} == set(OPS)


def test_no_local_memory_in_main_loops(rows: list[dict[str, Any]]) -> None:
    assert [_named(row) for row in rows if row["main_local"]] == []


def test_local_memory_without_stack_does_not_exist(rows: list[dict[str, Any]]) -> None:
    """The listing and the ELF's own figure agree: a parser that misses instructions shows here."""
    assert [_named(row) for row in rows if bool(row["local"]) != bool(row["stack_bytes"])] == []


def test_shared_memory_fits(rows: list[dict[str, Any]]) -> None:
    assert [_named(row) for row in rows if row["shared_bytes"] > SHARED_LIMIT[row["sm"]] * 1024] == []


def test_int8_tensor_cores_in_gemm_and_score_loops(rows: list[dict[str, Any]]) -> None:
    """Every kernel of a GEMM has INT8 products in its main loop, and so has an attention kernel that quantizes q."""
    gemm = [r for r in rows if any("Gemm" in op for op in r["ops"]) and r["mma"]]
    assert gemm
    assert [_named(row) for row in gemm if not INT8_MMA & set(row["main_mma"])] == []
    for op in ("SageSLA", "SageAttention"):
        attention = [r for r in rows if op in r["ops"] and INT8_MMA & set(r["mma"])]
        assert attention, f"no kernel of {op} multiplies INT8"
        assert [_named(row) for row in attention if not INT8_MMA & set(row["main_mma"])] == []


def test_main_loops_keep_the_tensor_cores_busy(rows: list[dict[str, Any]]) -> None:
    """Of every RTX SM and A100: what multiplies is the last launch of its op; those before it move data."""
    multiplying = [row for row in rows if row["last"] and row["mma"] and row["sm"] in FLOORS]
    assert {op for row in multiplying for op in row["ops"]} == {
        op for row in rows for op in row["ops"] if row["mma"] and row["sm"] in FLOORS
    }
    idle = {_named(row): row["model"]["share"] for row in multiplying if row["model"]["share"] < FLOORS[row["sm"]]}
    assert idle == {}


def test_only_kernels_of_mma_sync_are_modelled(rows: list[dict[str, Any]]) -> None:
    modelled = {row["sm"] for row in rows if row["model"] is not None}
    assert modelled <= set(FLOORS)
    assert set(FLOORS) == {sm for sm, spec in SMS.items() if spec.rates is not None}


def test_kernels_stay_within_the_committed_bounds(rows: list[dict[str, Any]]) -> None:
    """Spills, registers, shared memory, occupancy and tensor cores as committed, or better; so is a better table.

    Registers may differ between Triton releases, so they may exceed the table by 8, one allocation step.
    """
    (sm,) = {row["sm"] for row in rows}
    got, want = bounds(rows), {name: value for name, value in committed().items() if name.endswith(f" {sm}")}
    assert set(got) == set(want), "run python -m tests.support.kernel_bounds"
    assert [name for name in got if _worse(got[name], want[name])] == []


def test_bounds_are_committed_for_every_sm() -> None:
    assert {int(name.rpartition(" ")[2]) for name in committed()} == set(SMS)


def _worse(got: dict[str, int], want: dict[str, int]) -> bool:
    return (
        got["stack"] > want["stack"]
        or got["shared"] > want["shared"]
        or got["registers"] > want["registers"] + 8
        or got["warps_per_sm"] < want["warps_per_sm"]
        or got.get("tensor_percent", 0) < want.get("tensor_percent", 0) - SLACK
    )


def test_a_worse_kernel_is_seen() -> None:
    want: Bounds = {"k": {"registers": 100, "stack": 0, "shared": 1024, "warps_per_sm": 16, "tensor_percent": 60}}
    assert not _worse(want["k"], want["k"])
    for field, value in (
        ("registers", 109),
        ("stack", 8),
        ("shared", 2048),
        ("warps_per_sm", 8),
        ("tensor_percent", 54),
    ):
        assert _worse(want["k"] | {field: value}, want["k"]), field
