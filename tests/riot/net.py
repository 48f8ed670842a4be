# SPDX-License-Identifier: Apache-2.0
"""A network namespace with a TAP device for RIOT's native boards, and a line in it that loses packets."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")
TAP = "tap0"
HOST, DEVICE = "2001:db8::1", "2001:db8::2"
PORT = 5683
_CLONE_NEWNET = 0x40000000


def missing() -> str:
    """Why there is no namespace to be had; "" if there is."""
    if shutil.which("ip") is None:
        return "the command ip is missing: install iproute2"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun is missing: load the kernel's module tun"
    name = f"weft-probe-{os.getpid()}"
    made = _ip("netns", "add", name)
    if made.returncode != 0:
        return f"no network namespace can be made, run as root: {made.stderr.strip()}"
    tap = _ip("-n", name, "tuntap", "add", TAP, "mode", "tap")
    _ip("netns", "del", name)
    return "" if tap.returncode == 0 else f"no TAP device can be made: {tap.stderr.strip()}"


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20, check=False)


class Network:
    """A namespace of this process's own; gone when the context ends. ``prefix``: runs a command in it."""

    def __init__(self) -> None:
        self._name = f"weft-{os.getpid()}-{id(self) & 0xFFFF:x}"
        self.prefix = ("ip", "netns", "exec", self._name)
        self._thread = ThreadPoolExecutor(max_workers=1, initializer=self._enter)

    def __enter__(self) -> Self:
        for step in (
            ("netns", "add", self._name),
            ("-n", self._name, "tuntap", "add", TAP, "mode", "tap"),
            ("-n", self._name, "link", "set", TAP, "up"),
            ("-n", self._name, "link", "set", "lo", "up"),
            ("-n", self._name, "addr", "add", f"{HOST}/64", "dev", TAP, "nodad"),
        ):
            done = _ip(*step)
            assert done.returncode == 0, done.stderr
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        _ip("netns", "del", self._name)

    def _enter(self) -> None:
        """Only this thread moves."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{self._name}") as namespace:
            assert libc.setns(namespace.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], seconds: float = 120) -> T:
        """Run a coroutine in the namespace."""

        async def limited() -> T:
            async with asyncio.timeout(seconds):
                return await work()

        return self._thread.submit(lambda: asyncio.run(limited())).result()


class Lossy(asyncio.DatagramProtocol):
    """Passes datagrams between whoever sends to it and a device. Of each direction, ``loss`` are dropped; a tenth of
    the others arrive twice, and a tenth late, behind those that were sent after them."""

    def __init__(self, loss: float, seed: int) -> None:
        self._loss, self._rng = loss, random.Random(seed)
        self._near: asyncio.DatagramTransport | None = None
        self._far: asyncio.DatagramTransport | None = None
        self._client: Any = None
        self.passed = self.dropped = 0

    async def open(self) -> int:
        """The port on the namespace's loopback that stands for the device."""
        loop = asyncio.get_running_loop()
        self._far, _ = await loop.create_datagram_endpoint(lambda: _Far(self), remote_addr=(DEVICE, PORT))
        self._near, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("::1", 0))
        return int(self._near.get_extra_info("sockname")[1])

    def close(self) -> None:
        for transport in (self._near, self._far):
            if transport is not None:
                transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._client = addr
        self._pass(lambda: self._far and self._far.sendto(data))

    def returned(self, data: bytes) -> None:
        client = self._client
        self._pass(lambda: self._near and self._near.sendto(data, client))

    def _pass(self, send: Callable[[], object]) -> None:
        if self._rng.random() < self._loss:
            self.dropped += 1
            return
        self.passed += 1
        late = self._rng.random() < 0.1
        loop = asyncio.get_running_loop()
        loop.call_later(0.03 if late else 0.0, send)
        if self._rng.random() < 0.1:
            loop.call_later(0.01, send)


class _Far(asyncio.DatagramProtocol):
    def __init__(self, near: Lossy) -> None:
        self._lossy = near

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._lossy.returned(data)

    def error_received(self, exc: Exception) -> None:
        """The device does not run: nothing comes back."""
