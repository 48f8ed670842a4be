# SPDX-License-Identifier: Apache-2.0
"""libFuzzer on plans, the update core and SMP packets: a few seconds of each target from the committed corpus on, or
WEFT_FUZZ_SECONDS, as continuous integration wants. `make fuzz` runs them for longer."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.fuzz import libfuzzer

SECONDS = int(os.environ.get("WEFT_FUZZ_SECONDS", "4"))
LARGEST_CORPUS = 256 << 10


@pytest.mark.skipif(shutil.which(libfuzzer.COMPILER) is None, reason="clang is not installed")
@pytest.mark.parametrize("target", libfuzzer.TARGETS, ids=lambda t: t.name)
def test_nothing_is_found(target: libfuzzer.Target) -> None:
    corpus = list((libfuzzer.CORPUS / target.name).iterdir())
    run = libfuzzer.fuzz(target, SECONDS)
    print(f"{target.name}: {run.executions} executions, {run.edges} edges, {run.corpus} inputs")
    assert run.executions > len(corpus) > 10, "the corpus was run, and more"


@pytest.mark.parametrize("target", libfuzzer.TARGETS, ids=lambda t: t.name)
def test_corpus_is_small(target: libfuzzer.Target) -> None:
    sizes = [file.stat().st_size for file in (libfuzzer.CORPUS / target.name).iterdir()]
    assert sum(sizes) <= LARGEST_CORPUS
    assert max(sizes) <= target.max_len
