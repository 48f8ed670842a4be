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
    options = ("--large-every", "12", "--pairs-every", "8", "--wear", "200")
    found = bench.run_simulator(folder / "sim", folder / "plans.bin", *options, timeout=600)
    print(f"{found.cuts} cases, {found.pairs} of them with two cuts, {found.failures} failures")
    assert found.failures == 0, found.report
    assert found.cuts - found.same >= 100_000
    assert found.pairs >= 50_000
    worn = found.figures
    assert worn["slot_sector_erases"] == worn["slot_sector_erases_least"] == worn["updates"] / 2, "one by update"
    assert worn["state_sector_erases_least"] <= worn["state_sector_erases"] <= worn["updates"] + 1
    assert worn["state_sector_erases"] - worn["state_sector_erases_least"] <= 1, "both sectors in turn"


def test_seeded_bugs_are_noticed(folder: Path) -> None:
    options = ("--large-every", "0", "--pairs-every", "5")
    found = dict(bench.seeded_bugs(folder, folder / "plans.bin", *options, timeout=120))
    missed = [bug for bug, how in found.items() if not how]
    print(f"{len(found) - len(missed)} of {len(found)} seeded bugs noticed; not: {missed}")
    assert len(found) >= 15
    assert not missed
