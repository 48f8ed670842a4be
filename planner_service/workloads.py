# SPDX-License-Identifier: Apache-2.0
"""Networks with fixed pseudo-random weights, generated on the fly, to measure memory and search with: the three of the
msf-CNN paper (arXiv 2505.11483), each as the paper counts it and as the whole graph, and synthetic ones of any length.

Architectures: MobileNetV2 of width 0.35 at 144x144 (the paper's channel counts, and those of mit-han-lab/mcunet, which
round to multiples of 8), and the MCUNets mcunet-5fps-vww and mcunet-320kB. Weights mean nothing; multipliers keep
activations spread over the int8 range, so that a wrong schedule shows in the output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner_service import arith
from planner_service.errors import Code, PlannerError
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
    Softmax,
    Tensor,
    valid_taps,
)

Variant = Literal["full", "paper"]
#: (channels after expansion, 0 without; depthwise kernel; stride; output channels).
Block = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Stem (3x3, stride 2), inverted residuals, and after them a 1x1 convolution (0: none) and a classifier (0: none).
    A block has a sum if its stride is 1 and it keeps the channels; ``plain`` leaves sums, biases and activations
    out."""

    size: int
    stem: int
    blocks: tuple[Block, ...]
    head: int
    classes: int
    plain: bool


_MBV2_FULL: tuple[Block, ...] = (
    (0, 3, 1, 8),
    (48, 3, 2, 8), (48, 3, 1, 8),
    (48, 3, 2, 16), (96, 3, 1, 16), (96, 3, 1, 16),
    (96, 3, 2, 24), (144, 3, 1, 24), (144, 3, 1, 24), (144, 3, 1, 24),
    (144, 3, 1, 32), (192, 3, 1, 32), (192, 3, 1, 32),
    (192, 3, 2, 56), (336, 3, 1, 56), (336, 3, 1, 56),
    (336, 3, 1, 112),
)  # fmt: skip
_MBV2_PAPER: tuple[Block, ...] = (
    (11, 3, 1, 5),
    (30, 3, 2, 8), (48, 3, 1, 8),
    (48, 3, 2, 11), (66, 3, 1, 11), (66, 3, 1, 11),
    (66, 3, 2, 22), (132, 3, 1, 22), (132, 3, 1, 22), (132, 3, 1, 22),
    (132, 3, 1, 33), (198, 3, 1, 33), (198, 3, 1, 33),
    (198, 3, 2, 56), (336, 3, 1, 56), (336, 3, 1, 56),
    (336, 3, 1, 112),
)  # fmt: skip
_VWW5: tuple[Block, ...] = (
    (0, 3, 1, 8),
    (48, 3, 2, 16), (48, 3, 1, 16), (48, 3, 1, 16),
    (48, 7, 2, 24), (144, 3, 1, 24), (120, 5, 1, 24),
    (144, 7, 2, 40), (240, 7, 1, 40),
    (240, 3, 1, 48), (192, 3, 1, 48),
    (240, 5, 2, 96), (480, 3, 1, 96), (384, 3, 1, 96),
    (288, 7, 1, 160),
)  # fmt: skip
_320K: tuple[Block, ...] = (
    (0, 3, 1, 8),
    (24, 7, 2, 16), (80, 3, 1, 16), (80, 7, 1, 16), (64, 5, 1, 16),
    (80, 5, 2, 24), (120, 5, 1, 24), (120, 5, 1, 24),
    (120, 3, 2, 40), (240, 7, 1, 40), (160, 5, 1, 40),
    (200, 5, 1, 48), (240, 7, 1, 48), (240, 3, 1, 48),
    (288, 3, 2, 96), (480, 7, 1, 96), (384, 3, 1, 96),
    (480, 7, 1, 160),
)  # fmt: skip

ARCHITECTURES: dict[tuple[str, Variant], Architecture] = {
    ("mbv2-w0.35-r144", "full"): Architecture(
        size=144, stem=16, blocks=_MBV2_FULL, head=448, classes=1000, plain=False
    ),
    ("mbv2-w0.35-r144", "paper"): Architecture(size=144, stem=11, blocks=_MBV2_PAPER, head=448, classes=0, plain=True),
    ("mn2-vww5-r80", "full"): Architecture(size=80, stem=16, blocks=_VWW5, head=0, classes=2, plain=False),
    ("mn2-vww5-r80", "paper"): Architecture(size=80, stem=16, blocks=_VWW5, head=0, classes=0, plain=True),
    ("mn2-320k-r176", "full"): Architecture(size=176, stem=16, blocks=_320K, head=0, classes=1000, plain=False),
    ("mn2-320k-r176", "paper"): Architecture(size=176, stem=16, blocks=_320K, head=0, classes=0, plain=True),
}
NAMES = tuple(dict.fromkeys(name for name, _ in ARCHITECTURES))

#: Synthetic networks: input side, channels of the stem, how often they halve the side and widen by so many channels.
SYNTHETIC_SIZE, SYNTHETIC_STEM, SYNTHETIC_LEVELS, SYNTHETIC_WIDER = 96, 8, 4, 8

#: Standard deviations in int8 steps: of the generated input, of the weights, and those that results are steered to,
#: before rectification and without it.
_INPUT_SPREAD = 74.0
_WEIGHT_SPREAD = 73.0
_RECTIFIED_SPREAD = 75.0
_LINEAR_SPREAD = 42.0
_SCALE = 0.05


def workload(name: str, variant: Variant) -> Graph:
    """Graph of ``name`` (one of NAMES): "full" with sums, pooling and classifier, "paper" as the plain chain that the
    paper counts. int8 in and out. PlannerError(NOT_FOUND) for anything else."""
    architecture = ARCHITECTURES.get((name, variant))
    if architecture is None:
        raise PlannerError(
            Code.NOT_FOUND, f"no workload {name} {variant}", hint=f"there are {', '.join(NAMES)}, each full and paper"
        )
    graph = _Builder(architecture, f"{name}-{variant}").build()
    graph.check()
    return graph


def synthetic(operators: int) -> Graph:
    """A network of exactly ``operators`` (at least 8) to see how planning time grows: inverted residuals, modules of
    two branches that are joined, residuals that cross, pooling and classifier. PlannerError(BAD_REQUEST) for fewer."""
    if operators < 8:
        raise PlannerError(Code.BAD_REQUEST, f"{operators} operators are too few", hint="ask for at least 8")
    architecture = Architecture(size=SYNTHETIC_SIZE, stem=SYNTHETIC_STEM, blocks=(), head=0, classes=10, plain=False)
    graph = _Builder(architecture, f"synthetic-{operators}").build_synthetic(operators)
    graph.check()
    return graph


def probe(number: int) -> Graph:
    """A small network for measuring kernels with: full, pointwise and depthwise convolutions of many shapes, sums,
    joined branches, pooling and dense layers, different for each ``number``."""
    architecture = Architecture(size=0, stem=0, blocks=(), head=0, classes=0, plain=False)
    graph = _Builder(architecture, f"probe-{number}").build_probe(number)
    graph.check()
    return graph


def pseudo_random(seed: int, count: int) -> NDArray[np.uint64]:
    """``count`` words of splitmix64 from counter ``seed`` * 2^32 on: the same on every machine and library version."""
    with np.errstate(over="ignore"):
        z = (np.arange(count, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


class _Builder:
    def __init__(self, architecture: Architecture, name: str) -> None:
        self._a = architecture
        self._name = name
        self._tensors: list[Tensor] = []
        #: Expected root mean square of each tensor, in steps from its zero point.
        self._spread: list[float] = []
        self._ops: list[Op] = []

    def build(self) -> Graph:
        a = self._a
        x = self._tensor("input", (a.size, a.size, 3), 0, _INPUT_SPREAD)
        x = self._conv(x, a.stem, 3, 2)
        for expanded, kernel, stride, out in a.blocks:
            x = self._block(x, expanded, kernel, stride, out)
        if a.head:
            x = self._conv(x, a.head, 1, 1)
        if a.classes:
            x = self._dense(self._mean(x), a.classes)
        return self._graph(x)

    def build_synthetic(self, operators: int) -> Graph:
        a = self._a
        x = self._conv(self._tensor("input", (a.size, a.size, 3), 0, _INPUT_SPREAD), a.stem, 3, 2)
        modules = (self._residual, self._branches, self._crossing)
        body, level, turn = operators - 2, 1, 0
        while body - len(self._ops) >= 5:
            c = self._tensors[x].shape[2]
            if len(self._ops) * SYNTHETIC_LEVELS >= body * level:
                level += 1
                x = self._conv(x, c + SYNTHETIC_WIDER, 3, 2)
            else:
                x = modules[turn % len(modules)](x, c)
                turn += 1
        while len(self._ops) < body:
            x = self._conv(x, 0, 3, 1)
        return self._graph(self._dense(self._mean(x), a.classes))

    def build_probe(self, number: int) -> Graph:
        words = iter(pseudo_random(1 << 20 | number, 64).tolist())

        def pick(*choices: int) -> int:
            return choices[int(next(words)) % len(choices)]

        x = self._tensor("input", (pick(28, 33, 40, 48), pick(24, 31, 40), pick(1, 3, 4)), 0, _INPUT_SPREAD)
        x = self._conv(x, pick(8, 12, 16, 24), pick(3, 3, 5), pick(1, 2))
        x = self._small(pick(0, 1, 2, 3), x)
        for _ in range(5):
            h, _, c = self._tensors[x].shape
            stride = pick(1, 2) if h > 10 else 1
            match pick(0, 0, 0, 1, 1, 2):
                case 0:
                    x = self._block(x, c * pick(2, 3, 6), pick(3, 3, 5, 7), stride, pick(c, c, 16, 24, 40, 64))
                case 1:
                    main = self._conv(self._conv(x, 0, 3, 1), pick(16, 32, 48), pick(1, 3), stride)
                    main = self._conv(main, c, pick(1, 3), 1, linear=True)
                    x = self._add(main, x) if stride == 1 else main
                case _:
                    x = self._branches(x, c)
        x = self._mean(self._conv(x, pick(48, 64, 128), 1, 1))
        for _ in range(3):
            x = self._dense(x, pick(10, 64, 128, 200))
        return self._graph(self._small(4, x))

    def _small(self, which: int, x: int) -> int:
        """An operator that costs little: pooling, padding, a table, softmax."""
        h, w, c = self._tensors[x].shape
        t, number = self._tensors[x], len(self._ops)

        def made(kind: str, shape: tuple[int, int, int]) -> int:
            return self._tensor(f"{kind}{number}", shape, t.zero_point, self._spread[x], t.scale)

        match which:
            case 0 | 1:
                y = made("pool", ((h - 2) // 2 + 1, (w - 2) // 2 + 1, c))
                kind: Literal["avg", "max"] = "max" if which else "avg"
                self._ops.append(
                    Pool(name=f"pool{number}", inputs=(x,), output=y, kernel=(2, 2), stride=(2, 2), kind=kind)
                )
            case 2:
                y = made("pad", (h + 2, w + 2, c))
                self._ops.append(Pad(name=f"pad{number}", inputs=(x,), output=y, pads=(1, 1), value=t.zero_point))
            case 3:
                y = made("lut", t.shape)
                table = np.arange(-128, 128).astype(np.int8)[::-1].copy()
                self._ops.append(Lut(name=f"lut{number}", inputs=(x,), output=y, table=table, function="reverse"))
            case _:
                multiplier = arith.preprocess_softmax_scaling(1.0, t.scale)
                y = self._tensor(f"softmax{number}", t.shape, -128, self._spread[x], 1 / 256)
                self._ops.append(Softmax(name=f"softmax{number}", inputs=(x,), output=y, multiplier=multiplier))
        return y

    def _residual(self, x: int, channels: int) -> int:
        return self._block(x, 3 * channels, 3, 1, channels)

    def _branches(self, x: int, channels: int) -> int:
        squeezed = self._conv(x, channels // 2, 1, 1)
        parts = [self._conv(squeezed, channels // 2, kernel, 1) for kernel in (1, 3)]
        shape = self._tensors[x].shape
        output = self._tensor(self._label("concat"), shape, -128, self._spread[parts[0]])
        self._ops.append(Concat(name=self._label("concat"), inputs=tuple(parts), output=output, axis=2))
        return output

    def _crossing(self, x: int, channels: int) -> int:
        """Two residuals, the second begun before the first one ends."""
        first = self._conv(x, 0, 3, 1)
        added = self._add(self._conv(first, channels, 1, 1, linear=True), x)
        return self._add(self._conv(added, channels, 1, 1, linear=True), first)

    def _graph(self, output: int) -> Graph:
        return Graph(
            name=self._name,
            tensors=tuple(self._tensors),
            ops=tuple(self._ops),
            inputs=(Io(tensor=0, name="input", dtype=DType.INT8),),
            outputs=(Io(tensor=output, name="output", dtype=DType.INT8),),
            source="generated",
        )

    def _block(self, source: int, expanded: int, kernel: int, stride: int, out: int) -> int:
        channels = self._tensors[source].shape[2]
        x = self._conv(source, expanded, 1, 1) if expanded else source
        x = self._conv(x, 0, kernel, stride)
        x = self._conv(x, out, 1, 1, linear=True)
        if stride == 1 and channels == out and not self._a.plain:
            x = self._add(x, source)
        return x

    def _label(self, kind: str) -> str:
        number = len(self._ops)
        return f"L{number}" if self._a.plain else f"{kind}{number}"

    def _tensor(
        self, name: str, shape: tuple[int, int, int], zero_point: int, spread: float, scale: float = _SCALE
    ) -> int:
        self._spread.append(spread)
        self._tensors.append(Tensor(name=name, shape=shape, scale=scale, zero_point=zero_point))
        return len(self._tensors) - 1

    def _numbers(self, count: int, which: int) -> NDArray[np.float64]:
        """Uniform in [-1, 1), different for each operator and purpose ``which``."""
        words = pseudo_random(4 * len(self._ops) + which + 1, count)
        return (words >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1.0

    def _filter(
        self, source: int, shape: tuple[int, ...], taps: float, spread: float
    ) -> tuple[NDArray[np.int8], NDArray[np.int32], NDArray[np.float64]]:
        """Weights, bias and multipliers of ``shape[0]`` outputs, so that these have standard deviation ``spread``;
        ``taps`` is how many of an output's taps lie inside the tensor on average."""
        weights = np.rint(127 * self._numbers(math.prod(shape), 0)).astype(np.int8).reshape(shape)
        expected = self._spread[source] * _WEIGHT_SPREAD * math.sqrt(taps)
        multipliers = spread / expected * (1 + self._numbers(shape[0], 1) / 4)
        bias = np.zeros(shape[0]) if self._a.plain else np.rint(expected / 2 * self._numbers(shape[0], 2))
        return weights, bias.astype(np.int32), multipliers

    def _conv(self, source: int, out: int, kernel: int, stride: int, *, linear: bool = False) -> int:
        """Convolution, depthwise where ``out`` is 0; "same" padding as PyTorch writes it (kernel // 2 on each side)."""
        h, w, c = self._tensors[source].shape
        depthwise = not out
        channels = out or c
        pad = kernel // 2
        side_h, side_w = ((n + 2 * pad - kernel) // stride + 1 for n in (h, w))
        # A rectified tensor has its zero at the bottom, as quantisers choose it; half of it is there.
        rectified = not linear and not self._a.plain
        spread = _RECTIFIED_SPREAD if rectified else _LINEAR_SPREAD
        rows, columns = (
            sum(valid_taps(y, n, kernel, stride, 1, pad) for y in range(out_n)) / out_n
            for n, out_n in ((h, side_h), (w, side_w))
        )
        depth = 1 if depthwise else c
        weights, bias, multipliers = self._filter(
            source, (channels, kernel, kernel, depth), rows * columns * depth, spread
        )
        name = self._label("dwconv" if depthwise else "conv")
        output = self._tensor(
            name,
            (side_h, side_w, channels),
            -128 if rectified else 0,
            spread / math.sqrt(2) if rectified else spread,
        )
        self._ops.append(
            Conv2D(
                name=name,
                inputs=(source,),
                output=output,
                kernel=(kernel, kernel),
                stride=(stride, stride),
                pads=(pad, pad),
                weights=weights,
                bias=bias,
                multipliers=multipliers,
                groups=c if depthwise else 1,
            )
        )
        return output

    def _add(self, main: int, skip: int) -> int:
        name = self._label("add")
        # Independent terms: the sum spreads by the root of two.
        scales = [self._tensors[i].scale for i in (main, skip)]
        output = self._tensor(name, self._tensors[main].shape, 0, _LINEAR_SPREAD, math.hypot(*scales))
        self._ops.append(Binary(name=name, inputs=(main, skip), output=output, kind="add"))
        return output

    def _mean(self, source: int) -> int:
        t = self._tensors[source]
        name = self._label("gap")
        output = self._tensor(name, (1, 1, t.shape[2]), t.zero_point, self._spread[source], t.scale)
        count = t.shape[0] * t.shape[1]
        self._ops.append(
            Reduce(
                name=name,
                inputs=(source,),
                output=output,
                axes=(0, 1),
                kind="mean",
                multiplier=arith.mean_multiplier(t.scale, t.scale, count),
            )
        )
        return output

    def _dense(self, source: int, classes: int) -> int:
        name = self._label("fc")
        features = self._tensors[source].shape[2]
        weights, bias, multipliers = self._filter(source, (classes, features), features, _LINEAR_SPREAD)
        output = self._tensor(name, (1, 1, classes), 0, _LINEAR_SPREAD)
        self._ops.append(
            FullyConnected(
                name=name, inputs=(source,), output=output, weights=weights, bias=bias, multipliers=multipliers
            )
        )
        return output
