# SPDX-License-Identifier: Apache-2.0
"""Firmware for the emulated cores as it is shipped: every core with its fastest kernels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from planner_service.profile import emulator

#: How images are built: all for size, but for the kernels of `Kernels.folder`.
OPTIMISATION = "-Os"
FAST_OPTIMISATION = "-O2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Fast kernels: the folder under module/src and the macro that puts them into the kernel table."""

    folder: str
    macro: str

    @property
    def sources(self) -> list[Path]:
        """The engine's sources with these kernels, and the reference kernels for what they leave to them."""
        return [*emulator.engine_sources(), *sorted((emulator.MODULE / "src" / self.folder).glob("*.c"))]


PORTABLE = Kernels(folder="kernels_portable", macro="WEFT_KERNELS_PORTABLE")
DSP = Kernels(folder="kernels_cortexm", macro="WEFT_KERNELS_DSP")
MVE = Kernels(folder="kernels_mve", macro="WEFT_KERNELS_MVE")
KERNELS = {"m3": PORTABLE, "m4": DSP, "m7": DSP, "m55": MVE, "rv32": PORTABLE}


def flags(core: str, opcodes: Iterable[str] | None = None) -> tuple[str, ...]:
    """Compiler flags beyond the core's own; ``opcodes``: only these operators, by name (all if None)."""
    chosen = [OPTIMISATION, f"-D{KERNELS[core].macro}=1"]
    if opcodes is not None:
        chosen += ["-DWEFT_OP_SET_CUSTOM", *(f"-DWEFT_WITH_{name}=1" for name in sorted(set(opcodes)))]
    return tuple(chosen)


def image(core: str, opcodes: Iterable[str] | None = None) -> Path:
    """The test firmware with the core's fastest kernels."""
    return emulator.build(
        core, cflags=flags(core, opcodes), fast_cflags=(FAST_OPTIMISATION,), sources=KERNELS[core].sources
    )
