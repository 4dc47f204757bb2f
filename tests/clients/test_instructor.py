"""`instructor`: typed answers in each of its modes that a server can serve."""

from __future__ import annotations

from typing import Literal

import instructor
import openai
import pytest
from pydantic import BaseModel, ConfigDict

from tests.clients.said import COUNTRY

CLIENTS = ["instructor"]

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class Country(BaseModel):
    name: str
    capital: str


class Vote(BaseModel):
    # instructor sends the schema as it is, and one that lets more properties in has no end.
    model_config = ConfigDict(extra="forbid")

    choice: Literal["yes", "no", "maybe"]
    sure: bool


def client(url: str, mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(openai.OpenAI(base_url=url, api_key="no-key", max_retries=0), mode=mode)


@pytest.mark.parametrize(
    ("mode", "model"),
    [
        (instructor.Mode.JSON, "geographer"),
        (instructor.Mode.JSON_SCHEMA, "geographer"),
        (instructor.Mode.TOOLS, "instructed"),
    ],
)
def test_typed(url: str, mode: instructor.Mode, model: str) -> None:
    answer = client(url, mode).chat.completions.create(
        model=model, messages=QUESTION, response_model=Country, max_retries=0
    )
    assert answer.model_dump() == COUNTRY


@pytest.mark.parametrize(
    ("mode", "model"), [(instructor.Mode.JSON_SCHEMA, "babbler"), (instructor.Mode.TOOLS, "weather")]
)
def test_typed_by_grammar_alone(url: str, mode: instructor.Mode, model: str) -> None:
    answer = client(url, mode).chat.completions.create(
        model=model, messages=QUESTION, response_model=Vote, max_retries=0, max_tokens=500
    )
    assert isinstance(answer, Vote)


def test_partial(url: str) -> None:
    partials = client(url, instructor.Mode.JSON_SCHEMA).chat.completions.create_partial(
        model="geographer", messages=QUESTION, response_model=Country, max_retries=0
    )
    assert list(partials)[-1].model_dump() == COUNTRY
