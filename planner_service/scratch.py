# SPDX-License-Identifier: Apache-2.0
"""What scratch the kernels of a core can use. Every kernel does with any amount, none included, and gives the same
bytes; with less than it asks for here it takes more instructions. The figures follow the kernels' sources
(``module/src/kernels_*``); tests/test_scratch.py measures on the emulated cores that these amounts are enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from planner_service.ir import Conv2D, Graph, Op

#: A folder of kernels under module/src.
Family = Literal["cortexm", "mve", "portable"]

#: By ``Target.core``; hosts run the reference kernels, which use none.
FAMILIES: Mapping[str, Family] = {
    "cortex-m0": "portable",
    "cortex-m0plus": "portable",
    "cortex-m3": "portable",
    "cortex-m4": "cortexm",
    "cortex-m7": "cortexm",
    "cortex-m33": "cortexm",
    "cortex-m55": "mve",
    "rv32imc": "portable",
    "xtensa-lx7": "portable",
}

#: Bytes of widened patches that the DSP kernels keep on their stack, elements of those that the others keep; elements
#: that the DSP kernels widen at once, and the bytes of the sums that they keep when a patch takes several such chunks.
_STACK_BYTES = 200
_STACK_PATCH: Mapping[Family, int] = {"cortexm": 0, "mve": 72, "portable": 64}
_CHUNK, _SUMS = 128, 128
#: Elements of a tap row from which on the Helium kernels read it in place.
_SHORT_ROW = 64
#: Most rows of a kernel that the fast kernels take.
_ROWS = 12


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def wish(family: Family, op: Op) -> int:
    """Bytes, a multiple of 4, with which an operator's kernel runs at its best; 0 if it uses none."""
    if not isinstance(op, Conv2D) or op.kernel[0] > _ROWS:
        return 0
    taps = op.kernel[0] * op.kernel[1]
    if op.depthwise:
        return 0
    depth = int(op.weights.shape[3])
    size = taps * depth
    if size <= _STACK_PATCH[family]:
        return 0
    if family == "mve":
        short = op.kernel[1] * depth < _SHORT_ROW
        return 4 * size if taps > 1 and short and op.groups == 1 and op.dilation[1] == 1 else 0  # four side by side
    if family == "portable":
        return 4 * size if taps == 1 and op.groups == 1 else 0  # gathering larger kernels takes longer than it saves
    staged = depth % 4 != 0 and not (taps == 1 and not any(op.pads))
    element = 5 if staged else 4
    if element * _up(size, 4) <= _STACK_BYTES:
        return 0
    if size <= _CHUNK:
        return element * _up(size, 4)
    joined = op.groups == 1 and op.dilation[1] == 1
    quick = len(op.multipliers) > 1 and float(op.multipliers.max()) < 0.5
    if op.kernel[0] > 1 and joined and quick and (op.kernel[1] * depth | len(op.bias)) % 4 == 0:
        return 0  # in place is quicker than in chunks
    chunks = -(-size // _CHUNK)
    return _SUMS + element * _up(-(-size // chunks), 8)


def reads_quads(core: str | None) -> bool:
    """Whether the kernels of a core want depthwise weights in quads."""
    return FAMILIES.get(core or "") == "cortexm"


def wishes(core: str | None, graph: Graph, ops: Iterable[int]) -> list[int]:
    """The amounts that operators (streamed inputs, which are negative, are passed over) of one stage could use on a
    core, each once, most first."""
    family = FAMILIES.get(core or "")
    if family is None:
        return []
    found = {wish(family, graph.ops[op]) for op in ops if op >= 0}
    return sorted(found - {0}, reverse=True)
