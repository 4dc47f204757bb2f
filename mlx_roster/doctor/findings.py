"""What the Facts come to: a line each, with what to do about it. Pure: the same facts give the same findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mlx_roster import __version__
from mlx_roster.config import format_bytes
from mlx_roster.doctor import setup
from mlx_roster.doctor.facts import Facts, Limits
from mlx_roster.doctor.finding import Finding, note, ok, problem, warning
from mlx_roster.workers.diagnosis import diagnosed

_GIB = 2**30

#: macOS before this has no mlx wheels; Python before that no mlx-roster.
OLDEST_MACOS = 14
OLDEST_PYTHON = (3, 11)

#: Of mlx-roster's packages, those that are named also where all is well.
_KEY = ("mlx", "mlx-lm")

#: Open files below which a server cannot work, and below which bursts of connections fail.
FEW_FILES = 256
ENOUGH_FILES = 2048


def platform(facts: Facts) -> Iterator[Finding]:
    here = facts.platform
    python = ".".join(map(str, here.python))
    if here.python < OLDEST_PYTHON:
        yield problem("platform", f"Python {python} is too old: 3.11 is the first that does", "install a newer Python")
    elif here.system == "Darwin" and (here.translated or here.machine != "arm64"):
        if here.translated:
            what, remedy = "this Python runs through Rosetta", "install an arm64 Python, and mlx-roster with it"
        else:
            what, remedy = "this Mac has an Intel processor", "mlx needs Apple silicon; on Intel, Linux does"
        yield problem("platform", what, remedy)
    elif here.system == "Darwin" and _major(here.release) < OLDEST_MACOS:
        yield problem("platform", f"{here.release} is older than what mlx is built for", "macOS 14 or later does")
    elif here.system not in ("Darwin", "Linux"):
        yield problem("platform", f"{here.system} is not supported", "macOS or Linux does; WSL 2 is Linux")
    else:
        yield ok("platform", f"{here.release}, {here.machine}, Python {python}")


def packages(facts: Facts) -> Iterator[Finding]:
    wrong = [package for package in facts.packages if not package.fits]
    for package in wrong:
        has = "is not installed" if package.installed is None else f"is {package.installed}"
        yield problem(
            "packages",
            f"{package.name} {has}; mlx-roster needs {package.wanted}",
            f"pip install '{package.name}{package.wanted}'",
        )
    if not wrong:
        named = [f"{one.name} {one.installed}" for one in facts.packages if one.name in _KEY]
        yield ok("packages", ", ".join([f"mlx-roster {__version__}", *named]))


def engine(facts: Facts) -> Iterator[Finding]:
    device = facts.engine.device
    if device is None:
        found = diagnosed(facts.engine.words, facts.platform.system.lower(), facts.platform.machine)
        yield problem("engine", f"no worker can start: {found.what}", found.remedy)
        return
    size = f"{format_bytes(device.working_set)} for models"
    yield ok("engine", f"{device.name} ({device.backend}), {size} at most")
    if facts.platform.system == "Darwin" and device.backend != "metal":
        yield problem("engine", "mlx does not use Metal here", "install an arm64 Python, and mlx-roster with it")


def openblas(facts: Facts) -> Iterator[Finding]:
    """Only for who computes on the processor under Linux."""
    device = facts.engine.device
    if facts.platform.system != "Linux" or device is None or device.backend != "cpu":
        return
    if facts.blas.off:
        yield note("OpenBLAS", "MLX_ROSTER_OPENBLAS=off keeps workers from it", "unset MLX_ROSTER_OPENBLAS")
    elif facts.blas.library is None:
        yield warning(
            "OpenBLAS",
            "is not installed: matrix products take several times longer",
            "apt install libopenblas0, or your distribution's package of it",
        )
    else:
        yield ok("OpenBLAS", f"{facts.blas.library} is preloaded into workers")


def memory(facts: Facts) -> Iterator[Finding]:
    here = facts.memory
    yield ok("memory", f"{format_bytes(here.total)}, {format_bytes(here.available)} of it free or easily freed")
    roster = facts.roster.roster
    if facts.roster.report is not None and roster is not None and facts.roster.report.budget > here.available:
        taken = [f"{name} ({format_bytes(size)})" for name, _, size in here.largest]
        by = f"; {', '.join(taken)} take much of it" if taken else ""
        yield warning(
            "memory",
            f"the budget is {format_bytes(facts.roster.report.budget)}, more than what is free now{by}",
            "end what is not needed, or lower memory.budget in the roster",
        )
    if here.swap_used > max(_GIB, here.total // 10):
        yield warning(
            "memory",
            f"{format_bytes(here.swap_used)} are swapped out: whatever is swapped while it decodes takes seconds",
            "end what is not needed, or lower memory.budget in the roster",
        )
    if here.wired_limit:
        limit = here.wired_limit * 2**20
        if limit > here.total * 9 // 10:
            yield warning(
                "memory",
                f"iogpu.wired_limit_mb allows the GPU {format_bytes(limit)}: too little is left for macOS",
                f"sudo sysctl iogpu.wired_limit_mb={here.total * 4 // 5 // 2**20}",
            )
        else:
            yield note("memory", f"iogpu.wired_limit_mb allows the GPU {format_bytes(limit)}, until the next restart")


def limits(facts: Facts) -> Iterator[Finding]:
    files = facts.limits.files
    if files >= ENOUGH_FILES:
        yield ok("limits", f"{files} open files")
    else:
        found = problem if files < FEW_FILES else warning
        yield found(
            "limits",
            f"{files} open files at most: each connection is one, and so is more than one for each model",
            "raise the hard limit of what starts it: LimitNOFILE=8192 in a systemd unit, ulimit -Hn 8192 as root",
        )
    yield from _backlog(facts.limits, facts.platform.system)


def _backlog(here: Limits, system: str) -> Iterator[Finding]:
    if here.backlog is None or here.backlog >= 512:
        return
    key = "kern.ipc.somaxconn" if system == "Darwin" else "net.core.somaxconn"
    yield note(
        "limits",
        f"the system lets {here.backlog} connections wait to be accepted: larger bursts fail",
        f"sudo sysctl {key}=1024",
    )


#: In the order in which they are shown.
ALL: tuple[Callable[[Facts], Iterable[Finding]], ...] = (
    platform,
    packages,
    engine,
    openblas,
    memory,
    limits,
    setup.roster,
    setup.environment,
    setup.address,
    setup.exposure,
    setup.cache,
    setup.hub,
)


def findings(facts: Facts) -> list[Finding]:
    return [finding for look in ALL for finding in look(facts)]


def _major(release: str) -> int:
    digits = release.removeprefix("macOS ").partition(".")[0]
    return int(digits) if digits.isdecimal() else OLDEST_MACOS
