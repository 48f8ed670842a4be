# SPDX-License-Identifier: Apache-2.0
"""What the planner needs to know of a graph, worked out once: sizes, receptive fields, MACs by row, who reads what. Hot
paths work on its plain ints."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

from planner_service.ir import (
    Binary,
    Concat,
    Conv2D,
    FullyConnected,
    Graph,
    Op,
    Pad,
    Reduce,
    Reshape,
    Resize,
    Window2D,
)
from planner_service.schedule import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Receptive field along one axis: output [lo, hi) reads input [lo*stride - pad, (hi-1)*stride - pad + span), or
    with ``factor`` > 1 (nearest-neighbour resize) [lo // factor, (hi-1) // factor + 1)."""

    stride: int = 1
    pad: int = 0
    span: int = 1
    factor: int = 1

    def start(self, lo: int) -> int:
        return lo * self.stride - self.pad if self.factor == 1 else lo // self.factor

    def end(self, hi: int) -> int:
        return (hi - 1) * self.stride - self.pad + self.span if self.factor == 1 else (hi - 1) // self.factor + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What the planner needs to know of an operator (``op`` >= 0) or a network input (``op`` = -1 - its number).

    ``size`` is (rows, columns) of the axis its regions run over: the output's, or the input's for REDUCE and
    FULLY_CONNECTED. ``shape`` is the output's. ``swept`` inputs are read through the receptive field, ``whole`` ones
    entirely. A row of the region costs ``row_elements`` elements; rows [lo, hi) cost row_macs[hi] - row_macs[lo] MACs
    (``row_macs`` is empty where an operator has none). ``channelwise``: a channel of the output follows from the same
    channel of the input (depthwise); ``leads``: each channel of the output can be made apart, from the whole input."""

    op: int
    name: str
    tensor: int
    shape: tuple[int, int, int]
    size: tuple[int, int]
    row_elements: int
    swept: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()
    rows: Field = field(default_factory=Field)
    cols: Field = field(default_factory=Field)
    row_macs: tuple[int, ...] = ()
    reduce_h: bool = False
    reduce_w: bool = False
    single: bool = False
    channelwise: bool = False
    leads: bool = False

    @property
    def streamed(self) -> bool:
        return self.op < 0

    @property
    def reduces(self) -> bool:
        return self.reduce_h or self.reduce_w

    @property
    def ends_stage(self) -> bool:
        return self.reduce_h


class Facts:
    """What does not change while schedules of one graph are searched. ``nodes`` by operator index and by -1 - number
    of a network input; ``producer``, ``consumers`` (operator indices, each once) and ``is_output`` by tensor.
    ``encoded``: what ``encode`` keeps of a graph, by whether weights lie in quads; ``distances``: what
    ``layout.overlaps`` knows of stages, by id, with the stage."""

    __slots__ = (
        "base_macs",
        "bytes_of",
        "consumers",
        "distances",
        "encoded",
        "graph",
        "is_output",
        "nodes",
        "op_macs",
        "producer",
    )

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        count = len(graph.tensors)
        self.producer: list[int | None] = [None] * count
        consumers: list[list[int]] = [[] for _ in range(count)]
        self.is_output = [False] * count
        for io in graph.outputs:
            self.is_output[io.tensor] = True
        self.nodes: dict[int, Node] = {}
        for number, io in enumerate(graph.inputs):
            shape = graph.tensors[io.tensor].shape
            self.producer[io.tensor] = -1 - number
            self.nodes[-1 - number] = Node(
                op=-1 - number,
                name=io.name,
                tensor=io.tensor,
                shape=shape,
                size=shape[:2],
                row_elements=shape[1] * shape[2],
            )
        for index, op in enumerate(graph.ops):
            self.producer[op.output] = index
            self.nodes[index] = _node(graph, index, op)
            for tensor in dict.fromkeys(op.inputs):
                consumers[tensor].append(index)
        self.consumers = tuple(tuple(c) for c in consumers)
        self.bytes_of = tuple(t.nbytes for t in graph.tensors)
        #: MACs of the unfused operators, as ``ir.macs`` has them.
        self.op_macs = tuple(n.row_macs[-1] if n.row_macs else 0 for op, n in self.nodes.items() if op >= 0)
        self.base_macs = sum(self.op_macs)
        self.encoded: dict[bool, tuple[bytes, int, bytes]] = {}
        self.distances: dict[int, tuple[Stage, dict[int, int]]] = {}


def _node(graph: Graph, index: int, op: Op) -> Node:
    shape = graph.tensors[op.output].shape
    live = [t for t in dict.fromkeys(op.inputs) if graph.tensors[t].data is None]
    rows, cols = Field(), Field()
    size = (shape[0], shape[1])
    swept: tuple[int, ...] = tuple(live)
    whole: tuple[int, ...] = ()
    row_macs: tuple[int, ...] = ()
    row_elements = shape[1] * shape[2]
    reduce_h = reduce_w = single = channelwise = leads = False
    if isinstance(op, Window2D):
        rows, cols = (
            Field(stride=op.stride[a], pad=op.pads[a], span=(op.kernel[a] - 1) * op.dilation[a] + 1) for a in (0, 1)
        )
        if isinstance(op, Conv2D):
            row_macs = _row_macs(graph, op)
            leads = op.groups == 1
            channelwise = op.depthwise and op.groups == shape[2]
    elif isinstance(op, Pad):
        rows, cols = Field(pad=op.pads[0]), Field(pad=op.pads[1])
    elif isinstance(op, Reduce | FullyConnected):
        source = graph.tensors[op.inputs[0]].shape
        size, row_elements = (source[0], source[1]), source[1] * source[2]
        reduce_h = isinstance(op, FullyConnected) or 0 in op.axes
        reduce_w = isinstance(op, FullyConnected) or 1 in op.axes
        if isinstance(op, FullyConnected):
            row_macs = tuple(y * row_elements * shape[2] for y in range(size[0] + 1))
    elif isinstance(op, Resize) and op.factors is not None:
        rows, cols = Field(factor=op.factors[0]), Field(factor=op.factors[1])
    elif isinstance(op, Resize | Reshape) or (isinstance(op, Concat) and op.axis != 2):
        swept, whole, single = (), tuple(live), True
    elif isinstance(op, Binary):
        whole = tuple(t for t in live if graph.tensors[t].shape[:2] != shape[:2])
        swept = tuple(t for t in live if t not in whole)
    return Node(
        op=index,
        name=op.name,
        tensor=op.output,
        shape=shape,
        size=size,
        swept=swept,
        whole=whole,
        rows=rows,
        cols=cols,
        row_elements=row_elements,
        row_macs=row_macs,
        reduce_h=reduce_h,
        reduce_w=reduce_w,
        single=single,
        channelwise=channelwise,
        leads=leads,
    )


def _row_macs(graph: Graph, op: Conv2D) -> tuple[int, ...]:
    """Prefix sums over output rows of the MACs of a row: taps inside the tensor."""
    size, out = graph.tensors[op.inputs[0]].shape, graph.tensors[op.output].shape
    rows, cols = (
        [_taps(y * op.stride[a] - op.pads[a], size[a], op.kernel[a], op.dilation[a]) for y in range(out[a])]
        for a in (0, 1)
    )
    per_tap = sum(cols) * op.weights.shape[0] * op.weights.shape[3]
    return tuple(accumulate((n * per_tap for n in rows), initial=0))


def _taps(first: int, size: int, kernel: int, dilation: int) -> int:
    """How many of first, first + dilation, ... (``kernel`` of them) lie inside [0, size): ``ir.valid_taps``, closed."""
    skipped = max(0, -(first // dilation))
    return max(0, min(kernel, (size - 1 - first) // dilation + 1) - skipped)
