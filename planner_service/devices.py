# SPDX-License-Identifier: Apache-2.0
"""Devices that plans are made for and brought to, as the daemon's store keeps them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Self

from planner_service import signing, targets
from planner_service.errors import Code, PlannerError, Violation
from planner_service.transport import parse
from planner_service.transport.deploy import Goal

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ID_LEN = 16


def check_name(name: str) -> str:
    """``name`` itself if it is one; PlannerError(BAD_REQUEST) otherwise. What keeps names inside the store."""
    if not _NAME.fullmatch(name):
        raise PlannerError(
            Code.BAD_REQUEST,
            f"{name!r} is no name of a device",
            hint="1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit",
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """``address``: as ``transport.parse`` takes it; ``target``: a board's name; ``public_key``: 65 bytes of the key
    whose plans it takes, or none; ids: 16 bytes that its plans must name, or none."""

    name: str
    address: str
    target: str
    public_key: bytes = b""
    vendor_id: bytes = b""
    class_id: bytes = b""

    def check(self) -> None:
        """PlannerError: BAD_REQUEST with every field that is wrong, NOT_FOUND for the target."""
        found: list[Violation] = []
        for field, test in (("name", lambda: check_name(self.name)), ("address", lambda: parse(self.address))):
            try:
                test()
            except PlannerError as error:
                found.append(Violation(field, error.message, error.hint))
        if self.public_key:
            try:
                signing.public_pem(self.public_key)
            except PlannerError as error:
                found.append(Violation("public_key", error.message, error.hint))
        for field in ("vendor_id", "class_id"):
            if len(getattr(self, field)) not in (0, _ID_LEN):
                found.append(Violation(field, f"has neither 0 nor {_ID_LEN} bytes"))
        if found:
            raise PlannerError(Code.BAD_REQUEST, "the device is not valid", violations=found)
        targets.load(self.target)

    def to_json(self) -> dict[str, Any]:
        """As the command line prints it and the store keeps it: bytes in hex."""
        return {
            "name": self.name,
            "address": self.address,
            "target": self.target,
            "public_key": self.public_key.hex(),
            "vendor_id": self.vendor_id.hex(),
            "class_id": self.class_id.hex(),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """The reverse of ``to_json``."""
        binary = {name: bytes.fromhex(record[name]) for name in ("public_key", "vendor_id", "class_id")}
        return cls(name=record["name"], address=record["address"], target=record["target"], **binary)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A stored plan for a registered device. ``plan_sha256``: of the plan as the daemon made it; ``signature``: the
    record of 72 bytes that takes the place of the stored plan's, or none; seconds: None for the default."""

    plan_sha256: str
    device: str
    signature: bytes = b""
    goal: Goal = "stage"
    no_delta: bool = False
    timeout_seconds: float | None = None
    wait_seconds: float | None = None
