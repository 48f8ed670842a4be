# SPDX-License-Identifier: Apache-2.0
"""Plans into boards through a debug probe, with pyOCD's Python API.

``slot`` says where, ``check`` whether the plan may go there, ``choose`` through which probe; nothing has been touched
until ``program``. pyOCD knows chips and probes; which chip is the board's ``pyocd`` name.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from planner_service import api, devicetree, fit
from planner_service.errors import Code, PlannerError, Violation
from planner_service.targets import SLOT_ALIGN, Target

SlotName = Literal["a", "b"]
Progress = Callable[[float, str], None]

#: Bytes that are read back at once; small enough for progress to be seen.
_READ_BYTES = 4096
#: pyOCD's explanations are read on a terminal.
_MESSAGE_CHARS = 300
_AGAIN = "check cable and power, then flash again: until then the board refuses the plan in this slot and says so"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where a plan goes. ``source`` says who says so. Units are None where nobody gives them; ``arena_bytes`` is what
    the build's firmware has for the arena, ``others`` are partitions beside the slot (name, address, bytes)."""

    name: SlotName
    address: int
    nbytes: int
    source: str
    erase_bytes: int | None
    write_bytes: int | None
    arena_bytes: int | None = None
    others: tuple[tuple[str, int, int], ...] = ()

    @property
    def end(self) -> int:
        return self.address + self.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Flashed:
    """A plan that was written and read back."""

    board: str
    chip: str
    probe: str
    slot: SlotName
    address: int
    slot_bytes: int
    source: str
    plan_bytes: int
    plan_version: int
    model_id: str
    arena_bytes: int
    sha256: str
    verified_bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As the command line prints it."""
        return asdict(self)


# ---------------------------------------------------------------- where, and whether


def slot(target: Target, name: SlotName, build_dir: Path | None) -> Slot:
    """The slot of a build directory's devicetree, or without one that of the board file. PlannerError: NOT_FOUND and
    BAD_REQUEST as ``devicetree``, BAD_REQUEST if the build is for another board or nobody gives an address."""
    if build_dir is None:
        address = target.slot_a if name == "a" else target.slot_b
        if address is None:
            raise PlannerError(
                Code.BAD_REQUEST,
                f"nobody says where slot {name} of {target.name} is",
                hint="give the build with --build-dir, or a board file with slot_a and slot_b as --board",
            )
        return Slot(
            name=name,
            address=address,
            nbytes=target.slot_bytes,
            source=f"board file of {target.name}",
            erase_bytes=target.erase_bytes,
            write_bytes=target.write_bytes,
        )
    build = devicetree.load(build_dir)
    built_for, known = build.config.get("CONFIG_BOARD"), (target.zephyr or "").replace("@", "/").split("/")[0]
    if built_for and known and built_for != known:
        raise PlannerError(
            Code.BAD_REQUEST,
            f"the build is for {built_for}, {target.name} is Zephyr's {known}",
            hint="give the board that the build is for, or another --build-dir",
        )
    found = build.partition(f"weft_plan_{name}")
    static = build.config.get("CONFIG_WEFT_ARENA_STATIC") == "y"
    arena = build.config.get("CONFIG_WEFT_ARENA_SIZE", "")
    return Slot(
        name=name,
        address=found.address,
        nbytes=found.nbytes,
        source=f"{found.label} in the build's devicetree",
        erase_bytes=found.erase_bytes or target.erase_bytes,
        write_bytes=found.write_bytes or target.write_bytes,
        arena_bytes=int(arena) if static and arena.isdecimal() else None,
        others=found.others,
    )


def check(plan: bytes, target: Target, where: Slot, ram: int | None) -> dict[str, int | str]:
    """The plan's figures (``weft_plan_info``) if it may go into the slot. ``ram`` is what the firmware has for the
    arena; None: what the build says, else the board's arena budget.

    PlannerError: BAD_PLAN if the engine refuses the plan or a section is damaged, BAD_REQUEST with all that is wrong
    with the slot, INFEASIBLE with what the plan lacks."""
    opened = api.check_plan(plan)
    found: list[Violation] = []
    place = f"slot {where.name}"

    def need(ok: bool, message: str, hint: str = "") -> None:
        if not ok:
            found.append(Violation(place, message, hint))

    need(where.nbytes > 0, "has no bytes")
    need(where.end <= 2**32, f"ends beyond the address space: {where.address:#x} + {where.nbytes}")
    for unit, what in ((SLOT_ALIGN, "plans are read in place"), (where.erase_bytes, "erase unit")):
        if unit:
            off, size_off = where.address % unit, where.nbytes % unit
            need(
                off == 0,
                f"address {where.address:#x} is {off} bytes behind a multiple of {unit} ({what})",
                f"move it to {where.address - off:#x} or {where.address - off + unit:#x}",
            )
            need(
                size_off == 0,
                f"{where.nbytes} bytes are no multiple of {unit} ({what})",
                f"{unit - size_off} bytes are missing to the next one",
            )
    for other, start, nbytes in where.others:
        need(
            start >= where.end or start + nbytes <= where.address,
            f"overlaps {other} at {start:#x} of {nbytes} bytes",
            "flashing would destroy it",
        )
    if found:
        raise PlannerError(
            Code.BAD_REQUEST, f"{place} of {target.name} ({where.source}) cannot be used", violations=found
        )
    budget = ram if ram is not None else where.arena_bytes
    limit = min(target.arena_budget if budget is None else budget, target.ram_bytes)
    lacks = {}
    if opened.arena_size > limit:
        lacks[fit.Resource.ARENA] = (opened.arena_size, limit, "plan the model for it: weft plan --ram, or give --ram")
    if len(plan) > where.nbytes:
        lacks[fit.Resource.SLOT] = (
            len(plan),
            where.nbytes,
            "weights do not shrink with the schedule; enlarge the slot",
        )
    short = [
        fit.Shortfall(resource=resource, needed=needed, available=available, layer="", hint=hint)
        for resource, (needed, available, hint) in lacks.items()
    ]
    violations = [Violation("", str(s)) for s in short]
    if opened.arena_align > target.arena_align:
        violations.append(
            Violation(
                "",
                f"the plan's arena is aligned to {opened.arena_align} bytes, that of the board to {target.arena_align}",
                f"plan the model with --target {target.name}",
            )
        )
    if violations:
        raise PlannerError(Code.INFEASIBLE, f"the plan does not fit {place} of {target.name}", violations=violations)
    return opened.info


# ---------------------------------------------------------------- probes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps pyOCD's log off the terminal unless somebody has set up logging; what matters comes as exceptions."""
    logger = logging.getLogger("pyocd")
    level = logger.level
    if not logging.getLogger().handlers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _pyocd(doing: str, hint: str = "check cable, power and --board") -> Iterator[None]:
    """pyOCD's and the operating system's errors as PlannerError(DEVICE), a missing pyOCD as UNAVAILABLE."""
    try:
        from pyocd.core.exceptions import Error
    except ImportError as error:
        raise PlannerError(Code.UNAVAILABLE, "pyOCD is not installed", hint="pip install pyocd") from error
    try:
        yield
    except (Error, ValueError) as error:
        said = " ".join(str(error).split())[:_MESSAGE_CHARS]
        raise PlannerError(Code.DEVICE, f"{doing}: {said or type(error).__name__}", hint=hint) from error
    except OSError as error:  # USB errors are among them
        raise PlannerError(Code.DEVICE, f"{doing}: {error.strerror or type(error).__name__}", hint=hint) from error


@_quiet()
def choose(unique_id: str | None) -> Any:
    """pyOCD's probe with an id that holds ``unique_id`` (any case; ``type:id`` as pyOCD has it), or the only one there
    is. PlannerError: UNAVAILABLE without any, NOT_FOUND if none has the id, BAD_REQUEST if it is not clear which; all
    that are attached are listed."""
    with _pyocd("looking for debug probes"):
        from pyocd.core.helpers import ConnectHelper

        found = ConnectHelper.get_all_connected_probes(blocking=False, unique_id=unique_id, print_wait_message=False)
        if len(found) == 1:
            return found[0]
        attached = found if found or unique_id is None else ConnectHelper.get_all_connected_probes(blocking=False)
        listed = [Violation(str(probe.unique_id), str(probe.description)) for probe in attached]
    if not attached:
        raise PlannerError(
            Code.UNAVAILABLE,
            "no debug probe is attached",
            hint="plug it in; on Linux its USB device must be writable for you (pyOCD's udev rules)",
        )
    if found:
        which = "" if unique_id is None else f" match {unique_id!r}"
        raise PlannerError(
            Code.BAD_REQUEST, f"{len(found)} debug probes{which}", hint="name one with --probe", violations=listed
        )
    raise PlannerError(
        Code.NOT_FOUND, f"no debug probe has an id with {unique_id!r}", hint="attached are", violations=listed
    )


# ---------------------------------------------------------------- programming


@_quiet()
def program(
    plan: bytes, info: dict[str, int | str], target: Target, where: Slot, probe: Any, progress: Progress
) -> Flashed:
    """Write a checked plan, read it back, and reset the board: its firmware then boots with what the slot holds.

    Only sectors inside the slot are erased; a locked chip is left as it is. PlannerError: UNAVAILABLE if pyOCD does not
    know the chip, BAD_REQUEST if its flash map contradicts the slot, DEVICE if probe or board fail or the slot reads
    back otherwise."""
    chip = chip_of(target)
    started = time.monotonic()
    with _pyocd("connecting to the board"):
        session = _session(probe, chip)
        _check_map(session.target.memory_map, where, len(plan))
    try:
        with _pyocd("connecting to the board"):
            session.open()
        with _pyocd(f"programming slot {where.name}", _AGAIN):
            _write(session, where, plan, progress)
        with _pyocd(f"reading slot {where.name} back", _AGAIN):
            _verify(session, where, plan, progress)
        with _pyocd("resetting the board", "the slot holds the plan; reset the board by hand"):
            session.target.reset()
    except BaseException:
        # The flash algorithm has used the firmware's RAM: it must not go on from where it was.
        if session.is_open:
            with contextlib.suppress(Exception):
                session.target.reset()
        raise
    finally:
        # What matters has been said by now; a board that ran away is no reason to say more.
        with contextlib.suppress(Exception):
            session.close()
    return Flashed(
        board=target.name,
        chip=chip,
        probe=str(probe.unique_id),
        slot=where.name,
        address=where.address,
        slot_bytes=where.nbytes,
        source=where.source,
        plan_bytes=len(plan),
        plan_version=int(info["plan_version"]),
        model_id=str(info["model_id"]),
        arena_bytes=int(info["arena_bytes"]),
        sha256=hashlib.sha256(plan).hexdigest(),
        verified_bytes=len(plan),
        seconds=time.monotonic() - started,
    )


def chip_of(target: Target) -> str:
    """pyOCD's name of the board's chip; PlannerError(BAD_REQUEST) if it has none."""
    if target.pyocd is None:
        raise PlannerError(
            Code.BAD_REQUEST,
            f"{target.name} cannot be flashed by pyOCD",
            hint="boards with a pyOCD name can (weft targets NAME shows it); others get plans over the air or as files",
        )
    return target.pyocd


def _session(probe: Any, chip: str) -> Any:
    from pyocd.core.exceptions import TargetSupportError
    from pyocd.core.session import Session

    options = {
        "target_override": chip,
        "connect_mode": "halt",
        "chip_erase": "sector",
        "keep_unwritten": False,  # whatever else a sector of the slot holds is an older plan's
        "auto_unlock": False,  # unlocking erases the whole chip
        "hide_programming_progress": True,
    }
    try:
        return Session(probe, auto_open=False, options=options)
    except TargetSupportError as error:
        raise PlannerError(
            Code.UNAVAILABLE, f"pyOCD does not know the chip {chip}", hint=f"pyocd pack install {chip}"
        ) from error


def _check_map(memory: Any, where: Slot, nbytes: int) -> None:
    """The slot is flash of the chip, and no sector that the plan touches reaches out of it."""
    at, end = where.address, where.address + nbytes
    while at < end:
        region = memory.get_region_for_address(at)
        if region is None or not region.is_flash:
            kind = "nothing" if region is None else region.type.name.lower()
            raise PlannerError(
                Code.BAD_REQUEST, f"slot {where.name} ({where.source}): pyOCD knows {kind} at {at:#x}, not flash"
            )
        inner = region.submap.get_region_for_address(at) if region.has_subregions else None
        sector = (inner or region).sector_size
        first = at - at % sector
        if first < where.address or first + sector > where.end:
            raise PlannerError(
                Code.BAD_REQUEST,
                f"slot {where.name} ({where.source}) shares the sector at {first:#x} of {sector} bytes with others",
                hint=f"let slots begin and end at multiples of {sector}",
            )
        at = first + sector


def _write(session: Any, where: Slot, plan: bytes, progress: Progress) -> None:
    from pyocd.flash.loader import FlashLoader

    # pyOCD counts from 0 to 1 twice, without saying which is which.
    phases, last = ["erasing", "programming"], 0.0

    def report(fraction: float) -> None:
        nonlocal last
        if fraction < last and len(phases) > 1:
            del phases[0]
        last = fraction
        progress(min(fraction, 1.0), phases[0])

    loader = FlashLoader(session, progress=report)
    loader.add_data(where.address, list(plan))
    loader.commit()


def _verify(session: Any, where: Slot, plan: bytes, progress: Progress) -> None:
    wrong: list[int] = []
    for start in range(0, len(plan), _READ_BYTES):
        piece = plan[start : start + _READ_BYTES]
        read = bytes(session.target.read_memory_block8(where.address + start, len(piece)))
        if len(read) != len(piece):
            raise PlannerError(Code.DEVICE, f"{len(read)} bytes read instead of {len(piece)}", hint=_AGAIN)
        wrong += [start + i for i, (a, b) in enumerate(zip(read, piece, strict=True)) if a != b]
        progress((start + len(piece)) / len(plan), "verifying")
    if wrong:
        raise PlannerError(
            Code.DEVICE,
            f"slot {where.name} does not hold what was written: {len(wrong)} of {len(plan)} bytes differ, the first at "
            f"{where.address + wrong[0]:#x}",
            hint="flash again; if the same bytes differ, the flash is worn out or write-protected there",
        )
