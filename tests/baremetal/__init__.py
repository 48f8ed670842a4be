# SPDX-License-Identifier: Apache-2.0
"""Tests on emulated cores; the firmware and what runs it come with the planner."""

from planner_service.profile import emulator as runner
from planner_service.profile import images

__all__ = ["images", "runner"]
