# SPDX-License-Identifier: Apache-2.0
"""Generated stubs of weft.planner.v1; made by ``python -m planner_service.protogen``."""
