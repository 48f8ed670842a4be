# SPDX-License-Identifier: Apache-2.0
"""Keys and signatures of plans: ECDSA P-256 over SHA-256 of header and section table, as docs/plan-format.md has it.

Pure functions over bytes. Private keys are PKCS #8 in PEM, public keys the 65 bytes of the uncompressed X9.62 point
that a device holds. Signing is deterministic (RFC 6979): same plan, same key, same bytes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from planner_service.errors import Code, PlannerError
from planner_service.format import MAGIC, SIGNATURE_LEN, HeaderRecord, SectionId, SectionRecord, SignatureRecord

UNSIGNED, ECDSA_P256 = 0, 1  #: SIGNATURE.algorithm
_NOT_A_PLAN = "give a file made by `weft plan`"
PUBLIC_KEY_LEN = 65
_VALUE_LEN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A row of the section table; ``intact``: the bytes have the declared SHA-256."""

    type: int
    offset: int
    length: int
    sha256: str
    intact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What a plan's header and signature say. ``digest``: SHA-256 of header and section table, what is signed and what
    devices show (its first 16 bytes)."""

    digest: str
    format: tuple[int, int]
    abi: tuple[int, int]
    plan_version: int
    total_len: int
    arena_bytes: int
    vendor_id: str
    class_id: str
    model_id: str
    algorithm: int
    key_id: str
    signature: str
    sections: tuple[Section, ...]


def generate_key(passphrase: str | None = None) -> bytes:
    """A new private key as PEM, encrypted if there is a passphrase."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def public_key(pem: bytes, passphrase: str | None = None) -> bytes:
    """The 65 bytes of the public key that belongs to ``pem``, a private key or a public one.

    PlannerError(BAD_REQUEST): not a P-256 key, or the wrong passphrase."""
    if b"PRIVATE KEY" in pem:
        return _point(_private(pem, passphrase).public_key())
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _bad_key("this is no PEM key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _bad_key("the key is not on the curve P-256")
    return _point(key)


def public_pem(public: bytes) -> bytes:
    """A public key as PEM. PlannerError(BAD_REQUEST): not a point of P-256."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
    except ValueError as error:
        raise _bad_key("the public key is not a point of P-256") from error
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_id(public: bytes) -> bytes:
    """The first four bytes of SHA-256 of a public key, as SIGNATURE.key_id holds them."""
    return hashlib.sha256(public).digest()[:4]


def c_array(public: bytes, name: str = "weft_key") -> str:
    """C source that defines the public key, for a firmware's key slot; PlannerError(BAD_REQUEST) for the name."""
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise PlannerError(Code.BAD_REQUEST, f"{name!r} is no C identifier", hint="give another name")
    rows = [", ".join(f"0x{b:02x}" for b in public[at : at + 13]) for at in range(0, len(public), 13)]
    body = ",\n    ".join(rows)
    return f"#include <stdint.h>\n\nconst uint8_t {name}[{len(public)}] = {{\n    {body},\n}};\n"


def sign(plan: bytes, pem: bytes, passphrase: str | None = None) -> bytes:
    """The plan with its signature record filled in; an existing signature is replaced.

    PlannerError: BAD_PLAN if the bytes are no plan or a section is damaged, BAD_REQUEST for the key."""
    damage = _damage(plan, describe(plan))
    if damage:
        raise _bad_plan(damage, "get the file again, or make the plan anew")
    return sign_header(plan, pem, passphrase)


def sign_header(plan: bytes, pem: bytes, passphrase: str | None = None) -> bytes:
    """As ``sign``, but only the header's own length is believed: for tests, and for tools that sign a header alone."""
    private = _private(pem, passphrase)
    end = HeaderRecord.unpack(plan).header_len
    r, s = utils.decode_dss_signature(private.sign(plan[:end], ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    record = SignatureRecord(
        algorithm=ECDSA_P256,
        key_id=int.from_bytes(key_id(_point(private.public_key())), "little"),
        value=r.to_bytes(_VALUE_LEN // 2, "big") + s.to_bytes(_VALUE_LEN // 2, "big"),
    )
    return plan[:end] + record.pack() + plan[end + SIGNATURE_LEN :]


def unsign(plan: bytes) -> bytes:
    """The plan without its signature, as the planner made it. PlannerError(BAD_PLAN): no plan."""
    return with_signature(plan, SignatureRecord(algorithm=UNSIGNED, key_id=0).pack())


def signature(plan: bytes) -> bytes:
    """The plan's signature record. PlannerError(BAD_PLAN): no plan."""
    end = _header_len(plan)
    return plan[end : end + SIGNATURE_LEN]


def with_signature(plan: bytes, record: bytes) -> bytes:
    """The plan with another signature record of 72 bytes. PlannerError(BAD_PLAN): no plan."""
    end = _header_len(plan)
    return plan[:end] + record + plan[end + SIGNATURE_LEN :]


def verify(plan: bytes, public: bytes) -> None:
    """PlannerError(BAD_PLAN) unless ``public`` made the plan's signature and every section is intact."""
    info = describe(plan)
    end = _header_len(plan)
    record = SignatureRecord.unpack(plan, end)
    if record.algorithm == UNSIGNED:
        raise _bad_plan("the plan is not signed", "sign it with `weft sign`")
    if record.algorithm != ECDSA_P256 or record.reserved or record.reserved2:
        raise _bad_plan(f"the signature's algorithm {record.algorithm} is unknown", "sign it with `weft sign`")
    if record.key_id != int.from_bytes(key_id(public), "little"):
        raise _bad_plan(
            f"the plan is signed with key {info.key_id}, not with {key_id(public).hex()}",
            "sign it with the key that the device holds; it refuses this signature with WEFT_ERR_KEY",
        )
    half = _VALUE_LEN // 2
    r, s = int.from_bytes(record.value[:half], "big"), int.from_bytes(record.value[half:], "big")
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
        key.verify(utils.encode_dss_signature(r, s), plan[:end], ec.ECDSA(hashes.SHA256()))
    except ValueError as error:
        raise _bad_key("the public key is not a point of P-256") from error
    except InvalidSignature as error:
        raise _bad_plan(
            "the signature does not match", "the header was changed after it was signed: sign it again"
        ) from error
    damage = _damage(plan, info)
    if damage:
        raise _bad_plan(damage, "get the file again")


def describe(plan: bytes) -> Info:
    """What the header and the signature record say; nothing is believed. PlannerError(BAD_PLAN): no plan."""
    end = _header_len(plan)
    header = HeaderRecord.unpack(plan)
    signature = SignatureRecord.unpack(plan, end)
    sections = []
    for number in range(header.section_count):
        row = SectionRecord.unpack(plan, HeaderRecord.SIZE + number * SectionRecord.SIZE)
        data = plan[row.offset : row.offset + row.length]
        intact = len(data) == row.length and hashlib.sha256(data).digest() == row.sha256
        sections.append(
            Section(type=row.type, offset=row.offset, length=row.length, sha256=row.sha256.hex(), intact=intact)
        )
    return Info(
        digest=hashlib.sha256(plan[:end]).hexdigest(),
        format=(header.format_major, header.format_minor),
        abi=(header.abi_major, header.abi_minor),
        plan_version=header.plan_version,
        total_len=header.total_len,
        arena_bytes=header.arena_bytes,
        vendor_id=header.vendor_id.hex(),
        class_id=header.class_id.hex(),
        model_id=header.model_id.hex(),
        algorithm=signature.algorithm,
        key_id=signature.key_id.to_bytes(4, "little").hex(),
        signature=signature.value.hex(),
        sections=tuple(sections),
    )


def check_intact(plan: bytes) -> None:
    """PlannerError(BAD_PLAN) unless the bytes are a plan and every section is as the header declares it; signed or
    not."""
    damage = _damage(plan, describe(plan))
    if damage:
        raise _bad_plan(damage, "get the file again")


def head_len(plan: bytes) -> int:
    """Bytes of header, section table and signature: what an update sends first. PlannerError(BAD_PLAN): no plan."""
    return _header_len(plan) + SIGNATURE_LEN


def _header_len(plan: bytes) -> int:
    """Bytes that are signed, bounds checked."""
    if len(plan) < HeaderRecord.SIZE:
        raise _bad_plan("these bytes are shorter than a plan's header", _NOT_A_PLAN)
    header = HeaderRecord.unpack(plan)
    if header.magic != MAGIC:
        raise _bad_plan("these bytes are not a plan", _NOT_A_PLAN)
    expected = HeaderRecord.SIZE + header.section_count * SectionRecord.SIZE
    if header.header_len != expected or header.total_len != len(plan) or expected + SIGNATURE_LEN > len(plan):
        raise _bad_plan(
            f"the plan declares {header.total_len} bytes and the file has {len(plan)}"
            if header.total_len != len(plan)
            else f"the header declares a length of {header.header_len} bytes, which its section table does not take",
            "get the file again: it is cut short or damaged",
        )
    return expected


def _damage(plan: bytes, info: Info) -> str:
    """What of the bytes behind the signature is not as devices demand it; "" if all is well."""
    at = head_len(plan)
    for section in info.sections:
        name = SectionId(section.type).name if section.type in set(SectionId) else section.type
        if section.offset != at:
            return f"section {name} does not follow the one before it"
        if not section.intact:
            return f"section {name} does not have the bytes that the header declares"
        end = section.offset + section.length
        at = -(-end // 8) * 8
        if any(plan[end:at]):
            return f"the padding behind section {name} is not zero"
    return "" if at == len(plan) else "there are bytes behind the last section"


def _private(pem: bytes, passphrase: str | None) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, passphrase.encode() if passphrase is not None else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if b"ENCRYPTED" in pem:
            raise _bad_key("the key's passphrase is another, or the key is damaged", "give its passphrase") from error
        if b"PUBLIC KEY" in pem:
            raise _bad_key("this is a public key, which signs nothing", "give the private key") from error
        raise _bad_key("this is no PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _bad_key("the key is not on the curve P-256")
    return key


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


def _bad_key(message: str, hint: str = "make one with `weft keygen`") -> PlannerError:
    return PlannerError(Code.BAD_REQUEST, message, hint=hint)


def _bad_plan(message: str, hint: str) -> PlannerError:
    return PlannerError(Code.BAD_PLAN, message, hint=hint)
