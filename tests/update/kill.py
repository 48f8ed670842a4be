# SPDX-License-Identifier: Apache-2.0
"""The host board's process is killed at random moments: while it starts, is updated, tries a plan or keeps it. After
each, the same files must start with a plan that is known and gives its own answer.

    python -m tests.update.kill [--count 200] [--seed 1]    # exit status 1 if the device ever was without a plan
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from planner_service import planner, signing
from planner_service.engine import Engine
from planner_service.errors import Code, PlannerError
from planner_service.format import HeaderRecord, SlotState
from planner_service.transport import Settings, State, TransportError, connect
from planner_service.transport.deploy import deploy
from tests.update import plans as made

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "samples" / "host"))

from client import Board

_ERASE_US = 2000
#: Small sectors and chunks: an update has many moments.
_GEOMETRY = {"sector": 512, "erase-us": _ERASE_US, "vendor": made.VENDOR.hex(), "class": made.DEVICE.hex()}
_SLOT_BYTES = 16384
_SETTINGS = Settings(patience_seconds=5.0, chunk_bytes=192)


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """``without_plan``: starts after which nothing, or something unknown, ran; ``moments``: kills by what the journal
    said at the next start; ``updates``: that were completed in between; ``bytes_identical``: confirmed slots that held
    exactly the plan, of ``updates``; ``reasons``: of starts without a plan."""

    kills: int
    without_plan: int
    updates: int
    bytes_identical: int
    moments: dict[str, int]
    reasons: tuple[str, ...]


def run(count: int, seed: int = 1) -> Killed:
    """Kill a board ``count`` times."""
    with tempfile.TemporaryDirectory(prefix="weft-kill-") as folder:
        return asyncio.run(_Run(Path(folder), seed).run(count))


class _Run:
    def __init__(self, folder: Path, seed: int) -> None:
        key = signing.generate_key()
        self._plans = [signing.sign(planner.layers(made.graph(n), made.options(1)).plan, key) for n in (1, 2)]
        self._rng = random.Random(seed)
        self._board = Board(
            folder, signing.public_pem(signing.public_key(key)), slot_bytes=_SLOT_BYTES, options=_GEOMETRY
        )
        self._board.write_slot("a", self._plans[0])
        zeros = [np.zeros(tensor.shape, np.int8) for tensor in Engine().open(self._plans[0]).inputs]
        self._input = zeros
        self._answers = {
            HeaderRecord.unpack(plan).model_id.hex(): b"".join(
                np.asarray(o, np.int8).tobytes() for o in Engine().open(plan).run(zeros).outputs
            )
            for plan in self._plans
        }
        self._updates = self._identical = 0
        self._reasons: list[str] = []
        self._moments: Counter[str] = Counter()

    async def run(self, count: int) -> Killed:
        whole = 0.0
        for _ in range(2):  # to know how long it takes once everything is imported
            started = time.monotonic()
            await self._update()
            whole = time.monotonic() - started
            self._board.kill()
        for _ in range(count):
            work = asyncio.create_task(self._update())
            await asyncio.sleep(self._rng.uniform(0.0, whole))
            while self._board.process is None and not work.done():
                await asyncio.sleep(0)
            self._board.kill()
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, PlannerError, OSError, json.JSONDecodeError):
                await work
            await asyncio.gather(
                self._starting, return_exceptions=True
            )  # its thread goes on until it has seen the process end
            await self._look()
        return Killed(
            kills=count,
            without_plan=len(self._reasons),
            updates=self._updates,
            bytes_identical=self._identical,
            moments=dict(sorted(self._moments.items())),
            reasons=tuple(self._reasons),
        )

    async def _update(self) -> None:
        """Start the board and bring it the plan that is not active, all the way."""
        self._starting = asyncio.ensure_future(asyncio.to_thread(self._board.start))
        await asyncio.shield(self._starting)
        async with await connect(self._board.address, _SETTINGS) as transport:
            state = await transport.state()
            plan = self._other(state)
            try:
                await deploy(transport, plan, goal="confirm")
            except TransportError as error:
                if error.code is not Code.REFUSED:
                    raise
                await transport.erase()  # its three tries were killed
                await deploy(transport, plan, goal="confirm")
            state = await transport.state()
            self._updates += 1
            assert state.active is not None
            self._identical += self._board.slot("ab"[state.active]).read_bytes()[: len(plan)] == plan

    def _other(self, state: State) -> bytes:
        active = [bytes.fromhex(signing.describe(p).digest)[:16] == state.active_digest for p in self._plans]
        return self._plans[0 if active[1] else 1]

    async def _look(self) -> None:
        """Start the board after a kill: a known plan must run, and give its own answer."""
        try:
            booted = await asyncio.to_thread(self._board.start)
            with self._board.connect() as client:
                good = client.infer(self._input) == self._answers.get(booted.get("model_id", ""))
            async with await connect(self._board.address, _SETTINGS) as transport:
                state = await transport.state()
            self._moments[("trial begun" if state.state is SlotState.TRIAL else state.state.name.lower())] += 1
            reason = "" if good else f"another answer than model {booted.get('model_id')}'s"
        except (OSError, RuntimeError, PlannerError) as error:
            reason = f"{type(error).__name__}: {error}"
        if reason:
            self._reasons.append(reason)
        self._board.kill()


def main() -> int:
    """Kill, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    found = run(args.count, args.seed)
    print(json.dumps(asdict(found), indent=2))
    return 1 if found.without_plan or found.bytes_identical != found.updates else 0


if __name__ == "__main__":
    sys.exit(main())
