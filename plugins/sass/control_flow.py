"""Loops of a kernel from its SASS: basic blocks, dominators, natural loops (Aho, Sethi, Ullman, section 10.4).

Addresses do not nest as loops do: the compiler moves slow paths (a barrier's spin) behind the function's end, and their
branches back would look like loops around everything between.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)(.*?);?\s*\}?\s*(?:/\*.*)?$")
_SECOND_WORD = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/\s*$")
_LABEL = re.compile(r"^(\.L_[\w.]+):")
_TARGET = re.compile(r"`\((\.L_[\w.]+)\)")
_JUMPS = ("BRA", "JMP", "CALL", "BRX")
_ENDS = ("EXIT", "RET", "BRX")


@dataclass(frozen=True)
class Instruction:
    """One SASS instruction: mnemonic with its modifiers, operands as printed, whether predicated, labels before it.

    ``control``: the upper half of its 16 bytes, where the compiler says how the instruction waits; 0 if not listed.
    """

    mnemonic: str
    operands: str
    predicated: bool
    labels: tuple[str, ...]
    control: int = 0

    @property
    def opcode(self) -> str:
        """The mnemonic without modifiers."""
        return self.mnemonic.partition(".")[0]

    @property
    def target(self) -> str | None:
        """The label an instruction names."""
        match = _TARGET.search(self.operands)
        return match[1] if match else None


def parse(text: str) -> list[Instruction]:
    """The instructions in nvdisasm's output of one kernel, in order."""
    found: list[Instruction] = []
    labels: list[str] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels.append(label[1])
        elif match := _LINE.match(line):
            # A conditional branch names its predicate before or, since uniform predicates, among its operands.
            conditional = match[2] is not None or re.match(r"\s*!?U?P\d", match[4]) is not None
            found.append(Instruction(match[3], match[4], conditional, tuple(labels)))
            labels = []
        elif found and (word := _SECOND_WORD.match(line)):
            found[-1] = replace(found[-1], control=int(word[1], 16))
    return found


def _successors(code: Sequence[Instruction], at: int, where: dict[str, int], barriers: dict[str, int]) -> set[int]:
    """Indices of the instructions that may follow one; ``barriers``: where the last BSSY before it reconverges."""
    instruction = code[at]
    after = {at + 1} if at + 1 < len(code) else set()
    if instruction.opcode in _JUMPS and instruction.target in where:
        # CALL to a label of the same kernel is how older compilers print a far branch; other calls return.
        jump = {where[instruction.target]}
        return jump | after if instruction.predicated or instruction.mnemonic == "BRA.DIV" else jump
    if instruction.opcode == "BSYNC":  # goes on where the matching BSSY said, as a rule the next instruction
        return {barriers.get(instruction.operands.strip(), at + 1)}
    if instruction.opcode in _ENDS:
        return after if instruction.predicated else set()
    return after


def _graph(code: Sequence[Instruction]) -> list[set[int]]:
    where = {label: index for index, instruction in enumerate(code) for label in instruction.labels}
    barriers: dict[str, int] = {}
    edges = []
    for at, instruction in enumerate(code):
        if instruction.opcode == "BSSY" and instruction.target in where:
            barriers[instruction.operands.partition(",")[0].strip()] = where[instruction.target]
        edges.append(_successors(code, at, where, barriers))
    return edges


def _blocks(edges: Sequence[set[int]]) -> tuple[list[range], list[set[int]]]:
    """Basic blocks as ranges of instructions, and their successors."""
    starts = {0} | {s for at, after in enumerate(edges) if after != {at + 1} for s in after | {at + 1}}
    ordered = sorted(s for s in starts if s < len(edges))
    blocks = [range(a, b) for a, b in zip(ordered, [*ordered[1:], len(edges)], strict=True)]
    number = {block.start: index for index, block in enumerate(blocks)}
    return blocks, [{number[s] for s in edges[block[-1]]} for block in blocks]


def _entries(successors: Sequence[set[int]]) -> set[int]:
    """The first block, and the first of what no block leads to: the targets of indirect branches (warp roles)."""
    entries: set[int] = set()
    reached: set[int] = set()
    for block in range(len(successors)):
        if block in reached:
            continue
        entries.add(block)
        queue = [block]
        while queue:
            if (at := queue.pop()) not in reached:
                reached.add(at)
                queue.extend(successors[at])
    return entries


def _dominators(predecessors: Sequence[set[int]], entries: set[int]) -> list[int]:
    """Each block's dominators as a bit set."""
    everything = (1 << len(predecessors)) - 1
    dominators = [1 << block if block in entries else everything for block in range(len(predecessors))]
    changed = True
    while changed:
        changed = False
        for block, befores in enumerate(predecessors):
            if block in entries:
                continue
            common = everything
            for before in befores:
                common &= dominators[before]
            if (new := common | 1 << block) != dominators[block]:
                dominators[block], changed = new, True
    return dominators


def loops(code: Sequence[Instruction]) -> list[frozenset[int]]:
    """Every natural loop as the indices of its instructions; loops that share a header are one."""
    if not code:
        return []
    blocks, successors = _blocks(_graph(code))
    predecessors = [{b for b, after in enumerate(successors) if block in after} for block in range(len(blocks))]
    dominators = _dominators(predecessors, _entries(successors))
    bodies: dict[int, set[int]] = {}
    for header, befores in enumerate(predecessors):
        for tail in befores:
            if dominators[tail] >> header & 1:
                body = bodies.setdefault(header, {header})
                queue = [tail]
                while queue:
                    block = queue.pop()
                    if block not in body:
                        body.add(block)
                        queue.extend(predecessors[block])
    return [frozenset(at for block in body for at in blocks[block]) for body in bodies.values()]


def usual_path(code: Sequence[Instruction], loop: frozenset[int]) -> list[int]:
    """A loop's instructions in order, less what a branch on a warp's vote jumps over.

    A kernel asks all lanes (VOTE.ANY) where one that needs it is the exception, as before sums are scaled anew.
    """
    where = {label: index for index, instruction in enumerate(code) for label in instruction.labels}
    rare: set[int] = set()
    voted = False
    for at in sorted(loop):
        instruction = code[at]
        if instruction.mnemonic == "VOTE.ANY":
            voted = True
        elif instruction.opcode in _JUMPS:
            end = where.get(instruction.target or "", at)
            if voted and instruction.predicated and end in loop:
                rare.update(range(at + 1, end))
            voted = False
    return sorted(loop - rare)
