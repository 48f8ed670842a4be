#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run by `make test`: two plans, one firmware, changed while it runs."""

import sys

from testrunner import run


def testfunc(child):
    child.expect_exact("switch: try")
    child.expect_exact("> ")
    models = set()
    for slot, version in (("a", 1), ("b", 2), ("a", 1)):
        child.sendline(f"weft switch {slot}")
        child.expect(rf"slot {slot} \(active\): version {version}, .*\n +model ([0-9a-f]{{64}})")
        models.add(child.match.group(1))
        child.sendline("digits")
        child.expect_exact("10 digits right")
        child.sendline("weft selftest")
        child.expect_exact("self-test passed")
    assert len(models) == 2, models
    child.sendline("weft slots")
    child.expect_exact("slot a (active): version 1")
    child.expect_exact("slot b: version 2")


if __name__ == "__main__":
    sys.exit(run(testfunc, timeout=60))
