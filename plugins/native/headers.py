"""Finds or fetches the headers that the library is compiled with; nothing of them is kept in the sources.

CMake runs it where it found no SDK: ``python headers.py tensorrt|cuda FOLDER`` prints the folder to include. TensorRT's
come from the official repository at a pinned tag, else from a wheel that carries them; CUDA's from two wheels. Each
header is checked by its hash, and wheels are unpacked, never installed. Needs nothing but Python and pip.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

TENSORRT_TAG = "v10.14"
_REPOSITORY = f"https://raw.githubusercontent.com/NVIDIA/TensorRT/{TENSORRT_TAG}/include/"
_TENSORRT_WHEELS = {"kernel-lens==2.0.1": "kernel_lens/include/tensorrt/"}
_CUDA_WHEELS = dict.fromkeys(("nvidia-cuda-runtime==13.5.37", "nvidia-cuda-crt==13.5.37"), "nvidia/cu13/include/")
_SECONDS = 10

#: sha256 by name. Two headers have two: in the repository, and in the SDK that the wheel's are of; they differ in
#: what only TensorRT itself is built with.
TENSORRT: Mapping[str, tuple[str, ...]] = {
    "NvInferImpl.h": (
        "08eea4ddf972738bfe76725689a5a8c104c91b181c805e64a8b76abcf173d846",
        "a6f63415b62e84ba5ac177f113e536cbd07e71fd0e444eef8b1972a62e5c1011",
    ),
    "NvInferLegacyDims.h": ("3e10fe5b85545f2e956e6935271badf0b1c72553b698000a61d46d69c5d53030",),
    "NvInferPluginBase.h": ("774e457b2e80f27502ea1aed8132949f6e0788251b5374948e1bfdc9de9fb0ee",),
    "NvInferRuntime.h": (
        "b439dc39da8ff1c778f4cfd84090534985237c1c65fba96aba6bbdfeca6dbbf5",
        "f98c5aa42512db944fff22e66b2e67fdc1ba65ca525be2cc9f2474f656f01356",
    ),
    "NvInferRuntimeBase.h": ("f7abd0bca8a2641ad92f270b53e7843a1eaf8c56568cbaf7bf8d5878330c4ec9",),
    "NvInferRuntimeCommon.h": ("9461c9d07403c5dd1f8a6dea17fa5c3fe5cef7c4290c6768370a1d8139d4ac5d",),
    "NvInferRuntimePlugin.h": ("d337b34b7b7efc1c65ba3405a6551389063669cb0c51704f91578b5f817999fc",),
    "NvInferVersion.h": ("950df353f2c1f5d322862e4fd407f5785fc994b146998574da3174dee85855fa",),
}
CUDA: Mapping[str, tuple[str, ...]] = {
    "builtin_types.h": ("2714fd55fdaadac9f14c138bf400b33666334d60023b654e554bb529d16deff8",),
    "crt/host_defines.h": ("263c17b5d4847692246c7002232a0269c9a111c9d50ad2cd3449baef58a6004b",),
    "cuda.h": ("f4250132eae986e244c693f562f81bdaa919c378665228bece23182da33a39b0",),
    "cuda_device_runtime_api.h": ("0a159d4210c02213df336c8582700b617d6d298a7d74d9eb16c561bc5f4e9b7c",),
    "cuda_runtime_api.h": ("f342678b8b0946910724763f45c33539a496257eebd38065465db8ab0b0737e3",),
    "device_types.h": ("d8b171a190493e80395741f511b29311a5c38b718324fb7338f7511c36ae7084",),
    "driver_types.h": ("ba262fae44f216b4e817c010af4dc294985a0ff2857a16f1d83fc015651818ca",),
    "surface_types.h": ("5e41570f59c76de48c81a8d1f94244f6e43b4c1cb32678dd9d42f8fb21a2b9f9",),
    "texture_types.h": ("ef79ed57283cafc7f32b2e55224eb2baf0b8e460de59ea5a2c8a8893e337462f",),
    "vector_types.h": ("ded087a2c3ca89fd3a5150589175aca0aa4714357016209ea3e7a51f94845e75",),
}

Fetch = Callable[[Iterable[str]], dict[str, bytes]]


class NoHeaders(Exception):
    """Headers could not be had; the message says why."""


def from_repository(names: Iterable[str]) -> dict[str, bytes]:
    """TensorRT's headers from the official repository. Raises NoHeaders."""
    found = {}
    for name in names:
        try:
            with urllib.request.urlopen(_REPOSITORY + name, timeout=_SECONDS) as answer:
                found[name] = answer.read()
        except (urllib.error.URLError, OSError) as error:
            raise NoHeaders(f"{_REPOSITORY}{name}: {error}") from error
    return found


def from_wheels(wheels: Mapping[str, str], names: Iterable[str]) -> dict[str, bytes]:
    """Headers out of wheels that pip downloads; wheel → the folder in it. Raises NoHeaders."""
    wanted, found = set(names), dict[str, bytes]()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "--dest", folder, *wheels], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NoHeaders(f"pip download {' '.join(wheels)}: {done.stderr.strip()[-500:]}")
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(io.BytesIO(wheel.read_bytes())) as archive:
                for root in set(wheels.values()):
                    inside = {name for name in wanted if root + name in archive.namelist()}
                    found |= {name: archive.read(root + name) for name in inside}
    return found


def checked(headers: Mapping[str, bytes], hashes: Mapping[str, tuple[str, ...]]) -> None:
    """Raise NoHeaders unless every header is there and is the one that was looked at."""
    for name, allowed in hashes.items():
        if name not in headers:
            raise NoHeaders(f"{name} is not among them")
        if (found := hashlib.sha256(headers[name]).hexdigest()) not in allowed:
            raise NoHeaders(f"{name} is not the header that was looked at: sha256 {found}")


def complete(folder: Path, hashes: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether the folder has all headers, as they should be."""
    try:
        checked({name: (folder / name).read_bytes() for name in hashes}, hashes)
    except (OSError, NoHeaders):
        return False
    return True


def fetch(folder: Path, hashes: Mapping[str, tuple[str, ...]], sources: Mapping[str, Fetch]) -> None:
    """Fill the folder from the first source that has all headers. Raises NoHeaders with what each said."""
    said = []
    for source, take in sources.items():
        try:
            headers = take(hashes)
            checked(headers, hashes)
        except NoHeaders as error:
            said.append(f"  {source}: {error}")
            continue
        for name, data in headers.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return
    raise NoHeaders("\n".join(said))


SOURCES: Mapping[str, tuple[Mapping[str, tuple[str, ...]], Mapping[str, Fetch]]] = {
    "tensorrt": (
        TENSORRT,
        {
            f"the official repository at {TENSORRT_TAG}": from_repository,
            "a wheel that carries them": lambda names: from_wheels(_TENSORRT_WHEELS, names),
        },
    ),
    "cuda": (CUDA, {"CUDA's wheels": lambda names: from_wheels(_CUDA_WHEELS, names)}),
}


def main() -> int:
    """Print the folder with the headers that the command line names; status 1 with the reason where there are none."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    hashes, sources = SOURCES[kind]
    try:
        if not complete(folder, hashes):
            fetch(folder, hashes, sources)
    except NoHeaders as error:
        sys.stderr.write(f"The headers of {kind} could not be had:\n{error}\n")
        return 1
    sys.stdout.write(str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
