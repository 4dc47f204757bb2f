"""`${NAME}` and `${NAME:-default}` in the values of a roster file; `$$` is a dollar sign."""

from __future__ import annotations

import re
from collections.abc import Mapping

_DOLLAR = re.compile(r"\$\$|\$\{(?P<body>[^}]*)(?P<end>\}?)")
_VARIABLE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)


def expand(text: str, environ: Mapping[str, str]) -> str:
    """`text` with its variables replaced. As in a shell, the default also stands in for an empty value.

    Raises ValueError for a variable that is not set and has no default, and for a malformed one.
    """

    def replacement(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        variable = _VARIABLE.fullmatch(match["body"]) if match["end"] else None
        if variable is None:
            raise ValueError(f"{match[0]} is not a variable: write ${{NAME}} or ${{NAME:-default}}, or $$ for a dollar")
        name, default = variable["name"], variable["default"]
        if default is not None:
            return environ.get(name) or default
        if name not in environ:
            raise ValueError(
                f"the environment variable {name} is not set; ${{{name}:-default}} would give it a default"
            )
        return environ[name]

    return _DOLLAR.sub(replacement, text)
