"""What a run may choose in place of its bundle's own: the boundary of two experts, the share of kept key blocks."""

from __future__ import annotations

from pathlib import Path

import msgspec

from plugins.errors import UserError
from runtime.bundle import Manifest, SamplerFacts
from runtime.checks import rebuild_command


def chosen(
    manifest: Manifest, folder: Path, *, boundary: float | None, topk_milli: int | None, any_topk: bool
) -> Manifest:
    """The manifest of a run with these choices, None being the bundle's own.

    ``any_topk``: whether the backend can run another share than the engines were built for. Raises UserError where a
    choice does not fit the model, its attention or its engines.
    """
    sampler = manifest.sampler
    if boundary is not None:
        sampler = msgspec.structs.replace(sampler, boundary=_boundary(manifest, boundary))
    if topk_milli is not None and topk_milli != sampler.topk_milli:
        sampler = _with_topk(manifest, folder, sampler, topk_milli, any_topk=any_topk)
    return manifest if sampler is manifest.sampler else msgspec.structs.replace(manifest, sampler=sampler)


def _boundary(manifest: Manifest, boundary: float) -> float:
    if len(manifest.model.experts) < 2:
        raise UserError(
            f"{manifest.model.name} has one expert for all times: there is no boundary to choose.",
            remedy="drop --boundary",
        )
    if not 0 <= boundary <= 1:  # NaN too
        raise UserError(
            "This boundary cannot be used.",
            expected="a time from 0 to 1: steps that begin below it are the low-noise expert's",
            got=f"{boundary:g}",
        )
    return boundary


def _with_topk(
    manifest: Manifest, folder: Path, sampler: SamplerFacts, topk_milli: int, *, any_topk: bool
) -> SamplerFacts:
    if sampler.dense:
        raise UserError(
            f"The bundle's attention, {sampler.attention}, keeps every key block: --topk has nothing to choose.",
            remedy="drop --topk",
        )
    wanted = msgspec.structs.replace(sampler, topk_milli=topk_milli)
    if not any_topk:
        again = rebuild_command(msgspec.structs.replace(manifest, sampler=wanted), folder)
        raise UserError(
            "The bundle's engines keep another share of key blocks.",
            expected=f"--topk {sampler.topk_milli / 1000:g}, which is compiled into them",
            got=f"{topk_milli / 1000:g}",
            remedy=f"{again}, or run with --backend torch",
        )
    return wanted
