# SPDX-License-Identifier: Apache-2.0
"""Flash and RAM of Weft in builds of Zephyr, from their linker maps: ``sizes.py [--json] BUILD...``

``engine`` is the engine with its kernels, ``module`` what Zephyr's module adds (service, slots, journal, shell, update,
transport), ``update`` the part of it that comes with CONFIG_WEFT_UPDATE. native_sim is a process of the host and has no
flash to measure."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

#: Library of zephyr/CMakeLists.txt to part.
PARTS = {
    "weft_engine": "engine",
    "weft_service": "module",
    "weft_update": "module",
    "weft_service_update": "module",
}
UPDATE_ONLY = ("boot.c", "check.c", "receive.c", "weft_smp.c", "update.c", "mcumgr.c", "smp_udp.c")
NOT_LOADED = (".debug", ".comment", ".ARM.attributes", ".riscv", ".note", ".symtab", ".strtab")
ROW = re.compile(r"^ (\S+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+) \S*lib(weft_\w+)\.a\(([\w.]+)\)", flags=re.M)


def sizes(linker_map: str) -> dict[str, dict[str, int]]:
    """``{part: {"flash": bytes, "ram": bytes}}`` of a linker map."""
    used = {part: {"flash": 0, "ram": 0} for part in ("engine", "module", "update")}
    body = linker_map[linker_map.index("Linker script and memory map") :]
    body = re.sub(r"^ (\S+)\n +0x", r" \1 0x", body, flags=re.M)
    for name, address, size, library, member in ROW.findall(body):
        part = PARTS.get(library)
        if part is None or int(address, 16) == 0 or name.startswith(NOT_LOADED):
            continue
        counted = [part]
        if part == "module" and member.removesuffix(".obj").removesuffix(".o") in UPDATE_ONLY:
            counted.append("update")
        in_ram = name.startswith((".bss", ".noinit", "COMMON", ".data", "._k_")) or "noinit" in name
        in_flash = not name.startswith((".bss", ".noinit", "COMMON")) and "noinit" not in name
        for one in counted:
            used[one]["flash"] += int(size, 16) * in_flash
            used[one]["ram"] += int(size, 16) * in_ram
    return used


def setting(build: Path, name: str) -> str:
    """A Kconfig setting of a build, without quotes, or ""."""
    for line in (build / "zephyr" / ".config").read_text().splitlines():
        if line.startswith(f"{name}="):
            return line.partition("=")[2].strip('"')
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("build", type=Path, nargs="+")
    args = parser.parse_args()
    rows = []
    for build in args.build:
        linker_map = build / "zephyr" / "zephyr.map"
        if not linker_map.exists():
            sys.exit(f"sizes.py: {build} has no linker map: build first (`west build`)")
        if setting(build, "CONFIG_ARCH_POSIX") == "y":
            sys.exit(f"sizes.py: {build} is a process of the host: take a build for a board")
        board = setting(build, "CONFIG_BOARD_TARGET") or setting(build, "CONFIG_BOARD")
        arena = int(setting(build, "CONFIG_WEFT_ARENA_SIZE") or 0)
        rows.append({"board": board, "arena": arena, **sizes(linker_map.read_text())})
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    columns = ("engine", "module", "update")
    print(f"{'board':<34}" + "".join(f"{part + ' flash':>14}{part + ' RAM':>12}" for part in columns) + f"{'arena':>8}")
    for row in rows:
        cells = "".join(f"{row[part]['flash']:>14}{row[part]['ram']:>12}" for part in columns)
        print(f"{row['board']:<34}{cells}{row['arena']:>8}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
