# SPDX-License-Identifier: Apache-2.0
"""A plan's instructions on an emulated core, by operator and by stage: ``weft profile``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from planner_service import api, replay
from planner_service.engine import generated_input
from planner_service.errors import Code, PlannerError
from planner_service.facts import Facts
from planner_service.inspect import inspect
from planner_service.profile import emulator, images

SEED = 12345


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCost:
    """An operator in its stage. ``calls``: of its kernel or for nothing, row steps x sweeps x column steps;
    ``instructions`` are the kernel's."""

    index: int
    name: str
    opcode: str
    shape: tuple[int, int, int]
    stage: int
    calls: int
    macs: int
    instructions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """A stage with all that the engine does for it: kernels, windows, order of steps."""

    index: int
    operators: tuple[str, ...]
    scratch_bytes: int
    macs: int
    instructions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One inference. ``instructions`` is measured without the callbacks that the other figures need."""

    core: str
    machine: str
    instructions: int
    macs: int
    arena_bytes: int
    stack_bytes: int
    stages: tuple[StageCost, ...]
    operators: tuple[OperatorCost, ...]

    @property
    def kernel_instructions(self) -> int:
        return sum(o.instructions for o in self.operators)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``weft profile --json``."""
        return asdict(self) | {"kernel_instructions": self.kernel_instructions}


def profile(plan: bytes, core: str, *, timeout: float = 600.0) -> Profile:
    """Run a plan once on the generated input, with the core's fastest kernels. PlannerError: BAD_PLAN as
    ``api.check_plan``, UNAVAILABLE with what is to be installed, TOO_LARGE if the machine has no room for it."""
    check(core)
    opened = api.check_plan(plan)
    inspection = inspect(plan)
    facts = Facts(inspection.graph)
    state, arrays = SEED, []
    for tensor in opened.inputs:
        values, state = generated_input(tensor.shape, state)
        arrays.append(values.ravel())
    values = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int8)
    spec = emulator.CORES[core]
    for what, needed, there in (
        ("plan and inputs", len(plan) + len(values) + emulator.JOB_HEAD.size, spec.job.length),
        ("arena", opened.arena_size, spec.arena.length),
    ):
        if needed > there:
            raise PlannerError(Code.TOO_LARGE, f"{what}: {needed} bytes, {spec.machine} has room for {there}")
    try:
        elf = images.image(core)
        (whole,) = emulator.run(core, plan, [values], elf=elf, timeout=timeout)
        (by_stage,) = emulator.run(core, plan, [values], elf=elf, stages=True, timeout=timeout)
        (by_operator,) = emulator.run(core, plan, [values], elf=elf, ops=True, timeout=timeout)
    except emulator.RefusedError as error:
        raise PlannerError(Code.BAD_PLAN, f"the engine on {core} refuses the plan: {error}") from error
    except emulator.EmulationError as error:
        raise PlannerError(Code.INTERNAL, str(error)) from error
    stages, operators = [], []
    for s, stage in enumerate(inspection.schedule.stages):
        costs = replay.op_costs(facts, stage)
        names = []
        for segment in stage.segments:
            for entry in segment.entries:
                names.append(inspection.entry_name(entry))
                if entry.op < 0:
                    continue
                info = inspection.operators[entry.op]
                out = inspection.tensors[info.record.output]
                operators.append(
                    OperatorCost(
                        index=entry.op,
                        name=info.name,
                        opcode=info.opcode.name,
                        shape=(out.h, out.w, out.c),
                        stage=s,
                        calls=segment.row_steps * segment.sweeps * segment.col_steps,
                        macs=costs[entry.op][0],
                        instructions=by_operator.ops[entry.op],
                    )
                )
        stages.append(
            StageCost(
                index=s,
                operators=tuple(names),
                scratch_bytes=stage.scratch,
                macs=sum(macs for macs, _ in costs.values()),
                instructions=by_stage.stages[s],
            )
        )
    return Profile(
        core=core,
        machine=spec.machine,
        instructions=whole.instructions,
        macs=sum(stage.macs for stage in stages),
        arena_bytes=whole.arena,
        stack_bytes=whole.stack,
        stages=tuple(stages),
        operators=tuple(operators),
    )


def check(core: str) -> None:
    """PlannerError(UNAVAILABLE) if a core's firmware cannot be built and run here: what lacks, and what to do."""
    if not emulator.MODULE.is_dir():
        raise PlannerError(
            Code.UNAVAILABLE,
            "the engine's sources are not beside the planner",
            hint="profiling builds firmware: run weft from a source tree (pip install -e .)",
        )
    if lacking := emulator.missing(core):
        raise PlannerError(
            Code.UNAVAILABLE,
            f"no compiler or emulator for {core}: {', '.join(lacking)}",
            hint=f"on Debian, apt-get install {' '.join(lacking).replace(' and ', ' ')}",
        )
