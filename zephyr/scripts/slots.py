# SPDX-License-Identifier: Apache-2.0
"""Where a build's plan slots are, and plans as they stand there.

``slots.py BUILD`` prints the slots of a build directory as JSON. With ``--hex OUT`` or ``--bin OUT`` it writes plans
that are given as ``a=PLAN`` and ``b=PLAN``: Intel HEX at the processor's addresses, or the whole flash, with everything
else erased. It needs what builds Zephyr, nothing more: addresses come from the devicetree that the build left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROW = 16
ERASED = b"\xff"
LABELS = {"a": "weft_plan_a", "b": "weft_plan_b", "state": "weft_state"}


class SlotError(Exception):
    """What cannot be done with this build, as a sentence with the remedy."""


@dataclass(frozen=True)
class Slot:
    """A partition: bytes from the flash's start, bytes in all, and the address that the processor reads, if it can."""

    offset: int
    size: int
    address: int
    flash_size: int


def devicetree(build: Path) -> Any:
    """The build's devicetree as Zephyr's own scripts see it."""
    pickled = next((p for p in (build / "zephyr" / "edt.pickle", build / "edt.pickle") if p.exists()), None)
    base = os.environ.get("ZEPHYR_BASE") or zephyr_base(build)
    if pickled is None or base is None:
        raise SlotError(f"{build} is no build directory of Zephyr: build first (`west build`)")
    sys.path.insert(0, str(Path(base) / "scripts" / "dts" / "python-devicetree" / "src"))
    with pickled.open("rb") as file:
        return pickle.load(file)


def zephyr_base(build: Path) -> str | None:
    """ZEPHYR_BASE that the build was made with."""
    cache = build / "CMakeCache.txt"
    if cache.exists():
        for line in cache.read_text().splitlines():
            if line.startswith("ZEPHYR_BASE:"):
                return line.partition("=")[2]
    return None


def slots(build: Path) -> dict[str, Slot]:
    """The build's slots by name: ``a``, ``b`` and, where there is one, ``state``. Raises SlotError."""
    nodes = devicetree(build).label2node
    found = {}
    for name, label in LABELS.items():
        node = nodes.get(label)
        if node is None:
            if name == "state":
                continue
            raise SlotError(f'the devicetree has no partition {label}: see "Porting" in docs/zephyr.md')
        flash = node.parent.parent
        base, offset = flash.regs[0].addr, node.regs[0].addr
        if offset >= base:  # newer Zephyr gives partitions the processor's addresses
            offset -= base
        found[name] = Slot(offset=offset, size=node.regs[0].size, address=base + offset, flash_size=flash.regs[0].size)
    return found


def record(kind: int, address: int, data: bytes) -> str:
    """One line of Intel HEX."""
    body = bytes([len(data), address >> 8 & 0xFF, address & 0xFF, kind]) + data
    return f":{body.hex().upper()}{-sum(body) & 0xFF:02X}\n"


def to_hex(images: list[tuple[int, bytes]]) -> str:
    """Intel HEX of ``(address, bytes)`` pairs."""
    lines = []
    for start, data in images:
        upper = None
        for at in range(0, len(data), ROW):
            address = start + at
            if address >> 16 != upper:
                upper = address >> 16
                lines.append(record(4, 0, upper.to_bytes(2, "big")))
            lines.append(record(0, address & 0xFFFF, data[at : at + ROW]))
    return "".join(lines) + record(1, 0, b"")


def to_bin(images: list[tuple[int, bytes]], size: int) -> bytes:
    """A flash's content from ``(offset, bytes)`` pairs."""
    flash = bytearray(ERASED * size)
    for start, data in images:
        flash[start : start + len(data)] = data
    return bytes(flash)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--hex", type=Path, metavar="OUT", help="write Intel HEX")
    form.add_argument("--bin", type=Path, metavar="OUT", help="write the whole flash")
    parser.add_argument("build", type=Path)
    parser.add_argument("plan", nargs="*", metavar="SLOT=PLAN")
    args = parser.parse_args()
    try:
        found = slots(args.build)
        plans = []
        for text in args.plan:
            name, _, path = text.partition("=")
            slot, data = found[name], Path(path).read_bytes()
            if len(data) > slot.size:
                raise SlotError(f"{path} has {len(data)} bytes, slot {name} {slot.size}: plan for less, or enlarge it")
            plans.append((slot, data))
    except SlotError as error:
        sys.exit(f"slots.py: {error}")
    if args.hex:
        args.hex.write_text(to_hex([(slot.address, data) for slot, data in plans]))
    elif args.bin:
        args.bin.write_bytes(to_bin([(slot.offset, data) for slot, data in plans], found["a"].flash_size))
    else:
        print(json.dumps({name: asdict(slot) for name, slot in found.items()}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
