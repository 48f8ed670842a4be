# SPDX-License-Identifier: Apache-2.0
"""Target files, their checks, and whether plans fit."""

from __future__ import annotations

import pytest

from planner_service import fit, targets
from planner_service.errors import Code, PlannerError
from planner_service.targets import Target

NAMES = {
    "native",
    "mps2-an385",
    "mps2-an386",
    "mps2-an500",
    "mps3-an547",
    "nrf52840dk",
    "nucleo_f767zi",
    "nucleo_f746zg",
    "stm32f4_disco",
    "nucleo_wb55rg",
    "rpi_pico",
    "esp32s3",
    "hifive1b",
    "microbit",
    "samr21_xpro",
}
GOOD = """
name = "board"
description = "A board"
core = "cortex-m4"
ram_bytes = 65_536
flash_bytes = 1_048_576
slot_bytes = 262_144
arena_budget = 32_768
arena_align = 4
"""


def test_every_board_is_there() -> None:
    assert {t.name for t in targets.load_all()} == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_boards_are_usable(name: str) -> None:
    target = targets.load(name)
    assert target.arena_budget <= target.ram_bytes
    assert (target.clock_hz is None) == (target.core == "host")
    assert target.zephyr


def test_unknown_board_names_the_known() -> None:
    with pytest.raises(PlannerError) as caught:
        targets.load("bord")
    assert caught.value.code is Code.NOT_FOUND
    assert "nrf52840dk" in caught.value.hint


def test_good_file() -> None:
    assert targets.parse(GOOD, "board.toml").pyocd is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("board", "Board!"), "name"),
        (("A board", " "), "description"),
        (("cortex-m4", "z80"), "core"),
        (("65_536", "0"), "ram_bytes"),
        (("1_048_576", "4_294_967_296"), "flash_bytes"),
        (("32_768", "65_537"), "arena_budget"),
        (("262_144", "524_292"), "slot_bytes"),
        (("262_144", "0"), "slot_bytes"),
        (("arena_align = 4", "arena_align = 3"), "arena_align"),
        (("arena_align = 4", "arena_align = 4\nclock_hz = -1"), "clock_hz"),
        (("arena_align = 4", "arena_align = 4\nerase_bytes = 0"), "erase_bytes"),
        (("arena_align = 4", "arena_align = 4\nerase_bytes = 100_000"), "slot_bytes"),
        (("arena_align = 4", ""), "arena_align"),
        (("arena_align = 4", "arena_align = '4'"), "arena_align"),
        (("arena_align = 4", "arena_align = 4.0"), "arena_align"),
        (("arena_align = 4", "arena_align = true"), "arena_align"),
        (("arena_align = 4", "arena_align = 4\nspeed = 9"), "speed"),
    ],
)
def test_bad_files(change: tuple[str, str], field: str) -> None:
    with pytest.raises(PlannerError) as caught:
        targets.parse(GOOD.replace(*change), "board.toml")
    assert caught.value.code is Code.BAD_REQUEST
    assert field in {v.layer for v in caught.value.violations}


def test_all_violations_at_once() -> None:
    text = GOOD.replace("cortex-m4", "z80").replace("32_768", "0").replace("arena_align = 4", "arena_align = 5")
    with pytest.raises(PlannerError) as caught:
        targets.parse(text, "board.toml")
    assert {v.layer for v in caught.value.violations} == {"core", "arena_budget", "arena_align"}


def test_not_toml() -> None:
    with pytest.raises(PlannerError, match=r"board\.toml"):
        targets.parse("name = ", "board.toml")


BOARD: Target = targets.parse(GOOD, "board.toml")


@pytest.mark.parametrize(
    ("arena", "plan", "budget", "missing"),
    [
        (32768, 262144, None, {}),
        (32769, 1000, None, {"arena": 1}),
        (32769, 1000, 65536, {}),
        (65537, 1000, 1 << 20, {"arena": 1}),
        (5000, 1000, 4000, {"arena": 1000}),
        (1000, 262145, None, {"slot": 1}),
        (1000, 1048577, None, {"slot": 786433, "flash": 1}),
        (40000, 300000, None, {"arena": 7232, "slot": 37856}),
    ],
)
def test_fit(arena: int, plan: int, budget: int | None, missing: dict[str, int]) -> None:
    found = fit.fit(
        BOARD, arena=arena, plan=plan, budget=budget, peak_layer="peak", largest_layer="largest", least=(3000, 1.5)
    )
    assert {s.resource.value: s.missing for s in found.shortfalls} == missing
    assert found.fits == (not missing)
    for shortfall in found.shortfalls:
        assert shortfall.layer == ("peak" if shortfall.resource is fit.Resource.ARENA else "largest")
        assert str(shortfall.missing) in str(shortfall)
    assert "native" in found.targets


@pytest.mark.parametrize(
    ("least", "words"),
    [
        ((20000, 1.2), "20000 bytes are possible, at F = 1.200"),
        ((36000, 2.0), "36000 bytes"),
        ((40000, 1.0), "no schedule"),
    ],
)
def test_what_would_fit(least: tuple[int, float], words: str) -> None:
    found = fit.fit(BOARD, arena=40000, plan=1000, budget=None, peak_layer="", largest_layer="", least=least)
    assert words in found.shortfalls[0].hint


def test_a_bound_on_calls_that_costs_too_much_is_named() -> None:
    """That other F was advised, for want of the bytes that only the bound takes."""
    ask = {"arena": 40000, "plan": 1000, "budget": None, "peak_layer": "", "largest_layer": "", "least": (20000, 1.2)}
    assert "larger call overhead, 30000 bytes" in fit.fit(BOARD, **ask, any_calls=30000).shortfalls[0].hint
    assert "20000 bytes are possible" in fit.fit(BOARD, **ask, any_calls=39000).shortfalls[0].hint


def test_nowhere_to_fit() -> None:
    found = fit.fit(BOARD, arena=1 << 31, plan=1, budget=None, peak_layer="", largest_layer="", least=None)
    assert found.targets == ()
    assert "no known target" in found.shortfalls[0].hint
