# SPDX-License-Identifier: Apache-2.0
"""What plans cost on a core: emulated cores (``emulator``), the firmware as shipped (``images``), and a plan's
instructions by operator and stage (``measure``)."""
