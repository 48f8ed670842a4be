# SPDX-License-Identifier: Apache-2.0
"""Line and branch coverage of what handles untrusted bytes: `make coverage`. By the tests of single rules, the first
mutations of tests/fuzz/fuzz.c, the power-cut simulator and the committed fuzzing corpora; fails below the bar."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz import libfuzzer, subjects
from tests.update import build, plans

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "coverage"
SOURCES = ("open.c", "info.c", "plan.c", "verify_*.c")
TESTS = ("tests/test_verifier.py", "tests/test_update.py", "tests/test_update_smp.py")
LEFT_OUT = "random_mutations or every_byte or every_truncation or size_on or compiles_without or every_flipped"
FLAGS = ("--coverage", "-O0")
LINES, BRANCHES = 100.0, 95.0
MUTATIONS = 100_000


@dataclass(slots=True, kw_only=True)
class Seen:
    """Executions by line, and of each branch that leaves it."""

    lines: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    branches: dict[int, list[int]] = field(default_factory=dict)

    def add(self, number: int, count: int, branches: Sequence[int]) -> None:
        """A line of one build. Builds with other options may leave branches out: the fuller one counts."""
        self.lines[number] += count
        known = self.branches.get(number, [])
        if len(branches) == len(known):
            self.branches[number] = [a + b for a, b in zip(known, branches, strict=True)]
        elif len(branches) > len(known):
            self.branches[number] = list(branches)


def measured() -> list[Path]:
    """The files that the bar is for."""
    module = ROOT / "module" / "src"
    return [*(path for name in SOURCES for path in sorted(module.glob(name))), *sorted((module / "update").glob("*.c"))]


def run_tests() -> None:
    """Build the engine with counters, and let the tests build the rest with them."""
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    module = ROOT / "module"
    sources = [*sorted((module / "src").glob("*.c")), *sorted((module / "src/kernels_ref").glob("*.c"))]
    library = PLACE / "libweft.so"
    flags = ("-std=c99", "-fPIC", "-shared", "-DWEFT_COUNT=1", f"-I{module / 'include'}", f"-I{module / 'src'}")
    subprocess.run(["gcc", *flags, *FLAGS, "-o", library, *sources], check=True)
    environment = os.environ | {"WEFT_ENGINE": str(library), "WEFT_TEST_CFLAGS": " ".join(FLAGS)}
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={PLACE / 'tmp'}", "-k",
         f"not ({LEFT_OUT})", *TESTS],
        cwd=ROOT, env=environment, check=True,
    )  # fmt: skip
    for target in libfuzzer.TARGETS:
        if not target.smp:
            program = libfuzzer.replayer(target, PLACE / target.name, *FLAGS)
            corpus = sorted((libfuzzer.CORPUS / target.name).iterdir())
            subprocess.run([program, *corpus], cwd=PLACE / target.name, check=True)
    mutator = PLACE / "mutate" / "fuzz"
    mutator.parent.mkdir()
    parts = [libfuzzer.HERE / name for name in ("fuzz.c", "check.c", "mutate.c", "plan_bytes.c")]
    folders = (*build.INCLUDES, "-D_POSIX_C_SOURCE=200809L", "-DWEFT_COUNT=1")
    build.run("gcc", "-std=c99", *FLAGS, *folders, "-o", mutator, *parts, *build.engine_sources())
    for name, subject in subjects.SUBJECTS.items():
        plan = mutator.with_name(f"{name}.weft")
        plan.write_bytes(subject().plan())
        subprocess.run([mutator, "random", "1", str(MUTATIONS), plan], cwd=PLACE, check=True, stdout=subprocess.DEVNULL)
    simulate = (
        "from pathlib import Path; import sys; from tests.update import build; build.simulator(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", simulate, str(PLACE / "sim")], cwd=ROOT, env=environment, check=True)
    plan_file = plans.simulator_file(PLACE / "plans.bin")
    subprocess.run([PLACE / "sim" / "sim", plan_file, "--every", "20", "--large-every", "0"], check=True)


def read() -> dict[Path, Seen]:
    """What all builds counted."""
    found = {path: Seen() for path in measured()}
    for data in sorted(PLACE.rglob("*.gcda")):
        out = subprocess.run(
            ["gcov", "--json-format", "--branch-probabilities", "--stdout", str(data)],
            cwd=PLACE, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        for document in out.splitlines():
            for file in json.loads(document)["files"]:
                seen = found.get((ROOT / file["file"]).resolve())
                for line in file["lines"] if seen is not None else ():
                    branches = [branch["count"] for branch in line["branches"]]
                    seen.add(line["line_number"], line["count"], branches)
    return found


def percent(counts: Sequence[int]) -> float:
    return 100.0 * sum(1 for count in counts if count > 0) / len(counts) if counts else 100.0


def main() -> int:
    """Print a row by file and what was not reached; 1 below the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="read the counters of the last run")
    if not parser.parse_args().again:
        run_tests()
    low = False
    print(f"{'file':36}{'lines':>8}{'branches':>10}  not reached")
    for path, seen in read().items():
        branches = [count for counts in seen.branches.values() for count in counts]
        lines = list(seen.lines.values())
        missing = sorted(number for number, count in seen.lines.items() if count == 0)
        partly = sorted(number for number, counts in seen.branches.items() if 0 in counts)
        low = low or not lines or percent(lines) < LINES or percent(branches) < BRANCHES
        where = f"lines {missing} " if missing else ""
        where += f"branches of {partly}" if partly else ""
        print(f"{path.relative_to(ROOT)!s:36}{percent(lines):7.1f}%{percent(branches):9.1f}%  {where}")
    print(f"the bar: lines {LINES:.0f} %, branches {BRANCHES:.0f} %, of every file")
    return int(low)


if __name__ == "__main__":
    sys.exit(main())
