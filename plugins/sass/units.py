"""How long each unit of an SM partition is busy with one SASS instruction of a warp, by the SM's rates."""

from __future__ import annotations

import re
from dataclasses import dataclass

from plugins.sass.control_flow import Instruction
from plugins.sms import PARTITIONS, Rates

#: HMMA bf16/fp16/TF32, IMMA int8, QMMA FP8; G: Hopper's warpgroup form, UTC: data-center Blackwell's.
MMA = re.compile(r"(?:UTC)?[DHIQO]G?MMA")
#: mma.sync: the forms that a warp issues and waits for alone.
WARP_MMA = frozenset({"HMMA", "IMMA", "QMMA"})
#: In the order in which they are shown. "ports": tensor cores, with what others beside take from them; "l2": copies
#: into shared memory and registers. What moves by bulk tensor copies (TMA) does not stand in the instruction.
UNITS = ("tensor", "ports", "issue", "fp32", "integer", "convert", "special", "shared", "l2")

_SHAPES = {"16832": (16, 8, 32), "16816": (16, 8, 16), "1688": (16, 8, 8)}
_FP32 = frozenset({"FFMA", "FMUL", "FADD", "FHADD", "HFMA2", "HADD2", "HMUL2", "IMAD"})
_CONVERT = frozenset({"I2FP", "F2FP"})
_SPECIAL = frozenset({"MUFU", "I2F", "F2I", "F2F", "I2I", "FRND", "POPC"})
_SHARED = frozenset({"LDS", "STS", "LDSM", "STSM", "LDGSTS", "SHFL", "ATOMS", "LDG", "STG", "LD", "ST"})
_FETCHES = frozenset({"LDG", "LDGSTS"})
_CONTROL = re.compile(
    r"U[A-Z0-9]+|BRA|BAR|DEPBAR|LDGDEPBAR|NOP|BSSY|BSYNC|EXIT|CALL|RET|WARPSYNC|SYNCS|MEMBAR|FENCE|LDCU?"
)
_THREADS = 32


@dataclass(frozen=True)
class Use:
    """The unit that runs an instruction and its cycles there, those it takes from the tensor core, those of L2.

    The unit "issue" alone: the instruction needs nothing but its slot.
    """

    unit: str
    cycles: float
    beside: float = 0.0
    l2: float = 0.0


def operations(instruction: Instruction) -> int:
    """Multiplications and additions of an mma.sync instruction. Raises ValueError where its shape is not known."""
    shape = next((part for part in instruction.mnemonic.split(".") if part in _SHAPES), None)
    if shape is None:
        raise ValueError(f"{instruction.mnemonic}: the shape of this product is not known")
    m, n, k = _SHAPES[shape]
    return 2 * m * n * k


def _tensor_rate(instruction: Instruction, rates: Rates) -> int:
    """Operations a clock of an SM. Raises ValueError where the SM has no such products."""
    words = instruction.mnemonic.split(".")
    in_fp16 = words[2] == "F16"
    if words[0] == "IMMA":
        return rates.int8
    if "TF32" in words:
        return rates.fp16 // 2
    if words[0] == "HMMA":
        return rates.fp16_in_fp16 if in_fp16 else rates.fp16
    rate = rates.fp8_in_fp16 if in_fp16 else rates.fp8
    if rate is None:
        raise ValueError(f"{instruction.mnemonic} on an SM whose tensor cores have no FP8")
    return rate


def _bytes(instruction: Instruction) -> int:
    """Bytes that a warp moves between registers, or L2, and shared memory or the first-level cache."""
    words = instruction.mnemonic.split(".")
    if words[0] in ("LDSM", "STSM"):
        return 128 * (int(words[-1]) if words[-1] in ("2", "4") else 1)
    return _THREADS * (16 if "128" in words else 8 if "64" in words else 4)


def use(instruction: Instruction, rates: Rates) -> Use:
    """What an instruction takes of its partition, which has a quarter of the SM's shared memory and L2 bandwidth."""
    opcode, beside = instruction.opcode, rates.beside.get(instruction.opcode, 0.0)
    if opcode in WARP_MMA:
        return Use("tensor", PARTITIONS * operations(instruction) / _tensor_rate(instruction, rates))
    if opcode in _SHARED:
        moved = PARTITIONS * _bytes(instruction)
        return Use("shared", moved / rates.shared_bytes, l2=moved / rates.l2_bytes if opcode in _FETCHES else 0.0)
    threads = PARTITIONS * _THREADS
    if opcode in _SPECIAL:
        return Use("special", threads / rates.special)
    if opcode in _CONVERT:
        return Use("convert", threads / rates.convert, beside)
    if opcode in _FP32:
        # Multiplying integers takes half of the FP32 lanes, where integers have fewer lanes than these.
        rate = min(rates.fp32, rates.integer) if opcode == "IMAD" else rates.fp32
        return Use("fp32", threads / rate, beside)
    if _CONTROL.fullmatch(opcode):
        return Use("issue", 1.0)
    return Use("integer", threads / rates.integer, beside)
