# SPDX-License-Identifier: Apache-2.0
"""``west weft plan|flash|push``: the ``weft`` command with what a build directory knows filled in."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path

from west.commands import WestCommand

COMMANDS = {
    "plan": "make a plan for the build's board and arena (`weft plan`)",
    "flash": "write a plan into a slot of the build's board through a debug probe (`weft flash`)",
    "push": "send a plan to a running board (`weft push`)",
}


class Weft(WestCommand):
    """The extension command ``west weft``."""

    def __init__(self) -> None:
        super().__init__("weft", "plans for Weft, into the slots of a build", __doc__, accepts_unknown_args=True)

    def do_add_parser(
        self, parser_adder: argparse._SubParsersAction[argparse.ArgumentParser]
    ) -> argparse.ArgumentParser:
        parser = parser_adder.add_parser(self.name, help=self.help, description=self.description)
        parser.add_argument("-d", "--build-dir", type=Path, default=Path("build"), help="default: build")
        parser.add_argument("command", choices=COMMANDS, help="; ".join(f"{k}: {v}" for k, v in COMMANDS.items()))
        return parser

    def do_run(self, args: argparse.Namespace, unknown: list[str]) -> None:
        command = [*self.weft(), args.command, *unknown]
        if args.command != "push":
            command += self.from_build(args.command, args.build_dir, unknown)
        self.dbg(" ".join(command))
        raise SystemExit(subprocess.run(command).returncode)

    def weft(self) -> list[str]:
        """The planner's command, as CMake finds it (zephyr/cmake/weft_plans.cmake)."""
        given = os.environ.get("WEFT_COMMAND")
        if given:
            return given.split(";")
        beside = Path(__file__).resolve().parent.parent / ".venv" / "bin" / "weft"
        found = shutil.which("weft") or (str(beside) if beside.exists() else None)
        if found is None:
            self.die("no command `weft`: install it (`pip install <Weft's repository>`) or set WEFT_COMMAND")
        return [found]

    def from_build(self, command: str, build: Path, given: list[str]) -> list[str]:
        """Options that follow from the build; what the user gives wins."""
        config = build / "zephyr" / ".config"
        if not config.exists():
            self.die(f"{build} is no build directory: `west build` first, or name one with -d")
        settings = dict(line.split("=", 1) for line in config.read_text().splitlines() if line.startswith("CONFIG_"))
        option = "--board" if command == "flash" else "--target"
        names = {word.partition("=")[0] for word in given}
        options = []
        if option not in names and "--device" not in names:
            board = settings.get("CONFIG_BOARD_TARGET", settings.get("CONFIG_BOARD", "")).strip('"')
            target = self.target(board)
            if target is None and command == "flash":
                self.die(f"no board of `weft targets` is Zephyr's {board}: name one, or a board file, with --board")
            options += [option, target] if target else []
        if command == "flash":
            return [*options, "--build-dir", str(build)]
        bounds = {"--ram", "--fmax", "--least-ram", "--layers"}
        if "CONFIG_WEFT_ARENA_SIZE" in settings and not bounds.intersection(names):
            options += ["--ram", settings["CONFIG_WEFT_ARENA_SIZE"]]
        return options

    def target(self, board: str) -> str | None:
        """Weft's name for a board of Zephyr's, if it has one."""
        listed = subprocess.run([*self.weft(), "targets", "--json"], capture_output=True, text=True)
        if listed.returncode != 0:
            return None
        names = {target["zephyr"]: str(target["name"]) for target in json.loads(listed.stdout) if target["zephyr"]}
        return names.get(board) or names.get(board.split("/")[0])
