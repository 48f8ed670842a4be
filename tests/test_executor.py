# SPDX-License-Identifier: Apache-2.0
"""What the executor keeps from step to step instead of working it out anew: places in tiles and line stores, copies by
words, the order of segments. Every case is compared with the unfused plan."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from planner_service import api, layout
from planner_service.build import IllegalSpecError, SegmentSpec, StageSpec, build_schedule
from planner_service.encode import encode
from planner_service.engine import Engine, generated_input
from planner_service.facts import Facts
from planner_service.format import Policy
from planner_service.ir import Graph
from planner_service.schedule import Schedule

sys.path.insert(0, str(Path(__file__).parent))
from baremetal import runner
from schedule_graphs import Maker

from planner_service.profile import measure

ROOT = Path(__file__).resolve().parent.parent
#: Instructions of the engine around each kernel call on m4, at most; they were 350 when this was written.
AROUND_CALL = 430


def chain(channels: int, kernels: tuple[int, int, int], stride: int) -> Graph:
    """Three convolutions; the tensors between them have ``channels`` channels."""
    maker = Maker(channels, [(23, 19, 3)])
    t = maker.inputs[0]
    for number, kernel in enumerate(kernels):
        pad = kernel // 2
        step = stride if number == 1 else 1
        out = 4 if number == 2 else channels
        t = maker.conv(t, out, kernel=(kernel, kernel), stride=(step, step), pads=(pad, pad, pad, pad))
    return maker.graph([t])


def schedules(facts: Facts) -> Iterator[Schedule]:
    """Rows computed again, kept in full and in part; steps of several widths."""
    for row_adv, col_adv, share in itertools.product((1, 2, 5), (1, 2, 3, 7, 0xFFFF), (0.0, 0.5, 1.0)):
        free = SegmentSpec(ops=(0, 1, 2), row_adv=row_adv, col_adv=col_adv)
        plain = build_schedule(facts, [StageSpec(segments=(free,))], "resident").stages[0].segments[0]
        keep = {
            facts.nodes[e.op].tensor: int((e.rows.extent - e.rows.advance) * share)
            for e in plain.entries
            if e.policy is Policy.TILE
        }
        try:
            spec = SegmentSpec(
                ops=(0, 1, 2), row_adv=row_adv, col_adv=col_adv, keep={t: rows for t, rows in keep.items() if rows > 0}
            )
            yield build_schedule(facts, [StageSpec(segments=(spec,))], "resident")
        except IllegalSpecError:
            continue
    alone = tuple(SegmentSpec(ops=(op,), row_adv=1, col_adv=0xFFFF) for op in range(3))
    yield build_schedule(facts, [StageSpec(segments=alone)], "resident")


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7, 8, 12, 16, 20])
@pytest.mark.parametrize(("kernels", "stride"), [((3, 3, 3), 1), ((1, 5, 3), 2), ((3, 7, 1), 1)])
def test_tiles_and_line_stores_move_the_right_bytes(channels: int, kernels: tuple[int, int, int], stride: int) -> None:
    graph = chain(channels, kernels, stride)
    facts = Facts(graph)
    layers = build_schedule(
        facts,
        [StageSpec(segments=(SegmentSpec(ops=(op,), row_adv=0xFFFF, col_adv=0xFFFF),)) for op in range(3)],
        "resident",
    )
    array, _ = generated_input(graph.tensors[graph.inputs[0].tensor].shape, channels)

    def output(schedule: Schedule) -> bytes:
        plan = encode(graph, schedule, layout.place(facts, schedule), facts=facts)
        return Engine().open(plan).run([array]).outputs[0].tobytes()

    expected = output(layers)
    assert len(np.unique(np.frombuffer(expected, dtype=np.int8))) > 8
    found = list(schedules(facts))
    assert len(found) > 15
    assert any(e.keep > 1 for s in found for e in s.stages[0].segments[0].entries if e.policy is Policy.TILE)
    for schedule in found:
        assert output(schedule) == expected, schedule


def test_little_is_done_around_each_call() -> None:
    """A step costs the executor what it did; work that is done again at every call would show here."""
    if lacking := runner.missing("m4"):
        pytest.skip(f"{', '.join(lacking)} missing")
    model = ROOT / "samples" / "models" / "digits_a.onnx"
    request = api.PlanRequest(kind="p1", f_max=1.0, target="mps2-an386")
    (planned,) = api.create_plans(model.read_bytes(), model.stem, request)
    found = measure.profile(planned.plan, "m4")
    around = sum(stage.instructions for stage in found.stages) - found.kernel_instructions
    assert around / sum(o.calls for o in found.operators) < AROUND_CALL
