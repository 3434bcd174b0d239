"""What pyproject.toml cannot say: a wheel that holds the plugin library is of one platform, one without it of any."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel

LIBRARY = Path("plugins", "native", "libturbotrt_plugins.so")  # what make native builds; nothing here compiles


class WithLibrary(Distribution):
    """Python packages, and a library beside them where one was built."""

    def has_ext_modules(self) -> bool:
        return LIBRARY.is_file()


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3, and for the platform of the library."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]

    def run(self) -> None:
        if not LIBRARY.is_file():
            logging.warning("turbotrt: no plugin library in %s, Python's plugins run (make native)", LIBRARY.parent)
        # An earlier build may have left a library there that is here no more.
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()


setup(distclass=WithLibrary, cmdclass={"bdist_wheel": PlatformWheel})
