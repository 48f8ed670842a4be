# SPDX-License-Identifier: Apache-2.0
"""libFuzzer targets: `make fuzz` runs each for FUZZ_SECONDS. Findings stay in build/fuzz/TARGET, the corpus is ours."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.update import build, plans

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "fuzz"
CORPUS = HERE / "corpus"
COMPILER = "clang"
FLAGS = (
    "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O1", "-g", "-fno-omit-frame-pointer", "-DWEFT_COUNT=1",
    "-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=all",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A libFuzzer program: its sources beside the engine, the longest input in bytes, and what else it needs."""

    name: str
    sources: tuple[str, ...]
    max_len: int
    update: bool = False
    smp: bool = False


PLAN = ("check.c", "mutate.c", "plan_bytes.c", "targets/plan_mutator.c")
WORLD = ("mutate.c", "plan_bytes.c", "targets/world.c")
TARGETS = (
    Target(name="verifier", sources=("targets/verifier.c", *PLAN), max_len=4096),
    Target(name="execute", sources=("targets/execute.c", *PLAN), max_len=4096),
    Target(name="update", sources=("targets/update.c", *WORLD), max_len=321, update=True),
    Target(name="smp", sources=("targets/smp.c", *WORLD), max_len=2048, update=True, smp=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What libFuzzer counted: inputs executed, of them in the corpus, edges covered."""

    executions: int
    corpus: int
    edges: int


def _plans_source(folder: Path) -> Path:
    """The plans that devices are sent, as C; made once, for signatures of the targets are their own."""
    source = folder / "plans.c"
    if not source.exists():
        folder.mkdir(parents=True, exist_ok=True)
        data = plans.simulator_file(folder / "plans.bin").read_bytes()
        part = source.with_suffix(f".{os.getpid()}")
        part.write_text(
            "#include <stddef.h>\n#include <stdint.h>\n"
            "extern const uint8_t fuzz_plans[];\nextern const size_t fuzz_plans_len;\n"
            f"const uint8_t fuzz_plans[] = {{{','.join(map(str, data))}}};\n"
            "const size_t fuzz_plans_len = sizeof fuzz_plans;\n"
        )
        part.replace(source)
    return source


def _object(source: Path, key: bytes, flags: Sequence[str]) -> Path:
    """A source compiled with ``flags``; kept as long as it, ``key`` and the flags stay the same."""
    content = key + source.read_bytes() + repr(flags).encode()
    found = BUILD / "objects" / f"{source.stem}-{hashlib.sha256(content).hexdigest()[:16]}.o"
    if not found.exists():
        found.parent.mkdir(parents=True, exist_ok=True)
        part = found.with_suffix(f".{os.getpid()}")
        build.run(COMPILER, *flags, "-c", "-o", part, source)
        part.replace(found)
    return found


def compile_target(target: Target) -> Path:
    """The program, built anew where a source changed; the engine is compiled once for all."""
    headers = sorted(f for folder in ("tests", "module") for f in (ROOT / folder).rglob("*.h"))
    key = b"".join(f.read_bytes() for f in headers)
    flags = [*FLAGS, *build.WARNINGS, *build.INCLUDES, f"-I{HERE}"]
    sources = [*(HERE / name for name in target.sources), *build.engine_sources()]
    objects, link = [], ["-fsanitize=fuzzer,address,undefined"]
    if target.update:
        sources += [build.HERE / "device.c", *build.core_sources()]
        # The simulation: nothing is to be found in it, and most of the time would be lost there.
        plain = (build.HERE / "flash.c", build.HERE / "sha256.c", _plans_source(BUILD / "plans"))
        objects += [_object(source, key, ["-O2", *build.INCLUDES]) for source in plain]
        link.append("-Wl,--wrap=weft_run")
    if target.smp:
        codec = build.zcbor()
        quiet = [*FLAGS, "-w", f"-I{codec / 'include'}"]
        objects += [_object(codec / "src" / f"zcbor_{n}.c", key, quiet) for n in ("common", "decode", "encode")]
        for source in (HERE / "targets/smp.c", ROOT / "module/src/smp/weft_smp.c"):
            objects.append(_object(source, key, [*flags, "-isystem", str(codec / "include")]))
        sources.remove(HERE / "targets/smp.c")
    objects += [_object(source, key, flags) for source in sources]
    program = BUILD / f"{target.name}-{hashlib.sha256(repr(objects).encode()).hexdigest()[:16]}"
    if not program.exists():
        part = program.with_suffix(f".{os.getpid()}")
        build.run(COMPILER, *link, "-o", part, *objects)
        part.replace(program)
    return program


def replayer(target: Target, folder: Path, *flags: str) -> Path:
    """The target without libFuzzer, by gcc: it takes files as arguments. For plans and the update core."""
    sources = [*(HERE / name for name in target.sources), HERE / "targets/replay.c", *build.engine_sources()]
    if target.update:
        sources += [build.HERE / name for name in ("device.c", "flash.c", "sha256.c")]
        sources += [*build.core_sources(), _plans_source(BUILD / "plans")]
        flags = (*flags, "-Wl,--wrap=weft_run")
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / target.name
    build.run(
        "gcc",
        "-std=c11",
        "-D_POSIX_C_SOURCE=200809L",
        "-DWEFT_COUNT=1",
        "-w",
        *flags,
        *build.INCLUDES,
        "-o",
        program,
        *sources,
    )
    return program


def fuzz(target: Target, seconds: int, *, seed: int = 1, keep: Path | None = None) -> Run:
    """Run from the committed corpus on; new inputs go to ``keep``. A finding is a RuntimeError with its report."""
    program = compile_target(target)
    place = keep if keep is not None else BUILD / target.name / f"new-{os.getpid()}"
    findings = BUILD / target.name / "findings"
    place.mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    command = [
        str(program), f"-max_total_time={seconds}", f"-max_len={target.max_len}", f"-seed={seed}", "-timeout=20",
        "-rss_limit_mb=2048", "-print_final_stats=1", "-reload=0", f"-artifact_prefix={findings}/",
        str(place), str(CORPUS / target.name),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=findings, capture_output=True, text=True, errors="replace", timeout=seconds + 300, check=False
        )
    finally:
        if keep is None:
            shutil.rmtree(place, ignore_errors=True)
    if done.returncode != 0:
        raise RuntimeError(f"{target.name}: a finding in {findings.relative_to(ROOT)}\n{done.stderr[-6000:]}")
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    figures = re.findall(r"cov: (\d+) ft: \d+ corp: (\d+)", done.stderr)
    if executed is None or not figures:
        raise RuntimeError(f"{target.name}: libFuzzer tells no figures\n{done.stderr[-2000:]}")
    edges, corpus = map(int, figures[-1])
    return Run(executions=int(executed[1]), corpus=corpus, edges=edges)


def minimise(target: Target, found: Path, most: int) -> int:
    """Make the committed corpus anew: of it and ``found``, what covers all edges; the ``most`` that add most."""
    program, place = compile_target(target), CORPUS / target.name
    merged = BUILD / target.name / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    place.mkdir(parents=True, exist_ok=True)
    command = [str(program), "-merge=1", f"-max_len={target.max_len}", "-use_counters=0", "-timeout=20"]
    subprocess.run([*command, str(merged), str(place), str(found)], capture_output=True, timeout=1800, check=True)
    # libFuzzer writes the small inputs first, each for something that none before it reached.
    chosen = sorted(merged.iterdir(), key=lambda f: (f.stat().st_mtime_ns, f.name))
    shutil.rmtree(place)
    place.mkdir()
    for file in chosen[:most]:
        name = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        shutil.copyfile(file, place / name)
    return len(list(place.iterdir()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the targets and print what was executed; 1 on a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--targets", default=",".join(t.name for t in TARGETS))
    parser.add_argument("--minimise", type=int, metavar="N", help="then make the corpus anew, of N inputs at most")
    options = parser.parse_args(arguments)
    names, figures, failed = options.targets.split(","), {}, False
    for target in (t for t in TARGETS if t.name in names):
        found = BUILD / target.name / "found"
        try:
            run = fuzz(target, options.seconds, seed=options.seed, keep=found)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        figures[target.name] = {"executions": run.executions, "corpus": run.corpus, "edges": run.edges}
        print(f"{target.name}: {run.executions} executions, {run.edges} edges, {run.corpus} inputs in the corpus")
        if options.minimise is not None:
            print(f"{target.name}: {minimise(target, found, options.minimise)} inputs committed")
    output = ROOT / "build" / "bench" / "fuzz.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"seconds": options.seconds, **figures}, indent=2) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
