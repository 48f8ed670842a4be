# SPDX-License-Identifier: Apache-2.0
"""Flash and RAM of a RIOT firmware by owner, from the linker's map: engine, update core, module, shell, all else."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

#: Owner of an object file by the module (folder under bin/BOARD) that it was built for; all others are "system".
OWNERS = {
    "weft_engine": "engine",
    "weft_engine_dsp": "engine",
    "weft_engine_portable": "engine",
    "weft_update": "update core",
    "weft": "module",
    "weft_shell": "shell",
    "weft_coap": "CoAP",
    "zcbor": "CoAP",
}
SYSTEM = "system"
_SECTION = re.compile(r"^ (\.[^\s*]+|COMMON)(?:\s+|\n\s+)0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+(\S+)$", re.MULTILINE)
_FLASH = (".text", ".rodata", ".data", ".roxfa", ".vectors", ".init", ".fini", ".ARM")
_RAM = (".data", ".bss", "COMMON", ".noinit", ".isr_stack")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Bytes. Initialised data counts as both."""

    flash: int
    ram: int


def sizes(map_file: Path) -> dict[str, Size]:
    """Bytes by owner. Strings that the linker merges count for the first file that has them, padding for nobody."""
    text = map_file.read_text(errors="replace")
    text = text[text.index("Linker script and memory map") :]
    totals = {owner: [0, 0] for owner in (*dict.fromkeys(OWNERS.values()), SYSTEM)}
    for section, address, size, path in _SECTION.findall(text):
        if int(address, 16) == 0 and not section.startswith(".vectors"):
            continue
        owner = OWNERS.get(Path(path).parent.name, SYSTEM)
        totals[owner][0] += int(size, 16) * section.startswith(_FLASH)
        totals[owner][1] += int(size, 16) * section.startswith(_RAM)
    return {owner: Size(flash=flash, ram=ram) for owner, (flash, ram) in totals.items()}


if __name__ == "__main__":
    for name, size in sizes(Path(sys.argv[1])).items():
        print(f"{name:12} flash {size.flash:7} RAM {size.ram:7}")
