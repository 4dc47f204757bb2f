"""docs/cli.md says of every command what the command says of itself, and saying it takes little."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_roster.cli import PANELS
from scripts import cli_reference
from tests.cli.processes import environment, run

PAGE = cli_reference.PAGE.read_text("utf-8")


def test_the_page_is_what_the_commands_say() -> None:
    assert cli_reference.page(PAGE) == PAGE, "python scripts/cli_reference.py"


def test_every_command_is_in_a_panel() -> None:
    listed = [function.__name__ for members in PANELS.values() for function in members]
    assert sorted(listed) == sorted(cli_reference.commands())


@pytest.mark.parametrize("command", sorted(cli_reference.commands()))
def test_help_and_page_have_the_same_options(command: str, tmp_path: Path) -> None:
    done = run(command, "--help", at=tmp_path, env=environment(tmp_path, COLUMNS="200", NO_COLOR="1"))
    assert (done.returncode, done.stderr) == (0, "")
    section = PAGE.partition(f"\n### {command}\n")[2].partition("\n##")[0]
    shown, told = (_options(text) for text in (done.stdout, section))
    assert shown - {"--help"} == told
    assert told
    (example,) = re.findall(r"Example: (mlx-roster .*?) *\n", done.stdout)
    assert f"$ {example}\n" in section


def _options(text: str) -> set[str]:
    """All that a text mentions, apart from an example."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"(Example:|\$) mlx-roster.*", "", text)))


SCRIPT = """
import sys
from mlx_roster.cli import app
try:
    app(["--help"])
except SystemExit:
    pass
print("MODULES", *sorted(sys.modules))
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    modules = set(done.stdout.partition("MODULES")[2].split())
    assert "mlx_roster.cli" in modules
    assert not modules & {"mlx", "numpy", "pydantic", "yaml", "huggingface_hub", "httpx2", "asyncio"}
    assert not {
        name for name in modules if name.startswith("mlx_roster.") and not name.startswith("mlx_roster.cli")
    } - {"mlx_roster.errors"}


def test_json_goes_with_a_version_or_a_command(tmp_path: Path) -> None:
    env = environment(tmp_path)
    assert '"mlx-lm": "' in run("--version", "--json", at=tmp_path, env=env).stdout
    done = run("--json", at=tmp_path, env=env)
    assert done.returncode == 2
    assert "goes with --version" in done.stderr
