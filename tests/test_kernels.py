# SPDX-License-Identifier: Apache-2.0
"""The engine's kernels, one by one, against NumPy: every operator over random shapes, regions and windows.

The kernels are compiled with UBSan into a shared library and called through ctypes. Windows are laid out as the engine
lays them out (whole tensor, ring, tile, tile with line store); bytes that a window does not hold are noise, so a kernel
that reads them gives a wrong result, and one that writes outside its region changes a byte that is compared."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from planner_service.format import ERROR_TEXT, Opcode, OpFlag

MODULE = Path(__file__).resolve().parent.parent / "module"
REF_SOURCES = sorted((MODULE / "src" / "kernels_ref").glob("*.c"))
PORTABLE_SOURCES = sorted((MODULE / "src" / "kernels_portable").glob("*.c"))
SOURCES = [MODULE / "src" / "kernels.c", MODULE / "src" / "errors.c", *REF_SOURCES]
#: Flags and sources of the kernels that every build of the host can have.
BUILDS = {"reference": ((), ()), "portable": (("-DWEFT_KERNELS_PORTABLE=1",), tuple(PORTABLE_SOURCES))}
INCLUDES = [f"-I{MODULE / 'include'}", f"-I{MODULE / 'src'}"]
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror"]
INT32_MAX = 2**31 - 1
SHIM = "#include <weft_internal.h>\nsize_t shim_call_size(void) { return sizeof(weft_call_t); }\n"

Rng = np.random.Generator
Array = np.ndarray


# ---------------------------------------------------------------- the C side


class COp(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_uint8) for n in ("opcode", "flags")),
        *((n, ctypes.c_uint16) for n in ("input0", "input1", "output")),
        *((n, ctypes.c_uint8) for n in ("kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w")),
        *((n, ctypes.c_uint8) for n in ("pad_top", "pad_left")),
        *((n, ctypes.c_int8) for n in ("act_min", "act_max")),
        ("groups", ctypes.c_uint16),
        ("params", ctypes.c_uint32),
    ]


class CView(ctypes.Structure):
    _fields_ = [
        ("ring", ctypes.c_void_p),
        ("tile", ctypes.c_void_p),
        *(
            (n, ctypes.c_int32)
            for n in "cap split tile_y tile_x ring_stride tile_stride c zero_point h w".split()  # noqa: SIM905
        ),
    ]


class CCall(ctypes.Structure):
    _fields_ = [
        ("op", ctypes.POINTER(COp)),
        ("params", ctypes.c_void_p),
        ("in1", ctypes.POINTER(CView)),
        ("in0", CView),
        ("out", CView),
        *((n, ctypes.c_int32) for n in ("y0", "y1", "x0", "x1", "channel", "channels", "total", "axis_offset")),
        ("acc", ctypes.c_void_p),
        ("first", ctypes.c_bool),
        ("last", ctypes.c_bool),
        ("scratch", ctypes.c_void_p),
        ("scratch_len", ctypes.c_uint32),
        ("macs", ctypes.POINTER(ctypes.c_uint64)),
    ]


def build_library(folder: Path, flags: list[str], sources: list[Path]) -> Path:
    shim = folder / "shim.c"
    shim.write_text(SHIM)
    library = folder / "kernels.so"
    command = ["gcc", "-std=c99", "-shared", "-fPIC", "-DWEFT_COUNT=1", *flags, *INCLUDES]
    subprocess.run([*command, *map(str, sources), str(shim), "-o", str(library)], check=True)
    return library


@pytest.fixture(scope="module", params=BUILDS)
def lib(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing")
    chosen, sources = BUILDS[request.param]
    flags = ["-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all", *chosen]
    library = ctypes.CDLL(str(build_library(tmp_path_factory.mktemp("kernels"), flags, [*SOURCES, *sources])))
    library.shim_call_size.restype = ctypes.c_size_t
    assert library.shim_call_size() == ctypes.sizeof(CCall)
    return library


# ---------------------------------------------------------------- windows

Region = tuple[int, int, int, int]  # y0, y1, x0, x1
KINDS = ("full", "ring", "tile", "split")
#: Bytes of scratch that kernels get, and what lies behind them.
SCRATCH, GUARD, NOISE = (0, 4, 100, 255, 256, 257, 1000, 4096), 16, 0xA5


class Window:
    """Memory that holds ``region`` of a tensor of shape (H, W, C) in one of KINDS; every other byte is noise."""

    def __init__(self, rng: Rng, shape: tuple[int, int, int], zero_point: int, region: Region, kind: str) -> None:
        (h, w, c), (y0, y1, x0, x1) = shape, region
        rows = y1 - y0
        self.shape, self.region = shape, region
        self.cap, self.split = h, INT32_MAX
        self.tile_y = self.tile_x = 0
        tile_cols = tile_rows = 0
        if kind == "ring":
            self.cap = int(rng.integers(rows, rows + 3))
        elif kind == "tile":
            self.split, self.cap, self.tile_y, self.tile_x, tile_rows, tile_cols = y0, 0, y0, x0, rows, x1 - x0
        elif kind == "split":
            self.split = int(rng.integers(y0, y1 + 1))
            self.cap = max(1, self.split - y0) + int(rng.integers(0, 2))
            self.tile_y, self.tile_x, tile_rows, tile_cols = self.split, x0, y1 - self.split, x1 - x0
        guard = 32
        self.ring_stride, self.tile_stride = w * c, tile_cols * c
        self.ring_at = guard + int(rng.integers(0, 4))
        self.tile_at = self.ring_at + self.cap * self.ring_stride + guard
        self.bytes = rng.integers(-128, 128, self.tile_at + tile_rows * self.tile_stride + guard, dtype=np.int8)
        base = self.bytes.ctypes.data
        self.c = CView(base + self.ring_at, base + self.tile_at, self.cap, self.split, self.tile_y, self.tile_x)
        self.c.ring_stride, self.c.tile_stride, self.c.c, self.c.zero_point = (
            self.ring_stride,
            self.tile_stride,
            c,
            zero_point,
        )
        self.c.h, self.c.w = h, w

    def _row(self, y: int, x0: int, x1: int) -> slice:
        """Place of pixels (y, x0) to (y, x1)."""
        c = self.shape[2]
        if y >= self.split:
            start = self.tile_at + (y - self.tile_y) * self.tile_stride + (x0 - self.tile_x) * c
        else:
            start = self.ring_at + y % self.cap * self.ring_stride + x0 * c
        return slice(start, start + (x1 - x0) * c)

    def put(self, tensor: Array) -> Window:
        y0, y1, x0, x1 = self.region
        for y in range(y0, y1):
            self.bytes[self._row(y, x0, x1)] = tensor[y, x0:x1].reshape(-1)
        return self

    def expect(self, before: Array, tensor: Array, region: Region, part: slice = slice(None)) -> Array:
        """What the memory must hold when ``region`` of ``tensor``, some channels of it, was written into ``before``."""
        y0, y1, x0, x1 = region
        after = before.copy()
        for y in range(y0, y1):
            after[self._row(y, x0, x1)].reshape(-1, self.shape[2])[:, part] = tensor[y, x0:x1, part]
        return after


# ---------------------------------------------------------------- arithmetic, as its definitions read


def mbqm(x: Array, multiplier: Array | int, shift: Array | int) -> Array:
    """gemmlowp's SaturatingRoundingDoublingHighMul and RoundingDivideByPOT, on int64."""
    x, multiplier, shift = np.broadcast_arrays(np.asarray(x, np.int64), np.asarray(multiplier), np.asarray(shift))
    product = (x << np.maximum(shift, 0)) * multiplier.astype(np.int64)
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = np.sign(nudged) * (np.abs(nudged) >> 31)  # division that truncates
    right = np.maximum(-shift, 0).astype(np.int64)
    mask = (np.int64(1) << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


def away(x: Array, n: int) -> Array:
    """x / n, half away from zero."""
    return np.sign(x) * ((2 * np.abs(x) + n) // (2 * n))


def int8(x: Array, low: int = -128, high: int = 127) -> Array:
    return np.clip(x, low, high).astype(np.int8)


@dataclass
class Geometry:
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int]

    def taps(self, out: int, axis: int, size: int) -> list[tuple[int, int]]:
        """(tap, coordinate) of the taps of output position ``out`` that lie inside."""
        first = out * self.stride[axis] - self.pads[axis]
        inside = [(k, first + k * self.dilation[axis]) for k in range(self.kernel[axis])]
        return [(k, at) for k, at in inside if 0 <= at < size]

    def field(self, region: Region, shape: tuple[int, int, int]) -> Region:
        """What of the input the region reads; never empty."""
        bounds: list[int] = []
        for axis, (lo, hi) in enumerate((region[:2], region[2:])):
            first = lo * self.stride[axis] - self.pads[axis]
            end = (hi - 1) * self.stride[axis] - self.pads[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1
            bounds += [min(max(first, 0), shape[axis] - 1), min(max(end, 1), shape[axis])]
        return bounds[0], bounds[1], bounds[2], bounds[3]


def windows(
    geometry: Geometry, x: Array, out_hw: tuple[int, int]
) -> Iterator[tuple[int, int, list[tuple[int, int, Array]]]]:
    """For every output pixel: (y, x, [(ky, kx, input pixel of shape (C,)) for every tap inside])."""
    for y, z in itertools.product(range(out_hw[0]), range(out_hw[1])):
        rows, cols = geometry.taps(y, 0, x.shape[0]), geometry.taps(z, 1, x.shape[1])
        yield y, z, [(ky, kx, x[iy, ix].astype(np.int64)) for ky, iy in rows for kx, ix in cols]


# ---------------------------------------------------------------- helpers of the tests


def pick(rng: Rng, *values: int) -> int:
    return int(rng.choice(values))


def tensor(rng: Rng, *shape: int) -> Array:
    return rng.integers(-128, 128, shape, dtype=np.int8)


def some_region(rng: Rng, h: int, w: int) -> Region:
    y0, x0 = int(rng.integers(0, h)), int(rng.integers(0, w))
    if rng.random() < 0.3:
        return 0, h, 0, w
    return y0, int(rng.integers(y0, h)) + 1, x0, int(rng.integers(x0, w)) + 1


def clamps(rng: Rng) -> tuple[int, int]:
    low, high = sorted(int(v) for v in rng.integers(-128, 128, 2))
    return (-128, 127) if rng.random() < 0.7 else (low, high)


def quads(weights: Array) -> Array:
    """Depthwise weights KH, KW, O as docs/plan-format.md has them with QUICK."""
    height, width, n = weights.shape
    laid_out = np.zeros((-(-n // 4), height * width, 4), "<i2")
    for o in range(n):
        laid_out[o // 4, :, (0, 2, 1, 3)[o % 4]] = weights[:, :, o].ravel()
    return laid_out


def multipliers(rng: Rng, n: int, size: float, *, left: float = 0.0) -> tuple[Array, Array]:
    """Fixed-point pairs that bring sums of about ``size`` into int8; the share ``left`` shifts to the left instead."""
    scale = rng.uniform(0.3, 3.0, n) * 60 / size * np.where(rng.random(n) < left, 4096, 1)
    mantissa, exponent = np.frexp(scale)
    return np.minimum(np.round(mantissa * 2**31), INT32_MAX).astype(np.int32), exponent.astype(np.int8)


def linear_block(bias: Array, multiplier: Array, shift: Array, weights: Array) -> bytes:
    padding = bytes(-len(shift) % 4)
    return (
        bias.astype("<i4").tobytes()
        + multiplier.astype("<i4").tobytes()
        + shift.tobytes()
        + padding
        + weights.tobytes()
    )


def aligned(data: bytes) -> Array:
    """The bytes at a 4-aligned address, as plans hold them."""
    return np.frombuffer(data + bytes(-len(data) % 4), np.int32).copy()


def make_op(
    opcode: Opcode, flags: int = 0, geometry: Geometry | None = None, act: tuple[int, int] = (-128, 127)
) -> COp:
    g = geometry or Geometry((1, 1), (1, 1), (1, 1), (0, 0))
    op = COp(opcode, flags, 0, 0, 0, *g.kernel, *g.stride, *g.dilation, *g.pads, *act)
    op.groups = 1
    return op


def run(
    lib: ctypes.CDLL,
    rng: Rng,
    op: COp,
    params: bytes,
    inputs: list[tuple[Array, int, Region]],
    expected: Array,
    zp_out: int,
    region: Region,
    kinds: tuple[str, ...] = KINDS,
) -> int:
    """Call the kernel of ``op`` for ``region`` with inputs (tensor, zero point, region held); compare; MACs counted."""
    held = [
        Window(rng, x.shape, zp, need, kind).put(x)
        for (x, zp, need), kind in zip(inputs, rng.choice(kinds, len(inputs)), strict=True)
    ]
    out = Window(rng, expected.shape, zp_out, region, str(rng.choice(KINDS)))
    block = aligned(params) if params else None
    macs = ctypes.c_uint64(0)
    call = CCall(op=ctypes.pointer(op), params=block.ctypes.data if block is not None else None)
    call.in0, call.out = held[0].c, out.c
    if len(held) > 1:
        call.in1 = ctypes.pointer(held[1].c)
    call.y0, call.y1, call.x0, call.x1 = region
    call.macs = ctypes.pointer(macs)
    call.channels = call.total = expected.shape[2]
    scratch = np.full(int(rng.choice(SCRATCH)) + GUARD, NOISE, dtype=np.uint8)
    call.scratch, call.scratch_len = scratch.ctypes.data, scratch.size - GUARD
    want = out.expect(out.bytes, expected, region)
    kernel(lib, Opcode(op.opcode))(ctypes.byref(call))
    np.testing.assert_array_equal(out.bytes, want)
    assert (scratch[call.scratch_len :] == NOISE).all()
    return macs.value


def run_slices(
    lib: ctypes.CDLL,
    rng: Rng,
    op: COp,
    params: bytes,
    taken: tuple[Array, int, Region],
    expected: Array,
    zp_out: int,
    region: Region,
) -> int:
    """As ``run``, in slices of channels: depthwise ones read and write whole pixels or those of a slice."""
    n = expected.shape[2]
    size = pick(rng, *(k for k in range(1, n + 1) if n % k == 0))
    x, zp_in, need = taken
    wise = op.opcode == Opcode.DWCONV2D
    macs, block = ctypes.c_uint64(0), aligned(params)
    for channel in range(0, n, size):
        part = slice(channel, channel + size)
        call = CCall(op=ctypes.pointer(op), params=block.ctypes.data, channel=channel, channels=size, total=n)
        call.y0, call.y1, call.x0, call.x1 = region
        call.macs = ctypes.pointer(macs)
        narrow = wise and bool(rng.integers(2))
        source = np.ascontiguousarray(x[..., part]) if narrow else x
        held = Window(rng, source.shape, zp_in, need, str(rng.choice(KINDS))).put(source)
        call.in0 = held.c
        if wise and not narrow:
            call.in0.ring, call.in0.tile = held.c.ring + channel, held.c.tile + channel
        whole = wise and bool(rng.integers(2))
        made = expected if whole else np.ascontiguousarray(expected[..., part])
        out = Window(rng, made.shape, zp_out, region, str(rng.choice(KINDS)))
        call.out = out.c
        if whole:
            call.out.ring, call.out.tile = out.c.ring + channel, out.c.tile + channel
        want = out.expect(out.bytes, made, region, part if whole else slice(None))
        kernel(lib, Opcode(op.opcode))(ctypes.byref(call))
        np.testing.assert_array_equal(out.bytes, want)
    return macs.value


def kernel(lib: ctypes.CDLL, opcode: Opcode) -> Callable[..., None]:
    """The build's kernel, as its table has it."""
    table = (ctypes.c_void_p * (max(Opcode) + 1)).in_dll(lib, "weft_kernels")
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(table[opcode])


def some_geometry(rng: Rng, kernels: tuple[tuple[int, int], ...]) -> Geometry:
    kernel_size = kernels[int(rng.integers(len(kernels)))]
    dilation = (pick(rng, 1, 1, 1, 2, 3), pick(rng, 1, 1, 1, 2, 3))
    span = [(k - 1) * d for k, d in zip(kernel_size, dilation, strict=True)]
    pads = (int(rng.integers(0, span[0] + 1)), int(rng.integers(0, span[1] + 1)))
    return Geometry(kernel_size, (pick(rng, 1, 1, 2, 3), pick(rng, 1, 1, 2, 3)), dilation, pads)


def out_shape(rng: Rng, g: Geometry, shape: tuple[int, ...]) -> tuple[int, int]:
    """Output rows and columns: every window has a tap inside, the last ones may reach beyond the tensor."""
    sizes = [
        max(1, (n - 1 + p) // s + 1 - int(rng.integers(0, 2))) for n, p, s in zip(shape, g.pads, g.stride, strict=False)
    ]
    for axis in (0, 1):
        while sizes[axis] > 1 and not all(g.taps(o, axis, shape[axis]) for o in range(sizes[axis])):
            sizes[axis] -= 1
    return sizes[0], sizes[1]


def cases(count: int, salt: int) -> list[int]:
    return [salt * 10_000 + i for i in range(count)]


CONV_KERNELS = ((1, 1), (1, 1), (3, 3), (3, 3), (5, 5), (1, 3), (3, 1), (7, 7), (2, 2), (10, 4), (14, 2))


# ---------------------------------------------------------------- operators


def zero_points(rng: Rng) -> tuple[int, int]:
    """Of input and output; the former is often the least byte, as after a ReLU, for which kernels have quick ways."""
    zp_in, zp_out = (int(v) for v in rng.integers(-128, 128, 2))
    return (-128 if rng.integers(2) else zp_in), zp_out


@pytest.mark.parametrize("seed", cases(160, 1))
@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
def test_conv2d(lib: ctypes.CDLL, seed: int, long: bool) -> None:
    """``long``: patches that are too long for what kernels keep on the stack."""
    rng = np.random.default_rng(seed)
    g = some_geometry(rng, CONV_KERNELS)
    groups = 1 if long else pick(rng, 1, 1, 1, 2, 3)
    elements, taps_of = pick(rng, 65, 66, 72, 96, 130), g.kernel[0] * g.kernel[1]
    depth = -(-elements // taps_of) if long else pick(rng, 1, 2, 3, 4, 5, 8, 16)
    n = groups * pick(rng, 1, 2, 3, 4, 5, 8, 37)
    x = tensor(rng, *(int(v) for v in rng.integers(1, 12, 2)), depth * groups)
    oh, ow = out_shape(rng, g, x.shape)
    weights = tensor(rng, n, *g.kernel, depth)
    zp_in, zp_out = zero_points(rng)
    act, per_tensor = clamps(rng), bool(rng.integers(2))
    bias = rng.integers(-20000, 20000, n)
    multiplier, shift = multipliers(
        rng, 1 if per_tensor else n, 5000 * np.sqrt(g.kernel[0] * g.kernel[1] * depth), left=0.05
    )
    acc = np.empty((oh, ow, n), np.int64)
    taps = np.zeros((oh, ow), np.int64)
    for y, z, inside in windows(g, x, (oh, ow)):
        acc[y, z] = bias
        taps[y, z] = len(inside)
        for ky, kx, px in inside:
            grouped = (px - zp_in).reshape(groups, 1, depth)
            acc[y, z] += (grouped * weights[:, ky, kx].astype(np.int64).reshape(groups, -1, depth)).sum(2).reshape(-1)
    expected = int8(mbqm(acc, multiplier, shift) + zp_out, *act)
    op = make_op(Opcode.CONV2D, OpFlag.PER_TENSOR if per_tensor else 0, g, act)
    op.groups = groups
    region = some_region(rng, oh, ow)
    need = g.field(region, x.shape)
    block = linear_block(bias, multiplier, shift, weights)
    macs = run(lib, rng, op, block, [(x, zp_in, need)], expected, zp_out, region)
    assert macs == taps[region[0] : region[1], region[2] : region[3]].sum() * depth * n
    if groups == 1:
        assert run_slices(lib, rng, op, block, (x, zp_in, need), expected, zp_out, region) == macs


@pytest.mark.parametrize("seed", cases(160, 2))
def test_dwconv2d(lib: ctypes.CDLL, seed: int) -> None:
    rng = np.random.default_rng(seed)
    g = some_geometry(rng, (*CONV_KERNELS, (3, 3), (5, 5), (7, 7)))
    channels, times = pick(rng, 1, 2, 3, 4, 6, 8, 13, 16, 37), pick(rng, 1, 1, 1, 2, 3, 8)
    n = channels * times
    x = tensor(rng, *(int(v) for v in rng.integers(1, 14, 2)), channels)
    oh, ow = out_shape(rng, g, x.shape)
    weights = tensor(rng, *g.kernel, n)
    zp_in, zp_out = zero_points(rng)
    act, per_tensor, quick = clamps(rng), bool(rng.integers(2)), bool(rng.integers(2))
    bias = rng.integers(-20000, 20000, n)
    size, left = 5000 * np.sqrt(g.kernel[0] * g.kernel[1]), 0 if quick else 0.05
    multiplier, shift = multipliers(rng, 1 if per_tensor else n, size, left=left)
    acc = np.empty((oh, ow, n), np.int64)
    taps = np.zeros((oh, ow), np.int64)
    for y, z, inside in windows(g, x, (oh, ow)):
        acc[y, z] = bias + sum(np.repeat(px - zp_in, times) * weights[ky, kx] for ky, kx, px in inside)
        taps[y, z] = len(inside)
    expected = int8(mbqm(acc, multiplier, shift) + zp_out, *act)
    flags = (OpFlag.PER_TENSOR if per_tensor else OpFlag(0)) | (OpFlag.QUICK if quick else OpFlag(0))
    op = make_op(Opcode.DWCONV2D, flags, g, act)
    region = some_region(rng, oh, ow)
    need = g.field(region, x.shape)
    block = linear_block(bias, multiplier, shift, quads(weights) if quick else weights)
    macs = run(lib, rng, op, block, [(x, zp_in, need)], expected, zp_out, region)
    assert macs == taps[region[0] : region[1], region[2] : region[3]].sum() * n
    if times == 1:
        assert run_slices(lib, rng, op, block, (x, zp_in, need), expected, zp_out, region) == macs


def steps(rng: Rng, size: int) -> list[tuple[int, int]]:
    """A division of [0, size) into parts."""
    cuts = sorted({0, size, *(int(v) for v in rng.integers(0, size + 1, int(rng.integers(0, 4))))})
    return list(itertools.pairwise(cuts))


@pytest.mark.parametrize("parts", [False, True], ids=["whole", "parts"])
@pytest.mark.parametrize("seed", cases(40, 3))
def test_fully_connected(lib: ctypes.CDLL, seed: int, parts: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (pick(rng, 1, 1, 3, 5), pick(rng, 1, 1, 4, 6), pick(rng, 1, 3, 4, 7, 16, 64))
    n = pick(rng, 1, 2, 3, 8, 10)
    x, weights = tensor(rng, *shape), tensor(rng, n, int(np.prod(shape)))
    zp_in, zp_out = zero_points(rng)
    act, per_tensor = clamps(rng), bool(rng.integers(2))
    bias = rng.integers(-20000, 20000, n)
    multiplier, shift = multipliers(rng, 1 if per_tensor else n, 5000 * np.sqrt(x.size), left=0.05)
    acc = bias + weights.astype(np.int64) @ (x.astype(np.int64).reshape(-1) - zp_in)
    expected = int8(mbqm(acc, multiplier, shift) + zp_out, *act).reshape(1, 1, n)
    op = make_op(Opcode.FULLY_CONNECTED, OpFlag.PER_TENSOR if per_tensor else 0, act=act)
    params = aligned(linear_block(bias, multiplier, shift, weights))
    out = Window(rng, (1, 1, n), zp_out, (0, 1, 0, 1), "full")
    sums, macs = rng.integers(-(2**31), 2**31, n + 2, dtype=np.int32), ctypes.c_uint64(0)
    guards = sums[[0, -1]].copy()
    pieces = list(itertools.product(*(steps(rng, s) if parts else [(0, s)] for s in shape[:2])))
    before = out.bytes.copy()
    for i, ((y0, y1), (x0, x1)) in enumerate(pieces):
        np.testing.assert_array_equal(out.bytes, before)
        held = Window(rng, shape, zp_in, (y0, y1, x0, x1), str(rng.choice(KINDS))).put(x)
        call = CCall(
            op=ctypes.pointer(op), params=params.ctypes.data, in0=held.c, out=out.c, y0=y0, y1=y1, x0=x0, x1=x1
        )
        call.acc = sums[1:].ctypes.data if parts else None
        call.first, call.last, call.macs = i == 0, i == len(pieces) - 1, ctypes.pointer(macs)
        kernel(lib, Opcode.FULLY_CONNECTED)(ctypes.byref(call))
    np.testing.assert_array_equal(out.bytes, out.expect(before, expected, (0, 1, 0, 1)))
    np.testing.assert_array_equal(sums[[0, -1]], guards)
    assert macs.value == weights.size


@pytest.mark.parametrize("seed", cases(90, 4))
@pytest.mark.parametrize("opcode", [Opcode.ADD, Opcode.SUB, Opcode.MUL])
def test_elementwise(lib: ctypes.CDLL, seed: int, opcode: Opcode) -> None:
    rng = np.random.default_rng(seed)
    shape = (pick(rng, 1, 4, 7), pick(rng, 1, 3, 6), pick(rng, 1, 3, 4, 8))
    shapes = [
        tuple(1 if broadcast and rng.random() < 0.5 else s for s in shape) for broadcast in (rng.random() < 0.4, False)
    ]
    if rng.random() < 0.5:
        shapes.reverse()
    a, b = (tensor(rng, *s) for s in shapes)
    zp0, zp1, zp_out = (int(v) for v in rng.integers(-128, 128, 3))
    act = clamps(rng)
    wide_a, wide_b = a.astype(np.int64) - zp0, b.astype(np.int64) - zp1
    if opcode == Opcode.MUL:
        (mult,), (shift,) = multipliers(rng, 1, 8000.0)
        mults, shifts, left = [0, 0, mult], [0, 0, shift], 0
        raw = wide_a * wide_b
    else:
        pairs = [multipliers(rng, 1, s) for s in (60.0, 60.0, 2.0**21)]
        mults, shifts, left = [m[0] for m, _ in pairs], [s[0] for _, s in pairs], 20
        sign = 1 if opcode == Opcode.ADD else -1
        raw = mbqm(wide_a << left, mults[0], int(shifts[0]) - 1) + sign * mbqm(
            wide_b << left, mults[1], int(shifts[1]) - 1
        )
        shifts = [shifts[0] - 1, shifts[1] - 1, shifts[2]]
    expected = int8(mbqm(raw, mults[2], shifts[2]) + zp_out, *act)
    params = np.array(mults, "<i4").tobytes() + np.array([*shifts, left], np.int8).tobytes()
    region = some_region(rng, *shape[:2])

    def need(x: Array) -> Region:
        rows = (0, 1) if x.shape[0] == 1 else region[:2]
        return (*rows, *((0, 1) if x.shape[1] == 1 else region[2:]))

    run(lib, rng, make_op(opcode, act=act), params, [(a, zp0, need(a)), (b, zp1, need(b))], expected, zp_out, region)


@pytest.mark.parametrize("seed", cases(40, 5))
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_concat(lib: ctypes.CDLL, seed: int, axis: int) -> None:
    rng = np.random.default_rng(seed)
    shape = [int(v) for v in rng.integers(1, 7, 3)]
    inputs = []
    for _ in range(pick(rng, 1, 2, 3)):
        shape[axis] = int(rng.integers(1, 6))
        inputs.append(tensor(rng, *shape))
    joined = np.concatenate(inputs, axis)
    region = some_region(rng, *joined.shape[:2]) if axis == 2 else (0, joined.shape[0], 0, joined.shape[1])
    op = make_op(Opcode.CONCAT)
    op.kernel_h = axis
    out = Window(rng, joined.shape, 0, region, str(rng.choice(KINDS)))
    want, offset = out.expect(out.bytes, joined, region), 0
    for x in inputs:
        part = region if axis == 2 else (0, x.shape[0], 0, x.shape[1])
        held = Window(rng, x.shape, 0, part, str(rng.choice(KINDS))).put(x)
        call = CCall(op=ctypes.pointer(op), in0=held.c, out=out.c, axis_offset=offset)
        call.y0, call.y1, call.x0, call.x1 = part
        kernel(lib, Opcode.CONCAT)(ctypes.byref(call))
        offset += x.shape[axis]
    np.testing.assert_array_equal(out.bytes, want)


@pytest.mark.parametrize("seed", cases(60, 6))
def test_pad(lib: ctypes.CDLL, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = tensor(rng, *(int(v) for v in rng.integers(1, 6, 3)))
    top, left, bottom, right = (int(v) for v in rng.integers(0, 4, 4))
    value = int(rng.integers(-128, 128))
    padded = np.pad(x, ((top, bottom), (left, right), (0, 0)), constant_values=value)
    g = Geometry((1, 1), (1, 1), (1, 1), (top, left))
    region = some_region(rng, *padded.shape[:2])
    run(lib, rng, make_op(Opcode.PAD, 0, g, (value, 127)), b"", [(x, 0, g.field(region, x.shape))], padded, 0, region)


@pytest.mark.parametrize("seed", cases(80, 7))
@pytest.mark.parametrize("kind", ["average", "average counting padding", "maximum"])
def test_pool(lib: ctypes.CDLL, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    g = some_geometry(rng, ((2, 2), (3, 3), (1, 4), (5, 2), (13, 1)))
    x = tensor(rng, *(int(v) for v in rng.integers(1, 12, 2)), pick(rng, 1, 2, 4, 7, 16))
    oh, ow = out_shape(rng, g, x.shape)
    act, zp = clamps(rng), int(rng.integers(-128, 128))
    expected = np.empty((oh, ow, x.shape[2]), np.int8)
    for y, z, inside in windows(g, x, (oh, ow)):
        values = np.array([px for _, _, px in inside])
        if kind == "maximum":
            result = values.max(0)
        elif kind == "average":
            result = away(values.sum(0), len(inside))
        else:
            result = away((values - zp).sum(0), g.kernel[0] * g.kernel[1]) + zp
        expected[y, z] = int8(result, *act)
    opcode = Opcode.MAXPOOL if kind == "maximum" else Opcode.AVGPOOL
    op = make_op(opcode, OpFlag.COUNT_PAD if "counting" in kind else 0, g, act)
    region = some_region(rng, oh, ow)
    run(lib, rng, op, b"", [(x, zp, g.field(region, x.shape))], expected, zp, region)


@pytest.mark.parametrize("seed", cases(12, 8))
@pytest.mark.parametrize("parts", [False, True], ids=["whole", "parts"])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)], ids=["H", "W", "HW"])
@pytest.mark.parametrize("kind", ["mean", "average", "maximum"])
def test_reduce(lib: ctypes.CDLL, seed: int, kind: str, axes: tuple[int, ...], parts: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (*(int(v) for v in rng.integers(1, 10, 2)), pick(rng, 1, 3, 4, 8))
    x = tensor(rng, *shape)
    count = int(np.prod([shape[a] for a in axes]))
    zp_in, zp_out = zero_points(rng)
    act, wide = clamps(rng), x.astype(np.int64)
    params = None
    if kind == "mean":
        (multiplier,), (shift,) = multipliers(rng, 1, 60.0 * count)
        params = aligned(np.array([multiplier, shift], "<i4").tobytes())
        result = mbqm((wide - zp_in).sum(axes, keepdims=True), multiplier, shift) + zp_out
    elif kind == "average":
        result = away(wide.sum(axes, keepdims=True), count)
    else:
        result = wide.max(axes, keepdims=True)
    expected = int8(result, *act)
    flags = sum((OpFlag.REDUCE_H, OpFlag.REDUCE_W)[a] for a in axes)
    flags += {"mean": 0, "average": OpFlag.REDUCE_AVG, "maximum": OpFlag.REDUCE_MAX}[kind]
    op = make_op(Opcode.REDUCE, flags, act=act)
    out = Window(rng, expected.shape, zp_out, (0, expected.shape[0], 0, expected.shape[1]), str(rng.choice(KINDS)))
    want = out.expect(out.bytes, expected, out.region)
    sums = rng.integers(-(2**31), 2**31, int(np.prod(expected.shape)) + 2, dtype=np.int32)
    guards = sums[[0, -1]].copy()
    rows, cols = ([(0, s)] if not parts else steps(rng, s) for s in shape[:2])
    for (y0, y1), (x0, x1) in itertools.product(rows, cols):
        held = Window(rng, shape, zp_in, (y0, y1, x0, x1), str(rng.choice(KINDS))).put(x)
        call = CCall(op=ctypes.pointer(op), in0=held.c, out=out.c, y0=y0, y1=y1, x0=x0, x1=x1)
        call.params = params.ctypes.data if params is not None else None
        call.acc = sums[1:].ctypes.data if parts else None
        call.first = (0 not in axes or y0 == 0) and (1 not in axes or x0 == 0)
        call.last = (0 not in axes or y1 == shape[0]) and (1 not in axes or x1 == shape[1])
        kernel(lib, Opcode.REDUCE)(ctypes.byref(call))
    np.testing.assert_array_equal(out.bytes, want)
    np.testing.assert_array_equal(sums[[0, -1]], guards)


@pytest.mark.parametrize("seed", cases(20, 9))
def test_lut(lib: ctypes.CDLL, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, table = tensor(rng, *(int(v) for v in rng.integers(1, 9, 3))), tensor(rng, 256)
    region = some_region(rng, *x.shape[:2])
    expected = table[x.astype(np.int64) + 128]
    run(lib, rng, make_op(Opcode.LUT), table.tobytes(), [(x, 0, region)], expected, 0, region)


@pytest.mark.parametrize("seed", cases(30, 10))
def test_reshape(lib: ctypes.CDLL, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(v) for v in rng.integers(1, 7, 3))
    x = tensor(rng, *shape)
    to = [shape, (1, 1, x.size), (x.size, 1, 1), (shape[1], shape[0], shape[2]), (1, shape[0] * shape[1], shape[2])]
    expected = x.reshape(to[int(rng.integers(len(to)))])
    region = some_region(rng, *expected.shape[:2])
    run(lib, rng, make_op(Opcode.RESHAPE), b"", [(x, 0, (0, shape[0], 0, shape[1]))], expected, 0, region, ("full",))


@pytest.mark.parametrize("seed", cases(40, 11))
@pytest.mark.parametrize("table", [False, True], ids=["factors", "table"])
def test_resize(lib: ctypes.CDLL, seed: int, table: bool) -> None:
    rng = np.random.default_rng(seed)
    x = tensor(rng, *(int(v) for v in rng.integers(1, 6, 3)))
    h, w, _ = x.shape
    if table:
        rows, cols = (np.sort(rng.integers(0, n, int(rng.integers(1, 12)))) for n in (h, w))
        region = some_region(rng, len(rows), len(cols))
        need, factors = (0, h, 0, w), (1, 1)
    else:
        factors = (pick(rng, 1, 2, 3), pick(rng, 1, 2, 4))
        rows, cols = (np.arange(n * f) // f for n, f in zip((h, w), factors, strict=True))
        region = some_region(rng, len(rows), len(cols))
        need = (rows[region[0]], rows[region[1] - 1] + 1, cols[region[2]], cols[region[3] - 1] + 1)
    op = make_op(Opcode.RESIZE, OpFlag.RESIZE_TABLE if table else 0, Geometry(factors, (1, 1), (1, 1), (0, 0)))
    params = np.concatenate([rows, cols]).astype("<u2").tobytes() if table else b""
    expected = x[rows][:, cols]
    run(lib, rng, op, params, [(x, 0, tuple(int(v) for v in need))], expected, 0, region, ("full",) if table else KINDS)


# ---------------------------------------------------------------- softmax, on Python's integers


def high_mul(a: int, b: int) -> int:
    """SaturatingRoundingDoublingHighMul."""
    if a == b == -(2**31):
        return INT32_MAX
    nudged = a * b + ((1 << 30) if a * b >= 0 else 1 - (1 << 30))
    return nudged >> 31 if nudged >= 0 else -(-nudged >> 31)


def shift_pot(x: int, exponent: int) -> int:
    """SaturatingRoundingMultiplyByPOT."""
    if exponent >= 0:
        return max(-(2**31), min(INT32_MAX, x << exponent))
    return (1 if x >= 0 else -1) * ((abs(x) + (1 << (-exponent - 1))) >> -exponent)


def exp_q5(a: int) -> int:
    """gemmlowp::exp_on_negative_values, from Q5.26 to Q0.31, with the constants computed instead of quoted."""
    if a == 0:
        return INT32_MAX
    rest = (a & (2**24 - 1)) - 2**24
    x = shift_pot(rest, 5) + 2**28
    x2 = high_mul(x, x)
    x3, x4 = high_mul(x2, x), high_mul(x2, x2)
    third, eighth = round(2**31 / 3), round(np.exp(-0.125) * 2**31)
    tail = shift_pot(high_mul(shift_pot(x4, -2) + x3, third) + x2, -1)
    result = eighth + high_mul(eighth, x + tail)
    for k in range(-2, 5):
        if (rest - a) & 1 << 26 + k:
            result = high_mul(result, round(float(np.exp(-(2.0**k))) * 2**31))
    return result


def reciprocal(a: int) -> int:
    """gemmlowp::one_over_one_plus_x_for_x_in_0_1, Q0.31."""
    half = (a + INT32_MAX + 1) // 2
    x = round(48 / 17 * 2**29) + high_mul(half, round(-32 / 17 * 2**29))
    for _ in range(3):
        x += shift_pot(high_mul(x, 2**29 - high_mul(half, x)), 2)
    return shift_pot(x, 1)


def softmax_row(row: list[int], multiplier: int, left_shift: int, diff_min: int) -> list[int]:
    diffs = [v - max(row) for v in row]
    exps = [exp_q5(high_mul(d << left_shift, multiplier)) if d >= diff_min else None for d in diffs]
    total = sum(shift_pot(e, -12) for e in exps if e is not None)
    headroom = 32 - total.bit_length()
    scale = reciprocal((total << headroom) - 2**31)
    exponent = 12 - headroom + 31 - 8
    return [-128 if e is None else min(127, shift_pot(high_mul(scale, e), -exponent) - 128) for e in exps]


@pytest.mark.parametrize("seed", cases(60, 12))
def test_softmax(lib: ctypes.CDLL, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (pick(rng, 1, 1, 3), pick(rng, 1, 1, 4), pick(rng, 1, 2, 3, 10, 40))
    spread = pick(rng, 3, 20, 128)
    x = rng.integers(-spread, spread, shape, dtype=np.int64).astype(np.int8)
    scale = float(2.0 ** rng.uniform(-7, 1))
    mantissa, exponent = np.frexp(min(scale * 2.0**26, 2.0**31 - 1))  # TFLite's PreprocessSoftmaxScaling, beta = 1
    multiplier, left_shift = min(round(float(mantissa) * 2**31), INT32_MAX), int(exponent)
    diff_min = -int(31 * 2**26 / 2.0**left_shift)
    want = [softmax_row([int(v) for v in px], multiplier, left_shift, diff_min) for px in x.reshape(-1, shape[2])]
    expected = np.array(want, np.int64).reshape(shape)
    real = np.exp(scale * (x.astype(float) - x.max(2, keepdims=True).astype(float)))
    assert np.abs(expected - (real / real.sum(2, keepdims=True) * 256 - 128)).max() <= 1.5
    params = np.array([multiplier, left_shift], "<i4").tobytes()
    region = some_region(rng, *shape[:2])
    run(lib, rng, make_op(Opcode.SOFTMAX), params, [(x, 0, region)], expected.astype(np.int8), -128, region)


def test_softmax_of_many_channels_stays_defined(lib: ctypes.CDLL) -> None:
    """Sums of 512 and more, where TFLite stops with a failed check, give zero probability."""
    rng = np.random.default_rng(0)
    x = np.zeros((1, 1, 8191), np.int8)
    params = np.array([1 << 30, 20], "<i4").tobytes()
    run(
        lib,
        rng,
        make_op(Opcode.SOFTMAX),
        params,
        [(x, 0, (0, 1, 0, 1))],
        np.full(x.shape, -128, np.int8),
        0,
        (0, 1, 0, 1),
    )


# ---------------------------------------------------------------- hostile parameters


@pytest.mark.parametrize("seed", cases(60, 13))
def test_hostile_parameters_are_harmless(lib: ctypes.CDLL, seed: int) -> None:
    """Multipliers, shifts and zero points at the ends of what the verifier lets through: UBSan finds nothing."""
    rng = np.random.default_rng(seed)
    extremes = [0, 1, 1 << 30, INT32_MAX]
    x, y = tensor(rng, 2, 2, 4), tensor(rng, 2, 2, 4)
    m = np.array([extremes[int(i)] for i in rng.integers(0, 4, 4)], np.int64)
    shift = np.array([pick(rng, -31, -1, 0, 1, 30) for _ in range(4)], np.int8)
    bias = np.array([pick(rng, 2**31 - 1 - 4 * 255 * 128, -(2**31) + 1 + 4 * 255 * 128, 0) for _ in range(4)])
    conv = linear_block(bias, m, shift, tensor(rng, 4, 1, 1, 4))
    depthwise = linear_block(bias, m, shift, tensor(rng, 1, 1, 4))
    add = m[:3].astype("<i4").tobytes() + shift[:3].tobytes() + bytes([pick(rng, 0, 20, 31)])
    mean = np.array([m[0], shift[0]], "<i4").tobytes()
    softmax = np.array([m[0], pick(rng, 0, 20, 31), pick(rng, 0, -255)], "<i4").tobytes()
    blocks = {
        Opcode.CONV2D: conv,
        Opcode.DWCONV2D: depthwise,
        Opcode.ADD: add,
        Opcode.SUB: add,
        Opcode.MUL: add,
        Opcode.REDUCE: mean,
        Opcode.SOFTMAX: softmax,
    }
    for opcode, params in blocks.items():
        op = make_op(opcode, OpFlag.REDUCE_H | OpFlag.REDUCE_W if opcode == Opcode.REDUCE else 0)
        block = aligned(params)
        whole, zp = (0, 2, 0, 2), pick(rng, -128, 127)
        a, b = (Window(rng, (2, 2, 4), zp, whole, "full").put(v) for v in (x, y))
        out = Window(rng, (2, 2, 4), pick(rng, -128, 127), whole, "full")
        call = CCall(
            op=ctypes.pointer(op),
            params=block.ctypes.data,
            in0=a.c,
            in1=ctypes.pointer(b.c),
            out=out.c,
            y0=0,
            y1=2,
            x0=0,
            x1=2,
        )
        kernel(lib, opcode)(ctypes.byref(call))


# ---------------------------------------------------------------- how it is built


def compilers() -> list[str]:
    return [cc for cc in ("gcc", "clang") if shutil.which(cc)]


@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("count", [0, 1])
def test_compiles_without_warnings(cc: str, count: int, tmp_path: Path) -> None:
    if cc not in compilers():
        pytest.skip(f"{cc} is missing")
    for source in SOURCES:
        flags = [*WARNINGS, "-O2", "-ffreestanding", f"-DWEFT_COUNT={count}", *INCLUDES]
        subprocess.run([cc, *flags, "-c", str(source), "-o", str(tmp_path / "x.o")], check=True)


def test_headers_are_usable_from_cpp(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing")
    source = tmp_path / "user.cpp"
    source.write_text('#include "weft/weft.h"\n#include "weft/weft_config.h"\nauto *f = &weft_open;\n')
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror", INCLUDES[0]]
    subprocess.run(["g++", *flags, "-c", str(source), "-o", str(tmp_path / "x.o")], check=True)


def undefined_symbols(objects: list[Path]) -> set[str]:
    text = subprocess.run(["nm", "-u", *map(str, objects)], check=True, capture_output=True, text=True).stdout
    return {line.split()[1] for line in text.splitlines() if line.strip().startswith("U ")}


def test_kernels_need_nothing_but_memory_functions(tmp_path: Path) -> None:
    objects = []
    for source in SOURCES:
        objects.append(tmp_path / f"{source.stem}.o")
        flags = ["-std=c99", "-O2", "-ffreestanding", "-fno-pic", *INCLUDES]
        subprocess.run(["gcc", *flags, "-c", str(source), "-o", str(objects[-1])], check=True)
    outside = {s for s in undefined_symbols(objects) if not s.startswith("weft_")}
    assert outside <= {"memcpy", "memset", "memmove"}


def test_op_set_leaves_operators_out(tmp_path: Path) -> None:
    """A custom op set links with its own kernels only, and the others' table entries are null."""
    flags = ["-DWEFT_OP_SET_CUSTOM", "-DWEFT_WITH_CONV2D=1", "-DWEFT_WITH_LUT=1", "-Wl,-z,defs"]
    chosen = {"kernels", "conv", "lut", "view"}
    library = ctypes.CDLL(str(build_library(tmp_path, flags, [s for s in SOURCES if s.stem in chosen])))
    table = (ctypes.c_void_p * (max(Opcode) + 1)).in_dll(library, "weft_kernels")
    assert {Opcode(i) for i, entry in enumerate(table) if entry} == {Opcode.CONV2D, Opcode.LUT}


def test_op_set_is_complete_by_default(lib: ctypes.CDLL) -> None:
    table = (ctypes.c_void_p * (max(Opcode) + 1)).in_dll(lib, "weft_kernels")
    assert {Opcode(i) for i, entry in enumerate(table) if entry} == set(Opcode)


def test_error_texts(lib: ctypes.CDLL) -> None:
    texts = [lib.weft_error_name, lib.weft_error_message, lib.weft_error_remedy]
    for function in texts:
        function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_int]
    for error, (message, remedy) in ERROR_TEXT.items():
        assert [f(-error).decode() for f in texts] == [f"WEFT_ERR_{error.name}", message, remedy]
    assert texts[0](0) == b"WEFT_OK"
    for code in (1, INT32_MAX, -(2**31), -max(ERROR_TEXT) - 1):
        assert all(function(code) for function in texts)
        assert texts[0](code) == b"WEFT_ERR_?"
