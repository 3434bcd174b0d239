"""What stays in device memory between calls: never more than fits, and those first that cost most to bring back."""

from __future__ import annotations

import random

from runtime.media.parts.residency import Need, Residency, plan_residency

GB = 10**9
TEXT = Need("text", "60 tokens", 11 * GB, 12 * GB, 2 * GB, 0, 11 * GB, 0, 3)
DIT = Need("DiT", "all resident", 15 * GB, 21 * GB, 21 * GB, 15 * GB, 15 * GB, 0, 0)
VAE = Need("VAE decode", "whole", GB, 9 * GB, 9 * GB, GB, GB, 0, 1)
NEEDS = (TEXT, DIT, VAE)
ALL = frozenset(need.name for need in NEEDS)


def planned(budget: int | None, again: frozenset[str] = ALL, host_limit: int = 16 * GB) -> Residency:
    return plan_residency(NEEDS, budget, again=again, host_limit=host_limit)


def test_without_a_limit_all_stay_and_with_one_by_what_they_cost() -> None:
    assert planned(None).stay == ALL
    assert planned(35 * GB).stay == ALL
    assert planned(35 * GB).most == 35 * GB  # the VAE's run beside the weights of the two others
    assert planned(35 * GB - 1).stay == {"DiT", "VAE decode"}
    assert planned(24 * GB).stay == {"DiT", "VAE decode"}  # 15 + 9 while the VAE decodes
    assert planned(24 * GB - 1).stay == {"VAE decode"}
    assert planned(21 * GB).stay == frozenset()  # not even the VAE's beside the DiT


def test_what_does_not_stay_comes_ahead_where_there_is_room() -> None:
    plan = planned(24 * GB - 1)
    assert plan.ahead == {"DiT"}
    assert plan.after("text") == "DiT"
    assert plan.peak("text") == (2 + 1 + 15) * GB
    assert planned(17 * GB - 1, frozenset()).ahead == frozenset()  # 2 + 15 while the text encoder runs
    assert planned(None, frozenset()).ahead == {"DiT", "VAE decode"}


def test_what_waits_in_the_host_is_within_its_limit() -> None:
    assert planned(24 * GB - 1).waiting == {"DiT": 15 * GB, "text": GB}
    assert planned(24 * GB - 1, host_limit=0).waiting == {}
    assert planned(24 * GB - 1, frozenset()).waiting == {}
    assert planned(24 * GB).waiting == {"text": 11 * GB}
    said = "\n".join(planned(24 * GB - 1).lines())
    assert "Between videos stay: VAE decode (1.00 GB)" in said
    assert "In page-locked host memory waits: DiT (15.00 GB; at most 16.00 GB in all)" in said
    assert "Behind the part before comes: DiT" in said


def test_no_plan_is_over_its_budget() -> None:
    dice = random.Random(0)
    for _ in range(2000):
        needs = []
        for rank in range(4):
            weights, running, streams = dice.randrange(1, 20), dice.randrange(1, 20), dice.randrange(3)
            passing = dice.randrange(1, weights + 1) + running
            needs.append(
                Need(
                    str(rank), "", weights, weights + running, passing, dice.randrange(weights), weights, streams, rank
                )
            )
        dice.shuffle(needs)
        budget = dice.randrange(max(need.passing for need in needs), 120)
        again = {need.name for need in needs if dice.random() < 0.7}
        plan = plan_residency(needs, budget, again=again, host_limit=dice.randrange(40))
        assert plan.most <= budget, (needs, budget)
        assert plan.stay <= again
        assert sum(plan.waiting.values()) <= plan.host_limit
        more = plan_residency(needs, budget + 1, again=again).stay
        first = min((need.rank for need in needs if need.name in again), default=None)
        assert str(first) not in plan.stay or str(first) in more  # more memory never sends the first one away
