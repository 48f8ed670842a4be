# SPDX-License-Identifier: Apache-2.0
"""Public keys as rows of a C array: ``public_key.py OUT [FILE ...]``.

A file is PEM (``BEGIN PUBLIC KEY``, P-256), C source with the 65 bytes of the point, or those bytes themselves. It
needs what builds Zephyr, nothing more."""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path

#: SubjectPublicKeyInfo of a P-256 key, up to the point (RFC 5480).
DER_PREFIX = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")
POINT_LEN = 65
UNCOMPRESSED = 4


def point(data: bytes) -> bytes | None:
    """The key's uncompressed point, 65 bytes, or None if there is none."""
    found = data
    if b"-----BEGIN PUBLIC KEY-----" in data:
        body = data.partition(b"-----BEGIN PUBLIC KEY-----")[2].partition(b"-----END")[0]
        der = base64.b64decode(body)
        found = der[len(DER_PREFIX) :] if der.startswith(DER_PREFIX) else b""
    elif len(data) != POINT_LEN:
        found = bytes(int(byte, 16) for byte in re.findall(rb"\b0x([0-9a-fA-F]{2})\b", data))
    return found if len(found) == POINT_LEN and found[0] == UNCOMPRESSED else None


def main() -> int:
    output, *files = (Path(text) for text in sys.argv[1:])
    rows = []
    for file in files:
        if not file.exists():
            sys.exit(f"no public key at {file}: `weft getpub` writes one")
        found = point(file.read_bytes())
        if found is None:
            sys.exit(f"{file} is no P-256 public key: `weft getpub` writes one")
        rows.append("\t{" + ", ".join(f"0x{byte:02x}" for byte in found) + "},\n")
    text = "".join(rows)
    if not output.exists() or output.read_text() != text:
        output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
