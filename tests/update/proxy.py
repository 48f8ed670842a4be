# SPDX-License-Identifier: Apache-2.0
"""A bad line: a UDP proxy on loopback that loses, repeats and delays packets in both directions, by a seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Proxy:
    """Stands before the UDP port ``target`` of this host; ``port`` is its own. An async context manager.

    ``loss``, ``repeat``, ``delay``: probabilities by packet and direction; a delayed packet comes up to ``late``
    seconds later, behind others."""

    def __init__(
        self, target: int, *, loss: float, repeat: float = 0.0, delay: float = 0.0, late: float = 0.02, seed: int = 1
    ) -> None:
        self._target, self._rng = target, random.Random(seed)
        self._loss, self._repeat, self._delay, self._late = loss, repeat, delay, late
        self._upstream: dict[tuple[str, int], asyncio.DatagramTransport] = {}
        self._front: asyncio.DatagramTransport | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.passed = self.lost = 0

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._front, _ = await loop.create_datagram_endpoint(lambda: _Side(self._to_device), ("127.0.0.1", 0))
        self.port = self._front.get_extra_info("sockname")[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for side in (self._front, *self._upstream.values()):
            if side is not None:
                side.close()

    def _to_device(self, data: bytes, host: tuple[str, int]) -> None:
        task = asyncio.ensure_future(self._forward(data, host))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, data: bytes, host: tuple[str, int]) -> None:
        """One socket towards the device for each host, so that replies find back."""
        if host not in self._upstream:
            loop = asyncio.get_running_loop()

            def back(reply: bytes, _: tuple[str, int]) -> None:
                if self._front is not None:
                    self._pass(self._front, reply, host)

            side, _ = await loop.create_datagram_endpoint(lambda: _Side(back), remote_addr=("127.0.0.1", self._target))
            self._upstream.setdefault(host, side)
        self._pass(self._upstream[host], data, None)

    def _pass(self, side: asyncio.DatagramTransport, data: bytes, to: tuple[str, int] | None) -> None:
        if self._rng.random() < self._loss:
            self.lost += 1
            return
        for _ in range(1 + (self._rng.random() < self._repeat)):
            self.passed += 1
            after = self._late * self._rng.random() if self._rng.random() < self._delay else 0.0
            asyncio.get_running_loop().call_later(after, _send, side, data, to)


class _Side(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes, tuple[str, int]], None]) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._received(data, addr)


def _send(side: asyncio.DatagramTransport, data: bytes, to: tuple[str, int] | None) -> None:
    if not side.is_closing():
        side.sendto(data, to)
