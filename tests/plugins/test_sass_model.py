"""The model of main loops, against counts and schedules made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plugins.compile import plan_bytes
from plugins.plan import decode
from plugins.registry import OPS
from plugins.sass.control_flow import Instruction, loops, parse, usual_path
from plugins.sass.model import LoopModel, loop_model, main_model
from plugins.sass.schedule import step
from plugins.sass.timing import KernelTiming, timings
from plugins.sass.units import Use, operations, use
from plugins.sms import SMS, Rates


def rates_of(sm: int) -> Rates:
    rates = SMS[sm].rates
    assert rates is not None
    return rates


RTX, AMPERE = rates_of(120), rates_of(80)
#: What nvdisasm prints of a product that waits for scoreboard 1 and stalls 11 cycles, and of a copy's wait.
LISTING = """
        /*1700*/                   IMMA.16832.S8.S8.SAT R116, R84.ROW, R136.COL, RZ ;  /* 0x0000008854747237 */
                                                                                       /* 0x002ff60000445cff */
        /*1710*/                   DEPBAR.LE SB0, 0x1 ;                                /* 0x000080400000791a */
                                                                                       /* 0x000fc80000000000 */
"""


def made(
    mnemonic: str, operands: str = "", *, stall: int = 1, sets: int = 7, frees: int = 7, waits: tuple[int, ...] = ()
) -> Instruction:
    """An instruction with its control bits."""
    mask = sum(1 << board for board in waits)
    return Instruction(mnemonic, operands, False, (), (stall | sets << 5 | frees << 8 | mask << 11) << 41)


IMMA, BRANCH = made("IMMA.16832.S8.S8.SAT"), made("BRA", stall=5)


def modelled(code: list[Instruction], warps: int, block: int = 4, rates: Rates = RTX) -> LoopModel:
    model = loop_model(tuple(code), rates, warps, block)
    assert model is not None
    return model


@pytest.mark.parametrize(
    ("mnemonic", "rates", "wanted"),
    [
        ("IMMA.16832.S8.S8.SAT", RTX, Use("tensor", 16.0)),  # 2·16·8·32 operations, a quarter of 2,048 a clock
        ("IMMA.16832.S8.S8", AMPERE, Use("tensor", 8.0)),
        ("HMMA.16816.F32.BF16", RTX, Use("tensor", 32.0)),
        ("HMMA.16816.F16", RTX, Use("tensor", 16.0)),  # GeForce parts sum in FP16 twice as fast
        ("HMMA.16816.F32", RTX.professional, Use("tensor", 16.0)),
        ("HMMA.16816.F16", RTX.professional, Use("tensor", 16.0)),
        ("HMMA.1688.F32.TF32", RTX, Use("tensor", 32.0)),
        ("QMMA.16832.F32.E4M3.E4M3", RTX, Use("tensor", 32.0)),
        ("QMMA.16832.F16.E4M3.E4M3", RTX, Use("tensor", 16.0)),
        ("MUFU.EX2", RTX, Use("special", 8.0)),  # 32 threads, a quarter of 16 a clock
        ("I2FP.F32.S32", RTX, Use("convert", 2.0)),
        ("FFMA", RTX, Use("fp32", 1.0)),
        ("FFMA", AMPERE, Use("fp32", 2.0)),
        ("IMAD.WIDE", rates_of(89), Use("fp32", 2.0)),
        ("IADD3", RTX, Use("integer", 1.0)),
        ("LOP3.LUT", rates_of(86), Use("integer", 2.0)),
        ("LDSM.16.M88.4", RTX, Use("shared", 16.0)),  # 512 bytes, a quarter of 128 a clock
        ("LDS.128", RTX, Use("shared", 16.0)),
        ("STS.64", RTX, Use("shared", 8.0)),
        ("LDGSTS.E.BYPASS.128", RTX, Use("shared", 16.0, l2=51.2)),
        ("BAR.SYNC.DEFER_BLOCKING", RTX, Use("issue", 1.0)),
        ("UIADD3", RTX, Use("issue", 1.0)),
    ],
)
def test_cycles_of_a_unit(mnemonic: str, rates: Rates, wanted: Use) -> None:
    assert use(made(mnemonic), rates) == wanted


def test_what_an_instruction_takes_from_the_tensor_core() -> None:
    rates = replace(RTX, beside={"FFMA": 1.0})
    assert use(made("FFMA"), rates) == Use("fp32", 1.0, beside=1.0)
    model = modelled([IMMA, made("FFMA"), made("FFMA"), BRANCH], warps=8, rates=rates)
    assert (model.cycles["tensor"], model.cycles["ports"], model.bound) == (32, 36, "ports")


def test_products_that_are_not_known_are_refused() -> None:
    assert operations(made("HMMA.16816.F32")) == 4096
    with pytest.raises(ValueError, match="shape of this product"):
        operations(made("IMMA.8816.S8.S8"))
    with pytest.raises(ValueError, match="no FP8"):
        use(made("QMMA.16832.F32.E4M3.E4M3"), AMPERE)


def test_control_bits() -> None:
    product, wait = parse(LISTING)
    decoded = step(product, RTX)
    assert (decoded.stall, decoded.sets, decoded.frees, decoded.waits) == (11, 7, 7, (1,))
    assert step(wait, RTX).groups == 1


def test_a_loop_of_products_is_bound_by_the_tensor_cores() -> None:
    """Eight warps, two in each quarter of an SM, four products of 16 cycles each: 128, all of it."""
    model = modelled([IMMA] * 4 + [BRANCH], warps=8)
    assert model.instructions == 5
    assert (model.bound, model.cycles["tensor"], model.cycles["issue"]) == ("tensor", 128, 10)
    assert model.iteration == pytest.approx(128)
    assert model.share == pytest.approx(1)
    assert model.operations == 8 * 4 * 8192


def test_one_warp_hides_nothing_and_two_hide_each_other() -> None:
    """Its stalls make 35 cycles, a product takes 16: two warps fill 32 of them, three are bound by 48."""
    code = [made(IMMA.mnemonic, stall=15), made("FADD", stall=15), BRANCH]
    assert modelled(code, warps=4).iteration == pytest.approx(35)
    assert modelled(code, warps=4).share == pytest.approx(16 / 35)
    assert modelled(code, warps=8).iteration == pytest.approx(35, abs=1)
    assert modelled(code, warps=12).iteration == pytest.approx(48)


def test_a_scoreboard_is_waited_for() -> None:
    """A load of 4 cycles and 30 more until it is there, then a product, then the branch's 5."""
    code = [made("LDS", sets=0), made(IMMA.mnemonic, waits=(0,)), BRANCH]
    assert modelled(code, warps=4).iteration == pytest.approx(34 + 1 + 5)
    unwaited = [code[0], IMMA, BRANCH]
    assert modelled(unwaited, warps=4).iteration == pytest.approx(16), "the product alone"


def test_a_barrier_holds_the_warps_of_a_block() -> None:
    """The second warp's product starts at 16 and it arrives at 17; 20 cycles more, and the branch's 5."""
    code = [IMMA, made("BAR.SYNC"), BRANCH]
    assert modelled(code, warps=8, block=8).iteration == pytest.approx(17 + 20 + 5)
    assert modelled(code, warps=8, block=4).iteration == pytest.approx(32), "two blocks fill the tensor core"


def test_copies_are_waited_for_by_groups() -> None:
    """A copy of 512 bytes is there after 51.2 cycles of L2 and 450 more; three instructions and the branch follow."""
    copy, group, branch = made("LDGSTS.E.BYPASS.128"), made("LDGDEPBAR"), [IMMA, BRANCH]
    whole = 51.2 + 450 + 1 + 1 + 5
    waiting = modelled([copy, group, made("DEPBAR.LE", "SB0, 0x0"), *branch], warps=4)
    assert waiting.iteration == pytest.approx(whole)
    one_ahead = modelled([copy, group, made("DEPBAR.LE", "SB0, 0x1"), *branch], warps=4)
    assert one_ahead.iteration == pytest.approx(whole / 2, rel=0.01)


def test_a_model_is_of_mma_sync_alone() -> None:
    assert loop_model((made("FFMA"), BRANCH), RTX, 8, 4) is None
    assert loop_model((IMMA, made("QGMMA.64x128x32.F32.E4M3.E4M3"), BRANCH), RTX, 8, 4) is None


def test_the_main_loop_multiplies_most() -> None:
    """By operations, not by cycles: slow products of a side loop do not make it the main one."""
    main, side = [IMMA] * 4 + [BRANCH], [made("HMMA.16816.F32")] * 5 + [BRANCH]
    assert modelled(side, warps=8).cycles["tensor"] > modelled(main, warps=8).cycles["tensor"]
    code = [*side, *main]
    loops = [frozenset(range(6)), frozenset(range(6, 11))]
    assert main_model(code, loops, RTX, 8, 4) == modelled(main, warps=8)
    assert main_model(code, [], RTX, 8, 4) is None


def test_what_a_warp_votes_over_is_rare() -> None:
    """Left out of an iteration: what the branch right after a vote jumps over, not what another branch does."""
    listing = """
.L_x_0:
        /*0000*/                   IMMA.16832.S8.S8 R4, R8.ROW, R10.COL, R4 ;
        /*0010*/                   VOTE.ANY P0, P0 ;
        /*0020*/              @!P0 BRA `(.L_x_1) ;
        /*0030*/                   FMUL R4, R4, R5 ;
.L_x_1:
        /*0040*/               @P2 BRA `(.L_x_2) ;
        /*0050*/                   FADD R4, R4, R5 ;
.L_x_2:
        /*0060*/               @P1 BRA `(.L_x_0) ;
        /*0070*/                   EXIT ;
"""
    code = parse(listing)
    (loop,) = loops(code)
    assert usual_path(code, loop) == [0, 1, 2, 4, 5, 6]


def test_a_whole_kernel_is_its_main_loop_and_the_rest_once() -> None:
    """Ten iterations of 100 cycles for each of an SM's two programs together, and 300 cycles for what is outside."""
    loop = LoopModel(5, {}, "tensor", 100.0, 0.5, operations=2000.0)
    timing = KernelTiming(loop, outside=300.0, resident=2)
    assert timing.rate(operations=10 * 2000, programs=2) == pytest.approx(20_000 / 1300)
    assert timing.rate(operations=30 * 2000, programs=6) == pytest.approx(20_000 / 1300), "three rounds of the same"
    assert timing.rate(operations=10 * 2000, programs=1) == pytest.approx(20_000 / 1150), "one program of twenty"


def test_a_compiled_kernel_is_timed_by_its_main_loop_and_the_rest() -> None:
    """A GEMM of the RTX 4090's: 128×128 sums a program, so a program of K = 256 does two iterations of 128."""
    (kernel,) = decode(plan_bytes(OPS["BlockInt8Gemm"], {"N": 256, "K": 256}, {}, 89)).kernels
    (timing,) = timings([kernel], 89, rates_of(89))
    assert timing is not None
    assert timing.loop.operations == timing.resident * 2 * 128 * 128 * 128
    assert timing.outside > timing.loop.iteration / 4
    peak = timing.loop.operations / timing.loop.iteration
    assert timing.rate(2 * timing.loop.operations, timing.resident) < peak < rates_of(89).int8
    assert timing.rate(2000 * timing.loop.operations, timing.resident) == pytest.approx(peak, rel=0.01)
