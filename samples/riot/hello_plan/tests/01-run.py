#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run by `make test`: the plan of slot a reads all digits, and the shell answers."""

import sys

from testrunner import run


def testfunc(child):
    child.expect(r"weft: slot a: model [0-9a-f]{8} version 1, \d+ bytes")
    for digit in range(10):
        child.expect_exact(f"digit {digit}: read as {digit}, crc32")
    child.expect_exact("hello_plan: 10 digits right")
    child.expect_exact("> ")
    child.sendline("weft info")
    child.expect_exact("slot a (active): version 1")
    child.expect(r"10 runs, 0 failures")
    child.sendline("weft run")
    child.expect(r"output 0: largest at \d, crc32 [0-9a-f]{8}")
    child.sendline("weft profile")
    child.expect(r"\d+ stages: \d+ us")
    child.sendline("weft selftest")
    child.expect_exact("self-test passed")


if __name__ == "__main__":
    sys.exit(run(testfunc, timeout=60))
