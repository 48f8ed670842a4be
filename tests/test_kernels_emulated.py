# SPDX-License-Identifier: Apache-2.0
"""Every core's kernels give the reference kernels' bytes on the emulated core, for any optimisation level and any
amount of scratch, and cost no more than they did."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from baremetal import kernels

CORTEXM = sorted((kernels.SOURCE / "kernels_cortexm").glob("*.c"))

MVE = sorted((kernels.SOURCE / "kernels_mve").glob("*.c"))

WITHOUT_SIMD = sorted((kernels.SOURCE / "kernels_portable").glob("*.c"))

#: Cores with DSP may do without its kernels, for less flash.
NO_DSP = "-DWEFT_KERNELS_DSP=0 -DWEFT_KERNELS_PORTABLE=1"
#: Instructions per MAC at most, by core and kernel, over the layers that kernels.c measures; requantisation included.
LIMITS = {
    "m4": {"conv2d": 4.5, "dwconv2d": 8.0, "fully_connected": 2.2},
    "m55": {"conv2d": 1.5, "dwconv2d": 3.3, "fully_connected": 0.5},
    "m3": {"conv2d": 7.6, "dwconv2d": 10.0, "fully_connected": 3.5},
    "rv32": {"conv2d": 7.5, "dwconv2d": 11.5, "fully_connected": 4.4},
}


def need(core: str) -> None:
    if lacking := kernels.missing(core):
        pytest.skip(f"{', '.join(lacking)} missing")


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize("level", ["-O2", "-Os", "-O0"])
def test_same_bytes_as_the_reference(core: str, level: str) -> None:
    need(core)
    cases = 500 if level == "-O0" else 3000
    layers = kernels.run(core, cases=cases, seed=20 + kernels.CORES.index(core), cflags=(level,))
    assert len(layers) > 20


@pytest.mark.parametrize("core", ["m3", "m4"])
def test_same_bytes_where_words_at_odd_addresses_trap(core: str) -> None:
    need(core)
    flags = ("-O2", "-mno-unaligned-access", "-DKERNEL_TRAP_UNALIGNED=1")
    assert len(kernels.run(core, cases=1000, seed=40, cflags=flags)) > 20


@pytest.mark.parametrize("core", kernels.PORTABLE)
@pytest.mark.parametrize("level", ["-O2", "-Os", "-O0", "-O2 -DWEFT_KERNELS_ASM=0"])
def test_same_bytes_without_simd(core: str, level: str) -> None:
    need(core)
    cases = 300 if level == "-O0" else 2000
    assert len(kernels.run(core, cases=cases, seed=30, cflags=level.split())) == 21


@pytest.mark.parametrize("core", LIMITS)
def test_instructions_per_mac(core: str) -> None:
    need(core)
    for layer in kernels.run(core, cases=1, seed=1):
        if layer.kernel in LIMITS[core]:
            assert layer.instructions / layer.macs <= LIMITS[core][layer.kernel], layer


@pytest.mark.parametrize("level", ["-O0", "-Og", "-O2", "-O2 -fno-omit-frame-pointer -DWEFT_KERNELS_ASM=0", "-Os"])
@pytest.mark.parametrize(
    "core",
    [
        "-mcpu=cortex-m0plus -mfloat-abi=soft",
        "-mcpu=cortex-m3 -mfloat-abi=soft",
        "-mcpu=cortex-m4 -mfloat-abi=soft",
        "-mcpu=cortex-m4 -mfloat-abi=hard -mfpu=fpv4-sp-d16",
        f"-mcpu=cortex-m4 -mfloat-abi=softfp -mfpu=fpv4-sp-d16 {NO_DSP}",
        f"-mcpu=cortex-m4 -mfloat-abi=hard -mfpu=fpv4-sp-d16 {NO_DSP}",
        "-mcpu=cortex-m7 -mfloat-abi=hard -mfpu=fpv5-d16",
        "-mcpu=cortex-m33 -mfloat-abi=softfp",
        "-mcpu=cortex-m55 -mfloat-abi=hard",
        "-mcpu=cortex-m55 -mfloat-abi=softfp",
    ],
)
def test_compiles_with_gcc(core: str, level: str, tmp_path: Path) -> None:
    """The loops in assembly leave the compiler few registers; what it needs itself depends on these flags."""
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("arm-none-eabi-gcc is missing")
    flags = ["--specs=picolibc.specs", "-mthumb", "-std=c99", "-ffreestanding", *core.split(), *level.split()]
    warnings = ["-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror"]
    include = [f"-I{kernels.SOURCE.parent / 'include'}", f"-I{kernels.SOURCE}"]
    without_simd = "m3 " in core or "m0plus" in core or NO_DSP in core
    sources = MVE if "m55" in core else WITHOUT_SIMD if without_simd else CORTEXM
    command = ["arm-none-eabi-gcc", *flags, *warnings, *include, "-c", *map(str, sources)]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=60)


@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"])
def test_compiles_with_clang(core: str, tmp_path: Path) -> None:
    if shutil.which("clang") is None or shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("clang or arm-none-eabi-gcc is missing")
    library = subprocess.run(
        ["arm-none-eabi-gcc", "--specs=picolibc.specs", "-xc", "-E", "-v", "/dev/null", "-o", "/dev/null"],
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    folders = [f"-isystem{line.strip()}" for line in library.splitlines() if "picolibc" in line and line[:1] == " "]
    include = [f"-I{kernels.SOURCE.parent / 'include'}", f"-I{kernels.SOURCE}"]
    flags = ["--target=arm-none-eabi", f"-mcpu={core}", "-mthumb", "-std=c99", "-O2", "-ffreestanding"]
    flags += ["-mfloat-abi=hard", "-DWEFT_KERNELS_MVE=1"] if core == "cortex-m55" else []  # no Helium without
    warnings = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
    sources = {"cortex-m55": MVE, "cortex-m3": WITHOUT_SIMD, "cortex-m0plus": WITHOUT_SIMD}
    for source in sources.get(core, CORTEXM):
        command = ["clang", *flags, *warnings, *include, *folders, "-c", str(source), "-o", str(tmp_path / "x.o")]
        subprocess.run(command, check=True, timeout=60)
