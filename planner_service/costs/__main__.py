# SPDX-License-Identifier: Apache-2.0
"""``python -m planner_service.costs fit`` measures, fits, writes and validates; ``check`` validates the files there
are; ``compare`` runs plans of fewest MACs and of least predicted latency in the same RAM. Minutes for all cores; needs
the compilers and emulators that ``weft profile`` needs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import median

from planner_service import costs
from planner_service.costs import fit
from planner_service.errors import PlannerError
from planner_service.profile import measure


def main(argv: Sequence[str] | None = None) -> int:
    """0, or the median error is 10 % or more: 1, or something lacks: 3."""
    parser = argparse.ArgumentParser(prog="python -m planner_service.costs", description=__doc__)
    parser.add_argument("command", choices=("fit", "check", "compare"))
    parser.add_argument("--cores", nargs="+", choices=sorted(fit.BOARDS), default=list(fit.BOARDS))
    parser.add_argument("--plans", action="store_true", help="print every plan's error")
    args = parser.parse_args(argv)
    failed = False
    for core in args.cores:
        try:
            measure.check(core)
        except PlannerError as error:
            print(error, error.hint, file=sys.stderr, sep="\n")
            return 3
        if args.command == "compare":
            _compare(core)
            continue
        if args.command == "fit":
            samples = [sample for graph in fit.training() for sample in fit.measure(graph, core, parts=True)]
            model = fit.fit(core, samples)
            fit.write(model)
            print(fit.summary(f"{core}, fitted to", fit.errors(model, samples)))
        costs.load.cache_clear()
        found = fit.errors(
            costs.load(core), [sample for graph in fit.validation() for sample in fit.measure(graph, core, parts=False)]
        )
        print(fit.summary(f"{core}, validated on", found))
        failed |= fit.median(found) >= fit.MEDIAN_MAX
        if args.plans:
            for e in found:
                print(f"  {e.network:28}{e.schedule_name:12}{e.value:+7.1%}")
    return int(failed)


def _compare(core: str) -> None:
    pairs = []
    print(f"{core + ', P2':28}{'RAM':>8}{'fewest MACs':>14}{'least latency':>15}{'ratio':>8}")
    for graph in (*fit.papers(), *fit.validation()):
        for pair in fit.compare(graph, core):
            pairs.append(pair.by_latency / pair.by_macs)
            print(
                f"{pair.network:28}{pair.cap:>8}{pair.by_macs:>14,}{pair.by_latency:>15,}{pairs[-1]:>8.3f}", flush=True
            )
    print(f"instructions, median ratio {median(pairs):.3f}, best {min(pairs):.3f}, worst {max(pairs):.3f}")


if __name__ == "__main__":
    sys.exit(main())
