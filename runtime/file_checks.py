"""A bundle's files against its manifest: by several threads behind whatever else is done, and once only.

A file that was found right is known again by its identity: path, size, times, inode and device. The user's cache keeps
that, so that the next process hashes what was changed, replaced or touched since, and nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Literal, Protocol, get_args

import msgspec

from plugins.errors import UserError
from plugins.interrupts import Ending
from plugins.user_cache import cached, keep
from runtime.bundle import Hashing, Manifest
from runtime.checks import check_size, mending, mismatch
from runtime.hashing import HashThreads
from runtime.host_code import unverified_host_code
from runtime.input_files import open_input
from runtime.report import Report

Verify = Literal["auto", "always", "never"]
VERIFY: tuple[Verify, ...] = get_args(Verify)
_KIND = "verified"  # of the user's cache
_MAX_RECORD = 1 << 16  # bytes
_SETTLED_NS = 2_000_000_000  # a file changed within that time may change again, and its times stay the same
_POLL = 0.05  # seconds between two movements of the bar


class _Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What changes when a file does; ``ctime_ns`` cannot be set by who changes it. ``digest``: the manifest's."""

    path: str
    bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int
    digest: str

    @property
    def key(self) -> str:
        """The name under which the cache keeps it: a file has one record, its last."""
        return sha256(os.fsencode(self.path)).hexdigest()


class OpenFile(Protocol):
    """A file of the bundle that is open for reading."""

    @property
    def path(self) -> Path: ...

    @property
    def descriptor(self) -> int: ...


@dataclass
class _Running:
    """A file that is being hashed; ``done`` of its bytes are."""

    descriptor: int
    identity: _Identity
    began_ns: int
    hashing: Hashing | None = None
    done: int = 0
    dropped: bool = False


def parse_verify(text: str) -> Verify:
    """One of VERIFY. Raises UserError."""
    for known in VERIFY:
        if text == known:
            return known
    raise UserError("This way to verify is not known.", expected=", ".join(VERIFY), got=text)


class FileChecks:
    """The checks of one bundle's files; ``close`` ends its threads. Safe for one thread at a time."""

    def __init__(self, folder: Path, manifest: Manifest, verify: Verify, report: Report) -> None:
        self._folder, self._manifest, self._verify, self._report = folder, manifest, verify, report
        self._known: dict[str, _Identity] = {}
        self._running: dict[str, _Running] = {}
        self._threads: list[HashThreads] = []
        self._lock, self._told = Lock(), False
        self.close = Ending(self, _close, self._threads, self._running, atexit=False)

    def begin(self, names: Iterable[str]) -> None:
        """Look at these files' sizes, and begin to hash those that are not known.

        Raises UserError for a size, and where engines that carry native code are not to be verified.
        """
        wanted = sorted(set(names))
        if (error := unverified_host_code(self._manifest, wanted, verify=self._verify != "never")) is not None:
            raise error
        for name in wanted:
            if (reason := check_size(self._folder, self._manifest, name)) is not None:
                raise UserError(reason)
            if self._verify != "never":
                self._begin(name, open_input(self._folder / name, "a file of the bundle"))

    def begin_open(self, file: OpenFile) -> None:
        """``begin`` of a file that is open: whatever lies at its path by now, its own bytes are hashed."""
        if self._verify != "never":
            self._begin(file.path.name, os.dup(file.descriptor))

    def finish(self, names: Iterable[str] | None = None) -> None:
        """Wait until these files are hashed, all where none are named. Raises UserError for one that is another."""
        wanted = list(self._running) if names is None else list(names)
        waited = {name: self._running[name] for name in wanted if name in self._running}
        pending = {digest for one in waited.values() if one.hashing is not None for digest in one.hashing.digests}
        if not all(digest.done() for digest in pending):
            self._wait(waited, pending)
        problems = {name: problem for name in waited if (problem := self._end(name)) is not None}
        if problems:
            raise UserError(
                mismatch(
                    "A file is damaged: " + "; ".join(problems.values()) + ".",
                    "the sha256 of the manifest",
                    "another",
                    f"{mending(self._folder, self._manifest, next(iter(problems)))}, "
                    "or --verify never at your own risk",
                )
            )

    def check(self, names: Iterable[str]) -> None:
        """``begin`` and ``finish``."""
        wanted = list(names)
        self.begin(wanted)
        self.finish(wanted)

    def _begin(self, name: str, descriptor: int) -> None:
        """Begin to hash an open file, unless its bytes are known or are being hashed; the descriptor is closed."""
        info = self._manifest.files[name]
        running = _Running(descriptor, self._identity(name, descriptor), time.time_ns())
        under_way = self._running.get(name)
        if (under_way and under_way.identity == running.identity) or self._is_known(name, running.identity):
            os.close(descriptor)
            return
        if under_way:
            _drop(self._running.pop(name))
        self._running[name] = running

        def heard(count: int) -> None:
            if running.dropped:
                raise InterruptedError
            with self._lock:
                running.done += count

        if not self._threads:
            self._threads.append(HashThreads())
        running.hashing = Hashing(name, info, descriptor, self._threads[0], heard)

    def _identity(self, name: str, descriptor: int) -> _Identity:
        found, info = os.fstat(descriptor), self._manifest.files[name]
        path, digest = os.path.realpath(self._folder / name), info.tree_sha256 or info.sha256
        return _Identity(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev, digest)

    def _is_known(self, name: str, identity: _Identity) -> bool:
        if self._known.get(name) == identity:
            return True
        if self._verify == "always" or (data := cached(_KIND, identity.key, _MAX_RECORD)) is None:
            return False
        try:
            kept = msgspec.json.decode(data, type=_Identity)
        except msgspec.MsgspecError:
            return False
        if kept == identity:
            self._known[name] = identity
        return kept == identity

    def _wait(self, waited: dict[str, _Running], pending: set[Future[bytes]]) -> None:
        total = sum(self._manifest.files[name].bytes for name in waited)
        with self._report.stage("verify sha256") as update:
            while pending:
                pending = wait(pending, _POLL).not_done
                update(sum(one.done for one in waited.values()), total)

    def _end(self, name: str) -> str | None:
        """What is wrong with a file that is hashed, or None: then it is known from now on."""
        running = self._running[name]
        try:
            if running.hashing is None:
                return None
            if (problem := running.hashing.problem()) is not None:
                return problem
            if self._identity(name, running.descriptor) != running.identity:
                return f"{name}: it was changed while it was read"
            self._remember(name, running)
            return None
        finally:
            _drop(self._running.pop(name))

    def _remember(self, name: str, running: _Running) -> None:
        identity = running.identity
        if running.began_ns - identity.ctime_ns < _SETTLED_NS:
            return
        self._known[name] = identity
        if (problem := keep(_KIND, identity.key, msgspec.json.encode(identity))) is not None and not self._told:
            self._told = True
            self._report.note(problem)


def _drop(running: _Running) -> None:
    """Close a file when no thread reads it any more."""
    running.dropped = True
    digests = [] if running.hashing is None else running.hashing.digests
    wait([digest for digest in digests if not digest.cancel()])
    os.close(running.descriptor)


def _close(threads: list[HashThreads], running: dict[str, _Running]) -> None:
    while running:
        _drop(running.popitem()[1])
    while threads:
        threads.pop().close()
