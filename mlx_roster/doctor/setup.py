"""Findings about what somebody has set up: the roster, the address, the keys, the environment and the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_roster import __version__
from mlx_roster.check import Report
from mlx_roster.config import Roster, format_bytes
from mlx_roster.config.settings import is_loopback
from mlx_roster.doctor.facts import Address, Facts
from mlx_roster.doctor.finding import Finding, note, ok, problem, warning

_GIB = 2**30

#: Less than this on the Hub cache's disk, and hardly any model can be downloaded.
LITTLE_DISK = 5 * _GIB

#: Names in one line; of more, their number is said.
NAMED = 3

#: What conda's compilers put into HOST: x86_64-conda-linux-gnu.
_TRIPLE = re.compile(r"[\w.]+-[\w.]+-[\w.]+(-[\w.]+)?")


def roster(facts: Facts) -> Iterator[Finding]:
    here = facts.roster
    if here.path is None:
        if not here.discovered:
            yield warning(
                "roster", "there is none, and no MLX model in the Hub cache", "mlx-roster demo, or mlx-roster pull REPO"
            )
            return
        models = "the model" if here.discovered == 1 else f"the {here.discovered} models"
        yield note(
            "roster",
            f"there is none: mlx-roster serve takes {models} of the Hub cache",
            "mlx-roster init writes a roster of them",
        )
        return
    if here.problems:
        more = f" (and {len(here.problems) - 1} more)" if len(here.problems) > 1 else ""
        remedy = f"mlx-roster check {here.path}" if here.path.exists() else "mlx-roster init writes one"
        yield problem("roster", f"{here.problems[0]}{more}", remedy)
        return
    if here.report is not None:
        yield from _report(here.report, str(here.path))


def _report(report: Report, path: str) -> Iterator[Finding]:
    check = f"mlx-roster check {path}"
    wrong = [model for model in report.models if model.problems]
    large = [model.name for model in report.models if model.fits is False]
    absent = [model.source for model in report.models if model.remark is not None]
    for text in report.problems:
        yield problem("roster", text, f"correct it; {check} says what each model takes")
    for model in wrong[:NAMED]:
        yield problem("roster", f"{model.name}: {'; '.join(model.problems[:NAMED])}", check)
    if len(wrong) > NAMED:
        yield problem("roster", f"{len(wrong) - NAMED} more models have something wrong with them", check)
    if large:
        yield problem(
            "roster",
            f"larger than the budget of {format_bytes(report.budget)}: {_names(large)}",
            f"{check} has the sizes",
        )
    if absent:
        yield note("roster", f"not downloaded yet: {_names(absent)}", f"mlx-roster pull {absent[0]}")
    if not report.models:
        yield note("roster", f"{path} lists no model", "mlx-roster pull REPO, and mlx-roster init lists what is here")
    elif not report.problems and not wrong and not large:
        models = "1 model" if len(report.models) == 1 else f"{len(report.models)} models"
        yield ok("roster", f"{path}: {models}, {len(report.together)} fit at once into {format_bytes(report.budget)}")


def environment(facts: Facts) -> Iterator[Finding]:
    here = facts.environment
    host, port = here.get("HOST"), here.get("PORT")
    if facts.roster.overrides:
        conda = host is not None and _TRIPLE.fullmatch(host) is not None
        whose = "; conda's compilers set it" if conda else ""
        yield problem(
            "environment",
            f"{facts.roster.overrides[0]}{whose}",
            "env -u HOST -u PORT mlx-roster serve, or --host and --port",
        )
    elif host or port:
        said = " and ".join(f"{name}={value}" for name, value in (("HOST", host), ("PORT", port)) if value)
        yield note("environment", f"{said} wins over the roster", "unset it if nobody meant this server by it")
    if "LD_PRELOAD" in here:
        yield note("environment", f"LD_PRELOAD={here['LD_PRELOAD']} is loaded into every worker")
    if "PYTHONPATH" in here:
        yield note(
            "environment", f"PYTHONPATH={here['PYTHONPATH']} comes before the installed packages", "unset PYTHONPATH"
        )


def address(facts: Facts) -> Iterator[Finding]:
    here = facts.address
    if here is None:
        return
    where = f"{here.host}:{here.port}"
    match here.place:
        case "free":
            yield ok("address", "any port that is free" if here.port == 0 else f"{where} is free")
        case "ours":
            yield from _running(here)
        case "taken":
            yield problem(
                "address",
                f"something else listens on {where}",
                f"mlx-roster serve --port {_other(here.port)}; lsof -i :{here.port} tells what it is",
            )
        case "denied":
            yield problem(
                "address",
                f"{where}: {here.reason}; ports below 1024 are the system's",
                f"mlx-roster serve --port {_other(here.port)}, with a proxy before it",
            )
        case "unknown":
            yield problem(
                "address",
                f"{where}: {here.reason}; no address of this machine",
                "mlx-roster serve --host 127.0.0.1",
            )


def _running(here: Address) -> Iterator[Finding]:
    version = f"mlx-roster {here.version}" if here.version else "an mlx-roster"
    if here.health == 200:
        yield ok("server", f"{version} runs at {here.url}, and is well")
    elif here.status == "draining":
        yield note("server", f"{version} at {here.url} is shutting down")
    else:
        yield problem(
            "server",
            f"{version} at {here.url} is not well: {here.status or here.health}",
            f"mlx-roster ps --url {here.url}",
        )
    if here.version is not None and here.version != __version__:
        yield warning("server", f"it is not the installed version, {__version__}", "restart it")


def exposure(facts: Facts) -> Iterator[Finding]:
    served = facts.roster.roster
    if served is None or facts.roster.path is None:
        return
    file = facts.roster.path
    if facts.roster.readable_by_others:
        yield warning("keys", f"{file} has keys, and everybody on this machine may read it", f"chmod 600 {file}")
    if not is_loopback(served.server.host):
        yield note(
            "keys",
            f"{served.server.host} is reached from elsewhere, and keys and prompts travel there unencrypted",
            "put a proxy with TLS before it, and host: 127.0.0.1 into the roster",
        )
    if "*" in served.server.cors_origins:
        yield _open_origins(served)
    code = [name for name, entry in served.models.items() if entry.trust_remote_code]
    if code:
        yield note("keys", f"trust_remote_code lets the files of {_names(code)} do whatever the server can")


def _open_origins(served: Roster) -> Finding:
    if served.auth.keys:
        return note("keys", 'cors_origins: "*" lets any web page ask, as far as it has a key')
    return warning(
        "keys",
        'cors_origins: "*" without keys lets any web page that is visited here use the server',
        "name the origins in server.cors_origins, or add auth.keys",
    )


def cache(facts: Facts) -> Iterator[Finding]:
    here = facts.cache
    if not here.writable:
        yield problem(
            "Hub cache", f"{here.folder} cannot be written to", f"sudo chown -R $USER {here.folder}, or set HF_HOME"
        )
    elif not here.exists:
        yield ok("Hub cache", f"{here.folder} will be made by the first download")
    else:
        size = "much" if here.size is None else format_bytes(here.size)
        models = "1 model" if here.models == 1 else f"{here.models} models"
        yield ok("Hub cache", f"{here.folder}: {models}, {size}")
    if here.free is not None and here.free < LITTLE_DISK:
        yield warning(
            "Hub cache", f"{format_bytes(here.free)} are left on its disk", "hf cache prune removes what is not used"
        )
    if here.unfinished:
        yield note(
            "Hub cache",
            f"downloads that did not end: {_names(here.unfinished)}",
            f"mlx-roster pull {here.unfinished[0]} goes on with it",
        )
    if here.broken:
        yield warning(
            "Hub cache", f"files are missing from {_names(here.broken)}", f"mlx-roster pull {here.broken[0]} gets them"
        )


def hub(facts: Facts) -> Iterator[Finding]:
    here, served = facts.hub, facts.roster.roster
    token = "with a token" if here.token else "without a token, which is enough for public models"
    if here.offline is not None:
        yield note("Hub", f"{here.offline} is set: nothing is downloaded", f"unset {here.offline}")
    elif served is not None and served.offline:
        yield note("Hub", "the roster says offline: nothing is downloaded")
    elif here.reachable is False and served is not None and facts.roster.path is not None and not _downloads(served):
        yield note("Hub", "does not answer; no model of the roster needs it")
    elif here.reachable is False:
        yield warning(
            "Hub",
            "does not answer: models that are not here cannot be downloaded",
            "check the network and HTTPS_PROXY, or say offline: true in the roster",
        )
    else:
        yield ok("Hub", f"{'answers; ' if here.reachable else ''}{token}")


def _downloads(served: Roster) -> bool:
    """Whether there is anything in the roster that may have to be downloaded."""
    sources = [entry.source for entry in served.models.values()]
    return any(isinstance(source, str) for source in sources) or bool(served.unlisted.hub)


def _names(names: tuple[str, ...] | list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _other(port: int) -> int:
    return 8080 if port != 8080 and port < 1024 else port + 1
