# SPDX-License-Identifier: Apache-2.0
"""Power is cut at every flash operation of every kind of update; seeded bugs are noticed by the same simulation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.update import bench, build, plans


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the simulator in it and the plans it uses."""
    place = tmp_path_factory.mktemp("update")
    plans.simulator_file(place / "plans.bin")
    build.simulator(place)
    return place


def test_no_cut_loses_the_running_plan(folder: Path) -> None:
    options = ("--large-every", "12", "--pairs-every", "200", "--wear", "200")
    found = bench.run_simulator(folder / "sim", folder / "plans.bin", *options, timeout=600)
    print(f"{found.cuts} cases, {found.pairs} of them with two cuts, {found.failures} failures")
    assert found.failures == 0, found.report
    assert found.cuts >= 100_000
    assert found.pairs >= 5_000
    assert found.figures["slot_sector_erases"] == found.figures["updates"] / 2, "one erase per sector and update"
    assert found.figures["state_sector_erases"] <= found.figures["updates"] + 1


def test_seeded_bugs_are_noticed(folder: Path) -> None:
    options = ("--every", "6", "--large-every", "0", "--pairs-every", "300")
    found = dict(bench.seeded_bugs(folder, folder / "plans.bin", *options, timeout=60))
    missed = [bug for bug, how in found.items() if not how]
    print(f"{len(found) - len(missed)} of {len(found)} seeded bugs noticed; not: {missed}")
    assert len(found) >= 15
    assert len(missed) * 10 <= len(found), missed
