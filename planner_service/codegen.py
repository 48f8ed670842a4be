# SPDX-License-Identifier: Apache-2.0
"""Generate the plan format's constants for C, Python and the docs from ``proto/plan.toml``.

``python -m planner_service.codegen`` writes the files, ``--check`` exits 1 if one of them is stale.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "proto" / "plan.toml"
WIDTH = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "i8": 1, "i16": 2, "i32": 4, "f32": 4}
STRUCT = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i8": "b", "i16": "h", "i32": "i", "f32": "f"}
NOTE = "Generated from proto/plan.toml by planner_service/codegen.py; do not edit."

Spec = dict[str, Any]


def _width(kind: str) -> int:
    return int(kind[5:]) if kind.startswith("bytes") else WIDTH[kind]


def _magic(spec: Spec) -> int:
    return int.from_bytes(spec["format"]["magic"].encode(), "little")


def c_format(spec: Spec) -> str:
    """The engine's private header of constants, record sizes and field offsets."""
    fmt = spec["format"]
    out = [
        "/* SPDX-License-Identifier: Apache-2.0 */",
        f"/* {NOTE} */",
        "/* clang-format off */",
        "#ifndef WEFT_FORMAT_H",
        "#define WEFT_FORMAT_H",
        "",
        f"#define WEFT_MAGIC 0x{_magic(spec):08x}u",
        f"#define WEFT_FORMAT_MAJOR {fmt['major']}u",
        f"#define WEFT_FORMAT_MINOR {fmt['minor']}u",
        f"#define WEFT_ABI_MAJOR {fmt['abi_major']}u",
        f"#define WEFT_ABI_MINOR {fmt['abi_minor']}u",
        f"#define WEFT_NONE 0x{fmt['none']:04x}u",
        f"#define WEFT_INPUT_BIT 0x{fmt['input_bit']:04x}u",
        f"#define WEFT_SIGNATURE_LEN {fmt['signature_len']}u",
        "",
    ]
    for item in spec["section"]:
        out.append(f"#define WEFT_SECTION_{item['name']} {item['id']}u")
    out.append("")
    for item in spec["opcode"]:
        out.append(f"#define WEFT_OP_{item['name']} {item['id']}u")
    out.append(f"#define WEFT_OPCODE_MAX {max(i['id'] for i in spec['opcode'])}u")
    out += ["", "/* X(name, id) for every opcode. */", "#define WEFT_OPCODE_LIST(X) \\"]
    out.append(" \\\n".join(f"    X({i['name']}, {i['id']})" for i in spec["opcode"]))
    out.append("")
    for item in spec["flag"]:
        out.append(f"#define WEFT_{item['group']}_{item['name']} {item['value']}u")
    for record in spec["record"]:
        out.append("")
        at = 0
        for name, kind, _ in record["fields"]:
            out.append(f"#define WEFT_{record['name']}_{name.upper()} {at}u")
            at += _width(kind)
        out.append(f"#define WEFT_{record['name']}_SIZE {at}u")
    out += ["", "#endif", ""]
    return "\n".join(out)


def c_errors(spec: Spec) -> str:
    """The public error enumeration and its X-macro."""
    rows = " \\\n".join(
        f'    X({e["name"]}, {e["id"]}, "{e["message"]}", \\\n      "{e["remedy"]}")' for e in spec["error"]
    )
    enum = "\n".join(f"    /** {e['message']} */\n    WEFT_ERR_{e['name']} = -{e['id']}," for e in spec["error"])
    states = "\n".join(f"    /** {s['doc']} */\n    WEFT_SLOT_{s['name']} = {s['id']}," for s in spec["slot_state"])
    return f"""/* SPDX-License-Identifier: Apache-2.0 */
/* {NOTE} */
/* clang-format off */
#ifndef WEFT_ERRORS_H
#define WEFT_ERRORS_H

/** X(name, positive code, message, remedy) for every error. */
#define WEFT_ERROR_LIST(X) \\
{rows}

/** Results of the engine's functions: zero or a negative error. */
enum {{
    WEFT_OK = 0,
{enum}
}};

/** Update: states of the slot that is not active. */
enum {{
{states}
}};

#endif
"""


def py_format(spec: Spec) -> str:
    """The planner's module of the same constants, with pack and unpack for every record."""
    fmt = spec["format"]
    out = [
        "# SPDX-License-Identifier: Apache-2.0",
        f'"""Constants and records of the plan format. {NOTE}"""',
        "",
        "from __future__ import annotations",
        "",
        "import struct",
        "from dataclasses import dataclass",
        "from enum import IntEnum, IntFlag",
        "from typing import ClassVar",
        "",
        f"MAGIC = 0x{_magic(spec):08X}",
        f"FORMAT_MAJOR = {fmt['major']}",
        f"FORMAT_MINOR = {fmt['minor']}",
        f"ABI_MAJOR = {fmt['abi_major']}",
        f"ABI_MINOR = {fmt['abi_minor']}",
        f"NONE = 0x{fmt['none']:04X}",
        f"INPUT_BIT = 0x{fmt['input_bit']:04X}",
        f"SIGNATURE_LEN = {fmt['signature_len']}",
        "",
        "",
        "class SectionId(IntEnum):",
        '    """Section types."""',
        "",
    ]
    out += [f"    {s['name']} = {s['id']}" for s in spec["section"]]
    out += ["", "", "CRITICAL_SECTIONS = frozenset(", "    {"]
    out += [f"        SectionId.{s['name']}," for s in spec["section"] if s["critical"]]
    out += ["    }", ")", "", "", "class Opcode(IntEnum):", '    """Operators of the engine."""', ""]
    out += [f"    {o['name']} = {o['id']}" for o in spec["opcode"]]
    bases = {"TENSOR": "IntFlag", "OP": "IntFlag", "POLICY": "IntEnum", "ENTRY": "IntFlag", "DTYPE": "IntEnum"}
    names = {"TENSOR": "TensorFlag", "OP": "OpFlag", "POLICY": "Policy", "ENTRY": "EntryFlag", "DTYPE": "DType"}
    for group, base in bases.items():
        out += ["", "", f"class {names[group]}({base}):", f'    """{group} values."""', ""]
        out += [f"    {f['name']} = {f['value']}" for f in spec["flag"] if f["group"] == group]
    out += ["", "", "class SlotState(IntEnum):", '    """States of the slot that is not active."""', ""]
    out += [f"    {s['name']} = {s['id']}" for s in spec["slot_state"]]
    out += ["", "", "class EngineError(IntEnum):", '    """Error codes of the engine (positive)."""', ""]
    out += [f"    {e['name']} = {e['id']}" for e in spec["error"]]
    out += ["", "", "ERROR_TEXT: dict[EngineError, tuple[str, str]] = {"]
    for e in spec["error"]:
        out += [
            f"    EngineError.{e['name']}: (",
            f"        {quoted(e['message'])},",
            f"        {quoted(e['remedy'])},",
            "    ),",
        ]
    out.append("}")
    for record in spec["record"]:
        cls = record["name"].capitalize() + "Record"
        code = "<" + "".join(f"{_width(k)}s" if k.startswith("bytes") else STRUCT[k] for _, k, _ in record["fields"])
        out += [
            "",
            "",
            "@dataclass(frozen=True, slots=True, kw_only=True)",
            f"class {cls}:",
            f'    """Record {record["name"]}; fields in docs/plan-format.md."""',
            "",
            f'    LAYOUT: ClassVar[struct.Struct] = struct.Struct("{code}")',
            f"    SIZE: ClassVar[int] = {sum(_width(k) for _, k, _ in record['fields'])}",
            "",
        ]
        for name, kind, _ in record["fields"]:
            hint = "bytes" if kind.startswith("bytes") else "float" if kind == "f32" else "int"
            if name.startswith("reserved"):
                out.append(f"    {name}: int = 0")
            elif kind.startswith("bytes"):
                out.append(f"    {name}: bytes = bytes({_width(kind)})")
            else:
                out.append(f"    {name}: {hint}")
        out += [
            "",
            "    def pack(self) -> bytes:",
            '        """The record\'s bytes; struct.error if a value does not fit its field."""',
            "        return self.LAYOUT.pack(",
        ]
        out += [f"            self.{n}," for n, _, _ in record["fields"]]
        out += [
            "        )",
            "",
            "    @classmethod",
            f"    def unpack(cls, data: bytes, offset: int = 0) -> {cls}:",
            '        """Read the record at ``offset``; struct.error if the bytes end before it does."""',
            "        values = cls.LAYOUT.unpack_from(data, offset)",
            "        return cls(",
        ]
        out += [f"            {n}=values[{i}]," for i, (n, _, _) in enumerate(record["fields"])]
        out += ["        )"]
    out.append("")
    return "\n".join(out)


def quoted(text: str) -> str:
    """A double-quoted Python literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def md_tables(spec: Spec) -> str:
    """The tables of docs/plan-format.md that follow from the source."""
    out = [f"<!-- {NOTE} -->", "# Tables of the plan format", "", "## Records", ""]
    for record in spec["record"]:
        out += [
            f"### {record['name']}",
            "",
            record["doc"],
            "",
            "| offset | field | type | meaning |",
            "|---|---|---|---|",
        ]
        at = 0
        for name, kind, doc in record["fields"]:
            out.append(f"| {at} | `{name}` | {kind} | {doc} |")
            at += _width(kind)
        out += [f"| {at} | | | end |", ""]
    out += ["## Sections", "", "| id | name | critical | holds |", "|---|---|---|---|"]
    out += [f"| {s['id']} | `{s['name']}` | {'yes' if s['critical'] else 'no'} | {s['doc']} |" for s in spec["section"]]
    out += ["", "## Opcodes", "", "| id | name | meaning |", "|---|---|---|"]
    out += [f"| {o['id']} | `{o['name']}` | {o['doc']} |" for o in spec["opcode"]]
    out += ["", "## Flags and enumerations", "", "| group | name | value | meaning |", "|---|---|---|---|"]
    out += [f"| {f['group']} | `{f['name']}` | {f['value']} | {f['doc']} |" for f in spec["flag"]]
    out += ["", "## Slot states", "", "| value | name | meaning |", "|---|---|---|"]
    out += [f"| {s['id']} | `WEFT_SLOT_{s['name']}` | {s['doc']} |" for s in spec["slot_state"]]
    out += ["", "## Errors", "", "| code | name | message | what to do |", "|---|---|---|---|"]
    out += [f"| -{e['id']} | `WEFT_ERR_{e['name']}` | {e['message']} | {e['remedy']} |" for e in spec["error"]]
    out.append("")
    return "\n".join(out)


def generate() -> dict[Path, str]:
    """Every generated file with its text."""
    spec = tomllib.loads(SOURCE.read_text())
    return {
        ROOT / "module" / "src" / "weft_format.h": c_format(spec),
        ROOT / "module" / "include" / "weft" / "weft_errors.h": c_errors(spec),
        ROOT / "planner_service" / "format.py": py_format(spec),
        ROOT / "docs" / "tables.md": md_tables(spec),
    }


def main(argv: list[str] | None = None) -> int:
    """Write the generated files, or with ``--check`` say which are stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(argv).check
    stale = [p for p, text in generate().items() if not p.exists() or p.read_text() != text]
    for path in stale:
        if check:
            print(f"stale: {path.relative_to(ROOT)} (run `python -m planner_service.codegen`)", file=sys.stderr)
        else:
            path.write_text(generate()[path])
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
