# SPDX-License-Identifier: Apache-2.0
"""Start the host board, write its flash, and ask it for inferences (protocol: weft_host_board.c). Updates go to
``Board.address`` by `weft push` or ``planner_service.transport``."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

Int8 = npt.NDArray[np.int8]

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / "build" / "host" / "weft_host_board"
SLOT_BYTES = 1 << 20
ERASED = b"\xff"
BOOT_SECONDS = 20.0
REPLY_SECONDS = 60.0


class BoardError(RuntimeError):
    """What the board answered instead of outputs: code, name, message, remedy, record, offset."""

    def __init__(self, details: Mapping[str, Any]) -> None:
        super().__init__(f"{details['name']}: {details['message']}; {details['remedy']}")
        self.details = dict(details)


class Client:
    """A connection to a board. Raises BoardError for what the board refuses, OSError when it is gone."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._socket = socket.create_connection((host, port), timeout=REPLY_SECONDS)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self, n: int) -> bytes:
        data = bytearray()
        while len(data) < n:
            part = self._socket.recv(n - len(data))
            if not part:
                raise ConnectionError("the board closed the connection")
            data += part
        return bytes(data)

    def request(self, kind: bytes, payload: bytes = b"") -> bytes:
        """One request and its reply's payload."""
        self._socket.sendall(struct.pack("<I", len(payload) + 1) + kind + payload)
        (length,) = struct.unpack("<I", self._receive(4))
        reply = self._receive(length)
        if reply[:1] == b"e":
            raise BoardError(json.loads(reply[1:]))
        return reply[1:]

    def info(self) -> dict[str, Any]:
        """What the board runs: slot, model id, plan version, arena, MACs, inputs and outputs; or `error`."""
        info: dict[str, Any] = json.loads(self.request(b"i"))
        return info

    def infer(self, inputs: Sequence[Int8]) -> bytes:
        """One inference: an int8 array per network input in, the bytes of all outputs back."""
        return self.request(b"r", b"".join(np.ascontiguousarray(x, dtype=np.int8).tobytes() for x in inputs))

    def run(self, inputs: Sequence[Int8]) -> list[Int8]:
        """As ``infer``, one array per network output (H, W, C)."""
        reply = self.infer(inputs)
        shapes = [tuple(tensor["shape"]) for tensor in self.info()["outputs"]]
        values = np.frombuffer(reply, dtype=np.int8)
        parts = np.split(values, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


class Board:
    """A host board in a folder: its flash in three files, its public key, and the process while it is on. ``options``:
    of the binary, by name, e.g. {"erase-us": 1000}; ``key``: public keys, PEM, at most two."""

    def __init__(
        self,
        folder: Path,
        *key: bytes,
        binary: Path = BINARY,
        slot_bytes: int = SLOT_BYTES,
        options: Mapping[str, int | str] | None = None,
    ) -> None:
        self.folder, self.binary, self.slot_bytes, self.options = folder, binary, slot_bytes, dict(options or {})
        self.process: subprocess.Popen[str] | None = None
        self.port = 0
        self.address = ""
        self.booted: dict[str, Any] = {}
        self._keys = [folder / f"key{number}.pem" for number in range(len(key))]
        for path, pem in zip(self._keys, key, strict=True):
            path.write_bytes(pem)

    def slot(self, name: str) -> Path:
        """The file of slot 'a' or 'b'."""
        return self.folder / f"slot_{name}.bin"

    @property
    def state(self) -> Path:
        """The journal's file."""
        return self.folder / "state.bin"

    def write_slot(self, name: str, plan: bytes) -> None:
        """What a programmer does while the board is off: replace a slot's bytes, the rest of it erased."""
        if len(plan) > self.slot_bytes:
            raise ValueError(f"the plan has {len(plan)} bytes, a slot {self.slot_bytes}")
        self.slot(name).write_bytes(plan.ljust(self.slot_bytes, ERASED))

    def start(self) -> dict[str, Any]:
        """Switch the board on; returns what it booted."""
        command = [str(self.binary), "--slot-size", str(self.slot_bytes), "--state", str(self.state)]
        command += ["--slot-a", str(self.slot("a")), "--slot-b", str(self.slot("b"))]
        for path in self._keys:
            command += ["--key", str(path)]
        for name, value in self.options.items():
            command += [f"--{name}", str(value)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        watchdog = threading.Timer(BOOT_SECONDS, self.process.kill)
        watchdog.start()
        try:
            booted, listening, updates = (self.process.stdout.readline() for _ in range(3))
        finally:
            watchdog.cancel()
        if not updates:
            raise ConnectionError(f"the board did not start: exit status {self.process.wait()}")
        self.booted = json.loads(booted)
        self.port = int(listening.rsplit(":", 1)[1])
        self.address = updates.split()[-1]
        return self.booted

    def kill(self) -> None:
        """Take the board's power away."""
        if self.process is not None:
            self.process.kill()
            self._end()

    def stop(self) -> None:
        """Switch the board off."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(timeout=BOOT_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
            self._end()

    def _end(self) -> None:
        assert self.process is not None
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None

    def connect(self) -> Client:
        """A connection to the running board."""
        return Client(self.port)

    def __enter__(self) -> Board:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def to_int8(values: npt.NDArray[Any], tensor: Mapping[str, Any]) -> Int8:
    """Source-model values of a network input as the engine takes them (`tensor`: an entry of ``info()["inputs"]``)."""
    if tensor["dtype"] == "float32":
        scaled = np.round(np.asarray(values, dtype=np.float32) / np.float32(tensor["scale"])) + tensor["zero_point"]
        return np.asarray(np.clip(scaled, -128, 127), dtype=np.int8)
    if tensor["dtype"] == "uint8":
        return np.asarray(np.asarray(values, dtype=np.int16) - 128, dtype=np.int8)
    return np.asarray(values, dtype=np.int8)


def main() -> int:
    """``client.py PORT``: print what the board runs."""
    with Client(int(sys.argv[1])) as client:
        print(json.dumps(client.info(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
