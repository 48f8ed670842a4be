#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run by `make test`: the plan of slot a reads all digits, and the device has an address."""

import sys

from testrunner import run


def testfunc(child):
    child.expect(r"weft: slot a: model [0-9a-f]{8} version 1, \d+ bytes")
    child.expect_exact("> ")
    child.sendline("ifconfig")
    child.expect_exact("inet6 addr: fe80:")
    child.expect_exact("> ")
    child.sendline("digits")
    for digit in range(10):
        child.expect_exact(f"digit {digit}: read as {digit}, crc32")
    child.expect_exact("10 digits right")


if __name__ == "__main__":
    sys.exit(run(testfunc, timeout=60))
