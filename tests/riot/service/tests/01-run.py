#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run by `make test`: every embUnit suite passes."""

import sys

from testrunner import run_check_unittests

if __name__ == "__main__":
    sys.exit(run_check_unittests(timeout=120))
