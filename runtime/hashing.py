"""Hashes of files at the disk's speed: in pieces, by several threads (hashlib and reads let go of Python's lock)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

PIECE = 16 << 20  # bytes; a format: the manifest's tree_sha256 is of pieces of this size
_BLOCK = 1 << 20  # bytes read at once: they stay in a core's own cache while they are hashed

Heard = Callable[[int], object]  # hears the bytes of each part read; may raise to end the work


def unheard(_: int) -> None:
    """Nobody wants to know how far it is."""


def piece_digest(descriptor: int, start: int, count: int, heard: Heard = unheard) -> bytes:
    """SHA-256 of bytes [start, start + count) of a file, or of those that are there."""
    digest, block = hashlib.sha256(), memoryview(bytearray(min(_BLOCK, max(1, count))))
    while count > 0 and (got := os.preadv(descriptor, [block[: min(count, _BLOCK)]], start)):
        digest.update(block[:got])
        heard(got)
        start, count = start + got, count - got
    return digest.digest()


def tree_of(digests: Iterable[bytes]) -> str:
    """SHA-256 of the digests of all pieces, in hexadecimal."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


class HashThreads:
    """A context: threads to hash with, one for each core of this process. At its end what is not done is dropped."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "turbotrt-hash")
        self._stopping = Event()

    def __enter__(self) -> HashThreads:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads, soon: files are of gigabytes."""
        self._stopping.set()
        self._pool.shutdown(cancel_futures=True)

    def whole(self, descriptor: int, size: int, heard: Heard = unheard) -> Future[bytes]:
        """The digest of a file of so many bytes."""
        return self._pool.submit(piece_digest, descriptor, 0, size, self._until_stopped(heard))

    def pieces(self, descriptor: int, size: int, heard: Heard = unheard) -> list[Future[bytes]]:
        """The digests of a file's pieces, in order."""
        heard, starts = self._until_stopped(heard), range(0, max(1, size), PIECE)
        return [self._pool.submit(piece_digest, descriptor, at, min(PIECE, size - at), heard) for at in starts]

    def _until_stopped(self, heard: Heard) -> Heard:
        def told(count: int) -> None:
            if self._stopping.is_set():
                raise InterruptedError
            heard(count)

        return told
