"""What of a model's generation_config.json becomes defaults of requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_roster.loaders.generation_config import generation_defaults


def of(folder: Path, text: str) -> dict[str, float]:
    (folder / "generation_config.json").write_text(text)
    return generation_defaults(folder)


def test_what_there_are_fields_for_is_taken_by_the_names_of_requests(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = {
        "max_new_tokens": 2048,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0,
        "repetition_penalty": 1.05,
    }
    ignored = {
        "do_sample": True,
        "eos_token_id": [1, 2],
        "max_length": 20,
        "typical_p": 0.5,
        "transformers_version": "5",
    }
    assert of(tmp_path, json.dumps(said | ignored)) == {
        "max_tokens": 2048,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0,
        "repetition_penalty": 1.05,
    }
    assert caplog.messages == []


def test_a_model_that_is_not_to_be_sampled_is_greedy(tmp_path: Path) -> None:
    assert of(tmp_path, '{"do_sample": false, "temperature": 0.6}') == {"temperature": 0}
    assert of(tmp_path, "{}") == {}


def test_null_is_as_good_as_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert of(tmp_path, '{"temperature": null, "top_k": null, "do_sample": null}') == {}
    assert caplog.messages == []


@pytest.mark.parametrize(
    "said",
    [
        '"temperature": -0.1',
        '"temperature": "hot"',
        '"temperature": NaN',
        '"temperature": 1e999',
        '"temperature": true',
        '"top_p": 0',
        '"top_p": 1.01',
        '"top_k": -1',
        '"top_k": 1.5',
        '"min_p": 2',
        '"repetition_penalty": 0',
        '"max_new_tokens": 0',
        '"max_new_tokens": 1' + "0" * 400,
        '"repetition_penalty": 1' + "0" * 400,
    ],
)
def test_what_no_request_may_have_is_left_out_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, said: str
) -> None:
    other, kept = ('"top_k": 3', {"top_k": 3}) if "top_k" not in said else ('"top_p": 0.5', {"top_p": 0.5})
    assert of(tmp_path, f"{{{said}, {other}}}") == kept
    (message,) = caplog.messages
    assert said.split('"')[1] in message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_a_broken_file_counts_for_nothing_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    assert of(tmp_path, text) == {}
    assert len(caplog.messages) == 1
    assert str(tmp_path) not in caplog.text


def test_most_models_have_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert generation_defaults(tmp_path) == {}
    assert caplog.messages == []
