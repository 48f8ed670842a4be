# SPDX-License-Identifier: Apache-2.0
"""A pyOCD debug probe, as a plugin, whose board is a Cortex-M4 in QEMU.

Played here: the registers of a serial wire debug port and of one memory access port, the ROM table, and the core's
debug registers (halt, run, core registers, reset). QEMU's, through its gdb stub: memory, the core, and what is read of
the system control space (the stub cannot write it). pyOCD's discovery, flash loader and reset run as with a probe on
USB, and its flash algorithm (``flash_algorithm.c``) runs on the core.

``WEFT_TEST_PROBES`` names the probes that are attached: ``serial=socket`` of a stub each, separated by spaces.
"""

from __future__ import annotations

import functools
import os
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pyocd.core import exceptions
from pyocd.core.memory_map import FlashRegion, MemoryMap, RamRegion
from pyocd.core.plugin import Plugin
from pyocd.coresight.coresight_target import CoreSightTarget
from pyocd.probe.debug_probe import DebugProbe
from pyocd.target import TARGET

T = TypeVar("T")

#: pyOCD's name of the emulated chip.
CHIP = "weft_emulated"
PROBES = "WEFT_TEST_PROBES"

FLASH = (0x21100000, 0x100000)
SECTOR_BYTES, PAGE_BYTES = 4096, 1024
COARSE_FLASH = (0x21200000, 0x100000)
COARSE_SECTOR_BYTES = 65536
RAM = (0x20000000, 0x20000)
WORN_CELL = 0x21180100
PROTECTED_SECTOR = 0x211C0000

COMPILER = "arm-none-eabi-gcc"
_SECONDS = 10.0
_START_SECONDS = 3
_ALGORITHM = 0x20010000
_CODE = _ALGORITHM + 0x20
_BKPT = 0xBE00
_SIGINT = "T02"  # the stub's word for a stop that was asked for

# Armv7-M Architecture Reference Manual, C1.6 and B3.2.
_AIRCR, _DFSR = 0xE000ED0C, 0xE000ED30
_DHCSR, _DCRSR, _DCRDR, _DEMCR = 0xE000EDF0, 0xE000EDF4, 0xE000EDF8, 0xE000EDFC
_DEBUGEN, _HALT = 1 << 0, 1 << 1
_S_REGRDY, _S_HALT, _S_RESET_ST = 1 << 16, 1 << 17, 1 << 25
_VECTKEY, _SYSRESETREQ, _VC_CORERESET = 0x05FA, 1 << 2, 1
# gdb's numbers: r0 to r15 as they are, xPSR is 25.
_GDB_REGISTER = {**{n: n for n in range(16)}, 16: 25}
# ADIv5.2: what the ports say about themselves. AHB-AP of a Cortex-M4, its ROM table with the SCS as only entry.
_DP_IDR, _AP_IDR = 0x2BA01477, 0x24770011
_ROM_TABLE, _SCS = 0xE00FF000, 0xE000E000
_ARM = (0x04, 0, 0, 0)


def _identification(part: int, component_class: int) -> dict[int, int]:
    """Peripheral and component ID registers, 0xfd0 to 0xffc."""
    peripheral = (part & 0xFF, 0xB0 | part >> 8, 0x0B, 0)
    values = (*_ARM, *peripheral, 0x0D, component_class << 4, 0x05, 0xB1)
    return {0xFD0 + 4 * i: value for i, value in enumerate(values)}


_READ_ONLY = {
    **{_ROM_TABLE + offset: value for offset, value in _identification(0x4C4, 0x1).items()},
    **{_SCS + offset: value for offset, value in _identification(0x00C, 0xE).items()},
    _ROM_TABLE: (_SCS - _ROM_TABLE) & 0xFFFFF000 | 3,
    **{_ROM_TABLE + 4 * i: 0 for i in range(1, 9)},
}


class Gdb:
    """QEMU's gdb stub; TransferError if it is gone, TransferFaultError if it refuses."""

    #: QEMU's packets have at most 4096 characters, bytes take two.
    CHUNK = 1024

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_SECONDS)
        self._pending = b""
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._socket.connect(path)
                break
            except OSError as error:
                # QEMU's socket has a name before it listens.
                if not isinstance(error, ConnectionRefusedError) or time.monotonic() > end:
                    raise exceptions.ProbeError(f"cannot reach the board: {error.strerror}") from error
                time.sleep(0.02)
        # Single registers can be had once the description has been read.
        self.ask("qXfer:features:read:target.xml:0,ffb")

    def close(self) -> None:
        self._socket.close()

    def send(self, body: str) -> None:
        data = body.encode()
        self._raw(b"$" + data + b"#%02x" % (sum(data) & 0xFF))

    def interrupt(self) -> None:
        self._raw(b"\x03")

    def ask(self, body: str) -> str:
        self.send(body)
        reply = self.receive()
        if reply.startswith("E"):
            raise exceptions.TransferFaultError(f"the board refuses {body[:20]}")
        return reply

    def monitor(self, command: str) -> None:
        """A command of QEMU's monitor; what it prints does not matter."""
        self.send(f"qRcmd,{command.encode().hex()}")
        while self.receive() != "OK":
            pass

    def receive(self) -> str:
        while (packet := self._packet()) is None:
            self._more()
        return packet

    def poll(self) -> str | None:
        """A packet that is there, or None."""
        while select.select([self._socket], [], [], 0)[0]:
            self._more()
        return self._packet()

    def read(self, address: int, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += bytes.fromhex(self.ask(f"m{address + len(data):x},{min(self.CHUNK, count - len(data)):x}"))
        return data

    def write(self, address: int, data: bytes) -> None:
        for start in range(0, len(data), self.CHUNK):
            piece = data[start : start + self.CHUNK]
            self.ask(f"M{address + start:x},{len(piece):x}:{piece.hex()}")

    def _raw(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise exceptions.TransferError("the board is gone") from error

    def _more(self) -> None:
        try:
            data = self._socket.recv(65536)
        except OSError as error:
            raise exceptions.TransferError("the board does not answer") from error
        if not data:
            raise exceptions.TransferError("the board is gone")
        self._pending += data

    def _packet(self) -> str | None:
        start = self._pending.find(b"$")
        end = self._pending.find(b"#", start)
        if start < 0 or end < 0 or len(self._pending) < end + 3:
            return None
        packet = self._pending[start + 1 : end]
        self._pending = self._pending[end + 3 :]
        self._raw(b"+")
        return packet.decode("latin-1")


class Core:
    """The core as its memory access port shows it. QEMU starts stopped: in reset, so to say, until it is let go."""

    def __init__(self, gdb: Gdb) -> None:
        self._gdb = gdb
        self._stopped = True  # QEMU
        self._halted = False  # as the debugger sees it
        self._enabled = 0
        self._reset = False
        self._registers = {_DCRDR: 0, _DEMCR: 0, _DFSR: 0}
        self._trap: int | None = None
        self._free = False  # running since a reset: firmware that has ended takes QEMU along, which is no fault

    def read(self, address: int, count: int) -> bytes:
        """``count`` bytes; words at debug registers, anything elsewhere."""
        if address & 3 or count & 3 or address >> 12 not in (_SCS >> 12, _ROM_TABLE >> 12):
            return self._memory(lambda: self._gdb.read(address, count))
        return b"".join(self._read_word(a).to_bytes(4, "little") for a in range(address, address + count, 4))

    def write(self, address: int, data: bytes) -> None:
        if len(data) == 4 and address >> 12 == _SCS >> 12:
            self._write_word(address, int.from_bytes(data, "little"))
        else:
            self._memory(lambda: self._gdb.write(address, data))

    def _memory(self, access: Callable[[], T]) -> T:
        """Memory of a running core: the stub has it between an interruption and going on."""
        self._poll()
        if self._stopped:
            return access()
        self._gdb.interrupt()
        if self._gdb.receive().startswith(_SIGINT):
            result = access()
            self._gdb.send("c")
            return result
        self._on_stop()
        self._halted = True
        return access()

    def _read_word(self, address: int) -> int:
        if address in _READ_ONLY:
            return _READ_ONLY[address]
        if address in self._registers:
            return self._registers[address]
        if address == _DHCSR:
            self._poll()
            value = self._enabled | _S_REGRDY
            value |= _S_RESET_ST if self._reset else _HALT | _S_HALT if self._halted else 0
            self._reset = False
            return value
        return int.from_bytes(self._memory(lambda: self._gdb.read(address, 4)), "little")

    def _write_word(self, address: int, value: int) -> None:
        if address == _DHCSR:
            if value >> 16 == 0xA05F:
                self._enabled = value & _DEBUGEN
                if self._enabled and value & _HALT:
                    self._stop()
                elif self._halted:
                    self._go()
        elif address == _DCRSR:
            self._transfer(value & 0x7F, write=bool(value & 1 << 16))
        elif address == _DFSR:
            self._registers[_DFSR] &= ~value
        elif address == _AIRCR and value >> 16 == _VECTKEY and value & _SYSRESETREQ:
            self._stop()
            self._gdb.monitor("system_reset")  # the stub writes memory only, not the system control space
            self._reset = self._free = True
            if not self._registers[_DEMCR] & _VC_CORERESET:
                self._run()
        elif address in self._registers:
            self._registers[address] = value

    def _transfer(self, selector: int, *, write: bool) -> None:
        number = _GDB_REGISTER.get(selector)
        if number is None:
            self._registers[_DCRDR] = 0
        elif write:
            value = self._registers[_DCRDR] & (0xFFFFFFFE if selector == 15 else 0xFFFFFFFF)
            self._gdb.ask(f"P{number:x}={value.to_bytes(4, 'little').hex()}")
        else:
            self._registers[_DCRDR] = int.from_bytes(bytes.fromhex(self._gdb.ask(f"p{number:x}")), "little")

    def _go(self) -> None:
        """Run. QEMU has no halting debug: a breakpoint instruction at the return address becomes one of the stub's."""
        lr = int.from_bytes(bytes.fromhex(self._gdb.ask("pe")), "little") & 0xFFFFFFFE
        if RAM[0] <= lr < RAM[0] + RAM[1] and int.from_bytes(self._gdb.read(lr, 2), "little") == _BKPT:
            self._gdb.ask(f"Z0,{lr:x},2")
            self._trap = lr
        self._run()

    def _run(self) -> None:
        self._gdb.send("c")
        self._stopped = self._halted = False

    def _stop(self) -> None:
        self._poll()
        if not self._stopped:
            self._gdb.interrupt()
            self._gdb.receive()
            self._on_stop()
        self._halted = True

    def _poll(self) -> None:
        if not self._stopped and not self._free and self._gdb.poll() is not None:
            self._on_stop()
            self._halted = True

    def _on_stop(self) -> None:
        self._stopped, self._free = True, False
        if self._trap is not None:
            self._gdb.ask(f"z0,{self._trap:x},2")
            self._trap = None


class EmulatedProbe(DebugProbe):  # type: ignore[misc]
    """The probe: debug port and memory access port."""

    def __init__(self, serial: str, path: str) -> None:
        super().__init__()
        self._serial, self._path = serial, path
        self._gdb: Gdb | None = None
        self._core: Core | None = None
        self._protocol: Any = None
        self._select = self._ctrl = self._csw = self._tar = 0

    @classmethod
    def get_all_connected_probes(cls, unique_id: str | None = None, is_explicit: bool = False) -> list[EmulatedProbe]:
        return [cls(*entry.split("=", 1)) for entry in os.environ.get(PROBES, "").split()]

    @classmethod
    def get_probe_with_id(cls, unique_id: str, is_explicit: bool = False) -> EmulatedProbe | None:
        return next((p for p in cls.get_all_connected_probes() if p.unique_id == unique_id), None)

    vendor_name = "Weft"
    product_name = "emulated probe"
    supported_wire_protocols = (DebugProbe.Protocol.DEFAULT, DebugProbe.Protocol.SWD)
    capabilities: frozenset[Any] = frozenset()

    @property
    def unique_id(self) -> str:
        return self._serial

    @property
    def wire_protocol(self) -> Any:
        return self._protocol

    @property
    def is_open(self) -> bool:
        return self._gdb is not None

    def open(self) -> None:
        self._gdb = Gdb(self._path)
        self._core = Core(self._gdb)

    def close(self) -> None:
        if self._gdb is not None:
            self._gdb.close()
        self._gdb = None

    def connect(self, protocol: Any = None) -> None:
        self._protocol = DebugProbe.Protocol.SWD

    def disconnect(self) -> None:
        self._protocol = None

    def set_clock(self, frequency: float) -> None:
        """Emulated wires are as fast as they are."""

    def read_dp(self, addr: int, now: bool = True) -> Any:
        # A power-up request is acknowledged at once: bits 31 and 29 follow 30 and 28.
        value = {0x0: _DP_IDR, 0x4: self._ctrl | (self._ctrl & 0x50000000) << 1}.get(addr, 0)
        return value if now else lambda: value

    def write_dp(self, addr: int, data: int) -> None:
        if addr == 0x4:
            self._ctrl = data
        elif addr == 0x8:
            self._select = data

    def read_ap(self, addr: int, now: bool = True) -> Any:
        value = self._read_ap(addr)
        return value if now else lambda: value

    def write_ap(self, addr: int, data: int) -> None:
        register = self._register(addr)
        if register == 0x00:
            self._csw = data
        elif register == 0x04:
            self._tar = data
        elif register == 0x0C:
            size = 1 << (self._csw & 7)
            value = data >> 8 * (self._tar & 3 & ~(size - 1))
            self._memory().write(self._tar, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))
            self._advance(size)

    def read_ap_multiple(self, addr: int, count: int = 1, now: bool = True) -> Any:
        data = self._memory().read(self._tar, 4 * count)
        self._advance(4 * count)
        words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
        return words if now else lambda: words

    def write_ap_multiple(self, addr: int, values: Sequence[int]) -> None:
        data = b"".join(value.to_bytes(4, "little") for value in values)
        self._memory().write(self._tar, data)
        self._advance(len(data))

    def _register(self, addr: int) -> int | None:
        """The register of AP 0 that the debug port's SELECT and an address name; None on other APs."""
        return None if self._select >> 24 else self._select & 0xF0 | addr & 0xC

    def _read_ap(self, addr: int) -> int:
        register = self._register(addr)
        if register == 0x0C:
            size = 1 << (self._csw & 7)
            value = int.from_bytes(self._memory().read(self._tar, size), "little") << 8 * (self._tar & 3 & ~(size - 1))
            self._advance(size)
            return value
        # CSW says that the device is enabled; CFG is 0.
        return {0x00: self._csw | 1 << 6, 0x04: self._tar, 0xF8: _ROM_TABLE | 3, 0xFC: _AP_IDR}.get(
            register or 0, 0
        ) * (register is not None)

    def _advance(self, count: int) -> None:
        if self._csw >> 4 & 3 == 1:
            self._tar += count

    def _memory(self) -> Core:
        if self._core is None:
            raise exceptions.ProbeError("the probe is not open")
        return self._core


class EmulatedProbePlugin(Plugin):  # type: ignore[misc]
    """The entry point ``pyocd.probe``."""

    name = "weft-emulated"
    description = "QEMU's gdb stub behind a debug port"

    def load(self) -> type[EmulatedProbe]:
        TARGET[CHIP] = EmulatedChip
        return EmulatedProbe


class EmulatedChip(CoreSightTarget):  # type: ignore[misc]
    """The chip as pyOCD's target files describe one."""

    VENDOR = "Weft"

    def __init__(self, session: Any) -> None:
        fine, coarse = (
            FlashRegion(start=start, length=length, blocksize=sector, page_size=PAGE_BYTES, algo=algorithm(sector))
            for (start, length), sector in ((FLASH, SECTOR_BYTES), (COARSE_FLASH, COARSE_SECTOR_BYTES))
        )
        super().__init__(session, MemoryMap(fine, coarse, RamRegion(start=RAM[0], length=RAM[1])))


@functools.cache
def algorithm(sector: int) -> dict[str, Any]:
    """The compiled flash algorithm and where its functions are, in pyOCD's form."""
    prefix = COMPILER.removesuffix("gcc")
    with tempfile.TemporaryDirectory() as folder:
        elf, image = Path(folder, "algorithm.elf"), Path(folder, "algorithm.bin")
        figures = {"SECTOR_BYTES": sector, "WORN_CELL": WORN_CELL, "PROTECTED_SECTOR": PROTECTED_SECTOR}
        command = [
            COMPILER, "-mcpu=cortex-m4", "-mthumb", "-O2", "-ffreestanding", "-fno-tree-loop-distribute-patterns",
            "-nostdlib", f"-Wl,-Ttext={_CODE:#x},--entry=Init", *(f"-D{k}={v}u" for k, v in figures.items()),
            "-o", str(elf), str(Path(__file__).parent / "flash_algorithm.c"),
        ]  # fmt: skip
        subprocess.run(command, check=True, timeout=60)
        subprocess.run([f"{prefix}objcopy", "-O", "binary", "-j", ".text", elf, image], check=True, timeout=60)
        listed = subprocess.run([f"{prefix}nm", elf], check=True, timeout=60, capture_output=True, text=True).stdout
        code = image.read_bytes()
    symbols = {line.split()[2]: int(line.split()[0], 16) | 1 for line in listed.splitlines()}
    data = _BKPT.to_bytes(2, "little") * ((_CODE - _ALGORITHM) // 2) + code
    data += bytes(-len(data) % 4)
    return {
        "load_address": _ALGORITHM,
        "instructions": [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)],
        "pc_init": symbols["Init"],
        "pc_unInit": symbols["UnInit"],
        "pc_erase_sector": symbols["EraseSector"],
        "pc_program_page": symbols["ProgramPage"],
        "static_base": _ALGORITHM + 0x1000,
        "begin_stack": _ALGORITHM + 0x3000,
        "begin_data": _ALGORITHM + 0x4000,
        "page_buffers": [_ALGORITHM + 0x4000, _ALGORITHM + 0x4000 + PAGE_BYTES],
        "min_program_length": PAGE_BYTES,
        "analyzer_supported": False,
    }
