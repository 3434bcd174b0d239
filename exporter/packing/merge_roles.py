"""Which of three checkpoints is the base: told by their names, and by how far they are from each other.

Two trainings of one base differ from it in directions that have little to do with each other, so that they are farther
from each other than each is from the base. With base and rCM swapped, "base" and SLA are the farthest pair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import combinations

import torch

from exporter.checkpoint.reader import NamedTensors
from plugins.errors import UserError

_SAMPLED = 24  # matrices, evenly over the model, of which the distances are taken
_ROWS = 512
#: The squared distance of base and SLA over that of rCM and SLA: under 1 where the trainings have nothing in common, a
#: little over where they lean the same way. Swapped, it is 1 and the square of rCM's own distance over SLA's.
_CLEAR = 1.2
_WORDS: Mapping[str, str] = {"rcm": r"rcm|distill(ed)?", "base": r"base|pretrained"}


def check_roles(inputs: Mapping[str, NamedTensors]) -> str:
    """How far base, sla and rcm are apart, in words. Raises UserError where base and rcm seem to be swapped."""
    if swapped := _by_name(inputs):
        raise _swapped(swapped)
    far = _distances(inputs)
    words = ", ".join(f"|{a} - {b}| = {distance**0.5:.4g}" for (a, b), distance in far.items())
    if far["base", "sla"] > _CLEAR * far["sla", "rcm"] and far["base", "sla"] > far["base", "rcm"]:
        raise _swapped(f"base is farther from sla than rcm is: {words}")
    return f"{words} (of a sample of the matrices)"


def _swapped(got: str) -> UserError:
    return UserError(
        "--base and --rcm seem to be swapped.",
        expected="base: the pretrained model that both trainings started from; rcm: its few-step training",
        got=got,
        remedy="swap them (the authors' --base is our --rcm, their --diff_base our --base), or rename a file that is "
        "called by another role",
    )


def _by_name(inputs: Mapping[str, NamedTensors]) -> str | None:
    """The names that say so: of files, or recorded in them."""
    said = {role: _roles_of(inputs[role]) for role in _WORDS}
    others = {"base": "rcm", "rcm": "base"}
    if any(said[role] == {other} and other not in said[other] for role, other in others.items()):
        return ", ".join(f"{role}: {inputs[role].path.name}" for role in _WORDS)
    return None


def _roles_of(source: NamedTensors) -> set[str]:
    recorded = [value for key, value in source.metadata.items() if "name" in key or "title" in key]
    text = " ".join([source.path.name, *recorded]).lower()
    return {role for role, words in _WORDS.items() if re.search(rf"(?<![a-z])({words})(?![a-z])", text)}


def _distances(inputs: Mapping[str, NamedTensors]) -> dict[tuple[str, str], float]:
    """Squared distances between each two, over the first rows of some matrices that all of them have."""
    shared = set.intersection(*(set(source.tensors) for source in inputs.values()))
    names = [name for name, meta in inputs["base"].tensors.items() if name in shared and len(meta.shape) == 2]
    found = dict.fromkeys(combinations(inputs, 2), 0.0)
    for name in names[:: max(1, len(names) // _SAMPLED)]:
        rows = {role: _first_rows(source, name) for role, source in inputs.items()}
        for a, b in found:
            found[a, b] += float((rows[a] - rows[b]).square().sum())
    return found


def _first_rows(source: NamedTensors, name: str) -> torch.Tensor:
    return next(source.bands(name))[:_ROWS].to(torch.float64)
