# SPDX-License-Identifier: Apache-2.0
"""Passes keep every bit: each alone and all together, on hand-made graphs and on random ones, by the NumPy oracle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner_service import passes
from planner_service.format import DType
from planner_service.ir import (
    Binary,
    Concat,
    Conv2D,
    FullyConnected,
    Graph,
    Io,
    Lut,
    Op,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Tensor,
)

Shape = tuple[int, int, int]
CODES = np.arange(-128, 128, dtype=np.int8)


class Maker:
    """Adds operators one by one; every method returns its output's tensor. Quantisation is (0.1, ``zero``) unless an
    operator is told otherwise."""

    def __init__(self, shape: Shape, zero: int = 3, seed: int = 1) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: list[Tensor] = []
        self.ops: list[Op] = []
        self.zero = zero
        self.x = self.tensor(shape)

    def tensor(self, shape: Shape, *, zero: int | None = None, data: oracle.Int8 | None = None) -> int:
        zero_point = self.zero if zero is None else zero
        name = f"t{len(self.tensors)}"
        self.tensors.append(Tensor(name=name, shape=shape, scale=0.1, zero_point=zero_point, data=data))
        return len(self.tensors) - 1

    def add(
        self, make: Callable[..., Op], inputs: tuple[int, ...], shape: Shape, zero: int | None = None, **kw: object
    ) -> int:
        output = self.tensor(shape, zero=self.tensors[inputs[0]].zero_point if zero is None else zero)
        self.ops.append(make(name=f"op{len(self.ops)}", inputs=inputs, output=output, **kw))
        return output

    def shape(self, t: int) -> Shape:
        return self.tensors[t].shape

    def lut(self, t: int, table: oracle.Int8, zero: int | None = None) -> int:
        return self.add(Lut, (t,), self.shape(t), zero, table=table.astype(np.int8), function="test")

    def clamp(self, t: int, low: int, high: int) -> int:
        return self.lut(t, np.clip(CODES, low, high))

    def pad(self, t: int, before: tuple[int, int], after: tuple[int, int], value: int) -> int:
        h, w, c = self.shape(t)
        shape = (h + before[0] + after[0], w + before[1] + after[1], c)
        return self.add(Pad, (t,), shape, pads=before, value=value)

    def conv(
        self, t: int, kernel: tuple[int, int] = (3, 3), stride: int = 1, pads: tuple[int, int] = (0, 0), n: int = 2
    ) -> int:
        h, w, c = self.shape(t)
        shape = (_out(h, kernel[0], stride, pads[0]), _out(w, kernel[1], stride, pads[1]), n)
        return self.add(
            Conv2D, (t,), shape, 5, kernel=kernel, stride=(stride, stride), pads=pads,
            weights=self.rng.integers(-128, 128, (n, *kernel, c)).astype(np.int8),
            bias=self.rng.integers(-999, 999, n).astype(np.int32), multipliers=np.full(1, 0.003),
        )  # fmt: skip

    def pool(self, t: int, kind: str, kernel: tuple[int, int], stride: int = 1, pads: tuple[int, int] = (0, 0)) -> int:
        h, w, c = self.shape(t)
        shape = (_out(h, kernel[0], stride, pads[0]), _out(w, kernel[1], stride, pads[1]), c)
        return self.add(Pool, (t,), shape, kind=kind, kernel=kernel, stride=(stride, stride), pads=pads)

    def binary(self, a: int, b: int, kind: str = "add") -> int:
        return self.add(Binary, (a, b), self.shape(a), kind=kind)

    def graph(self, *outputs: int) -> Graph:
        graph = Graph(
            name="test",
            tensors=tuple(self.tensors),
            ops=tuple(self.ops),
            inputs=(Io(tensor=self.x, name="x", dtype=DType.INT8),),
            outputs=tuple(Io(tensor=t, name=f"y{t}", dtype=DType.INT8) for t in outputs),
        )
        graph.check()
        return graph


def _out(size: int, kernel: int, stride: int, pad: int) -> int:
    """Output size with the same padding behind as before."""
    return (size + 2 * pad - kernel) // stride + 1


def kinds(graph: Graph) -> list[type[Op]]:
    return [type(op) for op in graph.ops]


def equal(before: Graph, after: Graph) -> None:
    """Same inputs, same outputs, and every tensor of one name has the same bytes."""
    after.check()
    assert [io.name for io in after.inputs] == [io.name for io in before.inputs]
    assert [(io.name, io.dtype) for io in after.outputs] == [(io.name, io.dtype) for io in before.outputs]
    for seed in (12345, 99):
        inputs = oracle.generated(before, seed)
        a, b = oracle.run(before, inputs), oracle.run(after, inputs)
        for x, y in zip(before.outputs, after.outputs, strict=True):
            assert np.array_equal(a[x.tensor].reshape(-1), b[y.tensor].reshape(-1))
        by_name = {t.name: a[i] for i, t in enumerate(before.tensors) if i in a}
        for i, t in enumerate(after.tensors):
            assert np.array_equal(b[i], by_name[t.name]), t.name


# ---------------------------------------------------------------- each pass: what it does, what it leaves alone


def padded_conv(value: int = 3, **kw: object) -> Graph:
    m = Maker((6, 5, 2))
    return m.graph(m.conv(m.pad(m.x, (1, 2), (2, 1), value), **kw))  # type: ignore[arg-type]


def padded_pool(
    kind: str, value: int, zero: int = 3, kernel: tuple[int, int] = (3, 3), pads: tuple[int, int] = (0, 0)
) -> Graph:
    m = Maker((6, 5, 2), zero)
    return m.graph(m.pool(m.pad(m.x, (1, 2), (2, 1), value), kind, kernel, pads=pads))


def two_readers(foldable: bool) -> Graph:
    m = Maker((6, 5, 2))
    p = m.pad(m.x, (1, 1), (1, 1), 3)
    return m.graph(m.conv(p), m.conv(p, (1, 1)) if not foldable else m.conv(p, (5, 5)))


def pad_is_output() -> Graph:
    m = Maker((6, 5, 2))
    p = m.pad(m.x, (1, 1), (1, 1), 3)
    return m.graph(p, m.conv(p))


PADS: dict[str, tuple[Graph, list[type[Op]]]] = {
    "convolution": (padded_conv(), [Conv2D]),
    "convolution, stride 2": (padded_conv(stride=2), [Conv2D]),
    "convolution with own padding": (padded_conv(pads=(1, 0), kernel=(5, 5)), [Conv2D]),
    "not the zero point": (padded_conv(value=0), [Pad, Conv2D]),
    "kernel smaller than the border": (padded_conv(kernel=(2, 2)), [Pad, Conv2D]),
    "two convolutions": (two_readers(True), [Conv2D, Conv2D]),
    "one reader cannot": (two_readers(False), [Pad, Conv2D, Conv2D]),
    "network output": (pad_is_output(), [Pad, Conv2D]),
    "maximum over -128": (padded_pool("max", -128), [Pool]),
    "maximum over the zero point": (padded_pool("max", 3), [Pad, Pool]),
    "average, zero point 0": (padded_pool("avg", 0, zero=0), [Pool]),
    "average, zero point 3": (padded_pool("avg", 3, zero=3), [Pad, Pool]),
    "average with own padding": (padded_pool("avg", 0, zero=0, pads=(1, 1)), [Pad, Pool]),
}


@pytest.mark.parametrize("name", PADS)
def test_fold_pads(name: str) -> None:
    graph, expected = PADS[name]
    after = passes.fold_pads(graph)
    assert kinds(after) == expected
    assert (after is graph) == (expected == kinds(graph))
    equal(graph, after)


def producer_and_clamp(kind: str) -> Graph:
    m = Maker((6, 5, 2))
    makers: dict[str, Callable[[], int]] = {
        "conv": lambda: m.conv(m.x),
        "add": lambda: m.binary(m.x, m.x),
        "avg": lambda: m.pool(m.x, "avg", (2, 2)),
        "max": lambda: m.pool(m.x, "max", (2, 2)),
        "mean": lambda: m.add(Reduce, (m.x,), (1, 1, 2), axes=(0, 1), kind="mean", multiplier=(1 << 30, -4)),
        "fc": lambda: m.add(
            FullyConnected, (m.x,), (1, 1, 4), 0, weights=m.rng.integers(-128, 128, (4, 60)).astype(np.int8),
            bias=np.arange(4, dtype=np.int32), multipliers=np.full(1, 0.002),
        ),
        "lut": lambda: m.lut(m.x, CODES[::-1]),
    }  # fmt: skip
    return m.graph(m.clamp(makers[kind](), -10, 40))


@pytest.mark.parametrize("kind", ["conv", "add", "avg", "max", "mean", "fc"])
def test_fuse_activations(kind: str) -> None:
    graph = producer_and_clamp(kind)
    after = passes.fuse_activations(graph)
    assert len(after.ops) == 1
    assert (after.ops[0].act_min, after.ops[0].act_max) == (-10, 40)  # type: ignore[attr-defined]
    assert after.tensors[after.ops[0].output].name == graph.tensors[graph.ops[-1].output].name
    equal(graph, after)


def test_activations_that_must_stay() -> None:
    m = Maker((6, 5, 2))
    c = m.conv(m.x)
    for graph in (
        m.graph(m.clamp(c, -10, 40), c),  # somebody else reads the unclamped tensor
        producer_and_clamp("lut"),
    ):
        assert passes.fuse_activations(graph) is graph
    m = Maker((6, 5, 2))
    requantised = m.graph(m.lut(m.conv(m.x), np.clip(CODES, 0, 127), zero=-7))
    assert passes.fuse_activations(requantised) is requantised


def test_clamps_of_a_clamp() -> None:
    """Ranges that do not overlap leave the nearer bound."""
    m = Maker((4, 4, 1))
    graph = m.graph(m.clamp(m.clamp(m.conv(m.x, (1, 1)), -50, -20), 10, 40))
    after = passes.run_passes(graph)
    assert kinds(after) == [Conv2D]
    equal(graph, after)


def test_merge_tables() -> None:
    m = Maker((4, 4, 1))
    a = m.lut(m.x, CODES[::-1], zero=9)
    graph = m.graph(m.lut(a, np.roll(CODES, 7)), m.lut(m.lut(m.x, np.roll(CODES, 1)), CODES // 2))
    after = passes.merge_tables(graph)
    assert kinds(after) == [Lut, Lut]
    equal(graph, after)
    shared = m.graph(a, m.lut(a, np.roll(CODES, 7)))
    assert kinds(passes.run_passes(shared)) == [Lut, Lut]


def test_remove_identities() -> None:
    m = Maker((4, 4, 2))
    t = m.conv(m.x, (1, 1))
    t = m.lut(t, CODES)
    t = m.add(Reshape, (t,), (4, 4, 2))
    t = m.add(Pad, (t,), (4, 4, 2), pads=(0, 0), value=0)
    t = m.add(Concat, (t,), (4, 4, 2), axis=2)
    t = m.add(Resize, (t,), (4, 4, 2), factors=(1, 1))
    t = m.pool(t, "max", (1, 1))
    t = m.add(Reshape, (t,), (8, 2, 2))
    t = m.add(Reshape, (t,), (2, 4, 4))
    graph = m.graph(t)
    after = passes.run_passes(graph)
    assert kinds(after) == [Conv2D, Reshape]
    equal(graph, after)


def test_identities_that_must_stay() -> None:
    m = Maker((4, 4, 2))
    retagged = m.graph(m.lut(m.conv(m.x, (1, 1)), CODES, zero=-9))
    assert passes.remove_identities(retagged) is retagged
    m = Maker((4, 4, 2))
    passed_through = m.graph(m.lut(m.x, CODES))
    assert passes.run_passes(passed_through) is passed_through


@pytest.mark.parametrize("kind", ["avg", "max"])
def test_pools_to_reductions(kind: str) -> None:
    m = Maker((6, 5, 2))
    graph = m.graph(m.pool(m.x, kind, (6, 5)))
    after = passes.pools_to_reductions(graph)
    assert kinds(after) == [Reduce]
    equal(graph, after)
    m = Maker((6, 5, 2))
    partial = m.graph(m.pool(m.x, kind, (6, 4)))
    assert passes.pools_to_reductions(partial) is partial


def test_counted_padding_is_no_reduction() -> None:
    m = Maker((2, 2, 1), zero=0)
    graph = m.graph(m.pool(m.pad(m.x, (1, 1), (1, 1), 0), "avg", (4, 4)))
    after = passes.run_passes(graph)
    equal(graph, after)
    folded = passes.fold_pads(graph)
    assert passes.pools_to_reductions(folded) is folded


def test_fold_constants_and_remove_dead() -> None:
    m = Maker((2, 3, 2))
    c = m.tensor((2, 3, 2), data=m.rng.integers(-128, 128, (2, 3, 2)).astype(np.int8))
    d = m.add(Reshape, (m.lut(c, CODES[::-1]),), (1, 3, 4))
    both = m.add(Concat, (d, d), (2, 3, 4), axis=0)
    m.conv(m.x, (1, 1))
    graph = m.graph(m.binary(m.x, m.add(Reshape, (d,), (2, 3, 2))), both)
    after = passes.run_passes(graph)
    assert kinds(after) == [Concat, Binary]
    assert sum(t.data is not None for t in after.tensors) == 2
    equal(graph, after)


# ---------------------------------------------------------------- random graphs


def random_graph(seed: int) -> Graph:
    """Ten to twenty operators, most of them such that some pass has an opinion."""
    rng = np.random.default_rng(seed)
    m = Maker((int(rng.integers(3, 8)), int(rng.integers(3, 8)), 2), int(rng.choice([-128, 0, 3])), seed)
    live = [m.x]
    for _ in range(int(rng.integers(10, 20))):
        t = int(live[int(rng.integers(max(0, len(live) - 3), len(live)))])
        h, w, c = m.shape(t)
        zero = m.tensors[t].zero_point
        choice = int(rng.integers(0, 12))
        small = min(h, w)
        if choice == 0:
            live.append(m.conv(t, (1, 1) if small < 3 else (3, 3), stride=int(rng.integers(1, 3))))
        elif choice == 1:
            before, after = rng.integers(0, 3, 2), rng.integers(0, 3, 2)
            value = int(rng.choice([zero, -128, 0, 7]))
            border = (int(before[0]), int(before[1])), (int(after[0]), int(after[1]))
            live.append(m.pad(t, *border, value))
        elif choice == 2:
            live.append(m.clamp(t, int(rng.integers(-128, 0)), int(rng.integers(0, 128))))
        elif choice == 3:
            live.append(m.lut(t, rng.permutation(CODES), zero=int(rng.integers(-128, 128))))
        elif choice == 4:
            live.append(m.lut(t, CODES, zero=None if rng.random() < 0.7 else 1))
        elif choice == 5:
            kernel = (h, w) if rng.random() < 0.5 else (min(h, 2), min(w, 2))
            live.append(m.pool(t, str(rng.choice(["avg", "max"])), kernel))
        elif choice == 6:
            live.append(m.add(Reshape, (t,), (w, h, c)))
        elif choice == 7:
            live.append(m.binary(t, t, str(rng.choice(["add", "sub"]))))
        elif choice == 8:
            live.append(m.add(Concat, (t, t) if rng.random() < 0.5 else (t,), (h, w, c), axis=2))
            if len(m.ops[-1].inputs) == 2:
                m.tensors[-1] = dataclasses.replace(m.tensors[-1], shape=(h, w, 2 * c))
        elif choice == 9:
            constant = m.tensor((h, w, c), data=rng.integers(-128, 128, (h, w, c)).astype(np.int8))
            live.append(m.binary(t, m.lut(constant, rng.permutation(CODES)), "mul"))
        elif choice == 10:
            factor = int(rng.integers(1, 3))
            live.append(m.add(Resize, (t,), (h * factor, w, c), factors=(factor, 1)))
        else:
            padded = m.pad(t, (1, 1), (1, 1), zero)
            live.append(m.conv(padded))
            live.append(m.pool(padded, "avg", (3, 3)))
    outputs = sorted({live[-1], *(int(t) for t in rng.choice(live, 2))} - {m.x}) or [m.clamp(m.x, -5, 5)]
    return m.graph(*outputs)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_graphs(seed: int) -> None:
    """Each pass alone keeps the bytes, and all of them together reach a graph that none changes."""
    graph = random_graph(seed)
    for one in passes.PASSES:
        after = one(graph)
        equal(graph, after)
        assert len(after.ops) <= len(graph.ops)
    done = passes.run_passes(graph)
    equal(graph, done)
    assert passes.run_passes(done) is done
