# SPDX-License-Identifier: Apache-2.0
"""Plan slots as a Zephyr build has them: nodes labelled ``weft_plan_a`` and ``weft_plan_b`` in the build's merged
devicetree, and the few Kconfig values that matter beside it.

The source is ``zephyr/zephyr.dts``. ``edt.pickle`` holds the same, but unpickling runs code that the file names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from planner_service.errors import Code, PlannerError

#: A merged devicetree has some 100 KiB.
MAX_BYTES = 16 << 20
#: Devicetree Specification 0.4, 2.3.5: what holds where a node does not say.
_ADDRESS_CELLS, _SIZE_CELLS = 2, 1
#: Flash of the chip that the processor reads in place.
_MAPPED_FLASH = "soc-nv-flash"

_TOKEN = re.compile(
    r"""(?P<skip>\s+|/\*.*?\*/|//[^\n]*)
    |(?P<string>"(?:[^"\\]|\\.)*")
    |(?P<cells><[^>]*>)
    |(?P<bytes>\[[^\]]*\])
    |(?P<mark>[{};=:])
    |(?P<comma>,(?![\w?#+]))
    |(?P<ref>&\{[^}]*\}|&[A-Za-z_]\w*)
    |(?P<word>/[\w-]+/|/|[\w,.+*?#@-]+)""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|0|[1-9]\d*")


@dataclass(slots=True, eq=False)
class Node:
    """A node: ``cells`` are its properties of 32-bit cells (a phandle by label is left out), ``strings`` those of
    strings; a property without value is in ``flags``."""

    name: str
    parent: Node | None = None
    labels: list[str] = field(default_factory=list)
    cells: dict[str, list[int]] = field(default_factory=dict)
    strings: dict[str, list[str]] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    children: list[Node] = field(default_factory=list)

    def cell(self, name: str, default: int) -> int:
        """The first cell of a property."""
        return (self.cells.get(name) or [default])[0]

    def regs(self) -> list[tuple[int, int]]:
        """(address, size) pairs of ``reg``, as the parent's cell counts have it."""
        if self.parent is None:
            return []
        a, s = self.parent.cell("#address-cells", _ADDRESS_CELLS), self.parent.cell("#size-cells", _SIZE_CELLS)
        cells, step = self.cells.get("reg", []), a + s
        starts = range(0, len(cells) - step + 1, step) if step else ()
        return [(_join(cells[i : i + a]), _join(cells[i + a : i + step])) for i in starts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition in flash that the processor reads in place: absolute address, bytes, and the flash's erase and write
    units where the devicetree has them. ``device`` is the flash's name and ``others`` the partitions beside it."""

    label: str
    address: int
    nbytes: int
    erase_bytes: int | None
    write_bytes: int | None
    device: str
    others: tuple[tuple[str, int, int], ...]


def parse(text: str, origin: str) -> Node:
    """The root of a merged devicetree source (no includes, no references to nodes from outside). PlannerError
    (BAD_REQUEST) with the line that is not understood."""

    def bad(at: int, what: str) -> PlannerError:
        line = text.count("\n", 0, at) + 1
        return PlannerError(
            Code.BAD_REQUEST, f"{origin}, line {line}: {what}", hint="is it the zephyr.dts that a build wrote?"
        )

    root: Node | None = None
    node: Node | None = None
    labels: list[str] = []
    word, values, assigned, at = "", [], False, 0  # type: str, list[tuple[str, str]], bool, int
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise bad(at, f"{text[at]!r} is unexpected")
        kind, token, start, at = match.lastgroup, match[0], at, match.end()
        if kind in ("skip", "comma"):
            continue
        if token == ":" and kind == "mark":
            labels.append(word)
            word = ""
        elif token == "{":
            new = Node(word, node, labels)
            if node is not None:
                node.children.append(new)
            elif word == "/" and root is None:
                root = new
            else:
                raise bad(start, f"a node {word!r} at the top")
            node, word, labels = new, "", []
        elif token == "=":
            assigned = True
        elif token == "}":
            if node is None:
                raise bad(start, "'}' without '{'")
            node, word = node.parent, ""
        elif token == ";":
            if node is not None and word:
                _assign(node, word, values)
            word, values, assigned, labels = "", [], False, []
        elif assigned:
            if kind not in ("string", "cells", "bytes", "ref", "word"):
                raise bad(start, f"{token!r} is unexpected")
            values.append((kind, token))
        elif kind == "word":
            word = token
        else:
            raise bad(start, f"{token!r} is unexpected")
    if root is None or node is not None:
        raise bad(len(text), "ends within a node" if node else "there is no root node")
    return root


def _assign(node: Node, name: str, values: Sequence[tuple[str, str]]) -> None:
    if not values:
        node.flags.add(name)
        return
    for kind, token in values:
        if kind == "cells":
            numbers = [int(n, 0) for n in _COMMENT.sub(" ", token[1:-1]).split() if _NUMBER.fullmatch(n)]
            node.cells.setdefault(name, []).extend(numbers)
        elif kind == "string":
            node.strings.setdefault(name, []).append(token[1:-1])


def partition(root: Node, label: str, origin: str) -> Partition:
    """The partition with a node label. PlannerError: NOT_FOUND without one, BAD_REQUEST if it is not in flash that the
    processor reads in place, or has no address and size."""
    found = next((n for n in _walk(root) if label in n.labels), None)
    if found is None:
        raise PlannerError(
            Code.NOT_FOUND,
            f"{origin} has no node labelled {label}",
            hint=f"add `{label}: partition@...` to the flash's partitions in the board's overlay and build again",
        )
    if not found.regs():
        raise PlannerError(Code.BAD_REQUEST, f"{origin}: {label} has no `reg` with an address and a size")
    device = found.parent
    while device is not None and _MAPPED_FLASH not in device.strings.get("compatible", ()):
        device = device.parent
    if device is None or not device.regs():
        kinds = [c for n in _ancestors(found) for c in n.strings.get("compatible", ()) if "partitions" not in c]
        raise PlannerError(
            Code.BAD_REQUEST,
            f"{origin}: {label} is not in flash that the processor reads in place, but in {kinds[0] if kinds else '?'}",
            hint=f"a debug probe can write partitions of {_MAPPED_FLASH!r} only; send the plan to the running board",
        )
    base = _translate(device)
    others = tuple(
        ((n.strings.get("label") or n.labels or [n.name])[0], base + _offset(n, device), n.regs()[0][1])
        for n in _walk(device)
        if n is not device and n.regs() and n is not found and n not in _ancestors(found) and found not in _ancestors(n)
    )
    return Partition(
        label=label,
        address=base + _offset(found, device),
        nbytes=found.regs()[0][1],
        erase_bytes=device.cell("erase-block-size", 0) or None,
        write_bytes=device.cell("write-block-size", 0) or None,
        device=(device.labels or [device.name])[0],
        others=others,
    )


def _offset(node: Node, device: Node) -> int:
    """Bytes from the start of ``device``. Zephyr gives subpartitions relative to the partition they divide."""
    inside = [node, *(n for n in _ancestors(node) if n is not device and device in _ancestors(n))]
    return sum(n.regs()[0][0] for n in inside if n.regs())


def _translate(device: Node) -> int:
    """The address of a memory node on the processor's bus. Without ``ranges`` Zephyr's addresses are absolute already:
    flash lies below its controller, whose own address space is not meant."""
    address = device.regs()[0][0]
    for bus in _ancestors(device):
        ranges = bus.cells.get("ranges")
        if ranges is None:
            continue
        child = bus.cell("#address-cells", _ADDRESS_CELLS)
        up = bus.parent.cell("#address-cells", _ADDRESS_CELLS) if bus.parent is not None else child
        size = bus.cell("#size-cells", _SIZE_CELLS)
        step = child + up + size
        for i in range(0, len(ranges) - step + 1, max(step, 1)):
            start, to = _join(ranges[i : i + child]), _join(ranges[i + child : i + child + up])
            if start <= address < start + _join(ranges[i + child + up : i + step]):
                address += to - start
                break
    return address


def _join(cells: Sequence[int]) -> int:
    value = 0
    for cell in cells:
        value = value << 32 | cell
    return value


def _walk(node: Node) -> list[Node]:
    found = [node]
    for one in found:
        found.extend(one.children)
    return found


def _ancestors(node: Node) -> list[Node]:
    found: list[Node] = []
    up = node.parent
    while up is not None:
        found.append(up)
        up = up.parent
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What a Zephyr build directory says: its devicetree, and Kconfig values by name as they are in ``.config``."""

    origin: str
    root: Node
    config: Mapping[str, str]

    def partition(self, label: str) -> Partition:
        """As ``partition``."""
        return partition(self.root, label, self.origin)


def load(folder: Path) -> Build:
    """Read a build directory of west, also of sysbuild (its default domain). PlannerError: NOT_FOUND without a
    devicetree, as ``parse`` otherwise."""
    application = folder
    if not (folder / "zephyr" / "zephyr.dts").is_file():
        default = re.search(r"^default:\s*[\"']?([\w.-]+)", _text(folder / "domains.yaml") or "", re.MULTILINE)
        if default:
            application = folder / default[1]
    path = application / "zephyr" / "zephyr.dts"
    text = _text(path)
    if text is None:
        raise PlannerError(
            Code.NOT_FOUND,
            f"{folder} has no zephyr/zephyr.dts",
            hint="give the directory that `west build -d` wrote, after a build",
        )
    config = {}
    for line in (_text(application / "zephyr" / ".config") or "").splitlines():
        name, found, value = line.partition("=")
        if found and name.startswith("CONFIG_"):
            config[name] = value.strip().strip('"')
    return Build(origin=str(path), root=parse(text, str(path)), config=config)


def _text(path: Path) -> str | None:
    """A text file; None if there is none. PlannerError(TOO_LARGE) if it cannot be what is looked for."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PlannerError(Code.TOO_LARGE, f"{path} has over {MAX_BYTES} bytes")
        return path.read_text(errors="replace")
    except OSError:
        return None
