# SPDX-License-Identifier: Apache-2.0
"""Ways to a device's update core. ``base`` has the interface and the addresses, ``deploy`` what is done through it; one
module per protocol, imported when an address asks for it."""

from planner_service.transport.base import (
    Address,
    Settings,
    State,
    Stats,
    Transfer,
    Transport,
    TransportError,
    connect,
    parse,
)

__all__ = ["Address", "Settings", "State", "Stats", "Transfer", "Transport", "TransportError", "connect", "parse"]
