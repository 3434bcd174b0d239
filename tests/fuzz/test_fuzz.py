"""Some seconds of every target, from one seed: nothing crashes, hangs or fills memory, and both answers are given."""

from __future__ import annotations

from pathlib import Path

import pytest

for _module in ("tensorrt_rtx", "tokenizers", "ftfy", "PIL"):
    pytest.importorskip(_module)

from tests.fuzz.target import Failure, Fuzzer, Target
from tests.fuzz.targets import TARGETS

SEED = 20261125


@pytest.mark.filterwarnings("ignore")  # of archives with names that occur twice
@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    fuzzer = Fuzzer(target, tmp_path, SEED)
    for number in range(target.cases):
        fuzzer.run(number)
    tally = fuzzer.tally
    print(f"{name}: {tally.accepted} accepted, {tally.refused} refused")
    assert min(tally.accepted, tally.refused) > target.cases // 100


def test_what_crashes_hangs_or_eats_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.target.SECONDS", 1)
    monkeypatch.setattr("tests.fuzz.target.MEMORY", 1 << 17)

    def crash(*_: object) -> None:
        raise RecursionError("deep")

    def hang(*_: object) -> None:
        while True:
            pass

    held: list[bytearray] = []
    wrong = {"deep": crash, "more than 1 s": hang, "MiB of memory": lambda *_: held.append(bytearray(b"x") * (3 << 26))}
    for words, case in wrong.items():
        fuzzer = Fuzzer(Target("x", lambda _, case=case: case, 1), tmp_path, SEED)  # type: ignore[misc]
        with pytest.raises(Failure, match=f"{words}(.|\n)*--target x --seed {SEED} --case 7"):
            fuzzer.run(7)
        held.clear()
