"""Builds an engine as exports do, in a process of its own, with one kind of plugins.

``python -m tests.support.native_engine REQUEST HOST EMBED``: a file of a BuildRequest; "python" or a library's path;
"embed" or "plain".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from exporter.builder import child
from plugins import library, tensorrt_plugin


def main() -> None:
    """Build what the command line says."""
    host, embed = sys.argv[2:4]
    by_python, config_of = tensorrt_plugin.register, child.builder_config

    def register(trt: Any, ops: Any, *_: object) -> str:
        if host == "python":
            by_python(trt, ops)
        else:
            library.load(trt, Path(host))
        return host

    def config(trt: Any, *rest: Any) -> Any:
        made = config_of(trt, *rest)
        if embed == "embed":
            made.plugins_to_serialize = [host]
        return made

    library.register = register  # type: ignore[assignment]
    tensorrt_plugin.register = register  # type: ignore[assignment]
    child.builder_config = config  # type: ignore[assignment]
    child._build_repeatably(msgspec.convert(json.loads(Path(sys.argv[1]).read_text()), child.BuildRequest))


if __name__ == "__main__":
    main()
