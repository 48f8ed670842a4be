# SPDX-License-Identifier: Apache-2.0
"""The command line's grammar."""

from __future__ import annotations

import argparse
import math
import re
import uuid
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from planner_service.api import CALL_OVERHEAD
from planner_service.cli import device, flash, keys, look, plan, profile, run, serve
from planner_service.errors import CATALOGUE
from planner_service.inputs import GENERATED
from planner_service.profile.emulator import CORES

_UNITS = {"": 1, "b": 1}
_UNITS |= {"k": 2**10, "kib": 2**10, "kb": 10**3, "m": 2**20, "mib": 2**20, "mb": 10**6, "g": 2**30, "gib": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


def size(text: str) -> int:
    """Bytes: 64k and 64KiB are 64 * 1024, 64kB is 64000."""
    match = _SIZE.fullmatch(text.strip().lower())
    if not match or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give bytes, or 64k, 64KiB, 64kB, 1.5M")
    return round(float(match[1]) * _UNITS[match[2]])


def overhead(text: str) -> float:
    """A factor, infinite for "any"."""
    try:
        return math.inf if text == "any" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a factor nor any") from error


def identifier(text: str) -> bytes:
    """16 bytes from a UUID."""
    try:
        return uuid.UUID(text).bytes
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no UUID") from error


def positive(text: str) -> int:
    """An integer of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
    return int(text)


def seconds(text: str) -> float:
    """A duration above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, above 0 and below a day")
    return value


def natural(text: str) -> int:
    """An integer of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not 0 or more")
    return int(text)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments of one command; ``run`` is the function that does it. Exits with 2 on what is not understood."""
    try:
        release = version("weft")
    except PackageNotFoundError:
        release = "source"
    exits = sorted(CATALOGUE.items(), key=lambda entry: entry[1].exit_code)
    codes = ", ".join(f"{outcome.exit_code} {code.value}" for code, outcome in exits)
    parser = argparse.ArgumentParser(
        prog="weft",
        description="Plans small CNNs for boards: a fraction of the usual RAM, models that change without a rebuild.",
        epilog=f"Exit codes: 0 done, {codes}.",
    )
    parser.add_argument("--version", action="version", version=f"weft {release}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    common.add_argument("--debug", action="store_true", help="show tracebacks of internal errors")
    remote = argparse.ArgumentParser(add_help=False)
    remote.add_argument("--server", metavar="HOST:PORT", help="let this daemon do it (default: in this process)")
    registry = argparse.ArgumentParser(add_help=False)
    registry.add_argument(
        "--server", metavar="HOST:PORT", default=serve.LISTEN, help="daemon with the devices (default: %(default)s)"
    )

    def add(
        name: str, function: object, help_: str, *parents: argparse.ArgumentParser, to: Any = commands
    ) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = to.add_parser(
            name,
            help=help_,
            description=help_[0].upper() + help_[1:] + ".",
            parents=[common, *parents],
            allow_abbrev=False,
        )
        command.set_defaults(run=function, own_thread=name not in ("flash", "serve"))
        return command

    planning = argparse.ArgumentParser(add_help=False)
    planning.add_argument("model", metavar="MODEL", type=Path, help=".tflite or .onnx, int8 or uint8")
    board = planning.add_mutually_exclusive_group()
    board.add_argument("--target", default="native", help="board, see `weft targets` (default: native)")
    board.add_argument("--device", metavar="NAME", help="registered device: its board and ids, versions of its own")
    planning.add_argument(
        "--input",
        dest="input_mode",
        choices=("streamed", "resident", "external"),
        default="streamed",
        help="rows are handed over, written into the arena, or read in place (default: streamed)",
    )
    planning.add_argument("--plan-version", type=natural, default=0, help="for anti-rollback (default: the next, or 1)")
    planning.add_argument("--line", default="", help="series of models that replace each other (default: model's name)")
    planning.add_argument("--names", action="store_true", help="put operator names into the plan")
    planning.add_argument(
        "--vendor-id", type=identifier, default=b"", metavar="UUID", help="whose devices take the plan (default: any)"
    )
    planning.add_argument(
        "--class-id", type=identifier, default=b"", metavar="UUID", help="which class of them (default: any)"
    )

    command = add("plan", plan.run_plan, "make a plan for a board", planning, remote)
    which = command.add_mutually_exclusive_group()
    which.add_argument("--ram", type=size, metavar="SIZE", help="least compute within this much RAM (64k, 20kB, ...)")
    which.add_argument("--fmax", type=float, metavar="F", help="least RAM with at most F times the model's MACs")
    which.add_argument("--least-ram", action="store_true", help="least RAM at any F")
    which.add_argument("--layers", action="store_true", help="layer by layer, as other runtimes do")
    command.add_argument(
        "--objective",
        choices=("macs", "latency"),
        default="macs",
        help="what compute is: MACs, or instructions predicted for the target's core (default: %(default)s)",
    )
    command.add_argument(
        "--call-overhead",
        type=overhead,
        metavar="FACTOR",
        help="with --fmax and --least-ram: at most so many predicted instructions for each that the same MACs would "
        f"take layer by layer; any: fewest bytes, whatever calls cost (default: {CALL_OVERHEAD} on measured cores)",
    )
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: MODEL's name with .weft")
    command.add_argument("--force", action="store_true", help="write the plan even if it does not fit the target")

    command = add("sweep", plan.run_sweep, "show what RAM costs in compute: every best plan", planning, remote)
    command.add_argument("-o", "--output", type=Path, metavar="DIR", help="write the plans there")
    command.add_argument("--html", type=Path, metavar="FILE", help="write a page with the plot (one file, offline)")

    command = add("inspect", look.run_inspect, "print every section, stage, window and operator of a plan")
    command.add_argument("plan", metavar="PLAN", type=Path)

    command = add("explain", look.run_explain, "say what runs when, what each window costs, who owns the peak", remote)
    command.add_argument("plan", metavar="PLAN", type=Path)
    command.add_argument("--model", type=Path, help="the plan's model, for names and reasons")
    command.add_argument("--html", type=Path, metavar="FILE", help="write the memory map over time (one file, offline)")

    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--input", default=GENERATED, metavar="FILE", help=".npy or .npz (default: %(default)s)")
    data.add_argument("--count", type=positive, default=1, help="generated inputs, or at most so many of the file")
    data.add_argument("--seed", type=natural, default=None, help="of generated inputs")
    data.add_argument("--layout", choices=("hwc", "chw"), help="axes of arrays that could be either")

    command = add("run", run.run_run, "run a plan in the engine on this host", data)
    command.add_argument("plan", metavar="PLAN", type=Path)
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the outputs (.npz)")

    command = add("profile", profile.run_profile, "say where a plan's instructions go on an emulated core")
    command.add_argument("plan", metavar="PLAN", type=Path)
    command.add_argument("--core", choices=sorted(CORES), default="m4", help="default: %(default)s")

    command = add("compare", run.run_compare, "compare a plan with its model in the model's own runtime", data)
    command.set_defaults(count=None)
    command.add_argument("model", metavar="MODEL", type=Path)
    command.add_argument("plan", metavar="PLAN", type=Path)
    command.add_argument("--no-layers", action="store_true", help="compare outputs only")

    command = add("export", look.run_export, "write a plan as a C source, for linking it in")
    command.add_argument("plan", metavar="PLAN", type=Path)
    command.add_argument("--c-array", action="store_true", required=True, help="as an array of bytes")
    command.add_argument("--name", help="C identifier (default: from the file's name)")
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")

    command = add("flash", flash.run_flash, "write a plan into a board's slot through a debug probe")
    command.add_argument("plan", metavar="PLAN", type=Path)
    command.add_argument("--board", required=True, metavar="NAME", help="see `weft targets`, or a board file (.toml)")
    command.add_argument("--slot", choices=("a", "b"), default="a", help="default: a")
    command.add_argument("--build-dir", type=Path, metavar="DIR", help="Zephyr build whose devicetree has the slots")
    command.add_argument("--probe", metavar="ID", help="unique id of the debug probe, or a part of it")
    command.add_argument(
        "--ram", type=size, metavar="SIZE", help="the firmware's arena (default: the build's or board's)"
    )

    command = add("keygen", keys.run_keygen, "make a key that signs plans")
    command.add_argument("output", metavar="FILE", type=Path, help="private key, PEM (PKCS #8), readable for you only")
    command.add_argument("--passphrase", action="store_true", help="encrypt it; asks, or takes $WEFT_PASSPHRASE")
    command.add_argument("--force", action="store_true", help="overwrite the key that is there")

    key = argparse.ArgumentParser(add_help=False)
    key.add_argument(
        "--key", required=True, metavar="FILE", type=Path, help="PEM; asks for the passphrase if it has one"
    )

    command = add("getpub", keys.run_getpub, "print the public key that a device's firmware holds")
    command.add_argument("key", metavar="FILE", type=Path, help="private or public key, PEM")
    command.add_argument("--lang", choices=("c", "pem"), default="c", help="as C source or PEM (default: c)")
    command.add_argument("--name", default="weft_key", help="C identifier (default: %(default)s)")
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")

    command = add("sign", keys.run_sign, "sign a plan", key)
    command.add_argument("plan", metavar="PLAN", type=Path)
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: PLAN itself")

    command = add("verify", keys.run_verify, "check a plan's signature and that its bytes are intact", key)
    command.add_argument("plan", metavar="PLAN", type=Path)

    command = add("dumpinfo", keys.run_dumpinfo, "print a plan's header, ids, versions and signature")
    command.add_argument("plan", metavar="PLAN", type=Path)

    there = argparse.ArgumentParser(add_help=False)
    where = there.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--to", metavar="ADDRESS", help="smp+udp://HOST:PORT, smp+serial:///dev/ttyACM0, coap://HOST/..."
    )
    where.add_argument("--device", metavar="NAME", help="registered device, see `weft device`")
    there.add_argument(
        "--server", metavar="HOST:PORT", default=serve.LISTEN, help="daemon with the devices (default: %(default)s)"
    )
    there.add_argument(
        "--timeout", type=seconds, default=10.0, metavar="SECONDS", help="without an answer (default: %(default)g)"
    )
    waiting = argparse.ArgumentParser(add_help=False)
    waiting.add_argument(
        "--wait", type=seconds, default=10.0, metavar="SECONDS", help="for the trial to start (default: %(default)g)"
    )

    command = add("push", device.run_push, "send a plan to a device; goes on where it was interrupted", there, waiting)
    command.add_argument("plan", metavar="PLAN", type=Path)
    goal = command.add_mutually_exclusive_group()
    goal.add_argument("--test", dest="goal", action="store_const", const="test", help="and have it tried")
    goal.add_argument("--confirm", dest="goal", action="store_const", const="confirm", help="and keep it if it runs")
    command.set_defaults(goal="stage")
    command.add_argument("--no-delta", action="store_true", help="send also what the device's active plan has")
    command.add_argument("--chunk", type=positive, metavar="BYTES", help="of one message (default: what device allows)")

    add("status", device.run_status, "show what a device's slots are in", there)
    add("test", device.run_test, "have the plan tried that was sent to a device", there, waiting)
    add("confirm", device.run_confirm, "keep the plan that a device has on trial", there)
    add("revert", device.run_revert, "give up a device's trial, or the plan that was sent; the old one goes on", there)
    add("erase", device.run_erase, "erase the slot of a device that is not active", there)

    group = commands.add_parser(
        "device",
        help="register the devices that a daemon plans for and sends to",
        description="Register the devices that a daemon plans for and sends to.",
        allow_abbrev=False,
    ).add_subparsers(metavar="ACTION", required=True)
    command = add("add", device.run_add, "register a device", registry, to=group)
    command.add_argument("name", metavar="NAME")
    command.add_argument("--address", required=True, help="as for `weft push --to`")
    command.add_argument("--target", required=True, help="its board, see `weft targets`")
    command.add_argument("--key", type=Path, metavar="FILE", help="key whose plans it takes, PEM")
    command.add_argument("--vendor-id", type=identifier, default=b"", metavar="UUID", help="that its plans must name")
    command.add_argument("--class-id", type=identifier, default=b"", metavar="UUID", help="that its plans must name")
    command.add_argument("--force", action="store_true", help="replace a device of this name")
    add("list", device.run_list, "list devices", registry, to=group)
    command = add("remove", device.run_remove, "forget a device", registry, to=group)
    command.add_argument("name", metavar="NAME")

    command = add("ops", look.run_ops, "list operators that can be imported, and their conditions", remote)
    command.add_argument("--source", choices=("tflite", "onnx"), help="of this format only")
    command.add_argument("operator", metavar="NAME", nargs="?", help="this one only")

    command = add("targets", look.run_targets, "list boards", remote)
    command.add_argument("target", metavar="NAME", nargs="?", help="this one only, with all its data")

    command = add("quantize", run.run_quantize, "quantise a float ONNX model to int8")
    command.add_argument("model", metavar="MODEL", type=Path)
    command.add_argument("--calibration", type=Path, required=True, metavar="FILE", help=".npz, arrays by input name")
    command.add_argument(
        "--form", choices=("qdq", "qoperator"), default="qdq", help="how the result is written (default: %(default)s)"
    )
    command.add_argument("--per-tensor", action="store_true", help="one weight scale per tensor (default: per channel)")
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: MODEL's name with .int8.onnx")

    command = add("serve", serve.run_serve, "serve the planner over gRPC until SIGTERM")
    command.add_argument(
        "--listen", default=serve.LISTEN, metavar="HOST:PORT", help="port 0: a free one (default: %(default)s)"
    )
    command.add_argument(
        "--store", type=Path, default=Path("weft-store"), metavar="DIR", help="models and plans (default: %(default)s)"
    )
    command.add_argument("--workers", type=positive, default=2, help="plans in work at once (default: %(default)s)")
    command.add_argument("--queue", type=natural, default=16, help="plans that may wait (default: %(default)s)")
    command.add_argument(
        "--worker-memory",
        type=size,
        default="4G",
        metavar="SIZE",
        help="of one plan; 0: no limit (default: %(default)s)",
    )
    command.add_argument(
        "--max-model", type=size, default="64M", metavar="SIZE", help="largest model (default: %(default)s)"
    )
    command.add_argument(
        "--max-store", type=size, default="4G", metavar="SIZE", help="all that is stored (default: %(default)s)"
    )
    command.add_argument("-v", "--verbose", action="store_true", help="log every call")
    return parser.parse_args(argv)
