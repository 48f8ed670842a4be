# SPDX-License-Identifier: Apache-2.0
"""Whether a plan fits a board, and if not: how many bytes are missing, which layer binds, what would fit."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from planner_service import ir
from planner_service.targets import Target, load_all


class Resource(Enum):
    """What a plan can be too large for."""

    ARENA = "arena"
    SLOT = "slot"
    FLASH = "flash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """Bytes that are missing. ``layer``: the one at the peak (arena) or with the most parameters (slot, flash)."""

    resource: Resource
    needed: int
    available: int
    layer: str
    hint: str

    @property
    def missing(self) -> int:
        return self.needed - self.available

    def __str__(self) -> str:
        return f"{self.resource.value} needs {self.needed} bytes and has {self.available}: {self.missing} missing" + (
            f"; {self.hint}" if self.hint else ""
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """No shortfalls: the plan fits. ``targets`` names those that it fits with their own arena budget."""

    shortfalls: tuple[Shortfall, ...]
    targets: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.shortfalls


def lacks(target: Target, *, arena: int, plan: int, budget: int | None = None) -> dict[Resource, tuple[int, int]]:
    """Resource -> (needed, available) for all that is short. ``budget`` replaces the target's arena budget."""
    limit = target.arena_budget if budget is None else min(budget, target.ram_bytes)
    pairs = {
        Resource.ARENA: (arena, limit),
        Resource.SLOT: (plan, target.slot_bytes),
        Resource.FLASH: (plan, target.flash_bytes),
    }
    return {resource: pair for resource, pair in pairs.items() if pair[0] > pair[1]}


def fit(
    target: Target,
    *,
    arena: int,
    plan: int,
    budget: int | None,
    peak_layer: str,
    largest_layer: str,
    least: tuple[int, float] | None,
    any_calls: int | None = None,
) -> Fit:
    """Judge a plan of ``plan`` bytes that needs ``arena`` bytes of RAM. ``least`` is (arena bytes, F) of the schedule
    that needs the least RAM, where it is known; ``any_calls``, where a bound on calls was asked for, the bytes that no
    schedule of its F is below at any call overhead."""
    fitting = tuple(t.name for t in load_all() if not lacks(t, arena=arena, plan=plan))
    elsewhere = f"it fits {', '.join(fitting)}" if fitting else "it fits no known target"
    shortfalls = []
    for resource, (needed, available) in lacks(target, arena=arena, plan=plan, budget=budget).items():
        if resource is not Resource.ARENA:
            hint = f"weights do not shrink with the schedule; {elsewhere}"
        elif any_calls is not None and any_calls <= available:
            hint = f"with a larger call overhead, {any_calls} bytes may do at this F (any: whatever calls cost)"
        elif least is None or least[0] >= arena:
            hint = f"no schedule needs less; {elsewhere}"
        elif least[0] <= available:
            hint = f"{least[0]} bytes are possible, at F = {least[1]:.3f}: ask for the least compute within the limit"
        else:
            hint = f"the least that any schedule needs is {least[0]} bytes, at F = {least[1]:.3f}; {elsewhere}"
        shortfalls.append(
            Shortfall(
                resource=resource,
                needed=needed,
                available=available,
                layer=peak_layer if resource is Resource.ARENA else largest_layer,
                hint=hint,
            )
        )
    return Fit(shortfalls=tuple(shortfalls), targets=fitting)


def parameter_bytes(op: ir.Op) -> int:
    """Bytes of an operator's weights, bias and table."""
    if isinstance(op, ir.Conv2D | ir.FullyConnected):
        return op.weights.nbytes + op.bias.nbytes
    return op.table.nbytes if isinstance(op, ir.Lut) else 0


def largest_layer(graph: ir.Graph) -> str:
    """The name of the layer with the most parameters; empty if no layer has any."""
    heaviest = max(graph.ops, key=parameter_bytes, default=None)
    return heaviest.name if heaviest is not None and parameter_bytes(heaviest) else ""
