# SPDX-License-Identifier: Apache-2.0
"""Flash and stack of the runtime on Cortex-M4, as shipped; op sets: what is left out is not linked, and asked for by
name. ``python -m pytest -s tests/test_size.py`` prints the figures."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from planner_service import api, engine, format, report

sys.path.insert(0, str(Path(__file__).parent))
from baremetal import firmware, images, runner

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "models"
CORE = "m4"

needs_core = pytest.mark.skipif(bool(firmware.missing(CORE)), reason=f"needs {firmware.missing(CORE)}")

MODEL_FLASH_MAX, EVERY_FLASH_MAX = 24 * 1024, 29 * 1024
#: weft_open() with all that it calls.
VERIFIER_MAX = 6 * 1024
OPEN_STACK_MAX, RUN_STACK_MAX = 512, 1024

MODELS = ("mlperf-tiny-vww", "mlperf-tiny-ic-resnet8", "mlperf-tiny-kws", "mlperf-tiny-ad", "mcunet-vww")


@functools.cache
def plan(model: str, f_max: float | None = None) -> bytes:
    """Layer by layer, or fused with an overhead factor of at most `f_max`."""
    path = SHARED / f"{model}.tflite"
    if not path.is_file():
        pytest.skip(f"shared/models/{model}.tflite is not there")
    request = api.PlanRequest(kind="layers", input_mode="resident", target="mps2-an386")
    if f_max is not None:
        request = api.PlanRequest(kind="p1", f_max=f_max, target="mps2-an386")
    (planned,) = api.create_plans(path.read_bytes(), model, request)
    return planned.plan


def operators(plan_bytes: bytes) -> set[str]:
    """Names of the operators that a plan needs."""
    return {format.Opcode[operator["opcode"]].name for operator in report.inspect(plan_bytes).to_json()["operators"]}


def kernels(elf: Path) -> set[str]:
    """Names of the kernels' functions in an image."""
    nm = runner.CORES[CORE].compiler.removesuffix("gcc") + "nm"
    lines = subprocess.run([nm, str(elf)], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[-1] for line in lines}


@needs_core
@pytest.mark.parametrize("model", MODELS)
def test_flash_of_a_models_operators(model: str) -> None:
    chosen = operators(plan(model))
    size = firmware.flash_bytes(CORE, chosen)
    whole, alone = firmware.verifier_bytes(CORE, chosen)
    print(f"\n{model}: {size} bytes of flash on {CORE}, verifier {whole}, {alone} of them not shared with the executor")
    assert size <= MODEL_FLASH_MAX
    assert alone < whole <= VERIFIER_MAX


@needs_core
def test_flash_of_every_operator() -> None:
    size = firmware.flash_bytes(CORE)
    whole, alone = firmware.verifier_bytes(CORE)
    print(f"\nevery operator: {size} bytes of flash on {CORE}, verifier {whole}, {alone} not shared with the executor")
    assert size <= EVERY_FLASH_MAX
    assert alone < whole <= VERIFIER_MAX


@needs_core
@pytest.mark.parametrize("f_max", [None, 1.1])
@pytest.mark.parametrize("model", MODELS)
def test_stack_of_open_and_run(model: str, f_max: float | None) -> None:
    """High-water marks of painted stacks, of an image with the model's operators only."""
    plan_bytes = plan(model, f_max)
    (tensor,) = engine.Engine().open(plan_bytes).inputs
    values = runner.generated_input(tensor.shape[0] * tensor.shape[1] * tensor.shape[2])
    opened, (result,) = runner.boot(CORE, plan_bytes, [values], elf=images.image(CORE, operators(plan_bytes)))
    print(f"\n{model}, F {f_max}: stack of weft_open() {opened.stack}, of weft_run() {result.stack} bytes on {CORE}")
    assert result.status == 0
    assert 0 < opened.stack <= OPEN_STACK_MAX
    assert 0 < result.stack <= RUN_STACK_MAX


@needs_core
def test_an_open_plan_is_as_large_as_porting_says(tmp_path: Path) -> None:
    """``weft_plan_t``, by the size of an array of so many bytes."""
    core = runner.CORES[CORE]
    source, binary = tmp_path / "size.c", tmp_path / "size.o"
    source.write_text('#include "weft/weft.h"\nunsigned char handle[sizeof(weft_plan_t)];\n')
    compile_it = [core.compiler, *core.cflags, "-ffreestanding", f"-I{ROOT / 'module' / 'include'}", "-c"]
    subprocess.run([*compile_it, str(source), "-o", str(binary)], check=True)
    nm = [core.compiler.removesuffix("gcc") + "nm", "-S", str(binary)]
    listed = subprocess.run(nm, capture_output=True, text=True, check=True).stdout
    size = next(int(line.split()[1], 16) for line in listed.splitlines() if line.endswith(" handle"))
    print(f"\nweft_plan_t: {size} bytes on {CORE}")
    assert f"| `weft_plan_t` | anywhere | {size} bytes on a 32-bit core |" in (ROOT / "docs/porting.md").read_text()


@needs_core
def test_operators_that_are_left_out_are_not_linked_and_refused_by_name() -> None:
    plan_bytes = plan("mlperf-tiny-kws")
    needed = operators(plan_bytes)
    assert needed == {"CONV2D", "DWCONV2D", "FULLY_CONNECTED", "REDUCE", "SOFTMAX"}
    (tensor,) = engine.Engine().open(plan_bytes).inputs
    values = runner.generated_input(tensor.shape[0] * tensor.shape[1] * tensor.shape[2])

    full = images.image(CORE, needed)
    assert {"weft_conv2d_dsp", "weft_dwconv2d_dsp", "weft_dwconv2d", "weft_softmax"} <= kernels(full)
    assert not {"weft_concat", "weft_lut", "weft_resize", "weft_sub", "weft_maxpool_dsp"} & kernels(full)
    runner.run(CORE, plan_bytes, [values], elf=full)

    for left_out in ("DWCONV2D", "SOFTMAX"):
        image = images.image(CORE, needed - {left_out})
        assert not {f"weft_{left_out.lower()}", f"weft_{left_out.lower()}_dsp"} & kernels(image)
        opened, results = runner.boot(CORE, plan_bytes, [values], elf=image)
        assert (opened.name, opened.operator, results) == ("WEFT_ERR_OPCODE", left_out, [])
        first = next(
            number
            for number, operator in enumerate(report.inspect(plan_bytes).to_json()["operators"])
            if format.Opcode[operator["opcode"]].name == left_out
        )
        assert opened.record == first
        with pytest.raises(runner.RefusedError, match=f"{left_out} is not in this build"):
            runner.run(CORE, plan_bytes, [values], elf=image)


def test_bindings_have_the_sizes_of_the_headers(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    source, program = tmp_path / "size.c", tmp_path / "size"
    source.write_text(
        '#include <stdio.h>\n#include "weft/weft.h"\n'
        'int main(void) { printf("%zu %zu %zu %zu %zu", sizeof(weft_plan_t), sizeof(weft_error_t),\n'
        "                        sizeof(weft_limits_t), sizeof(weft_plan_info_t), sizeof(weft_io_t)); }\n"
    )
    subprocess.run(["gcc", f"-I{ROOT / 'module' / 'include'}", str(source), "-o", str(program)], check=True)
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    bindings = (engine._Plan, engine._Error, engine._Limits, engine._Info, engine._Io)
    assert [int(size) for size in printed.split()] == [ctypes.sizeof(binding) for binding in bindings]
