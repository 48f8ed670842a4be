# SPDX-License-Identifier: Apache-2.0
"""Boards that plans are made for: one TOML file each beside this module, checked as a whole when read."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from planner_service.errors import Code, PlannerError, Violation

#: Cores that the engine is built for.
CORES = (
    "host",
    "cortex-m0",
    "cortex-m0plus",
    "cortex-m3",
    "cortex-m4",
    "cortex-m7",
    "cortex-m33",
    "cortex-m55",
    "rv32imc",
    "xtensa-lx7",
)

#: Plans are opened in place at such addresses.
SLOT_ALIGN = 8

_FOLDER = Path(__file__).resolve().parent
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A board. Sizes are in bytes. ``arena_budget`` is what the arena may take when nobody names a limit: RAM less what
    an application, its stacks and its operating system usually need. ``slot_bytes`` is one of two equal plan slots;
    ``slot_a`` and ``slot_b`` are their addresses where a build does not say otherwise."""

    name: str
    description: str
    core: str
    ram_bytes: int
    flash_bytes: int
    slot_bytes: int
    arena_budget: int
    arena_align: int
    clock_hz: int | None = None
    erase_bytes: int | None = None
    write_bytes: int | None = None
    pyocd: str | None = None
    zephyr: str | None = None
    riot: str | None = None
    slot_a: int | None = None
    slot_b: int | None = None

    def check(self) -> None:
        """Raise PlannerError(BAD_REQUEST) with everything that contradicts itself."""
        found: list[Violation] = []

        def need(ok: bool, field: str, message: str) -> None:
            if not ok:
                found.append(Violation(field, message))

        need(bool(_NAME.fullmatch(self.name)), "name", f"{self.name!r} is not lower case letters, digits, '_' and '-'")
        need(bool(self.description.strip()), "description", "is empty")
        need(self.core in CORES, "core", f"{self.core!r} is none of {', '.join(CORES)}")
        need(self.clock_hz is None or self.clock_hz > 0, "clock_hz", "is not positive")
        need(0 < self.ram_bytes < 2**32, "ram_bytes", "is outside 1 .. 2^32 - 1")
        need(0 < self.flash_bytes < 2**32, "flash_bytes", "is outside 1 .. 2^32 - 1")
        need(0 < self.arena_budget <= self.ram_bytes, "arena_budget", "is outside 1 .. ram_bytes")
        need(self.slot_bytes > 0, "slot_bytes", "is not positive")
        need(2 * self.slot_bytes <= self.flash_bytes, "slot_bytes", "two slots exceed flash_bytes")
        need(self.arena_align in (4, 8, 16, 32, 64), "arena_align", "is none of 4, 8, 16, 32, 64")
        for name in ("erase_bytes", "write_bytes"):
            unit: int | None = getattr(self, name)
            need(unit is None or unit > 0, name, "is not positive")
            if unit is not None and unit > 0:
                need(self.slot_bytes % unit == 0, "slot_bytes", f"is no multiple of {name} ({unit})")
        need((self.slot_a is None) == (self.slot_b is None), "slot_b", "is given if and only if slot_a is")
        if self.slot_a is not None and self.slot_b is not None:
            need(abs(self.slot_a - self.slot_b) >= self.slot_bytes, "slot_b", "overlaps slot_a")
            step = max(SLOT_ALIGN, self.erase_bytes or 0)
            for name in ("slot_a", "slot_b"):
                address: int = getattr(self, name)
                need(address % step == 0, name, f"is no multiple of {step}")
                need(0 < address <= 2**32 - self.slot_bytes, name, "is outside the address space")
        if found:
            raise PlannerError(Code.BAD_REQUEST, f"target {self.name!r} is not valid", violations=found)


def parse(text: str, origin: str) -> Target:
    """The target that a TOML text describes. PlannerError(BAD_REQUEST) with every unknown, missing or ill-typed key, or
    with what ``Target.check`` finds."""
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlannerError(Code.BAD_REQUEST, f"target {origin}: {error}") from error
    hints = get_type_hints(Target)
    found = [Violation(key, "unknown key") for key in values if key not in hints]
    for field in fields(Target):
        wanted = [t for t in get_args(hints[field.name]) or (hints[field.name],) if t is not type(None)]
        if field.name not in values:
            if len(get_args(hints[field.name])) == 0:
                found.append(Violation(field.name, "is missing"))
        elif type(values[field.name]) not in wanted:
            found.append(Violation(field.name, f"is no {wanted[0].__name__}"))
    if found:
        raise PlannerError(Code.BAD_REQUEST, f"target {origin} is not valid", violations=found)
    target = Target(**values)
    target.check()
    return target


@cache
def load_all() -> tuple[Target, ...]:
    """All targets by name. PlannerError(BAD_REQUEST) with the violations of every file that is not valid."""
    targets, found = [], []
    for path in sorted(_FOLDER.glob("*.toml")):
        try:
            target = parse(path.read_text(), path.name)
            if target.name != path.stem:
                found.append(Violation(path.name, f"names its target {target.name!r}"))
            targets.append(target)
        except PlannerError as error:
            found += [Violation(path.name, str(v)) for v in error.violations] or [Violation(path.name, error.message)]
    if found:
        raise PlannerError(Code.BAD_REQUEST, "the target files are not valid", violations=found)
    return tuple(targets)


def find(targets: Sequence[Target], name: str) -> Target:
    """The target called ``name``; PlannerError(NOT_FOUND) that lists those there are."""
    for target in targets:
        if target.name == name:
            return target
    known = ", ".join(t.name for t in targets)
    raise PlannerError(Code.NOT_FOUND, f"no target is called {name!r}", hint=f"one of {known}")


def load(name: str) -> Target:
    """The target called ``name``, from the files."""
    return find(load_all(), name)
