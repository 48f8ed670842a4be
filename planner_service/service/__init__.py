# SPDX-License-Identifier: Apache-2.0
"""weft.planner.v1 as a daemon (``daemon``, ``servicer``, ``pool``, ``worker``) and its client (``client``). Protobuf
stops at ``convert`` and ``edge``."""
