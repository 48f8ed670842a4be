# SPDX-License-Identifier: Apache-2.0
"""Invariants of ``ir.Graph``."""

from __future__ import annotations

import math

from planner_service.errors import Code, PlannerError, Violation
from planner_service.ir import Binary, Concat, Conv2D, FullyConnected, Graph, Lut, Op, Pool, Reduce, Reshape, Resize


def check_graph(graph: Graph) -> None:
    """Raise PlannerError(INTERNAL) listing every broken invariant."""
    found: list[Violation] = []

    def need(ok: bool, layer: str, message: str) -> None:
        if not ok:
            found.append(Violation(layer, message))

    made = {i for i, t in enumerate(graph.tensors) if t.data is not None}
    for io in graph.inputs:
        need(io.tensor not in made, io.name, "network input is constant or doubled")
        made.add(io.tensor)
    for t in graph.tensors:
        need(all(1 <= d <= 32767 for d in t.shape), t.name, f"shape {t.shape} out of range")
        need(math.isfinite(t.scale) and t.scale > 0, t.name, f"scale {t.scale} is not a positive number")
        need(-128 <= t.zero_point <= 127, t.name, f"zero point {t.zero_point} out of range")
        need(t.data is None or t.data.shape == t.shape, t.name, "constant's data has another shape")
    for op in graph.ops:
        need(all(i in made for i in op.inputs), op.name, "reads a tensor before it is produced")
        need(op.output not in made, op.name, "output is produced twice")
        made.add(op.output)
        _check_op(graph, op, need)
    need(all(i in made for i in range(len(graph.tensors))), "", "a tensor is never produced")
    need(all(io.tensor in made for io in graph.outputs), "", "an output is never produced")
    if found:
        raise PlannerError(Code.INTERNAL, "the graph is inconsistent", violations=found)


def _check_op(graph: Graph, op: Op, need: object) -> None:
    assert callable(need)
    ins = [graph.tensors[i].shape for i in op.inputs]
    out = graph.tensors[op.output].shape
    if isinstance(op, Conv2D):
        o, kh, kw, i = op.weights.shape
        need((kh, kw) == op.kernel and o == out[2], op.name, "weights do not match kernel and output")
        need(i * op.groups == ins[0][2] and o % op.groups == 0, op.name, "groups do not divide channels")
        need(op.bias.shape == (o,) and op.multipliers.shape in ((o,), (1,)), op.name, "bias or multipliers misshapen")
    elif isinstance(op, FullyConnected):
        n, k = op.weights.shape
        need(out == (1, 1, n) and k == math.prod(ins[0]), op.name, "weights do not match input and output")
        need(op.bias.shape == (n,) and op.multipliers.shape in ((n,), (1,)), op.name, "bias or multipliers misshapen")
    elif isinstance(op, Binary):
        need(all(a in (b, 1) for s in ins for a, b in zip(s, out, strict=True)), op.name, "shapes do not broadcast")
    elif isinstance(op, Concat):
        need(sum(s[op.axis] for s in ins) == out[op.axis], op.name, "inputs do not add up")
    elif isinstance(op, Pool):
        need(ins[0][2] == out[2], op.name, "pooling changes channels")
    elif isinstance(op, Reduce):
        need(all(out[a] == 1 for a in op.axes) and out[2] == ins[0][2], op.name, "reduced axes are not 1")
    elif isinstance(op, Lut):
        need(op.table.shape == (256,) and ins[0] == out, op.name, "table or shape is wrong")
    elif isinstance(op, Reshape):
        need(math.prod(ins[0]) == math.prod(out), op.name, "element counts differ")
    elif isinstance(op, Resize) and op.factors:
        need(
            (ins[0][0] * op.factors[0], ins[0][1] * op.factors[1]) == out[:2], op.name, "factors do not give the shape"
        )
