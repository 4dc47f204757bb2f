from __future__ import annotations

import pytest

from mlx_roster.config.environment import expand

ENVIRON = {"NAME": "atlas", "EMPTY": "", "_X1": "${NAME}"}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("${NAME}", "atlas"),
        ("a ${NAME} and ${NAME}", "a atlas and atlas"),
        ("${NAME:-other}", "atlas"),
        ("${UNSET:-other}", "other"),
        ("${UNSET:-}", ""),
        ("${EMPTY}", ""),
        ("${EMPTY:-other}", "other"),
        ("${UNSET:-a:-b\nc}", "a:-b\nc"),
        # What a variable holds is not expanded again.
        ("${_X1}", "${NAME}"),
        ("$$", "$"),
        ("$${NAME}", "${NAME}"),
        ("$$${NAME}", "$atlas"),
        ("$NAME costs 5$", "$NAME costs 5$"),
    ],
)
def test_expansion(text: str, expanded: str) -> None:
    assert expand(text, ENVIRON) == expanded


def test_an_unset_variable_is_named() -> None:
    with pytest.raises(ValueError, match="the environment variable UNSET is not set"):
        expand("${NAME} ${UNSET}", ENVIRON)


@pytest.mark.parametrize("text", ["${", "${NAME", "${}", "${1X}", "${A B}", "${NAME-x}", "${NAME:=x}", "${ÄRGER}"])
def test_malformed_variables(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a variable: write \$\{NAME\}"):
        expand(text, ENVIRON)
