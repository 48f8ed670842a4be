# SPDX-License-Identifier: Apache-2.0
"""Keys, signatures and what they refuse (planner_service/signing.py)."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from planner_service import signing
from planner_service.errors import Code, PlannerError
from planner_service.format import HeaderRecord, SignatureRecord
from tests.update import plans as made


@pytest.fixture(scope="module")
def plans() -> made.Plans:
    return made.make()


@pytest.fixture(scope="module")
def public(plans: made.Plans) -> bytes:
    return signing.public_key(plans.key)


def test_signed_plan_verifies(plans: made.Plans, public: bytes) -> None:
    signing.verify(plans.old, public)
    info = signing.describe(plans.old)
    assert info.algorithm == signing.ECDSA_P256
    assert info.key_id == hashlib.sha256(public).digest()[:4].hex() == signing.key_id(public).hex()
    assert info.plan_version == 2
    assert info.vendor_id == made.VENDOR.hex()
    assert all(s.intact for s in info.sections)
    assert info.digest == hashlib.sha256(plans.old[: HeaderRecord.unpack(plans.old).header_len]).hexdigest()


def test_signing_changes_the_signature_record_only_and_repeats(plans: made.Plans) -> None:
    unsigned = made.seal(plans.old, None)
    at = HeaderRecord.unpack(plans.old).header_len
    assert signing.sign(unsigned, plans.key) == signing.sign(plans.old, plans.key) == plans.old
    assert (unsigned[:at], unsigned[at + SignatureRecord.SIZE :]) == (plans.old[:at], plans.old[at + 72 :])


def _flip(at: int) -> Callable[[bytes], bytes]:
    def edit(plan: bytes) -> bytes:
        data = bytearray(plan)
        data[at] ^= 1
        return bytes(data)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: made.seal(p, None), "not signed"),
        (lambda p: signing.sign(p, signing.generate_key()), "signed with key"),
        (_flip(60), "does not match"),
        (_flip(-1), "padding"),
        (_flip(-5), "bytes that the header declares"),
        (lambda p: made.resize(p, made.make().key, len(p) + 8) + bytes(8), "behind the last section"),
        (lambda p: p[:-1], "declares"),
        (lambda p: p[:100], "shorter"),
        (_flip(0), "not a plan"),
        (lambda p: b"", "shorter"),
    ],
    ids=[
        "unsigned",
        "other key",
        "header",
        "padding",
        "section",
        "longer",
        "cut",
        "cut in the header",
        "magic",
        "empty",
    ],
)
def test_changed_plans_do_not_verify(
    plans: made.Plans, public: bytes, edit: Callable[[bytes], bytes], message: str
) -> None:
    with pytest.raises(PlannerError, match=message) as caught:
        signing.verify(edit(plans.old), public)
    assert caught.value.code is Code.BAD_PLAN
    assert caught.value.hint
    if message == "signed with key":
        assert "WEFT_ERR_KEY" in caught.value.hint, "as devices answer"


def test_damaged_plan_is_not_signed(plans: made.Plans) -> None:
    for at, message in ((-5, "bytes"), (-1, "padding")):
        with pytest.raises(PlannerError, match=message):
            signing.sign(_flip(at)(plans.old), plans.key)


def test_keys_with_passphrase_and_public_keys_in_pem(plans: made.Plans) -> None:
    pem = signing.generate_key("open sesame")
    public = signing.public_key(pem, "open sesame")
    assert len(public) == signing.PUBLIC_KEY_LEN
    signing.verify(signing.sign(plans.old, pem, "open sesame"), public)
    for wrong in (None, "wrong"):
        with pytest.raises(PlannerError, match="passphrase"):
            signing.sign(plans.old, pem, wrong)
    with pytest.raises(PlannerError, match="public key, which signs nothing"):
        signing.sign(plans.old, signing.public_pem(public))
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    assert signing.public_key(point.public_bytes(encoding, form)) == public


def _pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"no key at all",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        _pem(ec.generate_private_key(ec.SECP384R1())),
        _pem(ed25519.Ed25519PrivateKey.generate()),
    ],
    ids=["empty", "text", "garbage", "P-384", "Ed25519"],
)
def test_other_keys_are_refused(plans: made.Plans, pem: bytes) -> None:
    for use in (lambda: signing.sign(plans.old, pem), lambda: signing.public_key(pem)):
        with pytest.raises(PlannerError) as caught:
            use()
        assert caught.value.code is Code.BAD_REQUEST


def test_public_key_as_c_source(public: bytes, tmp_path: Path) -> None:
    source = tmp_path / "key.c"
    text = signing.c_array(public, "device_key")
    source.write_text(text + "#include <stdio.h>\nint main(void) { return fwrite(device_key, 1, 65, stdout) != 65; }\n")
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", str(tmp_path / "key"), str(source)], check=True)
    assert subprocess.run([str(tmp_path / "key")], capture_output=True, check=True).stdout == public
