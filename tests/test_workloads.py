# SPDX-License-Identifier: Apache-2.0
"""The generated networks: the published layer lists, and activations that use the int8 range."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import oracle
import pytest

from planner_service.errors import Code, PlannerError
from planner_service.ir import Binary, Conv2D, FullyConnected, Graph, Op, Reduce
from planner_service.workloads import NAMES, Variant, pseudo_random, workload

ROOT = Path(__file__).resolve().parent.parent
LISTS = ROOT.parent / "shared" / "workloads"
VARIANTS: tuple[Variant, ...] = get_args(Variant)


def _kind(op: Op) -> str:
    if isinstance(op, Conv2D):
        return "dwconv" if op.depthwise else "conv"
    return {Binary: "add", Reduce: "global_avg_pool", FullyConnected: "dense"}[type(op)]


def _layers(graph: Graph) -> list[dict[str, Any]]:
    maker = {io.tensor: -1 for io in graph.inputs} | {op.output: i for i, op in enumerate(graph.ops)}
    rows = []
    for index, op in enumerate(graph.ops):
        row: dict[str, Any] = {
            "id": index,
            "name": op.name,
            "op": _kind(op),
            "inputs": [maker[i] for i in op.inputs],
            "in_shape": list(graph.tensors[op.inputs[0]].shape),
            "out_shape": list(graph.tensors[op.output].shape),
        }
        if isinstance(op, Conv2D):
            row |= {
                "kernel": list(op.kernel),
                "stride": list(op.stride),
                "pad": [*op.pads, *op.pads],
                "dilation": list(op.dilation),
                "groups": op.groups,
                "weights": op.weights.size,
            }
        rows.append(row)
    return rows


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_layers_are_the_published_ones(name: str, variant: Variant) -> None:
    path = LISTS / f"{name}.{'full' if variant == 'full' else 'ref'}.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the repository")
    published = json.loads(path.read_text())
    mine = _layers(workload(name, variant))
    theirs = [{key: layer.get(key) for key in row} for row, layer in zip(mine, published["layers"], strict=True)]
    assert mine == theirs
    weights = sum(op.weights.size for op in workload(name, variant).ops if isinstance(op, Conv2D | FullyConnected))
    assert weights == published["total_weights"]


@pytest.mark.parametrize(("name", "variant"), [("mn2-vww5-r80", "full"), ("mn2-vww5-r80", "paper")])
def test_activations_use_the_range(name: str, variant: Variant) -> None:
    """Every layer's output takes many values and is mostly not saturated."""
    graph = workload(name, variant)
    values = oracle.run(graph, oracle.generated(graph))
    for op in graph.ops:
        x, zero = values[op.output].astype(int), graph.tensors[op.output].zero_point
        low = zero if zero == -128 else -128
        clipped = np.mean((x == 127) | ((x == low) & (low != zero)))
        assert clipped < 0.15 or x.size < 16, op.name
        assert len(np.unique(x)) >= min(48, x.size // 4), op.name


def test_same_weights_everywhere() -> None:
    """The generator's first words (splitmix64 over a counter) and a whole graph twice."""
    assert pseudo_random(0, 3).tolist() == [0, 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    a, b = (workload("mn2-vww5-r80", "full") for _ in range(2))
    for one, two in zip(a.ops, b.ops, strict=True):
        if isinstance(one, Conv2D) and isinstance(two, Conv2D):
            assert np.array_equal(one.weights, two.weights)
            assert np.array_equal(one.multipliers, two.multipliers)


@pytest.mark.parametrize("name", ["", "mbv2", "mn2-vww5-r80 "])
def test_unknown_workload(name: str) -> None:
    with pytest.raises(PlannerError) as caught:
        workload(name, "full")
    assert caught.value.code is Code.NOT_FOUND
    assert NAMES[0] in caught.value.hint
