# SPDX-License-Identifier: Apache-2.0
"""Power cuts of the update core, all of them, seeded bugs, wear, and a host board killed at random moments of updates:
`make bench-update`. Writes build/bench/update.json."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.update import build, kill, mutants, plans

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "build" / "bench" / "update.json"
KILLS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """What the simulator counted. ``same``: cases after whose cuts the device was just as after another case's;
    ``figures``: all of its output."""

    cuts: int
    pairs: int
    same: int
    failures: int
    figures: dict[str, int]
    report: str


def run_simulator(simulator: Path, plan_file: Path, *options: str, shards: int = 1, timeout: float = 14400) -> Cuts:
    """Run all shards at once and add up."""
    processes = [
        subprocess.Popen(
            [simulator, plan_file, *options, "--shard", str(n), "--shards", str(shards)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for n in range(shards)
    ]  # fmt: skip
    figures: dict[str, int] = {}
    report = ""
    try:
        for process in processes:
            out, error = process.communicate(timeout=timeout)
            report += error
            for name, value in json.loads(out).items():
                figures[name] = figures.get(name, 0) + value
    finally:
        for process in processes:
            process.kill()
    return Cuts(
        cuts=figures["cuts"],
        pairs=figures["pairs"],
        same=figures["same"],
        failures=figures["failures"],
        figures=figures,
        report=report,
    )


def seeded_bugs(folder: Path, plan_file: Path, *options: str, timeout: float) -> Iterator[tuple[str, str]]:
    """Every seeded bug with how it was noticed, "" if it was not. Needs `build.simulator(folder)`."""
    for name, edits in mutants.BUGS.items():
        simulator = build.mutant(folder, name, edits)
        try:
            done = subprocess.run(
                [simulator, plan_file, "--stop", *options], capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            yield name, "hangs"
            continue
        lines = [line for line in done.stderr.splitlines() if " cases in " not in line]
        yield name, (lines[0] if lines else f"exit code {done.returncode}") if done.returncode else ""


def main() -> int:
    """Print and write the figures; 1 if a case failed or too many bugs went unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="simulators at a time")
    shards = parser.parse_args().jobs
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan_file = plans.simulator_file(folder / "plans.bin")
        simulator = build.simulator(folder)
        found = run_simulator(simulator, plan_file, "--pairs-every", "1", shards=shards)
        worn = run_simulator(simulator, plan_file, "--every", "0", "--large-every", "0", "--wear", "10000").figures
        bugs = dict(seeded_bugs(folder, plan_file, "--pairs-every", "3", timeout=600))
    killed = kill.run(KILLS)
    missed = [bug for bug, how in bugs.items() if not how]
    result = {
        "cuts": found.cuts,
        "pairs": found.pairs,
        "same_state": found.same,
        "failures": found.failures,
        "seeded_bugs": len(bugs),
        "seeded_bugs_caught": len(bugs) - len(missed),
        "seeded_bugs_missed": missed,
        "updates": worn["updates"],
        "slot_sector_erases": [worn["slot_sector_erases_least"], worn["slot_sector_erases"]],
        "state_sector_erases": [worn["state_sector_erases_least"], worn["state_sector_erases"]],
        "kills": killed.kills,
        "kills_without_plan": killed.without_plan,
        "seconds": round(time.monotonic() - start),
    }
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=2) + "\n")
    print(found.report, end="", file=sys.stderr)
    print(json.dumps(result, indent=2))
    return int(found.failures > 0 or killed.without_plan > 0 or len(missed) * 10 > len(bugs))


if __name__ == "__main__":
    sys.exit(main())
