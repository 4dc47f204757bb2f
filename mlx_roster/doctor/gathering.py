"""Finding the Facts out. Slow things are done side by side; what cannot be found out is left at what is harmless."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import platform
import resource
import stat
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import psutil
from packaging.requirements import InvalidRequirement, Requirement

from mlx_roster import check as checks
from mlx_roster.config import DiscoverSettings, Roster
from mlx_roster.config.load import load, with_overrides
from mlx_roster.core import Device
from mlx_roster.doctor.facts import (
    Blas,
    Engine,
    Facts,
    Limits,
    Memory,
    Package,
    Platform,
    RosterFacts,
)
from mlx_roster.doctor.hub import cache_facts, hub_facts
from mlx_roster.doctor.listening import address_facts
from mlx_roster.errors import ConfigError, RosterError
from mlx_roster.loaders.discover import discover
from mlx_roster.server.descriptors import raise_limit
from mlx_roster.workers.blas import SWITCH, openblas
from mlx_roster.workers.spawner import Spawner

#: How long a worker may take to import mlx, in seconds.
GREETING = 30.0

#: A process that takes a larger share of the memory than this is named.
LARGE = 0.15

#: Variables that change what the server does. Values of the others are nobody's business.
VARIABLES = ("HOST", "PORT", "LD_PRELOAD", "PYTHONPATH")


def gather(path: Path | None, *, network: bool = True) -> Facts:
    """All facts, with the roster at `path`, or that which is served without one; `network`: ask the Hub, too."""
    with ThreadPoolExecutor(5) as threads:
        engine = threads.submit(_engine)
        hub = threads.submit(lambda: hub_facts(ask=network))
        cache = threads.submit(cache_facts)
        roster = _roster(path)
        address = None
        if roster.roster is not None and not roster.overrides:
            server = roster.roster.server
            address = threads.submit(address_facts, server.host, server.port)
        return Facts(
            platform=platform_facts(),
            packages=tuple(_packages()),
            memory=_memory(),
            blas=Blas(openblas(), off=os.environ.get(SWITCH) == "off"),
            limits=_limits(),
            environment=_environment(os.environ),
            roster=roster,
            engine=engine.result(),
            hub=hub.result(),
            cache=cache.result(),
            address=None if address is None else address.result(),
        )


def platform_facts() -> Platform:
    system = platform.system()
    if system == "Darwin":
        release = f"macOS {platform.mac_ver()[0]}"
    else:
        try:
            release = platform.freedesktop_os_release().get("PRETTY_NAME", system)
        except OSError:
            release = f"{system} {platform.release()}"
    translated = system == "Darwin" and _sysctl("sysctl.proc_translated") == 1
    major, minor, micro = sys.version_info[:3]
    return Platform(system, platform.machine(), release, (major, minor, micro), translated)


def _packages() -> list[Package]:
    """What the installed mlx-roster says that it needs, and what there is."""
    try:
        lines = importlib.metadata.requires("mlx-roster") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        fits = version is not None and wanted.specifier.contains(version, prereleases=True)
        found.append(Package(wanted.name, str(wanted.specifier), version, fits))
    return found


class _LastWords(logging.Handler):
    """Keeps what is logged of a worker that ended, instead of showing it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _engine() -> Engine:
    """What a worker sees. This process must not import mlx, and a worker is what will have to."""
    words, log = _LastWords(), logging.getLogger("mlx_roster.workers")
    log.addHandler(words)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        return Engine(asyncio.run(_asked()))
    except TimeoutError:
        return Engine(None, f"no worker had started after {GREETING:.0f} s")
    except (RosterError, OSError) as error:
        return Engine(None, "\n".join([str(error), *words.lines]))
    finally:
        log.removeHandler(words)


async def _asked() -> Device:
    async with Spawner(keep_spare=False) as spawner, asyncio.timeout(GREETING):
        return await spawner.device()


def _memory() -> Memory:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    largest = []
    for process in psutil.process_iter(["name", "pid", "memory_info"]):
        used = process.info["memory_info"]
        if used is not None and used.rss > memory.total * LARGE:
            largest.append((str(process.info["name"]), int(process.info["pid"]), int(used.rss)))
    wired = _sysctl("iogpu.wired_limit_mb") if sys.platform == "darwin" else None
    return Memory(memory.total, memory.available, swap.used, wired, tuple(largest))


def _limits() -> Limits:
    # As a server takes them; what it changes ends with this process.
    files, (_, hard) = raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)
    if sys.platform == "darwin":
        backlog = _sysctl("kern.ipc.somaxconn")
    else:
        try:
            backlog = int(Path("/proc/sys/net/core/somaxconn").read_text())
        except (OSError, ValueError):
            backlog = None
    return Limits(files, None if hard == resource.RLIM_INFINITY else hard, backlog)


def _roster(path: Path | None) -> RosterFacts:
    roster, readable = Roster(discover=DiscoverSettings(hub_cache=True)), False
    if path is not None:
        try:
            roster = load(path)
            readable = bool(path.stat().st_mode & stat.S_IROTH) and _spelled_out(roster, path)
        except ConfigError as error:
            return RosterFacts(path, problems=tuple(error.message.splitlines()))
        except OSError:
            readable = False
    overrides: tuple[str, ...] = ()
    try:
        roster = with_overrides(roster)
    except ConfigError as error:
        overrides = tuple(error.message.splitlines())
    if path is None:
        # What mlx-lm knows is read from where it is installed.
        found = len(discover(roster)) if find_spec("mlx_lm") is not None else 0
        return RosterFacts(path, roster, overrides=overrides, discovered=found)
    report = checks.check(roster)
    return RosterFacts(path, roster, overrides=overrides, report=report, readable_by_others=readable)


def _spelled_out(roster: Roster, path: Path) -> bool:
    """Whether a key is in the file itself, and not its digest or the name of a variable."""
    text = path.read_text("utf-8-sig")
    return any(key.key is not None and key.key.get_secret_value() in text for key in roster.auth.keys)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: environ[name] for name in VARIABLES if environ.get(name)}


def _sysctl(name: str) -> int | None:
    """A number of macOS's; None where it has none of that name."""
    try:
        asked = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = asked.stdout.strip()
    return int(text) if text.isdecimal() else None
