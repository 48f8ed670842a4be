# SPDX-License-Identifier: Apache-2.0
"""The daemon's directory: models and plans under their SHA-256, uploads in flight, version counters.

Nothing becomes visible before it is complete and on disk: files are written under ``tmp``, synced, and renamed. A
record (``.json``) is what makes an entry exist and is written after its bytes, so that the daemon may be killed at any
moment; ``Store`` removes what such an end left behind when it opens the directory. Blocking; thread-safe."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from planner_service.devices import Device, check_name
from planner_service.errors import Code, PlannerError

Kind = Literal["models", "plans"]

#: Registered devices at most.
MAX_DEVICES = 10_000
#: Uploads that may be unfinished at once, and how long one may rest before it is dropped.
MAX_PARTIAL = 64
PARTIAL_SECONDS = 7 * 24 * 3600

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in bytes: of one model, and of everything that the store holds."""

    model_bytes: int = 64 << 20
    store_bytes: int = 4 << 30


def digest_of(data: bytes) -> str:
    """SHA-256, as the store names things."""
    return hashlib.sha256(data).hexdigest()


def check_digest(digest: str) -> str:
    """``digest`` itself if it is one; PlannerError(BAD_REQUEST) otherwise. What keeps names inside the directory."""
    if not _DIGEST.fullmatch(digest):
        raise PlannerError(Code.BAD_REQUEST, "a digest is the 32 bytes of a SHA-256")
    return digest


class Store:
    """An open store; one process at a time has it. Errors: UNAVAILABLE where the directory cannot be used."""

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        self.path = path
        self.limits = limits or Limits()
        self._mutex = threading.RLock()
        try:
            for name in ("models", "plans", "partial", "lines", "devices", "tmp"):
                (path / name).mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(f"the store {path}", error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise PlannerError(
                Code.UNAVAILABLE, f"another process uses the store {path}", hint="end it, or give another --store"
            ) from error
        self._recover()

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._lock)

    def probe(self) -> None:
        """Write, sync and remove a file; PlannerError(UNAVAILABLE) if that fails."""
        try:
            self._write(self.path / "tmp" / "probe", b"probe")
            (self.path / "tmp" / "probe").unlink()
        except OSError as error:
            raise _unusable(f"the store {self.path}", error) from error

    # ------------------------------------------------------------ entries

    def put(self, kind: Kind, data: bytes, record: dict[str, Any]) -> str:
        """Keep ``data`` and return its digest. The same bytes twice are one entry, with the last record."""
        digest = digest_of(data)
        with self._mutex, self._disk():
            known = self.record(kind, digest)
            if known is None:
                self._room(len(data))
                self._write(self._blob(kind, digest), data)
            if known != record:
                self._write(self._record(kind, digest), json.dumps(record, sort_keys=True).encode())
        return digest

    def record(self, kind: Kind, digest: str) -> dict[str, Any] | None:
        """The record of an entry, or None."""
        try:
            loaded: dict[str, Any] = json.loads(self._record(kind, check_digest(digest)).read_bytes())
        except FileNotFoundError:
            return None
        return loaded

    def read(self, kind: Kind, digest: str) -> bytes:
        """An entry's bytes, checked against its digest. NOT_FOUND if there is none or it is damaged (and dropped)."""
        thing = kind[:-1]
        again = "upload it" if kind == "models" else "create it again"
        if self.record(kind, digest) is None:
            raise PlannerError(Code.NOT_FOUND, f"the store has no {thing} {digest}", hint=again)
        with contextlib.suppress(FileNotFoundError):
            data = self._blob(kind, digest).read_bytes()
            if digest_of(data) == digest:
                return data
        with self._mutex:
            self._record(kind, digest).unlink(missing_ok=True)
            self._blob(kind, digest).unlink(missing_ok=True)
        raise PlannerError(Code.NOT_FOUND, f"the store's copy of {thing} {digest} was damaged", hint=again)

    def path_of(self, kind: Kind, digest: str) -> Path:
        """Where an entry's bytes are."""
        return self._blob(kind, digest)

    def list(self, kind: Kind, *, after: str = "", limit: int = 100) -> list[tuple[str, dict[str, Any]]]:
        """Up to ``limit`` entries whose digest follows ``after``, in order."""
        digests = sorted(p.stem for p in (self.path / kind).glob("*.json") if p.stem > after)[:limit]
        return [(d, r) for d in digests if (r := self.record(kind, d)) is not None]

    # ------------------------------------------------------------ uploads

    def received(self, digest: str) -> int:
        """Bytes that an unfinished upload left."""
        try:
            return self._partial(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def append(self, digest: str, offset: int, chunk: bytes) -> int:
        """Add a chunk of an upload and return how many bytes there are now. BAD_REQUEST if ``offset`` is not where the
        upload stands, TOO_LARGE over a limit."""
        with self._mutex, self._disk():
            path = self._partial(digest)
            have = self.received(digest)
            if offset == 0 and have:
                path.unlink()
                have = 0
            if offset != have:
                raise PlannerError(
                    Code.BAD_REQUEST, f"the upload stands at {have}, not {offset}", hint="ask GetModel where to go on"
                )
            if offset + len(chunk) > self.limits.model_bytes:
                raise too_large(offset + len(chunk), self.limits.model_bytes)
            if not have and len(list(path.parent.iterdir())) >= MAX_PARTIAL:
                raise PlannerError(Code.TOO_LARGE, f"{MAX_PARTIAL} uploads are unfinished", hint="finish one, or wait")
            if not have:
                self._room(0)
            with path.open("ab") as file:
                file.write(chunk)
            return offset + len(chunk)

    def uploaded(self, digest: str) -> tuple[bytes, Path]:
        """The bytes of a complete upload and where they are. BAD_REQUEST, and the upload is gone, if they are not what
        was announced."""
        data = self._partial(digest).read_bytes() if self.received(digest) else b""
        if digest_of(data) != digest:
            self.discard(digest)
            raise PlannerError(
                Code.BAD_REQUEST, f"the {len(data)} bytes have another SHA-256 than announced", hint="upload it again"
            )
        return data, self._partial(digest)

    def discard(self, digest: str) -> None:
        """Forget an upload."""
        with self._mutex:
            self._partial(digest).unlink(missing_ok=True)

    # ------------------------------------------------------------ versions

    def claim_version(self, line: str, version: int = 0) -> int:
        """The version for a plan of ``line``: the next one for 0, otherwise ``version`` itself, which must not be below
        the line's last (BAD_REQUEST). It is on disk before this returns: no version is given out twice as "next"."""
        path = self.path / "lines" / f"{hashlib.sha256(line.encode()).hexdigest()}.json"
        with self._mutex, self._disk():
            last = 0
            if path.exists():
                last = int(json.loads(path.read_bytes())["last"])
            claimed = version or last + 1
            if claimed < last or claimed >= 2**32:
                raise PlannerError(
                    Code.BAD_REQUEST,
                    f"plan version {claimed} is below {last}, the last of line {line!r}"
                    if claimed < last
                    else f"line {line!r} has used up its plan versions",
                    hint=f"boards refuse older versions: ask for {last} or more, or name another line",
                )
            if claimed != last:
                self._write(path, json.dumps({"line": line, "last": claimed}).encode())
            return claimed

    # ------------------------------------------------------------ devices

    def put_device(self, device: Device, *, replace: bool) -> None:
        """Register a checked device. BAD_REQUEST if there is one of this name and it is not to be replaced."""
        with self._mutex, self._disk():
            path = self._device(device.name)
            if path.exists() and not replace:
                raise PlannerError(
                    Code.BAD_REQUEST, f"there is a device {device.name!r} already", hint="replace it with --force"
                )
            if not path.exists() and len(list(path.parent.iterdir())) >= MAX_DEVICES:
                raise PlannerError(Code.TOO_LARGE, f"{MAX_DEVICES} devices are registered", hint="remove some")
            self._write(path, json.dumps(device.to_json(), sort_keys=True).encode())

    def device(self, name: str) -> Device:
        """A registered device, or NOT_FOUND."""
        try:
            return Device.from_json(json.loads(self._device(name).read_bytes()))
        except FileNotFoundError as error:
            raise _no_device(name) from error

    def devices(self) -> tuple[Device, ...]:
        """All devices by name."""
        with self._mutex, self._disk():
            return tuple(self.device(path.stem) for path in sorted((self.path / "devices").glob("*.json")))

    def remove_device(self, name: str) -> None:
        """Forget a device; NOT_FOUND if there is none."""
        with self._mutex, self._disk():
            try:
                self._device(name).unlink()
            except FileNotFoundError as error:
                raise _no_device(name) from error

    # ------------------------------------------------------------ disk

    def _device(self, name: str) -> Path:
        return self.path / "devices" / f"{check_name(name)}.json"

    def _blob(self, kind: Kind, digest: str) -> Path:
        return self.path / kind / f"{digest}.bin"

    def _record(self, kind: Kind, digest: str) -> Path:
        return self.path / kind / f"{digest}.json"

    def _partial(self, digest: str) -> Path:
        return self.path / "partial" / check_digest(digest)

    def _room(self, extra: int) -> None:
        used = sum(p.stat().st_size for name in ("models", "plans", "partial") for p in (self.path / name).iterdir())
        if used + extra > self.limits.store_bytes:
            raise PlannerError(
                Code.TOO_LARGE,
                f"the store is full: {used} of {self.limits.store_bytes} bytes",
                hint="remove what is not needed while the daemon is down, or serve with a larger --max-store",
            )

    def _write(self, path: Path, data: bytes) -> None:
        """Atomically: a reader, or a crash, sees all of it or none."""
        temporary = self.path / "tmp" / f"{path.name}.{threading.get_ident()}"
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Goes to clients, whom the machine's paths do not concern.
            raise _unusable("the daemon's store", error) from error

    def _recover(self) -> None:
        """Remove what a killed daemon left: temporary files, bytes without record or the reverse, old uploads."""
        with self._disk():
            for path in (self.path / "tmp").iterdir():
                path.unlink()
            for kind in ("models", "plans"):
                stems = [{p.stem for p in (self.path / kind).glob(f"*{suffix}")} for suffix in (".bin", ".json")]
                for stem in stems[0] ^ stems[1]:
                    (self.path / kind / f"{stem}.bin").unlink(missing_ok=True)
                    (self.path / kind / f"{stem}.json").unlink(missing_ok=True)
            for path in (self.path / "partial").iterdir():
                stat = path.stat()
                if (
                    not _DIGEST.fullmatch(path.name)
                    or stat.st_size > self.limits.model_bytes
                    or time.time() - stat.st_mtime > PARTIAL_SECONDS
                ):
                    path.unlink()


def too_large(size: int, limit: int) -> PlannerError:
    """A model over the limit."""
    return PlannerError(Code.TOO_LARGE, f"the model has {size} bytes, the limit is {limit}", hint="use a smaller model")


def _no_device(name: str) -> PlannerError:
    return PlannerError(Code.NOT_FOUND, f"no device {name!r} is registered", hint="see `weft device list`")


def _unusable(store: str, error: OSError) -> PlannerError:
    return PlannerError(
        Code.UNAVAILABLE, f"{store} cannot be used: {error.strerror}", hint="check its permissions and space"
    )
