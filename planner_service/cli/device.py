# SPDX-License-Identifier: Apache-2.0
"""``weft push``, ``status``, ``test``, ``confirm``, ``revert`` and ``erase``: what is done to a device over the air;
``weft device``: which devices there are."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from planner_service import signing
from planner_service.cli import files
from planner_service.cli.keys import read_public
from planner_service.devices import Deployment, Device
from planner_service.errors import Code, PlannerError
from planner_service.store import digest_of
from planner_service.transport import Settings, State, Stats, Transport, connect, deploy

_SAID = {
    "staged": "is on the device and verified, in slot {slot}; `weft test` has it tried",
    "waiting": "is in slot {slot} and will be tried at the device's next start",
    "trial": "runs in slot {slot} on trial, run {tries} of 3; `weft confirm` keeps it",
    "active": "is the active plan, in slot {slot}",
}


def run_push(args: argparse.Namespace) -> int:
    """A plan to a device, as far as asked for."""
    plan = files.read_plan(args.plan)
    signing.check_intact(plan)
    with files.ProgressLine(quiet=args.json) as line:

        def show(progress: deploy.Progress) -> None:
            line.bar(progress.fraction, f"{progress.phase} {progress.done:,} of {progress.total:,} B")

        async def work(transport: Transport) -> deploy.Deployed:
            return await deploy.deploy(
                transport,
                plan,
                goal=args.goal,
                copy=not args.no_delta,
                wait_seconds=args.wait,
                progress=show,
            )

        done = _with_device(args, work) if args.to else _by_daemon(args, plan, show)
    if args.goal == "confirm" and done.outcome != "active":
        error = PlannerError(
            Code.BAD_STATE, f"the plan could not be confirmed yet: {describe(done)}", hint="`weft confirm` later on"
        )
        return files.fail(args, error, done.to_json())
    files.emit(args, done.to_json(), describe(done))
    return 0


def _by_daemon(args: argparse.Namespace, plan: bytes, show: deploy.OnProgress) -> deploy.Deployed:
    """Let the daemon that made the plan send it; only the signature goes there."""
    from planner_service.service.client import Client

    signature = signing.signature(plan)
    made = digest_of(signing.unsign(plan))
    wanted = Deployment(
        plan_sha256=made,
        signature=signature,
        device=args.device,
        goal=args.goal,
        no_delta=args.no_delta,
        timeout_seconds=args.timeout,
        wait_seconds=args.wait,
    )
    with Client(args.server) as client:
        try:
            return client.deploy(wanted, progress=show)
        except PlannerError as error:
            if error.code is Code.NOT_FOUND and made in error.message:
                raise PlannerError(
                    Code.NOT_FOUND,
                    f"the daemon at {args.server} has not made {args.plan}",
                    hint=f"make it there with `weft plan --device {args.device}`, or send it from here with --to",
                ) from error
            raise


def run_add(args: argparse.Namespace) -> int:
    """Register a device."""
    from planner_service.service.client import Client

    device = Device(
        name=args.name,
        address=args.address,
        target=args.target,
        public_key=read_public(args.key) if args.key else b"",
        vendor_id=args.vendor_id,
        class_id=args.class_id,
    )
    with Client(args.server) as client:
        client.put_device(device, replace=args.force)
    files.emit(args, device.to_json(), f"{device.name}: {device.target} at {device.address}")
    return 0


def run_list(args: argparse.Namespace) -> int:
    """All devices."""
    from planner_service.service.client import Client

    with Client(args.server) as client:
        devices = client.devices()
    rows = [(d.name, d.target, d.address, signing.key_id(d.public_key).hex() if d.public_key else "-") for d in devices]
    text = files.table(("device", "target", "address", "key"), rows, left=4) if rows else "no devices are registered"
    files.emit(args, [d.to_json() for d in devices], text)
    return 0


def run_remove(args: argparse.Namespace) -> int:
    """Forget a device."""
    from planner_service.service.client import Client

    with Client(args.server) as client:
        client.remove_device(args.name)
    files.emit(args, {"removed": args.name}, f"{args.name}: forgotten")
    return 0


def describe(done: deploy.Deployed) -> str:
    """A pushed plan in words."""
    how = "nothing was sent: it was there" if done.sessions == 0 else f"{done.sent:,} of {done.total:,} B sent"
    how += f", on from {done.resumed:,}" if done.resumed else ""
    where = _SAID[done.outcome].format(slot=done.slot, tries=done.tries)
    return f"{done.address}: version {done.plan_version} ({done.digest[:16]}) {where}\n  {how}, {done.seconds:.1f} s"


def run_status(args: argparse.Namespace) -> int:
    """What the device's slots are in."""

    async def work(transport: Transport) -> tuple[State, Stats]:
        return await transport.state(), await transport.stats()

    state, stats = _with_device(args, work)
    body = state.to_json() | {"stats": asdict(stats)}
    files.emit(args, body, _state_text(state, stats))
    return 0


def run_test(args: argparse.Namespace) -> int:
    """The staged plan on trial; waits until the device runs it or has gone back."""
    return _run_state(args, lambda transport: deploy.try_out(transport, args.wait))


def run_confirm(args: argparse.Namespace) -> int:
    """The trial becomes the active plan."""
    return _run_state(args, lambda transport: _then_state(transport, transport.confirm))


def run_revert(args: argparse.Namespace) -> int:
    """The staged plan or the trial is given up."""
    return _run_state(args, lambda transport: _then_state(transport, transport.revert))


def run_erase(args: argparse.Namespace) -> int:
    """The slot that is not active is erased."""
    return _run_state(args, lambda transport: _then_state(transport, transport.erase))


async def _then_state(transport: Transport, order: Callable[[], Awaitable[None]]) -> State:
    await order()
    return await transport.state()


def _run_state(args: argparse.Namespace, work: Callable[[Transport], Awaitable[State]]) -> int:
    state = _with_device(args, work)
    files.emit(args, state.to_json(), _state_text(state, None))
    return 0


def _with_device(args: argparse.Namespace, work: Callable[[Transport], Awaitable[Any]]) -> Any:
    """The result of ``work`` on a connection to the device that the arguments name."""
    settings = Settings(patience_seconds=args.timeout, chunk_bytes=getattr(args, "chunk", None))

    address = args.to or _address(args)

    async def connected() -> Any:
        async with await connect(address, settings) as transport:
            return await work(transport)

    return asyncio.run(connected())


def _address(args: argparse.Namespace) -> str:
    from planner_service.service.client import Client

    with Client(args.server) as client:
        return client.device(args.device).address


def _state_text(state: State, stats: Stats | None) -> str:
    found = state.to_json()
    lines = []
    if state.active is None:
        lines.append("active   none")
    else:
        lines.append(f"active   slot {found['active']}, plan {state.active_digest.hex()[:16]}, floor {state.floor}")
    running = "nothing runs" if state.running is None else f"slot {found['running']}"
    lines.append(f"running  {running}" + (", on trial" if state.in_trial else ""))
    other = f"other    {found['state']}"
    if any(state.digest):
        other += f", plan {state.digest.hex()[:16]}"
    if found["state"] == "trial":
        other += f", run {state.tries} of 3"
    if found["reason"] is not None:
        other += f", because of {found['reason']}"
    if state.total:
        other += f", {state.received:,} of {state.total:,} B received"
    elif state.resume:
        other += f", goes on at {state.resume:,}"
    lines.append(other)
    if stats is not None:
        lines.append(
            f"erased   {stats.slot_erases} sectors of slots, {stats.state_erases} of the journal; "
            f"{stats.records} journal records"
        )
        if stats.stall_us:
            lines.append(f"stalls   inference waits up to {stats.stall_us / 1000:,.1f} ms while a sector is erased")
    return "\n".join(lines)
