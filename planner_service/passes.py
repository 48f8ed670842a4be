# SPDX-License-Identifier: Apache-2.0
"""Graph to graph, without changing a bit of any network output.

Every pass takes a graph for which ``check()`` holds and returns one for which it holds, with the same inputs, and as
many outputs of the same names and bytes; tensors that remain keep their names and bytes. A pass that finds nothing to
do returns the very graph it was given."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from planner_service.ir import (
    Binary,
    Concat,
    Conv2D,
    FullyConnected,
    Graph,
    Int8,
    Lut,
    Op,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Tensor,
)

_MAX_PAD = 255
_CODES = np.arange(-128, 128)


def run_passes(graph: Graph) -> Graph:
    """All passes, again and again until none finds anything. Each change removes an operator or turns one into a kind
    that no pass turns back, so this ends."""
    while True:
        before = graph
        for one in PASSES:
            graph = one(graph)
        if graph is before:
            return graph


# ---------------------------------------------------------------- the passes


def remove_dead(graph: Graph) -> Graph:
    """After: every operator's output and every constant is needed by a network output. Inputs stay."""
    needed = {io.tensor for io in graph.outputs}
    ops = []
    for op in reversed(graph.ops):
        if op.output in needed:
            needed.update(op.inputs)
            ops.append(op)
    needed.update(io.tensor for io in graph.inputs)
    if len(ops) == len(graph.ops) and len(needed) == len(graph.tensors):
        return graph
    return _compact(graph, ops[::-1], needed)


def fold_constants(graph: Graph) -> Graph:
    """After: no Lut, Reshape or Concat reads constants only, except where its result is a network output."""
    outputs = {io.tensor for io in graph.outputs}
    tensors = list(graph.tensors)
    ops = []
    for op in graph.ops:
        data = [tensors[i].data for i in op.inputs]
        known = [d for d in data if d is not None]
        if len(known) == len(data) and op.output not in outputs and isinstance(op, Lut | Reshape | Concat):
            out = tensors[op.output]
            tensors[op.output] = dataclasses.replace(out, data=_fold(op, known, out.shape))
        else:
            ops.append(op)
    return graph if len(ops) == len(graph.ops) else _rebuild(graph, ops, tensors)


def remove_identities(graph: Graph) -> Graph:
    """After: no operator copies its input as it is, except where that would make a network input, or a constant, a
    network output; no Reshape reads a Reshape."""
    outputs = {io.tensor for io in graph.outputs}
    given = {io.tensor for io in graph.inputs} | {i for i, t in enumerate(graph.tensors) if t.data is not None}
    source: dict[int, int] = {}
    producer = {op.output: op for op in graph.ops}
    ops: list[Op] = []
    changed = False
    for op in graph.ops:
        op = _renamed(op, source)
        before = producer.get(op.inputs[0])
        if isinstance(op, Reshape) and isinstance(before, Reshape):
            op = dataclasses.replace(op, inputs=before.inputs)
            changed = True
        if _is_identity(graph, op) and not (op.output in outputs and op.inputs[0] in given):
            source[op.output] = op.inputs[0]
            changed = True
        else:
            producer[op.output] = op
            ops.append(op)
    return _rebuild(graph, ops, graph.tensors, source) if changed else graph


def merge_tables(graph: Graph) -> Graph:
    """After: no Lut reads a Lut's output that nothing else reads."""

    def merge(first: Op, second: Op) -> Op | None:
        if not (isinstance(first, Lut) and isinstance(second, Lut)):
            return None
        return Lut(
            name=second.name,
            inputs=first.inputs,
            output=second.output,
            table=second.table[first.table.astype(np.int16) + 128],
            function=f"{first.function}+{second.function}",
        )

    return _merge_pairs(graph, merge)


def fuse_activations(graph: Graph) -> Graph:
    """After: no Lut that only clamps, with the same quantisation on both sides, reads a tensor that nothing else reads
    and whose producer can clamp."""

    def merge(first: Op, second: Op) -> Op | None:
        if not (isinstance(first, Conv2D | FullyConnected | Binary | Pool | Reduce) and isinstance(second, Lut)):
            return None
        low, high = int(second.table.min()), int(second.table.max())
        if not np.array_equal(second.table, np.clip(_CODES, low, high)) or not _same_quantisation(graph, second):
            return None
        return dataclasses.replace(
            first,
            output=second.output,
            act_min=min(max(first.act_min, low), high),
            act_max=min(max(first.act_max, low), high),
        )

    return _merge_pairs(graph, merge)


def fold_pads(graph: Graph) -> Graph:
    """After: no Pad whose consumers all can clip or count its border themselves: convolutions where it holds the zero
    point; maximum pooling where it holds -128; average pooling where both are 0."""
    consumers: dict[int, list[Op]] = {}
    for op in graph.ops:
        for i in set(op.inputs):
            consumers.setdefault(i, []).append(op)
    outputs = {io.tensor for io in graph.outputs}
    folded: dict[int, Pad] = {}
    for op in graph.ops:
        if isinstance(op, Pad) and op.output not in outputs and op.inputs[0] not in folded:
            readers = consumers.get(op.output, [])
            if readers and all(_absorb(graph, op, reader) is not None for reader in readers):
                folded[op.output] = op
    if not folded:
        return graph
    ops: list[Op] = []
    for op in graph.ops:
        if op.output in folded:
            continue
        pad = folded.get(op.inputs[0])
        absorbed = _absorb(graph, pad, op) if pad is not None else None
        ops.append(op if absorbed is None else absorbed)
    return _rebuild(graph, ops, graph.tensors)


def pools_to_reductions(graph: Graph) -> Graph:
    """After: no Pool has a single window that covers its whole input; such a one is a Reduce, which can accumulate."""
    ops: list[Op] = []
    for op in graph.ops:
        if isinstance(op, Pool) and not op.count_pad and _covers_all(graph, op):
            ops.append(
                Reduce(
                    name=op.name,
                    inputs=op.inputs,
                    output=op.output,
                    axes=(0, 1),
                    kind=op.kind,
                    act_min=op.act_min,
                    act_max=op.act_max,
                )
            )
        else:
            ops.append(op)
    return (
        graph
        if all(a is b for a, b in zip(ops, graph.ops, strict=True))
        else dataclasses.replace(graph, ops=tuple(ops))
    )


#: In the order in which they run; every one is also correct alone.
PASSES = (
    fold_constants,
    remove_identities,
    merge_tables,
    fuse_activations,
    fold_pads,
    pools_to_reductions,
    remove_dead,
)


# ---------------------------------------------------------------- conditions


def _same_quantisation(graph: Graph, op: Op) -> bool:
    a, b = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    return (a.scale, a.zero_point) == (b.scale, b.zero_point)


def _is_identity(graph: Graph, op: Op) -> bool:
    """Output bytes, shape and quantisation are those of the one input."""
    if len(op.inputs) != 1 or graph.tensors[op.inputs[0]].shape != graph.tensors[op.output].shape:
        return False
    if not _same_quantisation(graph, op):
        return False
    if isinstance(op, Lut):
        return bool(np.array_equal(op.table, _CODES))
    if isinstance(op, Pool):
        free = (op.act_min, op.act_max) == (-128, 127)
        return op.kernel == (1, 1) and op.stride == (1, 1) and op.pads == (0, 0) and free
    if isinstance(op, Resize):
        shape = graph.tensors[op.output].shape
        rows, cols = op.rows or tuple(range(shape[0])), op.cols or tuple(range(shape[1]))
        return rows == tuple(range(shape[0])) and cols == tuple(range(shape[1]))
    return isinstance(op, Reshape | Concat) or (isinstance(op, Pad) and op.pads == (0, 0))


def _covers_all(graph: Graph, op: Pool) -> bool:
    shape, out = graph.tensors[op.inputs[0]].shape, graph.tensors[op.output].shape
    return out[:2] == (1, 1) and op.dilation == (1, 1) and all(op.kernel[a] - op.pads[a] >= shape[a] for a in (0, 1))


def _absorb(graph: Graph, pad: Pad, op: Op) -> Conv2D | Pool | None:
    """``op`` on the Pad's input with the border as its own padding, None if that is not exact or does not fit."""
    if not isinstance(op, Conv2D | Pool) or op.inputs[0] != pad.output:
        return None
    source, padded, out = (graph.tensors[i] for i in (pad.inputs[0], pad.output, op.output))
    if (source.scale, source.zero_point) != (padded.scale, padded.zero_point):
        return None
    pads = (op.pads[0] + pad.pads[0], op.pads[1] + pad.pads[1])
    for a in (0, 1):
        reach = (op.kernel[a] - 1) * op.dilation[a]
        last = (out.shape[a] - 1) * op.stride[a] - pads[a]
        # At least one tap of the first and the last window lies inside the tensor.
        if pads[a] > min(reach, _MAX_PAD) or last >= source.shape[a]:
            return None
    if isinstance(op, Conv2D):
        return dataclasses.replace(op, inputs=pad.inputs, pads=pads) if pad.value == source.zero_point else None
    if op.kind == "max":
        return dataclasses.replace(op, inputs=pad.inputs, pads=pads) if pad.value == -128 else None
    whole = op.pads == (0, 0) and all(
        (out.shape[a] - 1) * op.stride[a] + (op.kernel[a] - 1) * op.dilation[a] < padded.shape[a] for a in (0, 1)
    )
    if pad.value == source.zero_point == 0 and whole and not op.count_pad:
        return dataclasses.replace(op, inputs=pad.inputs, pads=pads, count_pad=True)
    return None


# ---------------------------------------------------------------- rewriting


def _fold(op: Lut | Reshape | Concat, data: Sequence[Int8], shape: tuple[int, int, int]) -> Int8:
    if isinstance(op, Lut):
        return op.table[data[0].astype(np.int16) + 128]
    if isinstance(op, Concat):
        return np.concatenate(data, axis=op.axis)
    return np.ascontiguousarray(data[0]).reshape(shape)


def _renamed(op: Op, source: Mapping[int, int]) -> Op:
    inputs = tuple(source.get(i, i) for i in op.inputs)
    return op if inputs == op.inputs else dataclasses.replace(op, inputs=inputs)


def _merge_pairs(graph: Graph, merge: Callable[[Op, Op], Op | None]) -> Graph:
    """Replace a producer and its only consumer by ``merge(producer, consumer)`` where that is not None."""
    uses = Counter(i for op in graph.ops for i in op.inputs)
    uses.update(io.tensor for io in graph.outputs)
    place = {op.output: k for k, op in enumerate(graph.ops)}
    ops: list[Op | None] = list(graph.ops)
    changed = False
    for k, second in enumerate(graph.ops):
        at = place.get(second.inputs[0])
        if len(second.inputs) != 1 or at is None or uses[second.inputs[0]] != 1:
            continue
        first = ops[at]
        merged = merge(first, second) if first is not None else None
        if merged is not None:
            # In the consumer's place: whatever it reads was produced before its first half.
            ops[at], ops[k] = None, merged
            changed = True
    return _rebuild(graph, [op for op in ops if op is not None], graph.tensors) if changed else graph


def _rebuild(
    graph: Graph, ops: Sequence[Op], tensors: Sequence[Tensor], source: Mapping[int, int] | None = None
) -> Graph:
    """The graph with other operators; ``source`` maps removed tensors to those that replace them."""
    outputs = tuple(dataclasses.replace(io, tensor=(source or {}).get(io.tensor, io.tensor)) for io in graph.outputs)
    used = {i for op in ops for i in (*op.inputs, op.output)}
    used |= {io.tensor for io in (*graph.inputs, *outputs)}
    changed = dataclasses.replace(graph, tensors=tuple(tensors), outputs=outputs)
    return _compact(changed, ops, used)


def _compact(graph: Graph, ops: Sequence[Op], used: set[int]) -> Graph:
    """Keep the ``used`` tensors, in their order, and number them anew."""
    kept = sorted(used)
    number = {old: new for new, old in enumerate(kept)}
    return dataclasses.replace(
        graph,
        tensors=tuple(graph.tensors[i] for i in kept),
        ops=tuple(
            dataclasses.replace(op, inputs=tuple(number[i] for i in op.inputs), output=number[op.output]) for op in ops
        ),
        inputs=tuple(dataclasses.replace(io, tensor=number[io.tensor]) for io in graph.inputs),
        outputs=tuple(dataclasses.replace(io, tensor=number[io.tensor]) for io in graph.outputs),
    )
