# SPDX-License-Identifier: Apache-2.0
"""Build RIOT applications and talk to their shells: native boards as processes, microbit in QEMU.

A board's slots are bytes that the test makes: the file of native's flash, or what QEMU's loader puts into microbit's.
The RIOT tree is ``RIOTBASE``, or ``~/RIOT``.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.terminal import Terminal

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
#: A folder per RIOT version.
BUILDS = ROOT / "build" / "riot"
BUILD_SECONDS = 600
PROMPT = "\n> "
ERASED = 0xFF

#: Applications by name.
APPLICATIONS = {
    "hello_plan": ROOT / "samples" / "riot" / "hello_plan",
    "switch": ROOT / "samples" / "riot" / "switch",
    "update": ROOT / "samples" / "riot" / "update",
    "service": HERE / "service",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """``target``: the planner's name. Bytes: of the arena and of a slot as samples/riot/Makefile.common sets them, and
    where slot a is (``None``: in a file). ``emulator``: how to start it, ``None``: it is not run here. ``network``:
    RIOT has a device of this board that `samples/riot/update` can use."""

    name: str
    target: str
    compiler: str
    arena: int
    slot: int
    address: int | None
    emulator: tuple[str, ...] | None
    network: bool = False

    @property
    def native(self) -> bool:
        return self.address is None


_QEMU = ("qemu-system-arm", "-machine", "microbit", "-nographic", "-monitor", "none", "-serial", "stdio")
_ARM = "arm-none-eabi-gcc"

BOARDS: Mapping[str, Board] = {
    name: Board(
        name=name,
        target=target,
        compiler=compiler,
        arena=arena,
        slot=slot,
        address=address,
        emulator=emulator,
        network=name in ("native64", "native32", "nrf52840dk", "samr21-xpro"),
    )
    for name, target, compiler, arena, slot, address, emulator in (
        ("native64", "native", "gcc", 16384, 65536, None, ()),
        ("native32", "native", "gcc", 16384, 65536, None, ()),
        ("microbit", "microbit", _ARM, 5120, 24576, 0x13800, _QEMU),
        ("nrf52840dk", "nrf52840dk", _ARM, 16384, 262144, 0x80000, None),
        ("samr21-xpro", "samr21_xpro", _ARM, 10240, 32768, 0x2FE00, None),
        ("nucleo-f767zi", "nucleo_f767zi", _ARM, 16384, 524288, 0x8100000, None),
        ("stm32f4discovery", "stm32f4_disco", _ARM, 16384, 262144, 0x8080000, None),
        ("hifive1b", "hifive1b", "riscv64-unknown-elf-gcc", 5120, 65536, 0x20100000, None),
    )
}
PACKAGES = {
    "gcc": "gcc",
    "make": "make",
    _ARM: "gcc-arm-none-eabi, libnewlib-arm-none-eabi",
    "riscv64-unknown-elf-gcc": "gcc-riscv64-unknown-elf, picolibc-riscv64-unknown-elf",
    "qemu-system-arm": "qemu-system-arm",
}


def riot_base() -> Path:
    """The RIOT tree, which may not be there."""
    return Path(os.environ.get("RIOTBASE") or Path.home() / "RIOT")


def riot_version() -> str:
    """Of the tree, "none" without one."""
    try:
        found = re.search(r"RIOT_VERSION *= *(\S+)", (riot_base() / "VERSION").read_text())
    except FileNotFoundError:
        return "none"
    return found.group(1) if found else "unknown"


BUILD = BUILDS / riot_version()

#: RIOT's packages that builds need: where they come from.
PACKAGE_URLS = {
    "micro-ecc": "https://github.com/kmackay/micro-ecc.git",
    "zcbor": "https://github.com/NordicSemiconductor/zcbor",
    "nanocbor": "https://github.com/bergzand/nanocbor",
    "libcose": "https://github.com/bergzand/libcose",
    "hacl": "https://github.com/RIOT-OS-pkgmirror/hacl-c_archived",
}


@functools.cache
def fetchable(package: str) -> bool:
    """RIOT has fetched a package, or can."""
    if (riot_base() / "build" / "pkg" / package / ".pkg-state.git-prepared").exists():
        return True
    command = ["git", "ls-remote", PACKAGE_URLS[package], "HEAD"]
    with contextlib.suppress(subprocess.TimeoutExpired, FileNotFoundError):
        env = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
        return subprocess.run(command, capture_output=True, env=env, timeout=20, check=False).returncode == 0
    return False


def unfetchable(*packages: str) -> list[str]:
    """Packages that lack, each with what to do. zcbor is in its Python package as well."""
    return [
        f"RIOT's package {name} cannot be fetched from {PACKAGE_URLS[name]}: connect, or redirect it by git's insteadOf"
        for name in packages
        if not fetchable(name) and name != "zcbor"
    ]


def missing(board: str) -> list[str]:
    """What lacks for building, and if it can be, for running a board; each with what to do."""
    needed = ["make", BOARDS[board].compiler, *(BOARDS[board].emulator or ())[:1]]
    lacking = [f"{tool}: install {PACKAGES[tool]}" for tool in needed if shutil.which(tool) is None]
    if not (riot_base() / "Makefile.include").exists():
        lacking.append("RIOT: clone https://github.com/RIOT-OS/RIOT to ~/RIOT, or set RIOTBASE to where it is")
    if board == "native32" and not _compiles_32_bit():
        lacking.append("a C library for -m32: install gcc-multilib")
    return lacking


def _compiles_32_bit() -> bool:
    command = ["gcc", "-m32", "-x", "c", "-o", os.devnull, "-"]
    return subprocess.run(command, input=b"int main(void){return 0;}", capture_output=True, check=False).returncode == 0


def environment() -> dict[str, str]:
    """For RIOT's make: no flags of a make that runs the tests, and this interpreter's `weft` and pexpect."""
    env = {n: v for n, v in os.environ.items() if n not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "BOARD")}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    env["RIOTBASE"] = str(riot_base())
    # Keys of SUIT's without questions.
    env["RIOT_CI_BUILD"] = "1"
    codec = importlib.util.find_spec("zcbor")
    if not fetchable("zcbor") and codec is not None and codec.origin is not None:
        env["PKG_SOURCE_LOCAL_ZCBOR"] = str(Path(codec.origin).parent)
    return env


def build_folder(application: str, board: str, variant: str = "") -> Path:
    return BUILD / (f"{application}-{variant}" if variant else application) / board


def make(
    application: str,
    board: str,
    *goals: str,
    variant: str = "",
    variables: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> str:
    """Run make in an application for a board; its output. ``variables``: for make; a ``variant`` with others has a
    folder of its own; ``prefix``: before the command. Raises AssertionError with the output if it fails."""
    folder = build_folder(application, board, variant).parent
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *prefix, "make", "-C", str(APPLICATIONS[application]), f"BOARD={board}", f"BINDIRBASE={folder}", "QUIET=1",
        *(f"{name}={value}" for name, value in (variables or {}).items()), *goals,
    ]  # fmt: skip
    # RIOT unpacks its packages into its own tree: one build at a time.
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=BUILD_SECONDS, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def elf(application: str, board: str, variant: str = "", variables: Mapping[str, str] | None = None) -> Path:
    """The application's firmware, built."""
    make(application, board, "all", variant=variant, variables=variables)
    (found,) = build_folder(application, board, variant).glob("*.elf")
    return found


def flash_image(board: str, slots: Mapping[str, bytes]) -> bytes:
    """Slots a and b, and on native the two sectors of state, erased but for the plans."""
    spec = BOARDS[board]
    image = bytearray([ERASED]) * (2 * spec.slot + 2 * 4096 * spec.native)
    for name, content in slots.items():
        start = "ab".index(name) * spec.slot
        image[start : start + len(content)] = content
    return bytes(image)


class Console:
    """A running board. ``flash``: file with `flash_image`'s bytes, which native also writes. ``prefix``, ``arguments``:
    before and behind native's command, for its network."""

    def __init__(
        self, board: str, firmware: Path, flash: Path, prefix: Sequence[str] = (), arguments: Sequence[str] = ()
    ) -> None:
        spec = BOARDS[board]
        if spec.native:
            command, *arguments = [*prefix, str(firmware), *arguments, f"--mtd={flash}"]
        else:
            assert spec.emulator is not None
            command, *arguments = spec.emulator
            arguments += ["-device", f"loader,file={firmware}"]
            # To QEMU a firmware's .bss is part of its file, behind it in flash: an empty image may lie in its way.
            if set(flash.read_bytes()) != {ERASED}:
                arguments += ["-device", f"loader,file={flash},addr={spec.address:#x},force-raw=on"]
        self._terminal = Terminal([command, *arguments], seconds=60, echo=False)

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Native and QEMU may ignore a polite signal.
        self.kill()

    def stab(self) -> None:
        """End the process at once, in the middle of whatever it does; with its children, for native forks one per TAP
        device."""
        self._terminal.stab()

    def kill(self) -> None:
        """End it at once and forget it."""
        self._terminal.close()

    def until(self, pattern: str) -> str:
        """What is printed before and with a match of the pattern."""
        return self._terminal.until(pattern).replace("\r", "")

    def start(self) -> str:
        """What is printed until the shell's first prompt."""
        return self.until(r"(?:\n|^)> ")

    def type(self, command: str) -> None:
        """Type a shell command and wait for nothing."""
        self._terminal.send(command + "\n")

    def send(self, command: str) -> str:
        """The answer to a shell command."""
        self._terminal.send(command + "\n")
        answer = self.until(r"\n> ")
        return answer.removesuffix(PROMPT).partition(command)[2] if command in answer else answer.removesuffix(PROMPT)


@contextlib.contextmanager
def booted(board: str, firmware: Path, flash: Path) -> Iterator[tuple[Console, str]]:
    """A running board and what it printed until its shell was ready."""
    with Console(board, firmware, flash) as console:
        yield console, console.start()


def field(pattern: str, text: str) -> str:
    """The group of a pattern that must occur."""
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern!r} in\n{text}"
    return found.group(1)
