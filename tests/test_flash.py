# SPDX-License-Identifier: Apache-2.0
"""weft flash: slots from devicetrees and board files, what is refused, and plans that pyOCD programs into an emulated
board, which then runs them."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import emulated_probe
import pytest
from baremetal import runner
from hypothesis import given, settings
from hypothesis import strategies as st
from pyocd.probe import aggregator
from pyocd.target.builtin import BUILTIN_TARGETS

from planner_service import api, devicetree, flash, targets
from planner_service.cli import main
from planner_service.engine import Engine, generated_input
from planner_service.errors import CATALOGUE, Code, PlannerError

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "samples" / "models"
CORE = "m4"
SLOT_BYTES = 0x40000
SLOTS = {"a": emulated_probe.FLASH[0], "b": emulated_probe.FLASH[0] + SLOT_BYTES}
INPUTS_AT = 0x100
SECONDS = 60

needs_board = pytest.mark.skipif(bool(runner.missing(CORE)), reason=f"needs {runner.missing(CORE)}")

NRF = """/dts-v1/;

/* node '/' defined in nordic/nrf52840.dtsi:1 */
/ {
	#address-cells = < 0x1 >;  /* in armv7-m.dtsi:6 */
	#size-cells = < 0x1 >;
	model = "A board; with { braces } and \\"quotes\\"";
	compatible = "nordic,nrf52840-dk-nrf52840",
		"other";
	chosen {
		zephyr,flash = &flash0;
		zephyr,code-partition = &slot0_partition;
	};
	soc {
		#address-cells = < 0x1 >;
		#size-cells = < 0x1 >;
		ranges;
		flash_controller: flash-controller@4001e000 {
			compatible = "nordic,nrf52-flash-controller";
			reg = < 0x4001e000 0x1000 >;
			#address-cells = < 0x1 >;
			#size-cells = < 0x1 >;
			flash0: flash@0 {
				compatible = "soc-nv-flash";
				erase-block-size = < 0x1000 >;
				write-block-size = < 0x4 >;
				reg = < 0x0 0x100000 >;
				some-bytes = [ 12 34 ];
				partitions {
					compatible = "fixed-partitions";
					#address-cells = < 0x1 >;
					#size-cells = < 0x1 >;
					slot0_partition: partition@c000 {
						label = "image-0";
						reg = < 0xc000 0x74000 >;
					};
					first: weft_plan_a: partition@80000 {
						label = "weft-plan-a";
						reg = < 0x80000 0x40000 >;
					};
					weft_plan_b: partition@c0000 {
						reg = < 0xc0000 /* size */ 0x38000 >;
					};
				};
			};
		};
	};
};
"""
STM = NRF.replace("flash@0 {", "flash@8000000 {").replace("< 0x0 0x100000 >", "< 0x8000000 0x100000 >")
SUB = NRF.replace(
    'label = "weft-plan-a";\n\t\t\t\t\t\treg = < 0x80000 0x40000 >;\n',
    'reg = < 0x80000 0x40000 >;\n\t\t\t\t\t\tcompatible = "fixed-subpartitions";\n'
    "#address-cells = < 0x1 >; #size-cells = < 0x1 >; weft_inner: partition@2000 { reg = < 0x2000 0x1000 >; };\n",
)
WIDE = NRF.replace(
    'compatible = "fixed-partitions";\n\t\t\t\t\t#address-cells = < 0x1 >',
    'compatible = "fixed-partitions";\n\t\t\t\t\t#address-cells = < 0x2 >',
)
WIDE = WIDE.replace("< 0x80000 0x40000 >", "< 0x0 0x80000 0x40000 >").replace("< 0xc000 ", "< 0x0 0xc000 ")
WIDE = WIDE.replace("< 0xc0000 ", "< 0x0 0xc0000 ")
# As newer Zephyr has it: partitions are mapped through `ranges` up to the bus.
MAPPED = (
    NRF.replace("flash_controller: ", "flash_controller: ")
    .replace("reg = < 0x4001e000 0x1000 >;", "reg = < 0x4001e000 0x1000 >; ranges = < 0x0 0x8000000 0x100000 >;")
    .replace("reg = < 0x0 0x100000 >;", "reg = < 0x0 0x100000 >; ranges = < 0x0 0x0 0x100000 >;")
    .replace('compatible = "fixed-partitions";', "ranges;")
    .replace("< 0x80000 0x40000 >;", '< 0x80000 0x40000 >; compatible = "zephyr,mapped-partition";')
)
SPI = NRF.replace("soc-nv-flash", "jedec,spi-nor")


@functools.cache
def plan(model: str = "digits_a", version: int = 1) -> bytes:
    request = api.PlanRequest(kind="layers", plan_version=version)
    (planned,) = api.create_plans((MODELS / f"{model}.onnx").read_bytes(), model, request)
    return planned.plan


def board_text(**changes: object) -> str:
    """The emulated board's file."""
    values: dict[str, object] = {
        "name": "emulated",
        "description": "MPS2 AN386 behind an emulated probe",
        "core": "cortex-m4",
        "ram_bytes": 1 << 22,
        "flash_bytes": 1 << 22,
        "slot_bytes": SLOT_BYTES,
        "arena_budget": 1 << 20,
        "arena_align": 4,
        "erase_bytes": emulated_probe.SECTOR_BYTES,
        "pyocd": emulated_probe.CHIP,
        "slot_a": SLOTS["a"],
        "slot_b": SLOTS["b"],
    }
    return "".join(f"{k} = {json.dumps(v)}\n" for k, v in (values | changes).items() if v is not None)


def board(**changes: object) -> targets.Target:
    return targets.parse(board_text(**changes), "emulated.toml")


def build_folder(folder: Path, dts: str = NRF, config: str = "") -> Path:
    (folder / "zephyr").mkdir(parents=True)
    (folder / "zephyr" / "zephyr.dts").write_text(dts)
    (folder / "zephyr" / ".config").write_text(config)
    return folder


# ---------------------------------------------------------------- where


@pytest.mark.parametrize(
    ("dts", "label", "address", "nbytes"),
    [
        pytest.param(NRF, "weft_plan_a", 0x80000, 0x40000, id="flash-at-0"),
        pytest.param(NRF, "weft_plan_b", 0xC0000, 0x38000, id="comment-in-cells"),
        pytest.param(STM, "weft_plan_a", 0x8080000, 0x40000, id="flash-elsewhere"),
        pytest.param(SUB, "weft_inner", 0x82000, 0x1000, id="subpartition"),
        pytest.param(WIDE, "weft_plan_a", 0x80000, 0x40000, id="64-bit-addresses"),
        pytest.param(MAPPED, "weft_plan_a", 0x8080000, 0x40000, id="ranges"),
    ],
)
def test_partitions(dts: str, label: str, address: int, nbytes: int) -> None:
    found = devicetree.partition(devicetree.parse(dts, "zephyr.dts"), label, "zephyr.dts")
    assert (found.address, found.nbytes) == (address, nbytes)
    assert (found.device, found.erase_bytes, found.write_bytes) == ("flash0", 4096, 4)
    assert all(start >= address + nbytes or start + size <= address for _, start, size in found.others)
    if label == "weft_plan_a":
        assert {name for name, _, _ in found.others} == {"image-0", "weft_plan_b"} | (
            {"weft_inner"} if dts is SUB else set()
        )


@pytest.mark.parametrize(
    ("dts", "code", "says"),
    [
        (NRF.replace("weft_plan_a: ", ""), Code.NOT_FOUND, "no node labelled weft_plan_a"),
        (NRF.replace("reg = < 0x80000 0x40000 >;", ""), Code.BAD_REQUEST, "no `reg`"),
        (SPI, Code.BAD_REQUEST, "jedec,spi-nor"),
        ("", Code.BAD_REQUEST, "no root node"),
        ("/dts-v1/; / { a = <1>;", Code.BAD_REQUEST, "ends within a node"),
        ("/dts-v1/;\n/ { };\n};", Code.BAD_REQUEST, "line 3"),
        ("/dts-v1/; soc { };", Code.BAD_REQUEST, "at the top"),
        ("/ { a = ^; };", Code.BAD_REQUEST, "unexpected"),
        ("/ { <1>; };", Code.BAD_REQUEST, "unexpected"),
    ],
)
def test_devicetrees_that_do_not_do(dts: str, code: Code, says: str) -> None:
    with pytest.raises(PlannerError, match=says) as caught:
        devicetree.partition(devicetree.parse(dts, "zephyr.dts"), "weft_plan_a", "zephyr.dts")
    assert caught.value.code is code


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(NRF)), st.integers(0, 60), st.text(alphabet='{}<>;:="/*& \n0x9fa,', max_size=6))
def test_damaged_devicetrees_are_refused_or_read(start: int, length: int, put: str) -> None:
    with contextlib.suppress(PlannerError):
        tree = devicetree.parse(NRF[:start] + put + NRF[start + length :], "zephyr.dts")
        devicetree.partition(tree, "weft_plan_a", "zephyr.dts")


def test_slots_of_a_build(tmp_path: Path) -> None:
    config = (
        'CONFIG_BOARD="nrf52840dk"\nCONFIG_WEFT_ARENA_STATIC=y\nCONFIG_WEFT_ARENA_SIZE=4000\n# CONFIG_X is not set\n'
    )
    build = build_folder(tmp_path / "build", config=config)
    target = targets.load("nrf52840dk")
    where = flash.slot(target, "a", build)
    assert (where.address, where.nbytes, where.erase_bytes, where.arena_bytes) == (0x80000, 0x40000, 4096, 4000)
    with pytest.raises(PlannerError) as caught:
        flash.check(plan(), target, where, None)
    assert caught.value.code is Code.INFEASIBLE
    assert "and has 4000" in str(caught.value)
    assert flash.check(plan(), target, where, 1 << 16)["plan_version"] == 1
    with pytest.raises(PlannerError, match="the build is for nrf52840dk, nucleo_f767zi is Zephyr's nucleo_f767zi"):
        flash.slot(targets.load("nucleo_f767zi"), "a", build)


def test_sysbuild_and_folders_without_a_build(tmp_path: Path) -> None:
    build_folder(tmp_path / "app", STM)
    (tmp_path / "domains.yaml").write_text("default: app\nbuild_dir: x\n")
    assert flash.slot(targets.load("stm32f4_disco"), "b", tmp_path).address == 0x80C0000
    with pytest.raises(PlannerError, match=r"no zephyr/zephyr\.dts") as caught:
        flash.slot(targets.load("stm32f4_disco"), "a", tmp_path / "empty")
    assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize("name", [t.name for t in targets.load_all() if t.slot_a is not None])
def test_slots_of_board_files(name: str) -> None:
    target = targets.load(name)
    assert target.pyocd
    for slot in ("a", "b"):
        where = flash.slot(target, slot, None)  # type: ignore[arg-type]
        assert flash.check(plan(), target, where, None)["arena_bytes"] == Engine().open(plan()).arena_size


def test_boards_without_addresses_or_pyocd() -> None:
    with pytest.raises(PlannerError, match="nobody says where slot b"):
        flash.slot(targets.load("mps2-an386"), "b", None)
    with pytest.raises(PlannerError, match="cannot be flashed by pyOCD"):
        flash.chip_of(targets.load("hifive1b"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"slot_b": None}, "slot_b"),
        ({"slot_b": SLOTS["a"] + 4096}, "slot_b"),
        ({"slot_a": SLOTS["a"] - 8}, "slot_a"),
        ({"slot_a": 0}, "slot_a"),
        ({"slot_b": 2**32}, "slot_b"),
    ],
)
def test_slot_addresses_of_board_files_are_checked(changes: dict[str, object], field: str) -> None:
    with pytest.raises(PlannerError) as caught:
        board(**changes)
    assert field in {v.layer for v in caught.value.violations}


# ---------------------------------------------------------------- whether


def place(**changes: Any) -> flash.Slot:
    values: dict[str, Any] = {
        "name": "a", "address": SLOTS["a"], "nbytes": SLOT_BYTES, "source": "test", "erase_bytes": 4096,
        "write_bytes": 4,
    }  # fmt: skip
    return flash.Slot(**(values | changes))


@pytest.mark.parametrize(
    ("where", "ram", "code", "says"),
    [
        pytest.param({"nbytes": 4096}, None, Code.INFEASIBLE, ["slot needs", "missing"], id="small"),
        pytest.param({}, 1000, Code.INFEASIBLE, ["arena needs", "missing"], id="arena"),
        pytest.param({"nbytes": 4096}, 1000, Code.INFEASIBLE, ["slot needs", "arena needs"], id="both"),
        pytest.param({"address": 0x21100004}, None, Code.BAD_REQUEST, ["4 bytes behind a multiple of 8"], id="8"),
        pytest.param(
            {"address": 0x21100800},
            None,
            Code.BAD_REQUEST,
            ["2048 bytes behind", "0x21100000 or 0x21101000"],
            id="erase",
        ),
        pytest.param({"nbytes": 0x10100}, None, Code.BAD_REQUEST, ["3840 bytes are missing"], id="size"),
        pytest.param({"nbytes": 0}, None, Code.BAD_REQUEST, ["no bytes"], id="nothing"),
        pytest.param({"address": 0xFFFFF000}, None, Code.BAD_REQUEST, ["beyond the address space"], id="end"),
        pytest.param(
            {"others": (("image-0", 0x21110000, 8),)}, None, Code.BAD_REQUEST, ["overlaps image-0"], id="other"
        ),
    ],
)
def test_plans_and_slots_that_do_not_match(
    where: dict[str, Any], ram: int | None, code: Code, says: Sequence[str]
) -> None:
    with pytest.raises(PlannerError) as caught:
        flash.check(plan(), board(), place(**where), ram)
    assert caught.value.code is code
    assert all(text in str(caught.value) for text in says), str(caught.value)


def test_a_plan_for_larger_alignment() -> None:
    request = api.PlanRequest(kind="layers", target="mps3-an547")
    (planned,) = api.create_plans((MODELS / "digits_a.onnx").read_bytes(), "digits_a", request)
    with pytest.raises(PlannerError, match="aligned to 16 bytes, that of the board to 4") as caught:
        flash.check(planned.plan, board(), place(), None)
    assert caught.value.code is Code.INFEASIBLE


def test_a_bad_plan() -> None:
    with pytest.raises(PlannerError) as caught:
        flash.check(plan()[:-8], board(), place(), None)
    assert caught.value.code is Code.BAD_PLAN


# ---------------------------------------------------------------- the command


class Result:
    """Exit code and what was printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        assert "Traceback" not in out + err


@pytest.fixture
def weft(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Runs a command in a folder with a plan and a board file; the only probes are the test's."""
    monkeypatch.chdir(tmp_path)
    classes = {"weft-emulated": emulated_probe.EmulatedProbePlugin().load()}
    monkeypatch.setattr(aggregator, "PROBE_CLASSES", classes)
    monkeypatch.delenv(emulated_probe.PROBES, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("digits.weft").write_bytes(plan())
    Path("emulated.toml").write_text(board_text())

    def run(*args: object) -> Result:
        capsys.readouterr()
        try:
            code = main([str(a) for a in args])
        except SystemExit as end:
            code = int(end.code or 0)
        return Result(code, *capsys.readouterr())

    return run


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["digits.weft", "--board", "nrf52840dk"], Code.UNAVAILABLE, "no debug probe is attached"),
        (["digits.weft", "--board", "nrf52840dk", "--probe", "77"], Code.UNAVAILABLE, "no debug probe is attached"),
        (["digits.weft", "--board", "toaster"], Code.NOT_FOUND, "one of"),
        (["digits.weft", "--board", "none.toml"], Code.NOT_FOUND, "none.toml"),
        (["digits.weft", "--board", "bad.toml"], Code.BAD_REQUEST, "bad.toml"),
        (["digits.weft", "--board", "digits.weft.toml"], Code.NOT_FOUND, "no text"),
        (["none.weft", "--board", "nrf52840dk"], Code.NOT_FOUND, "none.weft"),
        (["bad.toml", "--board", "nrf52840dk"], Code.BAD_PLAN, "refuses the plan"),
        (["digits.weft", "--board", "native"], Code.BAD_REQUEST, "pyOCD"),
        (["digits.weft", "--board", "nrf52840dk", "--build-dir", "x"], Code.NOT_FOUND, "zephyr.dts"),
        (["digits.weft", "--board", "nrf52840dk", "--ram", "2k"], Code.INFEASIBLE, "missing"),
        (["digits.weft", "--board", "nrf52840dk", "--slot", "c"], Code.BAD_REQUEST, "--slot"),
        (["digits.weft"], Code.BAD_REQUEST, "--board"),
    ],
)
def test_refusals(weft: Callable[..., Result], args: list[str], code: Code, says: str) -> None:
    Path("bad.toml").write_text("name = ")
    Path("digits.weft.toml").write_bytes(b"\xff\xfe\xff")
    result = weft("flash", *args)
    assert result.code == CATALOGUE[code].exit_code
    assert says in result.err
    as_json = weft("flash", *args, "--json")
    if as_json.out:
        assert json.loads(as_json.out)["error"]["code"] == code.value


def test_several_probes(weft: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(emulated_probe.PROBES, "WEFT01=/nowhere/1 WEFT02=/nowhere/2")
    for args, code, says in (
        ([], Code.BAD_REQUEST, "name one with --probe"),
        (["--probe", "weft"], Code.BAD_REQUEST, "2 debug probes match 'weft'"),
        (["--probe", "99"], Code.NOT_FOUND, "no debug probe has an id with '99'"),
    ):
        result = weft("flash", "digits.weft", "--board", "nrf52840dk", *args)
        assert result.code == CATALOGUE[code].exit_code
        assert says in result.err
        assert "WEFT01: Weft emulated probe" in result.err
        assert "WEFT02" in result.err
    result = weft("flash", "digits.weft", "--board", "nrf52840dk", "--probe", "weft02")
    assert result.code == CATALOGUE[Code.DEVICE].exit_code
    assert "connecting to the board: cannot reach the board" in result.err


def test_chips_that_pyocd_does_not_know(weft: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(emulated_probe.PROBES, "WEFT01=/nowhere/1")
    Path("emulated.toml").write_text(board_text(pyocd="nochip"))
    result = weft("flash", "digits.weft", "--board", "emulated.toml")
    assert result.code == CATALOGUE[Code.UNAVAILABLE].exit_code
    assert "pyocd pack install nochip" in result.err


def test_pyocd_missing(weft: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyocd.core.exceptions", None)
    result = weft("flash", "digits.weft", "--board", "nrf52840dk")
    assert result.code == CATALOGUE[Code.UNAVAILABLE].exit_code
    assert "pip install" in result.err


@needs_board
@pytest.mark.parametrize(
    ("address", "says"),
    [
        (emulated_probe.COARSE_FLASH[0] + 0x4000, "shares the sector at 0x21200000 of 65536 bytes"),
        (emulated_probe.RAM[0], "pyOCD knows ram at 0x20000000, not flash"),
        (0x40000000, "pyOCD knows nothing at 0x40000000"),
        (emulated_probe.COARSE_FLASH[0] + emulated_probe.COARSE_FLASH[1] - 4096, "shares the sector"),
    ],
)
def test_slots_that_pyocd_knows_better(
    weft: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, address: int, says: str
) -> None:
    monkeypatch.setenv(emulated_probe.PROBES, "WEFT01=/nowhere/1")
    Path("emulated.toml").write_text(board_text(slot_a=address))
    result = weft("flash", "digits.weft", "--board", "emulated.toml")
    assert result.code == CATALOGUE[Code.BAD_REQUEST].exit_code
    assert says in result.err


@pytest.mark.parametrize("name", [t.name for t in targets.load_all() if t.pyocd in BUILTIN_TARGETS])
@pytest.mark.parametrize("slot", ["a", "b"])
@pytest.mark.usefixtures("weft")
def test_slots_of_board_files_suit_pyocds_maps(name: str, slot: Any) -> None:
    target = targets.load(name)
    session = flash._session(emulated_probe.EmulatedProbe("WEFT01", "/nowhere"), flash.chip_of(target))
    flash._check_map(session.target.memory_map, flash.slot(target, slot, None), target.slot_bytes)


# ---------------------------------------------------------------- an emulated board


class Board:
    """QEMU, stopped at reset, with the bare-metal firmware and one inference's input; the firmware opens the plan at a
    fixed address, runs it, prints what came out, and ends QEMU."""

    def __init__(self, slot_address: int) -> None:
        spec = runner.CORES[CORE]
        self._folder = tempfile.TemporaryDirectory(prefix="weft-")  # sockets have short names
        self.socket, job = Path(self._folder.name, "gdb"), Path(self._folder.name, "job")
        values = b"".join(generated_input(i.shape)[0].tobytes() for i in Engine().open(plan()).inputs)
        offset = slot_address - spec.job.origin
        head = runner.JOB_HEAD.pack(runner.JOB_MAGIC, 0, offset, SLOT_BYTES, INPUTS_AT, len(values), 1, 0)
        job.write_bytes(head.ljust(INPUTS_AT, b"\0") + values)
        self._process = subprocess.Popen(
            [
                "timeout", "--kill-after=5", str(SECONDS), spec.qemu, "-M", spec.machine, "-kernel",
                str(runner.build(CORE)), "-S", "-chardev", f"socket,id=gdb,path={self.socket},server=on,wait=off",
                "-gdb", "chardev:gdb", "-device", f"loader,file={job},addr={spec.job.origin:#x},force-raw=on",
                "-display", "none", "-monitor", "none", "-serial", "none", "-nic", "none", "-chardev", "stdio,id=out",
                "-semihosting-config", "enable=on,target=native,chardev=out",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        end = time.monotonic() + SECONDS
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > end:
                pytest.fail("QEMU does not start")
            time.sleep(0.02)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        self._folder.cleanup()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.communicate(timeout=SECONDS)

    def events(self) -> list[dict[str, Any]]:
        """What the firmware printed, once it has ended."""
        out, err = self._process.communicate(timeout=SECONDS)
        assert self._process.returncode == 0, out + err
        return [json.loads(line) for line in out.splitlines() if line.strip()]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Board]]:
    """Starts the board that the probe WEFT01 is attached to."""
    running: list[Board] = []

    def begin(slot_address: int) -> Board:
        running.append(Board(slot_address).__enter__())
        monkeypatch.setenv(emulated_probe.PROBES, f"WEFT01={running[-1].socket}")
        return running[-1]

    yield begin
    for one in running:
        one.__exit__(None, None, None)


def expected(content: bytes) -> dict[str, Any]:
    """What the firmware must print of a run: the host engine's digests."""
    opened = Engine().open(content)
    result = opened.run([generated_input(i.shape)[0] for i in opened.inputs])
    return {"status": 0, "intact": True, "digests": [zlib.crc32(o.tobytes()) for o in result.outputs]}


def check_run(events: list[dict[str, Any]], content: bytes) -> None:
    first, run = events
    info = Engine().open(content).info
    assert (first["event"], first["status"]) == ("open", 0)
    assert (first["model_id"], first["plan_version"]) == (info["model_id"], info["plan_version"])
    assert run.items() >= expected(content).items()


@needs_board
@pytest.mark.parametrize(("slot", "model"), [("a", "digits_a"), ("b", "digits_b")])
def test_a_flashed_board_runs_the_plan(
    weft: Callable[..., Result], start: Callable[[int], Board], slot: str, model: str
) -> None:
    content = plan(model, 7)
    Path("new.weft").write_bytes(content)
    running = start(SLOTS[slot])
    result = weft("flash", "new.weft", "--board", "emulated.toml", "--slot", slot, "--json")
    assert result.code == 0, result.err
    done = json.loads(result.out)
    assert (done["address"], done["slot"], done["probe"]) == (SLOTS[slot], slot, "WEFT01")
    assert done["plan_bytes"] == done["verified_bytes"] == len(content)
    assert done["plan_version"] == 7
    check_run(running.events(), content)


@needs_board
def test_slots_of_a_build_and_progress(
    weft: Callable[..., Result],
    start: Callable[[int], Board],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    dts = NRF.replace("< 0x0 0x100000 >", f"< {SLOTS['a'] - 0x80000:#x} 0x100000 >")
    build_folder(tmp_path / "build", dts)
    running = start(SLOTS["a"])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Path("emulated.toml").write_text(board_text(slot_a=None, slot_b=None))
    result = weft("flash", "digits.weft", "--board", "emulated.toml", "--build-dir", "build")
    assert result.code == 0, result.err
    assert "0x21100000" in result.out
    assert all(f"[{'#' * 30}] {phase}" in result.err for phase in ("erasing", "programming", "verifying"))
    check_run(running.events(), plan())


@needs_board
def test_the_command_as_installed(start: Callable[[int], Board], tmp_path: Path) -> None:
    """In a process of its own, the probe found by pyOCD's plugin mechanism."""
    running = start(SLOTS["a"])
    info = tmp_path / "weft_emulated_probe-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: weft-emulated-probe\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pyocd.probe]\nweft-emulated = emulated_probe:EmulatedProbePlugin\n")
    (tmp_path / "emulated.toml").write_text(board_text())
    (tmp_path / "digits.weft").write_bytes(plan())
    paths = [str(ROOT), str(ROOT / "tests"), str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "planner_service.cli", "flash", "digits.weft", "--board", "emulated.toml"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--probe", "weft-emulated:WEFT01"],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HOME": str(tmp_path)},
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip

    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(plan())} bytes written and read back" in done.stdout
    check_run(running.events(), plan())
    gone = run()
    assert (gone.returncode, gone.stdout) == (CATALOGUE[Code.DEVICE].exit_code, "")
    assert gone.stderr.startswith("weft: connecting to the board: cannot reach the board: ")
    assert len(gone.stderr.splitlines()) == 2


@needs_board
@pytest.mark.parametrize(
    ("address", "says"),
    [
        pytest.param(0x21180000, "1 of 20472 bytes differ, the first at 0x21180100", id="worn"),
        pytest.param(emulated_probe.PROTECTED_SECTOR, "programming slot a: ", id="protected"),
    ],
)
def test_flash_that_fails(weft: Callable[..., Result], start: Callable[[int], Board], address: int, says: str) -> None:
    running = start(address)
    Path("emulated.toml").write_text(board_text(slot_a=address))
    result = weft("flash", "digits.weft", "--board", "emulated.toml", "--json")
    assert result.code == CATALOGUE[Code.DEVICE].exit_code
    assert says.replace("20472", str(len(plan()))) in result.err
    assert json.loads(result.out)["error"]["code"] == "device"
    assert running.events()[0]["event"] == "open"  # the board was reset all the same


@needs_board
@pytest.mark.parametrize("phase", ["erasing", "programming", "verifying"])
@pytest.mark.usefixtures("weft")
def test_a_board_that_goes_away(
    start: Callable[[int], Board],
    phase: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as without pytest: what is logged would be seen
    running, target = start(SLOTS["a"]), board()
    where = flash.slot(target, "a", None)
    info = flash.check(plan(), target, where, None)

    def progress(_: float, message: str) -> None:
        if message == phase:
            running.stop()

    with pytest.raises(PlannerError) as caught:
        flash.program(plan(), info, target, where, flash.choose(None), progress)
    assert caught.value.code is Code.DEVICE
    assert "slot a" in str(caught.value)
    assert capsys.readouterr() == ("", "")


@needs_board
@pytest.mark.usefixtures("weft")
def test_ctrl_c_leaves_a_board_that_boots(start: Callable[[int], Board]) -> None:
    running, target = start(SLOTS["a"]), board()
    where = flash.slot(target, "a", None)
    info = flash.check(plan(), target, where, None)

    def progress(fraction: float, message: str) -> None:
        if message == "programming" and fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flash.program(plan(), info, target, where, flash.choose(None), progress)
    assert running.events()[0]["event"] == "open"
