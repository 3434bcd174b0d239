"""All targets by name."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fuzz.bundles import BUNDLE_TARGETS
from tests.fuzz.checkpoints import CHECKPOINT_TARGETS
from tests.fuzz.inputs import INPUT_TARGETS
from tests.fuzz.native import NATIVE_TARGETS
from tests.fuzz.target import Target

TARGETS: Mapping[str, Target] = {
    target.name: target for target in (*BUNDLE_TARGETS, *CHECKPOINT_TARGETS, *INPUT_TARGETS, *NATIVE_TARGETS)
}
