# SPDX-License-Identifier: Apache-2.0
"""Five emulated cores without an operating system give the host engine's bytes, from one image each."""

from __future__ import annotations

import functools
import zlib
from pathlib import Path

import numpy as np
import pytest
from baremetal import runner

from planner_service import api
from planner_service.engine import Engine, EnginePlan, generated_input
from planner_service.errors import PlannerError

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples" / "models"
SHARED = ROOT.parent / "shared" / "models"
INPUTS = 3
STACK_MAX = 1024

CORES = [
    pytest.param(core, marks=pytest.mark.skipif(bool(runner.missing(core)), reason=f"needs {runner.missing(core)}"))
    for core in runner.CORES
]

REQUESTS: dict[str, api.PlanRequest] = {
    "layers": api.PlanRequest(kind="layers", input_mode="resident"),
    "f1.0": api.PlanRequest(kind="p1", f_max=1.0, input_mode="streamed"),
    "f1.1": api.PlanRequest(kind="p1", f_max=1.1, input_mode="external"),
    "f1.3": api.PlanRequest(kind="p1", f_max=1.3, input_mode="resident"),
    "min": api.PlanRequest(kind="p1", input_mode="streamed"),
}


@functools.cache
def plan(model: Path, name: str) -> api.Planned:
    (planned,) = api.create_plans(model.read_bytes(), model.name, REQUESTS[name])
    return planned


def inputs(opened: EnginePlan, count: int) -> list[list[runner.Int8]]:
    """Generated inputs: one list of arrays per inference."""
    state, result = 12345, []
    for _ in range(count):
        arrays = []
        for tensor in opened.inputs:
            values, state = generated_input(tensor.shape, state)
            arrays.append(values)
        result.append(arrays)
    return result


def flat(arrays: list[runner.Int8]) -> runner.Int8:
    return np.concatenate([array.ravel() for array in arrays])


def check_core(core: str, planned: api.Planned, count: int = INPUTS) -> None:
    reference = Engine().open(planned.plan)
    given = inputs(reference, count)
    results = runner.run(core, planned.plan, [flat(arrays) for arrays in given])
    for arrays, result in zip(given, results, strict=True):
        assert result.status == 0, result
        assert result.intact
        assert result.arena == planned.arena_bytes
        assert 0 < result.stack <= STACK_MAX
        assert result.instructions > 0
        assert result.digests == tuple(zlib.crc32(output.tobytes()) for output in reference.run(arrays).outputs)


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("model", ["digits_a", "digits_b"])
@pytest.mark.parametrize("core", CORES)
def test_same_digests_as_the_host(core: str, model: str, name: str) -> None:
    check_core(core, plan(SAMPLES / f"{model}.onnx", name))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the models of the comparison are not at {SHARED.name}/models")
@pytest.mark.parametrize("model", ["mlperf-tiny-ad", "mlperf-tiny-kws", "mlperf-tiny-ic-resnet8", "mlperf-tiny-vww"])
@pytest.mark.parametrize("core", CORES)
def test_known_models(core: str, model: str) -> None:
    check_core(core, plan(SHARED / f"{model}.tflite", "f1.3"), count=1)


@pytest.mark.parametrize("core", CORES)
def test_counts_and_stage_digests(core: str) -> None:
    planned = plan(SAMPLES / "digits_a.onnx", "f1.0")
    reference = Engine().open(planned.plan)
    (arrays,) = inputs(reference, 1)
    first, again = runner.run(core, planned.plan, [flat(arrays)] * 2)
    assert first == again
    _, (profiled,) = runner.boot(core, planned.plan, [flat(arrays)], stages=True, digests=True)
    assert profiled.digests == first.digests
    assert 0.8 * first.instructions < sum(profiled.stages) < 1.2 * first.instructions
    host_stages = reference.run(arrays, keep_stages=True).stages
    assert profiled.stage_digests == tuple(map(zlib.crc32, host_stages))
    _, (by_operator,) = runner.boot(core, planned.plan, [flat(arrays)], ops=True)
    assert by_operator.digests == first.digests
    assert 0.5 * first.instructions < sum(by_operator.ops) < 1.5 * first.instructions


@pytest.mark.parametrize("core", CORES)
def test_refused_plan_is_named(core: str) -> None:
    good = plan(SAMPLES / "digits_a.onnx", "f1.0").plan
    spoiled = good[:28] + bytes([good[28] ^ 4]) + good[29:]
    for content in (bytes(4096), good[:-8], spoiled):
        with pytest.raises(PlannerError) as on_host:
            Engine().open(content)
        opened, results = runner.boot(core, content)
        assert not results
        assert opened.status < 0
        assert opened.name in on_host.value.violations[0].message
        with pytest.raises(runner.RefusedError, match=opened.name):
            runner.run(core, content, [])


def test_generated_input_is_the_engines() -> None:
    np.testing.assert_array_equal(runner.generated_input(100), generated_input((10, 10, 1))[0].ravel())


def test_a_firmware_that_hangs_is_ended() -> None:
    core = next((name for name in runner.CORES if not runner.missing(name)), None)
    if core is None:
        pytest.skip(f"needs {[runner.missing(name) for name in runner.CORES]}")
    with pytest.raises(runner.EmulationError, match="no end after"):
        runner.boot(core, bytes(16), timeout=0.0)
