"""What disk and bus of this machine give: the measure of a load."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch


def disk_rate(path: Path, workers: int = 8) -> float:
    """Bytes a second of plain parallel reads of the file, as it lies in the page cache, into memory touched before."""
    part, size = 32 << 20, path.stat().st_size
    buffers = threading.local()

    def read(at: int) -> int:
        if not hasattr(buffers, "own"):
            buffers.own = bytearray(part)
        with path.open("rb", buffering=0) as file:
            file.seek(at)
            return file.readinto(buffers.own) or 0

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(read, range(0, 8 * part, part)))
        started = time.perf_counter()
        total = sum(pool.map(read, range(0, size, part)))
    return total / (time.perf_counter() - started)


def pcie_rate() -> float:
    """Bytes a second from page-locked memory."""
    host = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    device = torch.empty_like(host, device="cuda")
    device.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(4):
        device.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    return 4 * (1 << 30) / (time.perf_counter() - started)
