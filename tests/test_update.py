# SPDX-License-Identifier: Apache-2.0
"""The update core from a host's view: the way of an update, and everything that must be refused (docs/update.md)."""

from __future__ import annotations

import random
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from planner_service import ir, planner, signing
from planner_service.format import HeaderRecord, SectionId, SectionRecord, SlotState, StateRecord
from tests.schedule_graphs import Maker
from tests.update import build
from tests.update import plans as made
from tests.update.device import COPY, CUT_KINDS, NONE, STATE_AREA, Device, running
from tests.update.hostile import Hostile, by_header

HEAD = HeaderRecord.SIZE
T = TypeVar("T")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.device(tmp_path_factory.mktemp("device"))


@pytest.fixture(scope="module")
def plans() -> made.Plans:
    return made.make()


@pytest.fixture
def device(library: Path, plans: made.Plans) -> Iterator[Device]:
    """Runs ``old``, confirmed, from slot 0."""
    with running(library, plans) as found:
        yield found


@pytest.fixture(scope="module")
def small(plans: made.Plans) -> bytes:
    """A plan of which every bit can be tried."""
    return signing.sign(planner.layers(made.graph(7, channels=3), made.options(3)).plan, plans.key)


def settled(device: Device) -> tuple[int, int]:
    return device.erases, device.programs


# ---------------------------------------------------------------- the way of an update


def test_update_is_tried_then_confirmed(device: Device, plans: made.Plans) -> None:
    before = device.infer()
    assert device.stage(plans.new) == "OK"
    assert device.restart().slot == 0, "a staged plan waits for the command"
    assert device.call("test") == "OK"
    booted = device.restart()
    assert (booted.slot, booted.trial, booted.tries) == (1, True, 1)
    assert device.status["floor"] == 2
    assert device.infer() != before
    assert device.call("confirm") == "OK"
    assert device.status["floor"] == 3
    assert device.restart() == booted.__class__(
        result="OK", slot=1, trial=False, tries=0, trial_error="OK", active_error="OK"
    )
    assert device.status["state"] == "OLD"


def test_update_at_once_without_a_reset(device: Device, plans: made.Plans) -> None:
    assert device.stage(plans.new) == "OK"
    assert device.call("test") == "OK"
    assert device.boot().slot == 1
    assert device.call("revert") == "OK"
    assert device.begin(plans.next).result == "STATE", "the trial still runs"
    assert device.boot().slot == 0
    assert device.begin(plans.next).result == "OK"


def test_confirmed_by_healthy_inferences(device: Device, plans: made.Plans) -> None:
    device.set(confirm_after=3)
    assert device.stage(plans.new) == "OK"
    assert device.call("healthy") == "OK"
    assert device.call("test") == "OK"
    assert device.restart().trial
    for left in (2, 1, 0):
        assert device.status["state"] == "TRIAL"
        assert device.call("healthy") == "OK", left
    assert device.status["active"] == 1


def test_not_confirmed_reverts_after_three_runs(device: Device, plans: made.Plans) -> None:
    assert device.stage(plans.new) == "OK"
    assert device.call("test") == "OK"
    assert [device.restart().tries for _ in range(3)] == [1, 2, 3]
    booted = device.restart()
    assert (booted.slot, booted.trial, booted.trial_error) == (0, False, "TRIED")
    assert device.status["state"] == "REVERTED"
    erases = device.erases
    assert device.begin(plans.new).result == "TRIED"
    assert device.erases == erases
    assert device.call("erase") == "OK"
    assert device.update(plans.new).slot == 1


def test_a_call_erases_one_sector_of_a_slot(device: Device, plans: made.Plans) -> None:
    """And one of the journal at most: where flash cannot be read meanwhile, inference waits for that. Only the command
    that forgets a plan erases all of its slot."""
    seen: dict[str, set[tuple[int, int]]] = {}

    def counted(verb: str, act: Callable[[], T]) -> T:
        before = device.sectors_erased
        done = act()
        slot, state = (after - n for after, n in zip(device.sectors_erased, before, strict=True))
        seen.setdefault(verb, set()).add((slot, state))
        return done

    for _ in range(16):
        reply = counted("begin", lambda: device.begin(plans.new))
        while reply.next < len(plans.new):
            chunk = plans.new[reply.next : min(reply.until, reply.next + 256)]
            reply = counted("write", partial(device.write, reply.token, reply.next, chunk))
            assert reply.result == "OK"
        assert counted("finish", partial(device.finish, reply.token)) == "OK"
        assert counted("test", lambda: device.call("test")) == "OK"
        assert counted("boot", device.restart).trial
        assert counted("revert", lambda: device.call("revert")) == "OK"
        assert counted("boot", device.restart).slot == 0
        assert counted("erase", lambda: device.call("erase")) == "OK"
    forgets = seen.pop("erase")
    assert max(slot for slot, _ in forgets) > 1
    assert {state for _, state in forgets} <= {0, 1}
    assert (1, 0) in seen["write"]
    assert all(found <= {(0, 0), (0, 1), (1, 0), (1, 1)} for found in seen.values()), seen


@pytest.mark.parametrize("command", ["test", "confirm", "revert"])
def test_commands_need_their_state(device: Device, command: str) -> None:
    before = settled(device)
    assert device.call(command) == "STATE"
    assert settled(device) == before


def test_delta_sends_header_and_schedule_only(device: Device, plans: made.Plans) -> None:
    reply, sent = device.send(plans.delta, COPY)
    rows = made.sections(plans.delta)
    padded = sum(-(-rows[s].length // 8) * 8 for s in (SectionId.SCHEDULE, SectionId.SELFTEST))
    assert sent <= signing.head_len(plans.delta) + padded
    assert device.finish(reply.token) == "OK"
    assert device.bytes_of(1)[: len(plans.delta)] == plans.delta
    assert device.call("test") == "OK"
    assert device.restart().slot == 1


def test_delta_of_a_large_network_is_one_percent(library: Path, plans: made.Plans) -> None:
    def large() -> ir.Graph:
        m = Maker(5, [(8, 8, 3)])
        t = m.inputs[0]
        for n in range(52):
            t = m.conv(t, 224, kernel=(1, 1), pads=(0, 0, 0, 0)) if n % 2 == 0 else m.depthwise(t)
        return m.graph([t])

    old = signing.sign(planner.layers(large(), made.options(1)).plan, plans.key)
    resident = planner.Options(plan_version=2, vendor_id=made.VENDOR, class_id=made.DEVICE, input_mode="resident")
    new = signing.sign(planner.layers(large(), resident).plan, plans.key)
    device = Device(library, plans.key, slot=1 << 21, sector=4096)
    device.set(arena=1 << 16)
    assert device.adopt(0, old) == "OK"
    device.restart()
    reply, sent = device.send(new, COPY)
    assert device.finish(reply.token) == "OK"
    print(f"delta: {sent} of {len(new)} bytes sent, {100 * sent / len(new):.2f} %")
    assert sent <= len(new) // 100
    device.close()


def test_other_geometry_and_slots_that_are_not_mapped(library: Path, plans: made.Plans) -> None:
    for geometry in ({"sector": 256, "write": 4, "erased": 0}, {"sector": 8192, "write": 512}, {"mapped": False}):
        device = Device(library, plans.key, **geometry)  # type: ignore[arg-type]
        assert device.boot().result == "NO_PLAN"
        assert device.update(plans.old).slot == 0
        assert device.update(plans.new).slot == 1
        assert device.update(plans.next).slot == 0
        assert not device.broken
        device.close()


# ---------------------------------------------------------------- transfer: resume, order, sessions


def test_resumes_after_a_reset_at_a_sector(device: Device, plans: made.Plans) -> None:
    reply = device.begin(plans.new)
    reply = device.write(reply.token, reply.next, plans.new[reply.next : 3000])
    assert reply.next == 3000
    device.restart()
    assert device.status["resume"] == 2048
    again, sent = device.send(plans.new)
    assert device.begin(plans.new).result == "OK"
    assert sent == signing.head_len(plans.new) + len(plans.new) - 2048
    assert again.result == "OK"


def test_resumes_without_a_reset_where_it_was(device: Device, plans: made.Plans) -> None:
    first = device.begin(plans.new)
    device.write(first.token, first.next, plans.new[first.next : 3001])
    second = device.begin(plans.new)
    assert (second.result, second.next) == ("OK", 3001)
    assert device.write(first.token, 3001, plans.new[3001:]).result == "TOKEN", "taken over"
    assert device.write(second.token, 3001, plans.new[3001:]).next == len(plans.new)
    assert device.finish(second.token) == "OK"


def test_duplicates_gaps_and_disorder(device: Device, plans: made.Plans) -> None:
    rng = random.Random(3)
    reply = device.begin(plans.new)
    token, at = reply.token, reply.next
    while at < len(plans.new):
        offset = max(0, at + rng.randint(-400, 400))
        data = plans.new[offset : offset + rng.randint(1, 300)]
        reply = device.write(token, offset, data)
        assert reply.result == ("OFFSET" if offset > at else "OK")
        assert reply.next == (at if offset > at else max(at, offset + len(data)))
        at = reply.next
    assert device.write(token, 0, plans.new + b"x").result == "OFFSET"
    assert device.write(token, 0xFFFFFFF0, b"x" * 32).result == "OFFSET"
    assert device.finish(token) == "OK"


def test_second_updater_is_told_busy(device: Device, plans: made.Plans) -> None:
    device.set(idle=60)
    reply = device.begin(plans.new)
    before = settled(device)
    assert device.begin(plans.next).result == "BUSY"
    assert device.call("erase") == "BUSY"
    assert device.write(reply.token + 1, reply.next, b"x").result == "TOKEN"
    assert device.finish(reply.token + 1) == device.finish(0) == device.abort(0) == "TOKEN"
    assert settled(device) == before
    device.wait(59)
    assert device.begin(plans.next).result == "BUSY"
    assert device.write(reply.token, reply.next, plans.new[reply.next : reply.next + 8]).result == "OK"
    device.wait(60)
    assert device.begin(plans.next).result == "OK", "the first was silent for a minute"
    assert device.finish(reply.token) == "TOKEN"


def test_interleaved_updaters_leave_inference_alone(device: Device, plans: made.Plans) -> None:
    before = device.infer()
    first = device.begin(plans.new)
    at = first.next
    while at < len(plans.new):
        assert device.begin(plans.next).result == "BUSY"
        at = device.write(first.token, at, plans.new[at : at + 200]).next
        assert device.infer() == before
    assert device.finish(first.token) == "OK"
    assert device.infer() == before
    assert device.bytes_of(0)[: len(plans.old)] == plans.old


def test_truncated_transfer_is_not_finished(device: Device, plans: made.Plans) -> None:
    reply = device.begin(plans.new)
    reply = device.write(reply.token, reply.next, plans.new[reply.next : -1])
    assert device.finish(reply.token) == "TRUNCATED"
    reply = device.write(reply.token, reply.next, plans.new[-1:])
    assert device.finish(reply.token) == "OK"


def test_budget_is_asked_before_the_first_erase(device: Device, plans: made.Plans) -> None:
    device.limit(budget=2)
    before = settled(device)
    assert device.begin(plans.new).result == "BUDGET"
    assert device.call("erase") == "BUDGET"
    assert settled(device) == before
    device.limit(budget=3)
    assert device.begin(plans.new).result == "OK"


# ---------------------------------------------------------------- hostile updates


#: By the arena and slots of the device here.
HOSTILE = by_header(arena=4096, slot=8192)


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda h: h.name)
def test_refused_by_header(device: Device, plans: made.Plans, hostile: Hostile) -> None:
    """Before anything is erased."""
    running, before = device.infer(), settled(device)
    head = hostile.make(plans)[: signing.head_len(plans.new)]
    assert device.begin(plans.new, head=head).result == hostile.result
    assert settled(device) == before
    undisturbed(device, plans, running)


def test_every_flipped_bit_of_the_header_is_refused(device: Device, plans: made.Plans) -> None:
    before = settled(device)
    head = plans.new[: signing.head_len(plans.new)]
    for bit in range(8 * len(head)):
        data = bytearray(head)
        data[bit // 8] ^= 1 << bit % 8
        assert device.begin(plans.new, head=bytes(data)).result != "OK", bit
    assert settled(device) == before


def test_header_of_every_other_length_is_refused(device: Device, plans: made.Plans) -> None:
    before = settled(device)
    end = signing.head_len(plans.new)
    for length in (*range(end), *range(end + 1, end + 100)):
        assert device.begin(plans.new, head=plans.new[:length]).result == "ARG"
    assert settled(device) == before


def undisturbed(device: Device, plans: made.Plans, output: bytes) -> None:
    """The old plan runs on, before and after a reset, and another one can be installed."""
    assert device.infer() == output
    assert device.bytes_of(0)[: len(plans.old)] == plans.old
    booted = device.restart()
    assert (booted.slot, booted.trial) == (0, False)
    assert device.infer() == output
    assert device.update(plans.next).slot == 1


def test_every_flipped_bit_behind_the_header_is_not_staged(device: Device, plans: made.Plans, small: bytes) -> None:
    output = device.infer()
    for bit in range(8 * signing.head_len(small), 8 * len(small)):
        data = bytearray(small)
        data[bit // 8] ^= 1 << bit % 8
        assert device.stage(bytes(data), chunk=len(data)) == "HASH", bit
    assert device.status["state"] == "EMPTY"
    undisturbed(device, plans, output)


def test_padding_must_be_zero(device: Device, plans: made.Plans) -> None:
    row = made.sections(plans.new)[SectionId.SCHEDULE]
    assert row.length % 8
    data = bytearray(plans.new)
    data[row.offset + row.length] = 1
    assert device.stage(bytes(data)) == "HASH"


def test_replay_a_thousand_times_erases_nothing(device: Device, plans: made.Plans) -> None:
    assert device.stage(plans.new) == "OK"
    before = settled(device)
    for _ in range(500):
        reply = device.begin(plans.new)
        assert (reply.result, reply.token, reply.state) == ("OK", 0, SlotState.STAGED)
    assert settled(device) == before
    assert device.call("test") == "OK"
    device.restart()
    assert device.call("confirm") == "OK"
    before = settled(device)
    for _ in range(1000):
        reply = device.begin(plans.new)
        assert (reply.result, reply.token, reply.active) == ("OK", 0, True)
        assert device.begin(plans.old).result == "FLOOR"
    assert settled(device) == before


@pytest.mark.parametrize("version", [0, 1, 2, 3, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("floor", [0, 2, 3, 0xFFFFFFFF])
def test_floor_against_version(library: Path, plans: made.Plans, version: int, floor: int) -> None:
    device = Device(library, plans.key)
    device.update(made.edit_header(plans.old, plans.key, plan_version=floor))
    expected = "OK" if version >= floor else "FLOOR"
    assert device.begin(made.edit_header(plans.new, plans.key, plan_version=version)).result == expected
    device.close()


def test_signed_plan_that_fails_the_verifier(device: Device, plans: made.Plans) -> None:
    output = device.infer()
    assert device.stage(plans.invalid) == "ARENA"
    assert device.call("test") == "STATE"
    undisturbed(device, plans, output)


def test_signed_plan_that_fails_its_self_test(device: Device, plans: made.Plans) -> None:
    output = device.infer()
    assert device.stage(plans.wrong) == "OK"
    assert device.call("test") == "OK"
    booted = device.restart()
    assert (booted.slot, booted.trial_error) == (0, "SELFTEST")
    assert device.status["reason"] == "SELFTEST"
    undisturbed(device, plans, output)


def test_plan_that_takes_too_long_is_ended(device: Device, plans: made.Plans) -> None:
    """By a step callback with a deadline."""
    output = device.infer()
    device.limit(steps=2)
    assert device.stage(plans.new) == "OK"
    assert device.call("test") == "OK"
    booted = device.restart()
    assert (booted.slot, booted.trial_error) == (0, "ABORTED")
    device.limit()
    undisturbed(device, plans, output)


def test_plan_that_hangs_is_given_up_after_three_resets(device: Device, plans: made.Plans) -> None:
    """A watchdog resets the device in each self-test."""
    output = device.infer()
    assert device.stage(plans.new) == "OK"
    assert device.call("test") == "OK"
    device.hang(True)
    for tries in (1, 2, 3):
        assert device.restart().result == "ABORTED"
        assert device.status["tries"] == tries
    booted = device.restart()
    assert (booted.result, booted.slot, booted.trial_error) == ("OK", 0, "TRIED")
    assert device.begin(plans.new).result == "TRIED"
    device.hang(False)
    undisturbed(device, plans, output)


def test_keys_can_be_rotated(device: Device, plans: made.Plans) -> None:
    fresh = signing.generate_key()
    signed = signing.sign(plans.new, fresh)
    assert device.begin(signed).result == "KEY"
    device.set_key(1, signing.public_key(fresh))
    assert device.update(signed).slot == 1, "by the second key, while the first one's plan ran"
    assert device.begin(plans.next).result == "OK", "both count"
    device.set_key(0, signing.public_key(fresh))
    device.set_key(1, None)
    assert device.restart().slot == 1
    before = settled(device)
    assert device.begin(plans.next).result == "KEY", "the first key is gone"
    assert settled(device) == before
    assert device.update(signing.sign(plans.next, fresh)).slot == 0
    device.set_key(0, None)
    booted = device.restart()
    assert (booted.result, booted.active_error) == ("KEY", "KEY"), "nothing runs that no key has signed"


# ---------------------------------------------------------------- power cuts, by the table of docs/update.md


@dataclass(frozen=True, slots=True)
class Cut:
    """Power is cut at every erase and program of ``action``, in every way. ``allowed``: slot that runs, whether on
    trial, and the journal's state after the next boot."""

    prepare: Callable[[Device, made.Plans], object]
    action: Callable[[Device, made.Plans], object]
    allowed: set[tuple[int, bool, str]]
    operations: int = 1000


def tried(device: Device, plans: made.Plans, plan: bytes | None = None) -> None:
    assert device.stage(plan if plan is not None else plans.new) == "OK"
    assert device.call("test") == "OK"


def running_trial(device: Device, plans: made.Plans) -> None:
    tried(device, plans)
    assert device.restart().trial


def staged_then_reset(device: Device, plans: made.Plans) -> None:
    assert device.stage(plans.new) == "OK"
    device.restart()


OLD_PLAN, TRIAL = (0, False), (1, True)
RECEIVED = {(*OLD_PLAN, "EMPTY"), (*OLD_PLAN, "RECEIVING")}
CUTS = {
    "receiving": Cut(lambda d, p: None, lambda d, p: d.send(p.delta), RECEIVED),
    "copying from the active slot": Cut(lambda d, p: None, lambda d, p: d.send(p.delta, COPY), RECEIVED),
    "writing RECEIVING": Cut(lambda d, p: None, lambda d, p: d.begin(p.delta), RECEIVED),
    "writing STAGED": Cut(
        lambda d, p: d.send(p.delta),
        lambda d, p: d.finish(d.begin(p.delta).token),
        {(*OLD_PLAN, "RECEIVING"), (*OLD_PLAN, "STAGED")},
    ),
    "writing TRIAL": Cut(
        lambda d, p: d.stage(p.new), lambda d, p: d.call("test"), {(*OLD_PLAN, "STAGED"), (*TRIAL, "TRIAL")}
    ),
    "counting a try": Cut(tried, lambda d, p: d.restart(), {(*TRIAL, "TRIAL")}),
    "writing REVERTED": Cut(
        lambda d, p: tried(d, p, p.wrong), lambda d, p: d.restart(), {(*OLD_PLAN, "REVERTED")}
    ),
    "confirming": Cut(
        running_trial, lambda d, p: d.call("confirm"), {(*TRIAL, "TRIAL"), (1, False, "OLD")}
    ),
    "erasing a journal sector": Cut(
        staged_then_reset, lambda d, p: d.call("test"), {(*OLD_PLAN, "STAGED")}, operations=1
    ),
    "erasing by command": Cut(
        lambda d, p: d.stage(p.new),
        lambda d, p: d.call("erase"),
        {(*OLD_PLAN, "STAGED"), (*OLD_PLAN, "EMPTY")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CUTS)
def test_power_cut_while(library: Path, plans: made.Plans, name: str) -> None:
    row, seen, operation = CUTS[name], set(), 0
    going = True
    while going and operation < row.operations:
        operation += 1
        for kind in range(CUT_KINDS):
            device = Device(library, plans.key)
            assert device.adopt(0, plans.old) == "OK"
            device.restart()
            row.prepare(device, plans)
            floor = device.status["floor"]
            device.cut(operation, kind)
            row.action(device, plans)
            going = device.cuts > 0
            device.cut(0, 0)
            booted, status = device.restart(), device.status
            if going:
                found = (booted.slot, booted.trial, str(status["state"]))
                assert found in row.allowed, (operation, kind)
                assert status["floor"] == (3 if found == (1, False, "OLD") else floor)
                assert booted.tries <= 2
                seen.add(found)
            if status["state"] == "RECEIVING":
                assert int(status["resume"]) % 2048 == 0
                assert device.stage(plans.delta) == "OK"
                assert device.bytes_of(1)[: len(plans.delta)] == plans.delta
            if booted.trial:
                assert device.call("revert") == "OK"
                device.restart()
            device.update(plans.next)
            assert not device.broken
            device.close()
    assert seen == row.allowed, "each outcome of the table happens"


def test_every_line_of_the_tables_has_its_test() -> None:
    """The last column of the cut and threat tables names tests that exist, with their parameters."""
    text = (build.ROOT / "docs" / "update.md").read_text()
    defined = {
        match[1]: path.name
        for path in (build.ROOT / "tests").glob("test_*.py")
        for match in re.finditer(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.M)
    }
    parameters = {
        "test_power_cut_while": set(CUTS),
        "test_refused_by_header": {hostile.name for hostile in HOSTILE},
    }
    security = (build.ROOT / "docs" / "security.md").read_text()
    assert set(re.findall(r"`(test_\w+)`", security)) <= set(defined)
    for heading, least in (("| power cut while |", len(CUTS)), ("| threat |", 15)):
        rows = text[text.index(heading) :].split("\n\n")[0].splitlines()[2:]
        assert len(rows) >= least
        named: set[str] = set()
        for row in rows:
            proofs = re.findall(r"`(test_\w+)(?:\[([^\]]+)\])?`", row.rstrip(" |").split("|")[-1])
            assert proofs, f"no test proves: {row}"
            for name, parameter in proofs:
                assert name in defined, f"{name} is nowhere"
                assert not parameter or parameter in parameters[name], f"{name} has no case {parameter}"
                named.add(parameter)
        if heading == "| power cut while |":
            assert named - {""} == set(CUTS)


# ---------------------------------------------------------------- boot


def test_damaged_active_plan_falls_back_to_the_one_before(device: Device, plans: made.Plans) -> None:
    device.update(plans.new)
    device.restart()
    device.poke(1, len(plans.new) - 9, 4)
    booted = device.restart()
    assert (booted.result, booted.slot, booted.active_error) == ("OK", 0, "HASH")
    assert device.infer()
    assert device.begin(plans.old).result == "FLOOR", "falling back does not lower the floor"
    assert device.update(plans.new).slot == 1, "the damaged plan can be sent again"


def test_damaged_only_plan_waits_for_another(device: Device, plans: made.Plans) -> None:
    device.poke(0, 1000, 1)
    booted = device.restart()
    assert (booted.result, booted.slot) == ("HASH", NONE)
    assert device.update(plans.new).slot == 1


def test_boot_checks_can_be_left_out(device: Device, plans: made.Plans) -> None:
    weights = made.sections(plans.old)[SectionId.WEIGHTS]
    device.set(flags=3)
    before = device.verifications
    device.poke(0, weights.offset + weights.length - 1, 1)
    assert device.restart().result == "OK"
    assert device.verifications == before
    device.poke(0, 100, 1)
    assert device.restart().result != "OK", "the header is compared with the journal's digest all the same"


def test_slot_contents_decide_nothing(device: Device, plans: made.Plans) -> None:
    """A signed plan of a higher version, placed in the other slot or over the active one, is not run."""
    for slot in (1, 0):
        for at, (a, b) in enumerate(zip(device.bytes_of(slot), plans.next, strict=False)):
            device.poke(slot, at, a ^ b)
        booted = device.restart()
        assert booted.result == ("OK" if slot == 1 else "HASH")
        assert not booted.trial


def test_adopt_only_where_there_is_no_journal(device: Device, library: Path, plans: made.Plans) -> None:
    assert device.adopt(1, plans.next) == "STATE"
    fresh = Device(library, plans.key)
    assert fresh.adopt(0, made.seal(plans.old, None)) == "UNSIGNED"
    assert fresh.adopt(2, b"") == "ARG"
    assert fresh.boot().result == "NO_PLAN"
    assert fresh.adopt(1, plans.old) == "OK"
    assert fresh.restart().slot == 1
    fresh.close()


def test_unsigned_plans_only_where_the_build_says_so(tmp_path: Path, plans: made.Plans) -> None:
    library = build.device(tmp_path, "-DWEFT_UPDATE_ALLOW_UNSIGNED=1")
    device = Device(library, None)
    assert device.update(made.seal(plans.old, None)).slot == 0
    assert device.begin(signing.sign(plans.new, signing.generate_key())).result == "KEY"
    device.close()


# ---------------------------------------------------------------- failures of flash, mistakes of applications


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "in RAM"])
@pytest.mark.parametrize("count", [1, 1 << 30], ids=["once", "from then on"])
def test_failing_flash_is_survived(library: Path, plans: made.Plans, count: int, mapped: bool) -> None:
    """A read, program, erase or hash fails, power stays: never a wrong plan; once flash works, so do updates."""
    call, used, failures = 0, 1, 0
    while call < used:
        device = Device(library, plans.key, mapped=mapped)
        device.buffer(512 if mapped else 128)
        assert device.adopt(0, plans.old) == "OK"
        device.restart()
        device.fail(call, count)
        results = [device.stage(plans.delta, COPY), device.call("test"), device.boot().result, device.call("confirm")]
        used = device.calls
        device.fail()
        failures += results != ["OK"] * 4
        for _ in range(4):
            booted = device.restart()
            assert booted.result == "OK"
            if device.status["active"] == 1:
                break
            if booted.trial:
                assert device.call("confirm") == "OK"
                continue
            if device.stage(plans.delta) == "TRIED":
                assert device.call("erase") == "OK"
                assert device.stage(plans.delta) == "OK"
            assert device.call("test") == "OK"
        assert device.status["active"] == 1
        assert device.bytes_of(1)[: len(plans.delta)] == plans.delta
        assert not device.broken
        device.close()
        call += 1
    print(f"{failures} of {used} failing calls were visible in a result")


def test_configuration_is_checked(device: Device) -> None:
    """Every mistake that the device knows."""
    found = []
    while not found or found[-1] != "NO_PLAN":
        found.append(device.misconfigure(len(found)))
    assert set(found[:-1]) == {"ARG"}
    assert len(found) > 30


def test_what_is_optional_can_be_left_out(library: Path, plans: made.Plans) -> None:
    device = Device(library, plans.key)
    device.bare()
    device.set(idle=60)
    assert device.update(plans.old).slot == 0
    device.begin(plans.new)
    assert device.begin(plans.next).result == "BUSY", "without a clock no session is ever idle"
    assert device.update(plans.new).slot == 1
    mode = replace(made.options(5), input_mode="external")
    assert device.stage(signing.sign(planner.layers(made.graph(4), mode).plan, plans.key)) == "OK"
    assert device.call("test") == "OK"
    assert device.restart().trial_error == "IO", "nowhere to put its input"
    device.close()


def test_slots_that_are_not_mapped_need_ram(library: Path, plans: made.Plans) -> None:
    device = Device(library, plans.key, mapped=False)
    device.bare()
    assert device.stage(plans.old) == "FLASH"
    device.close()


def test_arena_of_two_gigabytes(device: Device, plans: made.Plans) -> None:
    """Longer than a plan can say: the limit is what it can."""
    device.set(arena=0xFFFFFFFF)
    assert device.update(plans.new).slot == 1


def test_plan_that_fills_slot_and_sector(library: Path, plans: made.Plans) -> None:
    device = Device(library, plans.key, slot=len(plans.new), sector=len(plans.new))
    assert device.update(plans.new).slot == 0
    assert device.bytes_of(0) == plans.new
    device.close()


def test_arguments(device: Device, plans: made.Plans) -> None:
    before = settled(device)
    assert device.begin(plans.new, head=b"").result == "ARG"
    assert device.begin(plans.new, shift=2).result == "ARG"
    assert settled(device) == before
    reply = device.begin(plans.new)
    assert device.write(reply.token, reply.next, None, 1).result == "ARG"
    assert device.stage(plans.new) == "OK"


def test_head_of_seventeen_sections(device: Device, plans: made.Plans) -> None:
    before = settled(device)
    header = replace(HeaderRecord.unpack(plans.new), section_count=17, header_len=HEAD + 17 * SectionRecord.SIZE)
    head = (header.pack() + plans.new[HEAD:])[: HEAD + 17 * SectionRecord.SIZE + 72]
    assert device.begin(plans.new, head=head).result == "SECTION"
    assert settled(device) == before


@pytest.mark.parametrize("sent", [0, 2048], ids=["sector to be erased", "erased sector"])
def test_the_writer_itself_refuses_the_running_slot(device: Device, plans: made.Plans, sent: int) -> None:
    """Sessions are not opened into it; the two functions that touch a slot's flash check once more."""
    reply = device.begin(plans.new)
    if sent:
        reply = device.write(reply.token, reply.next, plans.new[reply.next : sent + 512])
    before = settled(device)
    device.pretend(running=1)
    assert device.write(reply.token, reply.next, plans.new[reply.next : reply.next + 600]).result == "STATE"
    assert settled(device) == before
    device.pretend(running=0)
    assert device.stage(plans.new) == "OK"


def test_tokens_wrap_without_zero(device: Device, plans: made.Plans) -> None:
    device.pretend(running=0, last_token=0xFFFFFFFE)
    assert [device.begin(plans.new).token for _ in range(3)] == [0xFFFFFFFF, 1, 2]


def edit_records(device: Device, **fields: int) -> None:
    """Fields of all records of the journal, with their CRC made good."""
    size = StateRecord.SIZE
    area = device.bytes_of(STATE_AREA)
    for at in range(0, 4096, size):
        record = area[at : at + size]
        state = StateRecord.unpack(record)
        if zlib.crc32(record[: size - 4]) == state.crc:
            fresh = replace(state, **fields).pack()[: size - 4]
            for n, byte in enumerate(fresh + struct.pack("<I", zlib.crc32(fresh))):
                device.poke(STATE_AREA, at + n, byte ^ record[n])


@pytest.mark.parametrize("fields", [{"state": 200}, {"active": 7}], ids=str)
def test_records_of_a_later_core_are_none(device: Device, fields: dict[str, int]) -> None:
    edit_records(device, floor=0)
    assert device.restart().slot == 0, "the CRC is made good"
    edit_records(device, **fields)
    assert device.restart().result == "NO_PLAN"


@pytest.mark.parametrize("offset", [100, 8192])
def test_resume_marks_that_cannot_be_are_ignored(device: Device, plans: made.Plans, offset: int) -> None:
    """As of a build with other sectors."""
    reply = device.begin(plans.new)
    device.write(reply.token, reply.next, plans.new[reply.next : 3000])
    edit_records(device, offset=offset)
    device.restart()
    assert device.begin(plans.new).next == signing.head_len(plans.new)
    assert device.stage(plans.new) == "OK"


@pytest.mark.parametrize("records", [1, 2, 3])
def test_records_that_read_back_wrong_are_written_again(device: Device, plans: made.Plans, records: int) -> None:
    device.stick(records)
    assert device.stage(plans.new) == "OK"
    device.restart()
    assert device.status["state"] == "STAGED"
    assert device.update(plans.next).slot == 1


@pytest.mark.parametrize("offset", [0xFFFFFFF8, 8184])
def test_sections_outside_the_active_slot_are_not_copied(device: Device, plans: made.Plans, offset: int) -> None:
    """Its table changed after boot."""
    at = HEAD + 2 * SectionRecord.SIZE
    row = SectionRecord.unpack(plans.old, at)
    assert row.type == SectionId.WEIGHTS
    for n, byte in enumerate(replace(row, offset=offset).pack()):
        device.poke(0, at + n, byte ^ plans.old[at + n])
    _, sent = device.send(plans.delta, COPY)
    assert sent >= row.length


@pytest.mark.parametrize("mode", ["resident", "external"])
def test_self_test_places_inputs_of_every_mode(device: Device, plans: made.Plans, mode: str) -> None:
    options = replace(made.options(5), input_mode=mode)
    device.update(signing.sign(planner.layers(made.graph(4), options).plan, plans.key))


def test_external_input_without_a_buffer_is_refused(device: Device, plans: made.Plans) -> None:
    m = Maker(6, [(40, 40, 4)])
    options = replace(made.options(5), input_mode="external")
    plan = planner.layers(m.graph([m.conv(m.inputs[0], 1, stride=(8, 8))]), options).plan
    assert device.stage(signing.sign(plan, plans.key)) == "OK"
    assert device.call("test") == "OK"
    assert device.restart().trial_error == "IO"


@pytest.mark.parametrize("what", ["stages", "outputs", "CRC of a stage", "length"])
def test_malformed_self_test_fails(device: Device, plans: made.Plans, what: str) -> None:
    row = made.sections(plans.new)[SectionId.SELFTEST]
    at = row.offset + {"stages": 4, "outputs": 6, "CRC of a stage": 8, "length": 0}[what]
    bad = made.change(plans.new, plans.key, lambda data: data.__setitem__(at, data[at] ^ 1))
    if what == "length":
        length = row.length - 4
        total = (row.offset + length + 7) // 8 * 8
        table = HEAD + 3 * SectionRecord.SIZE
        head = replace(HeaderRecord.unpack(plans.new), total_len=total).pack() + plans.new[HEAD:table]
        head += replace(row, length=length).pack() + plans.new[table + SectionRecord.SIZE : row.offset + length]
        bad = made.seal(head.ljust(total, b"\0"), plans.key)
    assert device.stage(bad) == "OK"
    assert device.call("test") == "OK"
    assert device.restart().trial_error == "SELFTEST"


def test_plan_without_a_self_test_passes(device: Device, plans: made.Plans) -> None:
    """Section 4 hidden behind a number that nobody knows."""
    row = replace(made.sections(plans.new)[SectionId.SELFTEST], type=200, flags=0).pack()
    at = HEAD + 3 * SectionRecord.SIZE
    plan = made.change(plans.new, plans.key, lambda data: data.__setitem__(slice(at, at + len(row)), row))
    device.update(plan)


def test_nothing_is_erased_during_a_trial(device: Device, plans: made.Plans) -> None:
    assert device.stage(plans.new) == "OK"
    assert device.call("test") == device.call("test") == "OK"
    before = settled(device)
    assert device.begin(plans.next).result == device.call("erase") == "STATE"
    assert settled(device) == before


def test_session_ends_by_command(device: Device, plans: made.Plans) -> None:
    reply = device.begin(plans.new)
    assert device.abort(reply.token) == "OK"
    assert device.write(reply.token, reply.next, b"x").result == "TOKEN"
    assert device.call("erase") == "OK"


# ---------------------------------------------------------------- build


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_core_compiles_without_warnings(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    for source in build.core_sources():
        flags = ("-std=c99", "-pedantic", *build.WARNINGS, "-Os", *build.INCLUDES)
        build.run(compiler, *flags, "-c", "-o", tmp_path / f"{source.stem}.o", source)


def test_header_suits_cplusplus(tmp_path: Path) -> None:
    source = tmp_path / "include.cpp"
    source.write_text('#include "weft/weft_update.h"\n')
    build.run("g++", "-Wall", "-Wextra", "-Werror", *build.INCLUDES, "-fsyntax-only", source)


def test_size_on_cortex_m4(tmp_path: Path) -> None:
    """At most 8 KiB of flash and 1 KiB of RAM beside one chunk, for core and journal; the stack counts as RAM."""
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("gcc-arm-none-eabi is not installed")
    flags = ("-std=c99", "-mcpu=cortex-m4", "-mthumb", "-Os", "-ffreestanding", "--specs=picolibc.specs")
    flash = ram = 0
    for source in build.core_sources():
        output = tmp_path / f"{source.stem}.o"
        build.run("arm-none-eabi-gcc", *flags, "-fstack-usage", *build.INCLUDES, "-c", "-o", output, source)
        sizes = subprocess.run(["arm-none-eabi-size", str(output)], capture_output=True, text=True, check=True).stdout
        text, data, bss = (int(n) for n in sizes.splitlines()[1].split()[:3])
        flash += text + data
        ram += data + bss
    probe = tmp_path / "probe.c"
    probe.write_text('#include "weft/weft_update.h"\nweft_update_t state;\n')
    build.run("arm-none-eabi-gcc", *flags, *build.INCLUDES, "-c", "-o", tmp_path / "probe.o", probe)
    sizes = subprocess.run(
        ["arm-none-eabi-size", str(tmp_path / "probe.o")], capture_output=True, text=True, check=True
    ).stdout
    state = int(sizes.splitlines()[1].split()[2])
    frames = {
        m[1]: int(m[2]) for file in tmp_path.glob("*.su") for m in re.finditer(r":(\w+)\t(\d+)\t", file.read_text())
    }
    print(
        f"update core on M4: {flash} B of flash, {state} B of state, largest frame {max(frames.values())} B: {frames}"
    )
    assert flash <= 8 << 10
    assert ram == 0
    chains = [
        ("weft_update_begin", "weft_update_check", "check_sections", "hash"),
        ("weft_update_boot", "weft_update_verify", "weft_update_check", "check_sections", "hash"),
        ("weft_update_write", "stream", "flush", "note", "weft_journal_append", "write_copies"),
    ]
    deepest = max(sum(frames.get(name, 0) for name in chain) for chain in chains)
    print(f"deepest stack in the core: {deepest} B")
    assert state + deepest <= 1 << 10
