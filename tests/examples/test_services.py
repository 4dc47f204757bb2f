"""The service files in examples/: what they start is what they say, and it ends as a supervisor ends it."""

from __future__ import annotations

import configparser
import plistlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_roster.config import ServerSettings
from tests.serving import demo_roster, serving

SERVICE = Path(__file__).parents[2] / "examples" / "service"
UNIT = SERVICE / "mlx-roster.service"
PLIST = SERVICE / "com.github.mlx-roster.plist"

GRACE = ServerSettings().shutdown_grace


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser


def commands() -> dict[str, list[str]]:
    return {
        "systemd": shlex.split(unit()["Service"]["ExecStart"]),
        "launchd": plistlib.loads(PLIST.read_bytes())["ProgramArguments"],
    }


@pytest.mark.parametrize("supervisor", ["systemd", "launchd"])
def test_the_command_serves_reloads_and_ends(supervisor: str, tmp_path: Path) -> None:
    program, *arguments = commands()[supervisor]
    assert program.endswith("/bin/mlx-roster")
    roster = demo_roster(tmp_path)
    mine = [str(roster) if argument.endswith(".yaml") else argument for argument in arguments]
    assert mine != arguments
    with serving(*mine) as server:
        server.process.send_signal(signal.SIGHUP)
        server.logged(r"\breload\b.*ok")
        assert server.stop(signal.SIGTERM) == 0


def test_there_is_time_for_running_answers() -> None:
    assert int(unit()["Service"]["TimeoutStopSec"]) > GRACE
    assert plistlib.loads(PLIST.read_bytes())["ExitTimeOut"] > GRACE


def test_workers_are_left_to_the_server() -> None:
    service = unit()["Service"]
    assert (service["KillMode"], service["OOMPolicy"]) == ("mixed", "continue")
    assert re.fullmatch(r"/bin/kill -HUP \$MAINPID", service["ExecReload"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_takes_it(tmp_path: Path) -> None:
    mine = tmp_path / UNIT.name
    mine.write_text(UNIT.read_text().replace("/opt/mlx-roster/bin/mlx-roster", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(mine)], capture_output=True, text=True, check=False
    )
    # It speaks of the machine's other units, too.
    assert not [line for line in done.stderr.splitlines() if UNIT.name in line], done.stderr


@pytest.mark.skipif(shutil.which("plutil") is None, reason="this is no Mac")
def test_launchd_takes_it() -> None:
    subprocess.run(["plutil", "-lint", str(PLIST)], check=True, capture_output=True)
