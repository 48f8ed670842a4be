# SPDX-License-Identifier: Apache-2.0
"""Plan bytes: what goes in comes out again, and the engine runs every schedule of a graph to the same outputs."""

from __future__ import annotations

import hashlib
import random
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_graphs import Maker, random_graph

from planner_service import arith, ir, layout, replay
from planner_service.build import InputMode, SegmentSpec, StageSpec, build_schedule, layer_by_layer
from planner_service.encode import SelfTest, encode
from planner_service.engine import Engine, generated_input
from planner_service.errors import Code, PlannerError
from planner_service.facts import Facts
from planner_service.format import HeaderRecord, Opcode, OpFlag, Policy, SectionId
from planner_service.importers import import_model
from planner_service.inspect import inspect
from planner_service.schedule import Schedule
from tests.randomize import random_schedule, random_schedules

MODES: tuple[InputMode, ...] = ("resident", "streamed", "external")
MODELS = Path(__file__).resolve().parent.parent.parent / "shared" / "models"
ALL = 0xFFFF


def plan_of(graph: ir.Graph, schedule: Schedule, facts: Facts | None = None, **options: object) -> bytes:
    facts = facts or Facts(graph)
    return encode(graph, schedule, layout.place(facts, schedule), facts=facts, **options)  # type: ignore[arg-type]


def inputs_of(graph: ir.Graph, seed: int = 12345) -> list[np.ndarray]:
    found = []
    for io in graph.inputs:
        data, seed = generated_input(graph.tensors[io.tensor].shape, seed)
        found.append(data)
    return found


# ---------------------------------------------------------------- bytes


@given(seed=st.integers(0, 10**6), choice=st.integers(0, 10**6), mode=st.sampled_from(MODES), rich=st.booleans())
@settings(max_examples=60, deadline=None)
def test_round_trip(seed: int, choice: int, mode: InputMode, rich: bool) -> None:
    graph = random_graph(seed)
    facts = Facts(graph)
    schedule = random_schedule(graph, random.Random(choice), mode, facts)
    placement = layout.place(facts, schedule)
    test = SelfTest(seed=7, stages=tuple(range(len(schedule.stages))), outputs=tuple(range(len(graph.outputs))))
    plan = encode(
        graph,
        schedule,
        placement,
        facts=facts,
        plan_version=choice,
        vendor_id=bytes(range(16)) if rich else b"",
        names=rich,
        selftest=test if rich else None,
        quads=rich,
    )
    assert plan == encode(
        graph,
        schedule,
        placement,
        plan_version=choice,
        vendor_id=bytes(range(16)) if rich else b"",
        names=rich,
        selftest=test if rich else None,
        quads=rich,
    )
    found = inspect(plan)
    assert found.schedule == schedule
    assert (found.placement.offset, found.placement.aux) == (placement.offset, placement.aux)
    assert (found.placement.state, found.placement.arena_bytes) == (placement.state, placement.arena_bytes)
    assert all(s.intact for s in found.sections)
    assert sum(found.bytes_by_use.values()) == len(plan) == found.header.total_len
    assert found.bytes_by_use["padding"] < 8 * 6 + 4 * (len(graph.ops) + len(graph.tensors))
    assert [o.name for o in found.operators] == [op.name if rich else f"op{n}" for n, op in enumerate(graph.ops)]
    assert (found.selftest is not None) == rich
    if rich:
        assert (found.stage_crcs, found.output_crcs) == (test.stages, test.outputs)
        assert found.header.vendor_id == bytes(range(16))
    cost = replay.schedule_cost(facts, schedule)
    assert (found.header.macs, found.header.elements) == (cost.macs, cost.elements)
    assert (found.header.calls, found.header.row_steps) == (cost.calls, cost.row_steps)
    assert (found.header.base_macs, found.header.plan_version) == (facts.base_macs, choice)
    for wanted, op in zip(graph.ops, found.graph.ops, strict=True):
        _same_operator(wanted, op)
    for wanted_tensor, tensor in zip(graph.tensors, found.graph.tensors, strict=True):
        assert (tensor.shape, tensor.zero_point) == (wanted_tensor.shape, wanted_tensor.zero_point)
        if wanted_tensor.data is not None:
            assert tensor.data is not None
            assert (tensor.data == wanted_tensor.data).all()
    found.to_json()
    assert found.to_text()


def _same_operator(wanted: ir.Op, found: ir.Op) -> None:
    assert type(found) is type(wanted)
    assert (found.inputs, found.output) == (wanted.inputs, wanted.output)
    for name in ("kernel", "stride", "dilation", "pads", "axes", "factors", "rows", "cols", "axis", "kind", "value"):
        assert getattr(found, name, None) == getattr(wanted, name, None)
    for name in ("weights", "bias", "table"):
        if hasattr(wanted, name):
            assert (getattr(found, name) == getattr(wanted, name)).all()
    if isinstance(wanted, ir.Conv2D | ir.FullyConnected):
        assert isinstance(found, ir.Conv2D | ir.FullyConnected)
        many = np.broadcast_to(wanted.multipliers, wanted.bias.shape)
        assert np.allclose(np.broadcast_to(found.multipliers, wanted.bias.shape), many, rtol=2**-30)


def test_header_and_sections() -> None:
    graph = random_graph(1)
    plan = plan_of(graph, layer_by_layer(graph, "resident"), plan_version=9, class_id=b"c" * 16, align=16)
    found = inspect(plan)
    header = found.header
    assert plan[:4] == b"WEFT"
    assert (header.plan_version, header.class_id, header.align_log2) == (9, b"c" * 16, 4)
    assert header.op_mask == sum({1 << int(o.opcode) for o in found.operators})
    by_id = {s.type: s for s in found.sections}
    assert all(s.offset % 8 == 0 for s in found.sections)
    parts = b"".join(plan[(s := by_id[k]).offset : s.offset + s.length] for k in (SectionId.GRAPH, SectionId.WEIGHTS))
    assert header.model_id == hashlib.sha256(parts).digest()
    assert (found.signature.algorithm, found.signature.key_id) == (0, 0)
    assert plan[header.header_len : header.header_len + 72] == bytes(72)


def test_the_model_id_is_the_models() -> None:
    graph = random_graph(2)
    plans = [plan_of(graph, s) for s in random_schedules(graph, 1, 20, "streamed")]
    assert len({inspect(p).header.model_id for p in plans}) == 1


def test_equal_blocks_are_stored_once() -> None:
    m = Maker(1, [(4, 4, 2)])
    t = m.lut(m.lut(m.lut(m.inputs[0])))
    first = m.ops[0]
    assert isinstance(first, ir.Lut)
    m.ops = [replace(op, table=first.table) for op in m.ops]  # type: ignore[call-arg]
    graph = m.graph([t])
    found = inspect(plan_of(graph, layer_by_layer(graph, "resident")))
    assert found.bytes_by_use["tables"] == 256
    assert [o.shared for o in found.operators] == [False, True, True]


def test_one_multiplier_for_all_channels_is_stored_once() -> None:
    m = Maker(1, [(4, 4, 2)])
    t = m.conv(m.inputs[0], 5)
    conv = m.ops[0]
    assert isinstance(conv, ir.Conv2D)
    for multipliers, flags in ((np.full(5, 0.01), OpFlag.PER_TENSOR), (np.linspace(0.01, 0.02, 5), OpFlag(0))):
        m.ops = [replace(conv, multipliers=multipliers)]
        graph = m.graph([t])
        found = inspect(plan_of(graph, layer_by_layer(graph, "resident")))
        assert found.operators[0].flags & OpFlag.PER_TENSOR == flags
        assert found.operators[0].parts["requantisation"] == (8 if flags else 4 * 5 + 8)


#: Bias and factor of one channel; whether a convolution of 8 taps is QUICK with them, a depthwise one of 9 in quads.
QUICK = {
    "usual": (0, 0.01, True, True),
    "factor of almost a half": (0, 0.4999, True, True),
    "factor of a half": (0, 0.5, False, False),
    "most": (2**30 - 1 - 8 * 255 * 128, 0.01, True, False),
    "least": (1 - 2**30 + 8 * 255 * 128, 0.01, True, False),
    "one more": (2**30 - 8 * 255 * 128, 0.01, False, False),
    "most in quads": (2**30 - 1 - 9 * 255 * 2**15, 0.01, True, True),
    "one more in quads": (-(2**30) + 9 * 255 * 2**15, 0.01, True, False),
}


@pytest.mark.parametrize("name", QUICK)
def test_quick_is_what_the_verifier_takes(name: str) -> None:
    bias, factor, conv, depthwise = QUICK[name]
    m = Maker(1, [(4, 4, 8)])
    t = m.depthwise(m.conv(m.inputs[0], 8, (1, 1)), 1)
    for n, op in enumerate(m.ops):
        assert isinstance(op, ir.Conv2D)
        biases, factors = op.bias.copy(), np.full(8, 0.01)
        biases[3], factors[5] = bias, factor
        m.ops[n] = replace(op, bias=biases, multipliers=factors)
    graph = m.graph([t])
    outputs = []
    for quads in (False, True):
        plan = plan_of(graph, layer_by_layer(graph, "resident"), quads=quads)
        outputs.append(Engine().open(plan).run(inputs_of(graph)).outputs[0])
        assert [bool(o.flags & OpFlag.QUICK) for o in inspect(plan).operators] == [conv, quads and depthwise]
    assert (outputs[0] == outputs[1]).all()


def test_depthwise_weights_in_quads() -> None:
    m = Maker(1, [(5, 5, 6)])
    t = m.depthwise(m.inputs[0], 1)
    graph = m.graph([t])
    plan = plan_of(graph, layer_by_layer(graph, "resident"), quads=True)
    (op,) = inspect(plan).operators
    conv = graph.ops[0]
    assert isinstance(conv, ir.Conv2D)
    at = op.offset + op.parts["biases"] + op.parts["requantisation"]
    assert op.parts["weights"] == 2 * 9 * 8
    stored = np.frombuffer(plan, "<i2", 9 * 8, at).reshape(2, 9, 4)
    for channel in range(8):
        lane = stored[channel // 4, :, (0, 2, 1, 3)[channel % 4]]
        assert (lane == (conv.weights[channel].ravel() if channel < 6 else 0)).all()
    again = inspect(plan).graph.ops[0]
    assert isinstance(again, ir.Conv2D)
    assert (again.weights == conv.weights).all()


def test_depthwise_weights_are_laid_out_by_pixel() -> None:
    m = Maker(1, [(5, 5, 3)])
    t = m.depthwise(m.inputs[0], 2)
    graph = m.graph([t])
    plan = plan_of(graph, layer_by_layer(graph, "resident"))
    found = inspect(plan)
    (op,) = found.operators
    conv = graph.ops[0]
    assert isinstance(conv, ir.Conv2D)
    assert (op.opcode, op.record.groups) == (Opcode.DWCONV2D, 1)
    at = op.offset + op.parts["biases"] + op.parts["requantisation"]
    stored = np.frombuffer(plan, np.int8, 9 * 6, at).reshape(3, 3, 6)
    assert (stored == conv.weights[:, :, :, 0].transpose(1, 2, 0)).all()


def test_binary_multipliers_are_tflites() -> None:
    m = Maker(1, [(4, 4, 2), (4, 4, 2)])
    graph = m.graph([m.binary(*m.inputs, "add"), m.binary(*m.inputs, "mul")])
    plan = plan_of(graph, layer_by_layer(graph, "resident"))
    found = inspect(plan)
    s0, s1 = (graph.tensors[t].scale for t in m.inputs)
    add, mul = (struct.unpack_from("<3i4b", plan, o.offset) for o in found.operators)
    twice = 2 * max(s0, s1)
    pairs = [arith.quantize_multiplier(x) for x in (s0 / twice, s1 / twice, twice / (2**20 * graph.tensors[2].scale))]
    assert add == (*(p[0] for p in pairs), *(p[1] for p in pairs), 20)
    out = arith.quantize_multiplier(s0 * s1 / graph.tensors[3].scale)
    assert mul == (0, 0, out[0], 0, 0, out[1], 0)


def _too_much() -> list[tuple[str, ir.Graph, str]]:
    def conv(**values: object) -> ir.Graph:
        m = Maker(1, [(4, 4, 2)])
        m.conv(m.inputs[0], 2)
        m.ops = [replace(m.ops[0], **values)]  # type: ignore[arg-type]
        return m.graph([1])

    m = Maker(1, [(4, 4, 1)])
    wide = m.graph([m.concat([m.inputs[0]] * 65)])
    m = Maker(1, [(4, 4, 1)] * 17)
    several = m.graph([m.binary(m.inputs[0], m.inputs[1])])
    return [
        ("stride", conv(stride=(256, 1)), "stride (256, 1) is outside 1 .. 255"),
        ("padding", conv(pads=(0, 300)), "padding (0, 300) is outside 0 .. 255"),
        ("dilation", conv(dilation=(1, 999)), "dilation (1, 999) is outside 1 .. 255"),
        ("inputs", several, "17 network inputs; a plan holds 1 to 16"),
        ("concat", wide, "65 inputs; the engine takes 64"),
    ]


@pytest.mark.parametrize(("graph", "message"), [c[1:] for c in _too_much()], ids=[c[0] for c in _too_much()])
def test_what_a_plan_cannot_hold(graph: ir.Graph, message: str) -> None:
    with pytest.raises(PlannerError) as caught:
        plan_of(graph, layer_by_layer(graph, "resident"))
    assert caught.value.code is Code.UNSUPPORTED
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"plan_version": -1}, {"plan_version": 2**32}, {"vendor_id": b"x"}, {"align": 2}, {"align": 24}]
)
def test_bad_requests(options: dict[str, object]) -> None:
    graph = random_graph(1)
    with pytest.raises(PlannerError) as caught:
        plan_of(graph, layer_by_layer(graph, "resident"), **options)
    assert caught.value.code is Code.BAD_REQUEST


def test_multipliers_out_of_range() -> None:
    m = Maker(1, [(4, 4, 2)])
    t = m.conv(m.inputs[0], 2)
    for bad in (float("nan"), float("inf"), -0.5, 2.0**40):
        m.ops = [replace(m.ops[0], multipliers=np.array([bad]))]  # type: ignore[call-arg]
        with pytest.raises(PlannerError) as caught:
            plan_of(m.graph([t]), layer_by_layer(m.graph([t]), "resident"))
        assert (caught.value.code, caught.value.layer) == (Code.UNSUPPORTED, "conv0")


def test_header_record_is_what_the_engine_reads() -> None:
    assert HeaderRecord.SIZE % 8 == 0


# ---------------------------------------------------------------- the engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


def same_everywhere(engine: Engine, graph: ir.Graph, schedules: list[Schedule], limit: float = 8.0) -> int:
    """Every schedule opens, runs within its canaries, does what it declares and gives the same bytes. Schedules that
    recompute more than ``limit`` times the unfused MACs are left out. Returns how many ran."""
    facts = Facts(graph)
    inputs = inputs_of(graph)
    wanted: list[bytes] | None = None
    count = 0
    for schedule in [layer_by_layer(graph, "resident"), *schedules]:
        cost = replay.schedule_cost(facts, schedule)
        if cost.macs > limit * facts.base_macs:
            continue
        count += 1
        opened = engine.open(plan_of(graph, schedule, facts))
        done = opened.run(inputs)
        outputs = [o.tobytes() for o in done.outputs]
        wanted = wanted or outputs
        assert outputs == wanted, schedule
        assert done.counts.row_steps == cost.row_steps
        assert (done.counts.macs, done.counts.elements) == (cost.macs, cost.elements)
        assert done.counts.calls <= cost.calls  # calls on empty regions are skipped
    return count


@given(seed=st.integers(0, 10**6), choice=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_every_schedule_gives_the_same_bytes(engine: Engine, seed: int, choice: int) -> None:
    graph = random_graph(seed)
    rng = random.Random(choice)
    same_everywhere(engine, graph, [random_schedule(graph, rng, mode) for mode in MODES for _ in range(2)])


@pytest.mark.parametrize(
    "name", ["mlperf-tiny-vww", "mlperf-tiny-ic-resnet8", "mlperf-tiny-kws", "mlperf-tiny-ad", "mcunet-vww"]
)
def test_every_schedule_of_a_model_gives_the_same_bytes(engine: Engine, name: str) -> None:
    path = MODELS / f"{name}.tflite"
    if not path.exists():
        pytest.skip(f"{path.name} is not in {MODELS}")
    graph = import_model(path.read_bytes(), name=name)
    schedules = [s for mode in MODES for s in random_schedules(graph, 11, 30, mode)]
    ran = same_everywhere(engine, graph, schedules, limit=2.5)
    print(f"{name}: {ran} schedules, one result")
    assert ran > 50


def test_smaller_rings_are_refused(engine: Engine) -> None:
    """The planner's capacities are the verifier's least: exact, not only sufficient."""
    refused = 0
    for seed in range(60):
        graph = random_graph(seed)
        facts = Facts(graph)
        schedule = random_schedule(graph, random.Random(seed), "streamed", facts)
        for s, stage in enumerate(schedule.stages):
            for (g, n), capacity in replay.ring_capacities(facts, stage).items():
                tensor = facts.nodes[stage.segments[g].entries[n].op].tensor
                inside = any(e.op in facts.consumers[tensor] for e in stage.segments[g].entries)
                if capacity == 1 or inside:
                    continue
                entries = list(stage.segments[g].entries)
                entries[n] = replace(entries[n], keep=capacity - 1)
                segments = list(stage.segments)
                segments[g] = replace(segments[g], entries=tuple(entries))
                stages = list(schedule.stages)
                stages[s] = replace(stage, segments=tuple(segments))
                smaller = replace(schedule, stages=tuple(stages))
                with pytest.raises(PlannerError, match="ring is too small"):
                    engine.open(plan_of(graph, smaller, facts))
                refused += 1
    assert refused > 40


def test_damaged_placements_are_refused(engine: Engine) -> None:
    """The verifier and the packer agree on which windows may not overlap."""
    m = Maker(3, [(9, 9, 2)])
    a = m.conv(m.inputs[0], 3)
    b = m.conv(a, 3)
    graph = m.graph([m.binary(a, b), m.conv(b, 2)])
    facts = Facts(graph)
    specs = [
        StageSpec(
            segments=(
                SegmentSpec(ops=(-1,), row_adv=1, col_adv=ALL),
                SegmentSpec(ops=(0, 1), row_adv=1, col_adv=2),
                SegmentSpec(ops=(2,), row_adv=2, col_adv=3),
            )
        ),
        StageSpec(segments=(SegmentSpec(ops=(3,), row_adv=1, col_adv=ALL),)),
    ]
    schedule = build_schedule(facts, specs, "streamed")
    placement = layout.place(facts, schedule)
    engine.open(encode(graph, schedule, placement, facts=facts))
    windows = layout.windows(facts, schedule)
    for one in windows:
        for other in windows:
            if one.owner == other.owner or one.last < other.first or other.last < one.first:
                continue
            if one.kind not in ("tensor", "ring", "tile") or other.kind not in ("tensor", "ring", "tile"):
                continue
            moved = replace(placement, offset=placement.offset | {one.owner: placement.offset[other.owner]})
            with pytest.raises(PlannerError, match=r"overlap|outside the arena"):
                engine.open(encode(graph, schedule, moved, facts=facts))


@pytest.mark.parametrize("align", [4, 16, 64])
def test_alignment(engine: Engine, align: int) -> None:
    for seed in range(10):
        graph = random_graph(seed)
        facts = Facts(graph)
        schedule = random_schedule(graph, random.Random(seed), "streamed", facts)
        plan = engine.open(encode(graph, schedule, layout.place(facts, schedule, align), facts=facts, align=align))
        assert plan.arena_align == align
        plan.run(inputs_of(graph))


def test_arena_is_exact(engine: Engine) -> None:
    for seed in range(12):
        graph = random_graph(seed)
        plan = engine.open(plan_of(graph, random_schedule(graph, random.Random(seed), "streamed")))
        plan.run(inputs_of(graph))
        with pytest.raises(PlannerError, match="arena is smaller"):
            plan.run(inputs_of(graph), arena_bytes=plan.arena_size - 1)


def test_every_policy_ran() -> None:
    """The random schedules above are not all of one kind."""
    policies = {
        e.policy
        for seed in range(20)
        for mode in MODES
        for stage in random_schedule(random_graph(seed), random.Random(seed), mode).stages
        for segment in stage.segments
        for e in segment.entries
    }
    assert policies == {Policy.FULL, Policy.ROWS, Policy.TILE}
