"""Manifests of earlier schemas as the present one states them: their bundles stay readable.

Schema 4 added the hash of a file's pieces; before schema 3 stages were not one record.
"""

from __future__ import annotations

from typing import Any

OLD_VERSIONS = (2, 3)
#: The inputs of its stages that are no weights. Schema 2 did not mark them: they were known by these names alone.
_ACTIVATIONS = {
    "embed": ("tokens", "time_features", "text", "condition"),
    "block": ("x", "context", "e0", "cos", "sin"),
    "head": ("x", "e", "tokens", "noise", "a", "b", "c"),
}
_MEDIA_ACTIVATIONS = ("x", "buckets", "chunk")
_CACHE = "cache."


def upgraded(manifest: dict[str, Any], version: int) -> dict[str, Any]:
    """A manifest of an earlier schema, as JSON's own types, in the present one.

    Raises KeyError, TypeError or AttributeError where it is none; what else may be wrong with it shows when it is
    decoded.
    """
    if manifest["schema_version"] == OLD_VERSIONS[-1]:
        return {**manifest, "schema_version": version}
    stages = [{"component": "dit", **stage} for stage in manifest["stages"]] + manifest.get("media", [])
    new = {name: value for name, value in manifest.items() if name != "media"}
    return {**new, "schema_version": version, "stages": [_marked(stage) for stage in stages]}


def _marked(stage: dict[str, Any]) -> dict[str, Any]:
    inputs = [{**tensor, "weight": not _is_activation(stage, tensor["name"])} for tensor in stage["inputs"]]
    return {**stage, "inputs": inputs}


def _is_activation(stage: dict[str, Any], name: str) -> bool:
    if stage["name"] == "one-file":
        return True  # its weights are constants
    return name in _ACTIVATIONS.get(stage["name"], _MEDIA_ACTIVATIONS) or name.startswith(_CACHE)
