# SPDX-License-Identifier: Apache-2.0
"""Write plans as they stand in their slots: ``slots.py --hex OUT ADDRESS=PLAN...`` or ``slots.py --bin SIZE OUT ...``.

Addresses are those of the processor, or offsets in a flash of ``SIZE`` bytes whose other bytes are erased (0xff).
Standard library only: any Python that builds Zephyr runs it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROW = 16
ERASED = b"\xff"


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
    """A flash's content. Raises ValueError if a plan does not fit."""
    flash = bytearray(ERASED * size)
    for start, data in images:
        if start + len(data) > size:
            raise ValueError(f"{len(data)} bytes at 0x{start:x} reach beyond the flash of {size} bytes")
        flash[start : start + len(data)] = data
    return bytes(flash)


def number(text: str) -> int:
    return int(text, 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--hex", action="store_true", help="Intel HEX")
    form.add_argument("--bin", type=number, metavar="SIZE", help="the whole flash")
    parser.add_argument("output", type=Path)
    parser.add_argument("image", nargs="*", metavar="ADDRESS=PLAN")
    args = parser.parse_args()
    pairs = [image.partition("=") for image in args.image]
    images = [(number(address), Path(plan).read_bytes()) for address, _, plan in pairs]
    if args.hex:
        args.output.write_text(to_hex(images))
    else:
        try:
            args.output.write_bytes(to_bin(images, args.bin))
        except ValueError as error:
            sys.exit(f"slots.py: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
