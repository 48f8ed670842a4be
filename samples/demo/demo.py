# SPDX-License-Identifier: Apache-2.0
"""`make demo`: the planner's daemon makes plans for a digit classifier within RAM budgets, the host board boots one and
reads real handwriting; then another model comes over the air, signed, while the board keeps answering. What was not
signed for it, or is older, is refused, and a model on trial can be taken back."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "samples" / "models"
sys.path.insert(0, str(ROOT / "samples" / "host"))

from client import Board, BoardError, to_int8  # noqa: E402

from planner_service import api, planner, workloads  # noqa: E402
from planner_service.errors import CATALOGUE, Code, PlannerError  # noqa: E402
from planner_service.service.client import Client  # noqa: E402

#: What a board might have left for the model, in bytes; the last is more than can be asked of it.
BUDGETS = (4608, 3584, 2816, 2048)
START_SECONDS = 60.0
PUSH_SECONDS = 60.0
#: The plans of both models are one series: the board takes newer ones only.
LINE = "digits"
#: How long the board's flash takes to erase a sector, as on a real part.
ERASE_US = 50_000
STEPS = 7
BAR = 24
MAP = 48
NETWORK = "mbv2-w0.35-r144"
NETWORK_F_MAX = (1.0, 1.1)


def say(text: str = "") -> None:
    print(text, flush=True)


def step(number: int, text: str) -> None:
    say(f"\n[{number}/{STEPS}] {text}")


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
    layers = plan(client, model, api.PlanRequest(kind="layers", line=LINE))
    say(f"      {'RAM budget':>14}  {'peak RAM':>9}  {'of layers':>9}  {'F':>6}  {'plan':>9}  {'time':>6}")
    say(f"      {'layer by layer':>14}  {layers.arena_bytes:>7,} B  {'':>9}  {1.0:>6.3f}  {len(layers.plan):>7,} B")
    best = layers
    for budget in BUDGETS:
        started = time.monotonic()
        try:
            planned = plan(client, model, api.PlanRequest(kind="p2", ram_max=budget, line=LINE))
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


def weft(folder: Path, *arguments: str, show: bool = True) -> subprocess.CompletedProcess[str]:
    """A `weft` command in ``folder``, shown with what it prints; its progress bar is drawn on a terminal."""
    say(f"      $ weft {' '.join(arguments)}")
    command = [sys.executable, "-m", "planner_service.cli", *arguments]
    draws = sys.stderr.isatty() and arguments[0] == "push"
    done = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=None if draws else subprocess.PIPE,
        text=True,
        timeout=PUSH_SECONDS,
        check=False,
    )
    if show:
        for line in (done.stdout + (done.stderr or "")).splitlines():
            say(f"        {line}")
    return done


def must(done: subprocess.CompletedProcess[str]) -> None:
    """End the demo where a command failed."""
    if done.returncode != 0:
        raise PlannerError(Code.INTERNAL, f"that ended with exit code {done.returncode}")


def refused(done: subprocess.CompletedProcess[str]) -> None:
    """End the demo where the board took what it must not take."""
    if done.returncode != CATALOGUE[Code.REFUSED].exit_code:
        raise PlannerError(Code.INTERNAL, f"that should have been refused, and ended with exit code {done.returncode}")


def tell(board: Board) -> None:
    """Print what runs."""
    with board.connect() as client:
        info = client.info()
    trial = ", on trial" if info["trial"] else ""
    say(
        f"      slot {info['slot']} runs{trial}: model {info['model_id'][:16]}, plan version {info['plan_version']}, "
        f"arena {info['arena_bytes']:,} B, F {info['macs'] / info['base_macs']:.3f}"
    )


def classify(board: Board) -> None:
    """Let the board read the test digits."""
    test = np.load(MODELS / "digits_test.npz")
    images, labels = test["image"], test["label"]
    right, started = 0, time.monotonic()
    with board.connect() as client:
        tensor = client.info()["inputs"][0]
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            (scores,) = client.run([to_int8(image.transpose(1, 2, 0), tensor)])
            right += int(scores.argmax() == label)
            progress(number / len(labels), f"{number} digits")
    clear()
    seconds = time.monotonic() - started
    say(f"      {right} of {len(labels)} digits right: {right / len(labels):.1%} ({seconds:.1f} s, all over TCP)")


class Asking(threading.Thread):
    """Asks the board for one digit after the other until told to stop."""

    def __init__(self, board: Board) -> None:
        super().__init__(daemon=True)
        test = np.load(MODELS / "digits_test.npz")
        self._board, self._images, self._labels = board, test["image"], test["label"]
        self._enough = threading.Event()
        self.asked = self.right = self.failed = 0

    def run(self) -> None:
        with self._board.connect() as client:
            tensor = client.info()["inputs"][0]
            while not self._enough.is_set():
                number = self.asked % len(self._labels)
                self.asked += 1
                try:
                    (scores,) = client.run([to_int8(self._images[number].transpose(1, 2, 0), tensor)])
                    self.right += int(scores.argmax() == self._labels[number])
                except (BoardError, OSError):
                    self.failed += 1

    def __enter__(self) -> Asking:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self.join()


def over_the_air(board: Board, folder: Path) -> None:
    """The second model is sent, tried and kept, and the board answers all the while."""
    with Asking(board) as asking:
        must(weft(folder, "push", "second.weft", "--to", board.address, "--test"))
    say(f"      meanwhile {asking.asked} digits were asked, {asking.failed} not answered, {asking.right} right")
    if asking.failed or not asking.asked:
        raise PlannerError(Code.INTERNAL, "the board did not keep answering")
    tell(board)
    must(weft(folder, "confirm", "--to", board.address))
    classify(board)


def attacks(board: Board, folder: Path) -> None:
    """What the board does not take, and what can be taken back."""
    must(weft(folder, "keygen", "mallory.pem", show=False))
    must(weft(folder, "sign", "third.weft", "--key", "mallory.pem", "-o", "forged.weft", show=False))
    refused(weft(folder, "push", "forged.weft", "--to", board.address))
    refused(weft(folder, "push", "first.weft", "--to", board.address))
    must(weft(folder, "push", "third.weft", "--to", board.address, "--test"))
    must(weft(folder, "revert", "--to", board.address))
    tell(board)


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
            plan_b = plan(client, second, api.PlanRequest(kind="p1", line=LINE))
            plan_c = plan(client, first, api.PlanRequest(kind="p1", f_max=1.0, line=LINE))

        step(4, "a key, signatures, and the host board boots the smallest of them")
        must(weft(folder, "keygen", "key.pem"))
        for file, planned in (("first.weft", plan_a), ("second.weft", plan_b), ("third.weft", plan_c)):
            (folder / file).write_bytes(planned.plan)
            must(weft(folder, "sign", file, "--key", "key.pem"))
        must(weft(folder, "getpub", "key.pem", "--lang", "pem", "-o", "board.pem"))
        board = Board(folder, (folder / "board.pem").read_bytes(), options={"erase-us": ERASE_US})
        board.write_slot("a", (folder / "first.weft").read_bytes())
        before = hashlib.sha256(board.binary.read_bytes()).hexdigest()
        with board:
            say(f"      firmware SHA-256 {before[:32]}...")
            tell(board)
            classify(board)

            step(5, f"{second.name} over the air, while the board keeps answering")
            over_the_air(board, folder)

            step(6, "a forged plan, an older one, and one that is tried and taken back")
            attacks(board, folder)
            if hashlib.sha256(board.binary.read_bytes()).hexdigest() != before:
                raise PlannerError(Code.INTERNAL, "the board's binary has changed")

    step(7, f"peak RAM of a larger network: {NETWORK} (MobileNetV2-0.35, 144x144x3), its rows streamed")
    memory_map(NETWORK)
    say(f"\ndone in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PlannerError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(1)
