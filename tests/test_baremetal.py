# SPDX-License-Identifier: Apache-2.0
"""Five emulated cores without an operating system give the host engine's bytes, from one image each."""

from __future__ import annotations

import functools
import zlib
from pathlib import Path

import numpy as np
import pytest
from baremetal import runner

from planner_service import api, encode, layout
from planner_service.engine import Engine, EnginePlan, generated_input
from planner_service.errors import PlannerError
from planner_service.facts import Facts
from planner_service.importers import import_model
from tests import randomize

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples" / "models"
SHARED = ROOT.parent / "shared" / "models"
INPUTS = 3
STACK_MAX = 1024
RANDOM_SCHEDULES: dict[api.InputMode, int] = {"streamed": 3, "resident": 2, "external": 1}

CORES = [
    pytest.param(core, marks=pytest.mark.skipif(bool(runner.missing(core)), reason=f"needs {runner.missing(core)}"))
    for core in runner.CORES
]

MODELS = [
    *(pytest.param(SAMPLES / name, id=name) for name in ("digits_a.onnx", "digits_b.onnx")),
    *(
        pytest.param(
            SHARED / name,
            id=name,
            marks=pytest.mark.skipif(not (SHARED / name).is_file(), reason=f"shared/models/{name} is not there"),
        )
        for name in (
            "mlperf-tiny-ad.tflite",
            "mlperf-tiny-kws.tflite",
            "mlperf-tiny-ic-resnet8.tflite",
            "mlperf-tiny-vww.tflite",
            "mcunet-vww.tflite",
        )
    ),
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


@functools.cache
def random_plans(model: Path) -> tuple[bytes, ...]:
    """Plans with random block cuts, windows and steps; all three input modes."""
    graph = import_model(model.read_bytes(), name=model.name)
    facts = Facts(graph)
    schedules = [
        schedule
        for number, (mode, count) in enumerate(RANDOM_SCHEDULES.items())
        for schedule in randomize.random_schedules(graph, number, count, mode)
    ]
    return tuple(encode.encode(graph, schedule, layout.place(facts, schedule)) for schedule in schedules)


def check_core(core: str, plan_bytes: bytes, count: int) -> runner.Result:
    """The core's outputs, on `count` inputs, are the host's; returns the last result."""
    reference = Engine().open(plan_bytes)
    given = inputs(reference, count)
    results = runner.run(core, plan_bytes, [flat(arrays) for arrays in given])
    for arrays, result in zip(given, results, strict=True):
        assert result.status == 0, result
        assert result.intact
        assert result.arena == reference.arena_size
        assert 0 < result.stack <= STACK_MAX
        assert result.instructions > 0
        assert result.digests == tuple(zlib.crc32(output.tobytes()) for output in reference.run(arrays).outputs)
    return results[-1]


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("model", ["digits_a", "digits_b"])
@pytest.mark.parametrize("core", CORES)
def test_same_digests_as_the_host(core: str, model: str, name: str) -> None:
    planned = plan(SAMPLES / f"{model}.onnx", name)
    assert check_core(core, planned.plan, INPUTS).arena == planned.arena_bytes


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("core", CORES)
def test_random_schedules_give_the_same_bytes(core: str, model: Path) -> None:
    plans = random_plans(model)
    assert len(plans) >= 4  # a chain of dense layers has no more
    assert len({check_core(core, plan_bytes, 1).digests for plan_bytes in plans}) == 1


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
