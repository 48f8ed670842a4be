# SPDX-License-Identifier: Apache-2.0
"""What the pages of docs/ say: links lead somewhere, commands are understood, and the figures of the samples' plans are
those that the planner prints."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path

import pytest

from planner_service import api, signing
from planner_service.cli import arguments
from planner_service.engine import Engine
from planner_service.errors import CATALOGUE

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "samples" / "models"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "riot").rglob("*.md")])
#: As the samples are planned: samples/zephyr/*/CMakeLists.txt, samples/riot/Makefile.plans.
F_MAX = {"zephyr.md": 1.2, "riot.md": 1.1}


def _id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _blocks(page: Path) -> str:
    """What a page shows as typed or printed, continued lines joined."""
    text = "\n".join(line[4:] for line in page.read_text().splitlines() if line.startswith("    "))
    return re.sub(r"\\\n\s*", " ", text)


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"(?m)^#+ (.*)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


def _commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for line in _blocks(page).splitlines():
            command = re.sub(r"\s+#.*", "", line.strip())
            # The shells of boards are shown behind their prompts; `a | b` stands for several commands.
            if command.startswith("weft ") and " | " not in command:
                found.append((page.name, command))
    return found


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\(docs/([\w-]+\.md)\)", (ROOT / "README.md").read_text()))
    linked |= set(re.findall(r"\(([\w-]+\.md)\)", (ROOT / "docs" / "plan-format.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= linked


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?m)^([a-z][\w-]*):", makefile))
    for page in PAGES:
        for named in re.findall(r"`make\s+([a-z][\w-]*)`", page.read_text()):
            assert named in targets | {"menuconfig", "slots", "term"}, (page.name, named)


@pytest.mark.parametrize(("page", "command"), _commands())
def test_commands_are_understood(page: str, command: str) -> None:
    words = shlex.split(command.replace("SECONDS", "1").replace("UUID", "01234567-89ab-cdef-0123-456789abcdef"))
    arguments.parse(words[1 : words.index(">")] if ">" in words else words[1:])


def test_exit_codes_are_the_catalogues() -> None:
    rows = re.findall(r"(?m)^\| (\d+) \| `([a-z-]+)` \|", (ROOT / "docs" / "update.md").read_text())
    assert {(int(code), name) for code, name in rows} == {(o.exit_code, c.value) for c, o in CATALOGUE.items()}


@functools.cache
def _planned(f_max: float) -> tuple[api.Planned, ...]:
    made = []
    for version, name in enumerate(("digits_a", "digits_b"), 1):
        request = api.PlanRequest(kind="p1", f_max=f_max, plan_version=version)
        made += api.create_plans((MODELS / f"{name}.onnx").read_bytes(), name, request)
    return tuple(made)


@pytest.mark.parametrize("page", sorted(F_MAX))
def test_boards_print_what_the_pages_show(page: str) -> None:
    text = _blocks(ROOT / "docs" / page)
    plans = _planned(F_MAX[page])
    ids = [str(Engine().open(plan.plan).info["model_id"]) for plan in plans]
    for shown in re.findall(r"\bmodel ([0-9a-f]{8,64})\b", text):
        assert any(known.startswith(shown) for known in ids), shown
    for pattern, known in (
        (r"(\d+) bytes,? (?:copied|in place)", {str(len(plan.plan)) for plan in plans}),
        (r"arena (\d+) (?:of|bytes)", {str(plan.arena_bytes) for plan in plans}),
        (r"F (?:= )?(\d\.\d+)", {f"{plan.overhead_factor:.3f}" for plan in plans}),
        (r"(\d+) (?:kMAC|thousand MACs)", {str(plan.macs // 1000) for plan in plans}),
    ):
        found = set(re.findall(pattern, text))
        assert found, pattern
        assert found <= known
    digests = {signing.describe(plan.plan).digest[:16] for plan in plans}
    assert set(re.findall(r"version \d+ \(([0-9a-f]{16})\)", text)) <= digests
    assert set(re.findall(r"([\d,]+) B sent", text)) <= {f"{len(plan.plan):,}" for plan in plans}


def test_readme_shows_what_the_demo_prints() -> None:
    """The table of RAM budgets, by the demo's own requests."""
    data = (MODELS / "digits_a.onnx").read_bytes()
    (layers,) = api.create_plans(data, "digits_a", api.PlanRequest(kind="layers"))
    rows = [f"| layer by layer | {layers.arena_bytes:,} B | | 1.000 | {len(layers.plan):,} B |"]
    for budget in (4608, 3584, 2816):
        (plan,) = api.create_plans(data, "digits_a", api.PlanRequest(kind="p2", ram_max=budget))
        share = plan.arena_bytes / layers.arena_bytes
        rows.append(
            f"| {budget:,} B | {plan.arena_bytes:,} B | {share * 100:.1f} % | {plan.overhead_factor:.3f} "
            f"| {len(plan.plan):,} B |"
        )
    (least,) = api.create_plans(data, "digits_a", api.PlanRequest(kind="p1"))
    rows.append(f"| 2,048 B | does not fit: {least.arena_bytes:,} B would (F {least.overhead_factor:.2f}) | | | |")
    text = (ROOT / "README.md").read_text()
    for row in rows:
        assert row in text
