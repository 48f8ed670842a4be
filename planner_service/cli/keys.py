# SPDX-License-Identifier: Apache-2.0
"""``weft keygen``, ``getpub``, ``sign``, ``verify`` and ``dumpinfo``: keys in files, signatures in plans."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import tempfile
from pathlib import Path

from planner_service import signing
from planner_service.cli import files
from planner_service.errors import Code, PlannerError
from planner_service.format import SectionId

#: Names the passphrase for scripts, where there is nobody to ask.
PASSPHRASE_VARIABLE = "WEFT_PASSPHRASE"


def run_keygen(args: argparse.Namespace) -> int:
    """A new private key in a file that only its owner can read, and its public key's id."""
    output: Path = args.output
    if output.exists() and not args.force:
        raise _exists(output)
    passphrase = _new_passphrase() if args.passphrase else None
    pem = signing.generate_key(passphrase)
    _write_secret(output, pem, replace=args.force)
    public = signing.public_key(pem, passphrase)
    body = {"key": str(output), "key_id": signing.key_id(public).hex(), "encrypted": passphrase is not None}
    text = (
        f"{output}: private key {signing.key_id(public).hex()}, keep it secret; devices get what `weft getpub` prints"
    )
    files.emit(args, body, text)
    return 0


def run_getpub(args: argparse.Namespace) -> int:
    """The public key as a device's firmware needs it."""
    public = read_public(args.key)
    text = signing.public_pem(public).decode() if args.lang == "pem" else signing.c_array(public, args.name)
    if args.output:
        files.write(args.output, text.encode())
    body = {"key_id": signing.key_id(public).hex(), "public_key": public.hex(), args.lang: text}
    files.emit(args, body, f"{args.output}: key {signing.key_id(public).hex()}" if args.output else text.rstrip("\n"))
    return 0


def run_sign(args: argparse.Namespace) -> int:
    """Sign a plan, in place unless told where."""
    plan, pem = files.read_plan(args.plan), files.read_key(args.key)
    output: Path = args.output or args.plan
    signed = signing.sign(plan, pem, passphrase(args.key, pem))
    files.write(output, signed)
    info = signing.describe(signed)
    body = {"output": str(output), "key_id": info.key_id, "digest": info.digest, "plan_version": info.plan_version}
    files.emit(args, body, f"{output}: version {info.plan_version}, signed with key {info.key_id}")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Say whether a key made a plan's signature and its bytes are intact."""
    plan, public = files.read_plan(args.plan), read_public(args.key)
    signing.verify(plan, public)
    info = signing.describe(plan)
    body = {"plan": str(args.plan), "key_id": info.key_id, "digest": info.digest, "good": True}
    files.emit(args, body, f"{args.plan}: good: every byte is what key {info.key_id} has signed")
    return 0


def run_dumpinfo(args: argparse.Namespace) -> int:
    """What header and signature say; nothing is believed or checked but the sections' hashes."""
    info = signing.describe(files.read_plan(args.plan))
    algorithm = {signing.UNSIGNED: "none", signing.ECDSA_P256: "ecdsa-p256-sha256"}.get(
        info.algorithm, f"unknown ({info.algorithm})"
    )
    sections = [
        {
            "type": SectionId(s.type).name if s.type in set(SectionId) else str(s.type),
            "offset": s.offset,
            "length": s.length,
            "sha256": s.sha256,
            "intact": s.intact,
        }
        for s in info.sections
    ]
    body = {
        "digest": info.digest,
        "format": list(info.format),
        "engine_abi": list(info.abi),
        "plan_version": info.plan_version,
        "plan_bytes": info.total_len,
        "arena_bytes": info.arena_bytes,
        "vendor_id": info.vendor_id,
        "class_id": info.class_id,
        "model_id": info.model_id,
        "signature": {"algorithm": algorithm, "key_id": info.key_id, "value": info.signature},
        "sections": sections,
    }
    lines = [f"{name.replace('_', ' '):<13} {value}" for name, value in body.items() if isinstance(value, str | int)]
    lines[1:1] = [
        f"{name:<13} {major}.{minor}" for name, (major, minor) in (("format", info.format), ("ABI", info.abi))
    ]
    signature = algorithm if info.algorithm == signing.UNSIGNED else f"{algorithm}, key {info.key_id}"
    rows = [(s["type"], s["offset"], s["length"], "yes" if s["intact"] else "NO", s["sha256"]) for s in sections]
    lines += [f"{'signature':<13} {signature}", files.table(("section", "offset", "bytes", "intact", "SHA-256"), rows)]
    files.emit(args, body, "\n".join(lines))
    return 0


def read_public(path: Path) -> bytes:
    """The public key of a file with a private or a public one."""
    pem = files.read_key(path)
    return signing.public_key(pem, passphrase(path, pem) if b"PRIVATE KEY" in pem else None)


def passphrase(path: Path, pem: bytes) -> str | None:
    """What an encrypted key needs: of the environment, or asked for on the terminal."""
    if b"ENCRYPTED" not in pem:
        return None
    known = os.environ.get(PASSPHRASE_VARIABLE)
    if known is not None:
        return known
    if not sys.stdin.isatty():
        raise _no_terminal(f"{path} is encrypted")
    return getpass.getpass(f"passphrase of {path}: ")


def _new_passphrase() -> str:
    known = os.environ.get(PASSPHRASE_VARIABLE)
    if known is None:
        if not sys.stdin.isatty():
            raise _no_terminal("--passphrase asks for one")
        known = getpass.getpass("passphrase: ")
        if getpass.getpass("again: ") != known:
            raise PlannerError(Code.BAD_REQUEST, "the two passphrases differ", hint="try again")
    if not known:
        raise PlannerError(Code.BAD_REQUEST, "the passphrase is empty", hint="leave --passphrase away for none")
    return known


def _no_terminal(why: str) -> PlannerError:
    return PlannerError(
        Code.BAD_REQUEST, f"{why}, and there is no terminal to ask on", hint=f"set {PASSPHRASE_VARIABLE}"
    )


def _exists(path: Path) -> PlannerError:
    return PlannerError(
        Code.BAD_REQUEST, f"{path} is there already; devices may trust its key", hint="--force overwrites it for good"
    )


def _write_secret(path: Path, data: bytes, *, replace: bool) -> None:
    """A file of mode 0600 from the first moment; never in the place of another unless ``replace``."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
            temporary = None
        else:
            os.link(temporary, path)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise PlannerError(Code.BAD_REQUEST, f"cannot write {path}: {error.strerror}") from error
    finally:
        if temporary is not None:
            os.unlink(temporary)
