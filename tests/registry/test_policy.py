"""What of an entry makes a loaded model another one."""

from __future__ import annotations

import pytest

from mlx_roster.registry.policy import Terms
from tests.config.rosters import read

ROSTER = """
models:
  atlas: {source: ./atlas, draft: {model: small, tokens: 3}}
  small: {source: org/small, revision: v2}
"""


def version(text: str) -> object:
    roster = read(text)
    return Terms.of(roster.models["atlas"], roster.scheduling).version


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (", draft: {model: small, tokens: 3}", ""),
        ("tokens: 3", "tokens: 4"),
        ("draft: {model: small, tokens: 3}", "draft: [{model: small}, {model: org/tiny}]"),
        ("revision: v2", "revision: v3"),
        ("revision: v2", "revision: v2, trust_remote_code: true"),
    ],
)
def test_what_drafts_for_a_model_is_loaded_with_it(before: str, after: str) -> None:
    assert before in ROSTER
    assert version(ROSTER.replace(before, after)) != version(ROSTER)


def test_the_rest_of_what_drafts_is_of_no_concern() -> None:
    assert version(ROSTER.replace("revision: v2", "revision: v2, pin: true, max_context: 99")) == version(ROSTER)
