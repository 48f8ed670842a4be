# SPDX-License-Identifier: Apache-2.0
"""``python -m planner_service.cli``."""

from planner_service.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
