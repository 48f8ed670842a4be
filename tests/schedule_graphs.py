# SPDX-License-Identifier: Apache-2.0
"""Random small graphs for schedule tests: chains and branches with strides, odd sizes, padding of every kind,
residuals, concatenation, pooling, reductions, dense layers and resizes. Weights and scales are arbitrary but legal."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from planner_service import ir
from planner_service.format import DType


class Maker:
    """Adds operators one by one; tensors are named after their operators."""

    def __init__(self, seed: int, shapes: Sequence[tuple[int, int, int]]) -> None:
        self.rng = random.Random(seed)
        self.np = np.random.default_rng(seed)
        self.tensors: list[ir.Tensor] = []
        self.ops: list[ir.Op] = []
        self.inputs = [self.tensor(f"in{n}", shape) for n, shape in enumerate(shapes)]

    def tensor(self, name: str, shape: tuple[int, int, int], *, like: int | None = None) -> int:
        scale, zero_point = self.rng.uniform(0.02, 0.2), self.rng.randint(-20, 20)
        if like is not None:
            scale, zero_point = self.tensors[like].scale, self.tensors[like].zero_point
        self.tensors.append(ir.Tensor(name=name, shape=shape, scale=scale, zero_point=zero_point))
        return len(self.tensors) - 1

    def constant(self, shape: tuple[int, int, int]) -> int:
        data = self.np.integers(-128, 128, shape).astype(np.int8)
        self.tensors.append(
            ir.Tensor(name=f"const{len(self.tensors)}", shape=shape, scale=0.05, zero_point=3, data=data)
        )
        return len(self.tensors) - 1

    def shape(self, t: int) -> tuple[int, int, int]:
        return self.tensors[t].shape

    def _name(self, kind: str) -> str:
        return f"{kind}{len(self.ops)}"

    def conv(
        self,
        t: int,
        channels: int,
        kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        pads: tuple[int, int, int, int] = (1, 1, 1, 1),
        groups: int = 1,
    ) -> int:
        """``pads``: top, left, bottom, right."""
        h, w, c = self.shape(t)
        out = _windowed((h, w), kernel, stride, dilation, pads)
        output = self.tensor(self._name("conv"), (*out, channels))
        per_channel = self.rng.random() < 0.5
        self.ops.append(
            ir.Conv2D(
                name=self._name("conv"),
                inputs=(t,),
                output=output,
                kernel=kernel,
                stride=stride,
                dilation=dilation,
                pads=pads[:2],
                groups=groups,
                weights=self.np.integers(-127, 128, (channels, *kernel, c // groups)).astype(np.int8),
                bias=self.np.integers(-500, 500, channels).astype(np.int32),
                multipliers=self.np.uniform(0.001, 0.01, channels if per_channel else 1),
                act_min=-100,
            )
        )
        return output

    def depthwise(self, t: int, multiplier: int = 1, **kwargs: object) -> int:
        c = self.shape(t)[2]
        return self.conv(t, c * multiplier, groups=c, **kwargs)  # type: ignore[arg-type]

    def pool(self, t: int, kind: str, kernel: tuple[int, int], stride: tuple[int, int], pads: tuple[int, ...]) -> int:
        h, w, c = self.shape(t)
        out = _windowed((h, w), kernel, stride, (1, 1), pads)
        output = self.tensor(self._name("pool"), (*out, c), like=t)
        self.ops.append(
            ir.Pool(
                name=self._name("pool"),
                inputs=(t,),
                output=output,
                kind="avg" if kind == "avg" else "max",
                kernel=kernel,
                stride=stride,
                pads=(pads[0], pads[1]),
                count_pad=kind == "avg" and self.rng.random() < 0.3,
            )
        )
        return output

    def binary(self, a: int, b: int, kind: str = "add") -> int:
        shape = tuple(max(x, y) for x, y in zip(self.shape(a), self.shape(b), strict=True))
        output = self.tensor(self._name(kind), shape)  # type: ignore[arg-type]
        self.ops.append(ir.Binary(name=self._name(kind), inputs=(a, b), output=output, kind=kind))  # type: ignore[arg-type]
        return output

    def concat(self, parts: Sequence[int], axis: int = 2) -> int:
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(p)[axis] for p in parts)
        output = self.tensor(self._name("concat"), (shape[0], shape[1], shape[2]), like=parts[0])
        self.ops.append(ir.Concat(name=self._name("concat"), inputs=tuple(parts), output=output, axis=axis))
        return output

    def pad(self, t: int, pads: tuple[int, int, int, int]) -> int:
        h, w, c = self.shape(t)
        output = self.tensor(self._name("pad"), (h + pads[0] + pads[2], w + pads[1] + pads[3], c), like=t)
        self.ops.append(ir.Pad(name=self._name("pad"), inputs=(t,), output=output, pads=pads[:2], value=-7))
        return output

    def lut(self, t: int) -> int:
        output = self.tensor(self._name("lut"), self.shape(t))
        table = self.np.integers(-128, 128, 256).astype(np.int8)
        self.ops.append(ir.Lut(name=self._name("lut"), inputs=(t,), output=output, table=table, function="random"))
        return output

    def softmax(self, t: int) -> int:
        output = self.tensor(self._name("softmax"), self.shape(t))
        self.ops.append(ir.Softmax(name=self._name("softmax"), inputs=(t,), output=output, multiplier=(1374389535, 23)))
        return output

    def reduce(self, t: int, axes: tuple[int, ...], kind: str = "mean") -> int:
        h, w, c = self.shape(t)
        shape = (1 if 0 in axes else h, 1 if 1 in axes else w, c)
        output = self.tensor(self._name("reduce"), shape, like=None if kind == "mean" else t)
        self.ops.append(
            ir.Reduce(
                name=self._name("reduce"),
                inputs=(t,),
                output=output,
                axes=axes,
                kind=kind,  # type: ignore[arg-type]
                multiplier=(1518500250, -5) if kind == "mean" else (0, 0),
            )
        )
        return output

    def dense(self, t: int, n: int) -> int:
        h, w, c = self.shape(t)
        output = self.tensor(self._name("dense"), (1, 1, n))
        self.ops.append(
            ir.FullyConnected(
                name=self._name("dense"),
                inputs=(t,),
                output=output,
                weights=self.np.integers(-127, 128, (n, h * w * c)).astype(np.int8),
                bias=self.np.integers(-500, 500, n).astype(np.int32),
                multipliers=self.np.uniform(0.0005, 0.005, n),
            )
        )
        return output

    def reshape(self, t: int, shape: tuple[int, int, int]) -> int:
        output = self.tensor(self._name("reshape"), shape, like=t)
        self.ops.append(ir.Reshape(name=self._name("reshape"), inputs=(t,), output=output))
        return output

    def resize(self, t: int, factors: tuple[int, int]) -> int:
        h, w, c = self.shape(t)
        output = self.tensor(self._name("resize"), (h * factors[0], w * factors[1], c), like=t)
        self.ops.append(ir.Resize(name=self._name("resize"), inputs=(t,), output=output, factors=factors))
        return output

    def resize_table(self, t: int, size: tuple[int, int]) -> int:
        h, w, c = self.shape(t)
        output = self.tensor(self._name("resize"), (*size, c), like=t)
        rows = tuple(min(h - 1, y * h // size[0]) for y in range(size[0]))
        cols = tuple(min(w - 1, x * w // size[1]) for x in range(size[1]))
        self.ops.append(ir.Resize(name=self._name("resize"), inputs=(t,), output=output, rows=rows, cols=cols))
        return output

    def graph(self, outputs: Sequence[int]) -> ir.Graph:
        graph = ir.Graph(
            name="random",
            tensors=tuple(self.tensors),
            ops=tuple(self.ops),
            inputs=tuple(ir.Io(tensor=t, name=self.tensors[t].name, dtype=DType.INT8) for t in self.inputs),
            outputs=tuple(ir.Io(tensor=t, name=self.tensors[t].name, dtype=DType.INT8) for t in outputs),
        )
        graph.check()
        return graph


def _windowed(
    size: tuple[int, int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], pads: Sequence[int]
) -> tuple[int, int]:
    h, w = ((size[a] + pads[a] + pads[a + 2] - (kernel[a] - 1) * dilation[a] - 1) // stride[a] + 1 for a in (0, 1))
    return h, w


def random_graph(seed: int, ops: int = 9) -> ir.Graph:
    """About ``ops`` operators, at most some 40 x 40 x 8 per tensor; sometimes several inputs and outputs."""
    rng = random.Random(seed)
    h, w, c = rng.randint(3, 18), rng.randint(3, 18), rng.choice((1, 3, 4))
    m = Maker(seed + 1, [(h, w, c)] * rng.choice((1, 1, 1, 2)))
    live = list(m.inputs)
    spatial = m.inputs[0]
    outputs: list[int] = []
    if len(m.inputs) == 2:
        spatial = m.binary(*m.inputs, kind=rng.choice(("add", "sub", "mul")))
        live.append(spatial)
    while len(m.ops) < ops:
        made = _extend(m, rng, spatial, live)
        if made is None:
            continue
        live.append(made)
        if rng.random() < 0.85:
            spatial = made
        if rng.random() < 0.04:
            outputs.append(made)
    end = _ending(m, rng, spatial)
    used = {t for op in m.ops for t in op.inputs}
    outputs += [op.output for op in m.ops if op.output not in used and op.output not in outputs]
    if end not in outputs:
        outputs.append(end)
    return m.graph(outputs[-16:])


def _extend(m: Maker, rng: random.Random, t: int, live: Sequence[int]) -> int | None:
    h, w, c = m.shape(t)
    kind = rng.choice(
        ("conv", "conv", "depthwise", "depthwise", "pointwise", "pool", "add", "concat", "pad", "lut", "resize", "row",
         "whole", "scale", "odd")
    )  # fmt: skip
    stride = (rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2)))
    pads = tuple(rng.randint(0, 2) for _ in range(4))
    kernel = (rng.choice((1, 2, 3, 3, 5)), rng.choice((1, 2, 3, 3, 5)))
    dilation = (rng.choice((1, 1, 1, 2)), rng.choice((1, 1, 1, 2)))
    if kind in ("conv", "depthwise", "odd"):
        if min(_windowed((h, w), kernel, stride, dilation, pads)) < 1:
            return None
        options = {"kernel": kernel, "stride": stride, "dilation": dilation, "pads": pads}
        if kind == "depthwise":
            return m.depthwise(t, rng.choice((1, 1, 2)) if c <= 4 else 1, **options)
        groups = 2 if kind == "odd" and c % 2 == 0 else 1
        return m.conv(t, rng.choice((2, 4, 6)), groups=groups, **options)  # type: ignore[arg-type]
    if kind == "pointwise":
        return m.conv(t, rng.choice((2, 3, 8)), kernel=(1, 1), stride=stride, pads=(0, 0, 0, 0))
    if kind == "pool":
        kernel = (min(kernel[0], h), min(kernel[1], w))
        pads = tuple(min(p, (k - 1) // 2) for p, k in zip(pads, kernel * 2, strict=True))
        if min(_windowed((h, w), kernel, stride, (1, 1), pads)) < 1:
            return None
        return m.pool(t, rng.choice(("avg", "max")), kernel, stride, pads)
    if kind == "add":
        same = [u for u in live if m.shape(u) == m.shape(t)]
        other = rng.choice(same) if rng.random() < 0.8 else m.constant(rng.choice(((h, w, c), (1, 1, c), (1, 1, 1))))
        return m.binary(t, other, rng.choice(("add", "sub", "mul")))
    if kind == "concat":
        same = [u for u in live if m.shape(u)[:2] == (h, w) and m.shape(u)[2] + c <= 12]
        return m.concat([t, rng.choice(same)]) if same else None
    if kind == "pad":
        return m.pad(t, pads) if h + w < 40 else None  # type: ignore[arg-type]
    if kind == "lut":
        return m.lut(t)
    if kind == "resize":
        factors = rng.choice(((2, 2), (2, 1), (1, 3), (3, 2)))
        return m.resize(t, factors) if h * factors[0] <= 24 and w * factors[1] <= 24 else None
    if kind == "row":
        return m.reduce(t, (1,), rng.choice(("mean", "avg", "max"))) if w > 1 and rng.random() < 0.3 else None
    if kind == "whole":
        if rng.random() > 0.4:
            return None
        if rng.random() < 0.5:
            return m.resize_table(t, (max(1, h - 1), w + 1))
        same = [u for u in live if m.shape(u)[1:] == (w, c) and m.shape(u)[0] + h < 24]
        return m.concat([t, rng.choice(same)], 0) if same else None
    return m.binary(t, m.reduce(t, (0, 1), rng.choice(("mean", "avg"))), "mul")


def _ending(m: Maker, rng: random.Random, t: int) -> int:
    h, w, c = m.shape(t)
    kind = rng.choice(("none", "pool", "dense", "both", "rows", "reshape"))
    if kind == "none":
        return m.conv(t, 2)
    if kind == "pool":
        return m.reduce(t, (0, 1), rng.choice(("mean", "avg", "max")))
    if kind == "dense":
        return m.dense(t, 5)
    if kind == "both":
        return m.softmax(m.dense(m.reduce(t, (0, 1)), 6))
    if kind == "rows":
        return m.reduce(m.reduce(t, (0,), "avg"), (1,), "avg")
    return m.dense(m.reshape(t, (1, 1, h * w * c)), 3)
