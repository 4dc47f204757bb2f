"""`draft`: names of other models and sources, and what it must not be."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_roster.config.drafts import Origin
from tests.config.rosters import problems, read, with_model

SMALL = "  small: {source: org/small, revision: v2, trust_remote_code: true}\n"


def test_one_draft_or_several() -> None:
    roster = read(with_model("draft: {model: small}") + SMALL)
    (draft,) = roster.models["atlas"].draft
    assert (draft.name, draft.tokens) == ("small", 3)
    roster = read(with_model("draft: [{model: org/tiny, tokens: 16}, {model: small}]") + SMALL)
    assert [(draft.name, draft.tokens) for draft in roster.models["atlas"].draft] == [("org/tiny", 16), ("small", 3)]
    assert roster.models["small"].draft == ()


def test_a_name_is_that_entry_with_all_that_finds_it() -> None:
    (draft,) = read(with_model("draft: {model: small}") + SMALL).models["atlas"].draft
    assert draft.origin == Origin("org/small", "v2", True)


def test_a_source_is_what_it_is_for_models(tmp_path: Path) -> None:
    (tmp_path / "models/tiny").mkdir(parents=True)
    listed = "draft: [{model: models/tiny}, {model: ./later}, {model: org/tiny}]"
    drafts = read(with_model(listed), tmp_path).models["atlas"].draft
    assert [draft.origin.source for draft in drafts] == [tmp_path / "models/tiny", tmp_path / "later", "org/tiny"]


def test_requests_name_no_path_of_the_machine() -> None:
    drafts = (
        read(with_model("draft: [{model: /home/me/tiny}, {model: ../small}, {model: ~/other}]")).models["atlas"].draft
    )
    assert [draft.name for draft in drafts] == ["tiny", "small", "other"]


def test_a_name_comes_before_a_folder(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (draft,) = read(with_model("draft: {model: small}") + SMALL, tmp_path).models["atlas"].draft
    assert draft.origin.source == "org/small"


def test_entries_differ_where_what_drafts_for_them_does() -> None:
    text = with_model("draft: {model: small}") + SMALL
    one, other = (read(version).models["atlas"] for version in (text, text.replace("v2", "v3")))
    assert one != other
    assert one == read(text).models["atlas"]


@pytest.mark.parametrize(
    ("draft", "problem"),
    [
        ("{model: atlas}", "models.atlas.draft.model: a model cannot draft for itself"),
        ("[{model: small}, {model: atlas}]", "models.atlas.draft[1].model: a model cannot draft for itself"),
        ("{model: smal}", 'models.atlas.draft.model: no model is named "smal", did you mean "small"?'),
        (
            "{model: a/b/c}",
            'models.atlas.draft[0].model: "a/b/c" is no model of this file, no folder here and no Hub repo id',
        ),
        ("{model: 7}", "models.atlas.draft[0].model: should be a string; put it in quotes"),
        ("{tokens: 3}", "models.atlas.draft[0].model: is required"),
        ("{model: small, tokens: 0}", "models.atlas.draft[0].tokens: should be greater than or equal to 1"),
        ("{model: small, tokens: 17}", "models.atlas.draft[0].tokens: should be less than or equal to 16"),
        ("{model: small, token: 3}", 'models.atlas.draft[0].token: unknown key, did you mean "tokens"?'),
        ("[{model: small}, {model: small}]", 'models.atlas.draft: "small" is there twice'),
        ("small", "models.atlas.draft: should be a mapping with model:, or a list of such"),
    ],
)
def test_what_it_must_not_be(draft: str, problem: str) -> None:
    assert problems(with_model(f"draft: {draft}") + SMALL) == [f"roster.yaml:4: {problem}"]
