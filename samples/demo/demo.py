# SPDX-License-Identifier: Apache-2.0
"""`make demo`: the planner's daemon makes plans for a digit classifier within RAM budgets, the host board boots one and
reads real handwriting; then the same binary boots another model, because the bytes of a slot have changed."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "samples" / "models"
sys.path.insert(0, str(ROOT / "samples" / "host"))

from client import BINARY, Board, to_int8  # noqa: E402

from planner_service import api, planner, workloads  # noqa: E402
from planner_service.errors import Code, PlannerError  # noqa: E402
from planner_service.service.client import Client  # noqa: E402

#: What a board might have left for the model, in bytes; the last is more than can be asked of it.
BUDGETS = (4608, 3584, 2816, 2048)
START_SECONDS = 60.0
BAR = 24
MAP = 48
NETWORK = "mbv2-w0.35-r144"
NETWORK_F_MAX = (1.0, 1.1)


def say(text: str = "") -> None:
    print(text, flush=True)


def step(number: int, text: str) -> None:
    say(f"\n[{number}/6] {text}")


def progress(fraction: float, text: str) -> None:
    """A bar that is drawn over, on a terminal only."""
    if sys.stdout.isatty():
        done = round(fraction * BAR)
        print(f"\r      [{'#' * done}{'.' * (BAR - done)}] {text:<60.60}", end="\r", flush=True)


def clear() -> None:
    if sys.stdout.isatty():
        print(" " * 100, end="\r", flush=True)


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[tuple[Client, str]]:
    """`weft serve` on a free port, ready to plan."""
    command = [sys.executable, "-m", "planner_service.cli", "serve", "--listen", "127.0.0.1:0", "--store", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        where = process.stdout.readline().rsplit(" ", 1)[-1].strip()
        if not where:
            raise PlannerError(Code.UNAVAILABLE, "the daemon did not start")
        with Client(where) as client:
            deadline = time.monotonic() + START_SECONDS
            while not client.healthy():
                if time.monotonic() > deadline:
                    raise PlannerError(Code.UNAVAILABLE, f"the daemon is not ready after {START_SECONDS:g} s")
                time.sleep(0.1)
            yield client, where
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def plan(client: Client, model: Path, request: api.PlanRequest) -> api.Planned:
    """One plan from the daemon."""
    try:
        (planned,) = client.create_plans(model.read_bytes(), model.name, request, progress=progress)
    finally:
        clear()
    return planned


def trade_off(client: Client, model: Path) -> api.Planned:
    """Print what each budget costs; returns the plan for the smallest budget that fits."""
    layers = plan(client, model, api.PlanRequest(kind="layers"))
    say(f"      {'RAM budget':>14}  {'peak RAM':>9}  {'of layers':>9}  {'F':>6}  {'plan':>9}  {'time':>6}")
    say(f"      {'layer by layer':>14}  {layers.arena_bytes:>7,} B  {'':>9}  {1.0:>6.3f}  {len(layers.plan):>7,} B")
    best = layers
    for budget in BUDGETS:
        started = time.monotonic()
        try:
            planned = plan(client, model, api.PlanRequest(kind="p2", ram_max=budget))
        except PlannerError as error:
            if error.code is not Code.INFEASIBLE:
                raise
            say(f"      {budget:>12,} B  does not fit: {error.message}")
            say(f"      {'':>14}  {error.hint}")
            continue
        share = planned.arena_bytes / layers.arena_bytes
        say(
            f"      {budget:>12,} B  {planned.arena_bytes:>7,} B  {share:>9.1%}  {planned.overhead_factor:>6.3f}"
            f"  {len(planned.plan):>7,} B  {time.monotonic() - started:>4.1f} s"
        )
        best = planned
    return best


def classify(board: Board) -> None:
    """Let the board read the test digits."""
    test = np.load(MODELS / "digits_test.npz")
    images, labels = test["image"], test["label"]
    info, digest = board.booted, hashlib.sha256(board.binary.read_bytes()).hexdigest()
    overhead = info["macs"] / info["base_macs"]
    say(f"      booted slot {info['slot']}: model {info['model_id'][:16]}, plan version {info['plan_version']}")
    say(f"      arena {info['arena_bytes']:,} B, F {overhead:.3f}, input {info['inputs'][0]['mode']}")
    say(f"      firmware SHA-256 {digest[:32]}...")
    right, started = 0, time.monotonic()
    with board.connect() as client:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            (scores,) = client.run([to_int8(image.transpose(1, 2, 0), info["inputs"][0])])
            right += int(scores.argmax() == label)
            progress(number / len(labels), f"{number} digits")
    clear()
    seconds = time.monotonic() - started
    say(f"      {right} of {len(labels)} digits right: {right / len(labels):.1%} ({seconds:.1f} s, all over TCP)")


def memory_map(network: str) -> None:
    """Print the peak RAM of a larger network before and after; the engine has executed both plans."""
    graph = workloads.workload(network, "full")
    before = planner.layers(graph)
    say("      searching for the least RAM...")
    found = [("layer by layer", before)]
    for f_max in NETWORK_F_MAX:
        try:
            after = planner.plan(graph, planner.Constraint(kind="p1", f_max=f_max), progress=progress)
        finally:
            clear()
        found.append((f"Weft, F <= {f_max}", after))
    for text, result in found:
        bar = "#" * max(1, round(MAP * result.arena_bytes / before.arena_bytes))
        say(f"      {text:<14}  {result.arena_bytes:>7,} B  F {result.overhead_factor:.3f}  {bar}")


def main() -> int:
    """Exit status 0 if everything was shown."""
    began = time.monotonic()
    first, second = MODELS / "digits_a.onnx", MODELS / "digits_b.onnx"
    with tempfile.TemporaryDirectory(prefix="weft-demo-") as name:
        folder = Path(name)
        step(1, "the planner as a daemon: weft serve")
        with daemon(folder / "store") as (client, where):
            say(f"      gRPC on {where}, serving")

            step(2, f"upload {first.name}")
            digest = client.upload(first.read_bytes(), first.name)
            say(f"      {first.stat().st_size:,} B stored as {digest[:16]}")

            step(3, "plans within RAM budgets (F: multiply-accumulates executed / of the unfused model)")
            plan_a = trade_off(client, first)
            plan_b = plan(client, second, api.PlanRequest(kind="p1"))

        board = Board(folder)
        step(4, "the host board boots the smallest of them")
        board.write_slot("a", plan_a.plan)
        board.activate("a")
        with board:
            classify(board)

        step(5, f"write the plan of {second.name} into slot b, activate it, restart the same binary")
        before = hashlib.sha256(BINARY.read_bytes()).digest()
        board.write_slot("b", plan_b.plan)
        board.activate("b")
        with board:
            classify(board)
        if hashlib.sha256(BINARY.read_bytes()).digest() != before:
            raise PlannerError(Code.INTERNAL, "the board's binary has changed")

    step(6, f"peak RAM of a larger network: {NETWORK} (MobileNetV2-0.35, 144x144x3), its rows streamed")
    memory_map(NETWORK)
    say(f"\ndone in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PlannerError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(1)
