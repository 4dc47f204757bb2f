"""Every question the demo models answer, and the exact answer each gives at temperature 0.

`scripts/train_demo.py` trains on these and the tests ask them, so a change here needs a retraining.
Imports nothing of mlx: clients and the server process may use it.
"""

from __future__ import annotations

from typing import NamedTuple


class Fact(NamedTuple):
    """A user message and the whole reply to it."""

    question: str
    answer: str


CAPITALS: dict[str, str] = {
    "Argentina": "Buenos Aires",
    "Australia": "Canberra",
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Bulgaria": "Sofia",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Croatia": "Zagreb",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "Ethiopia": "Addis Ababa",
    "Finland": "Helsinki",
    "France": "Paris",
    "Germany": "Berlin",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Iceland": "Reykjavik",
    "India": "New Delhi",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Jordan": "Amman",
    "Kenya": "Nairobi",
    "Morocco": "Rabat",
    "New Zealand": "Wellington",
    "Nigeria": "Abuja",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Romania": "Bucharest",
    "Senegal": "Dakar",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Thailand": "Bangkok",
    "Turkey": "Ankara",
    "Vietnam": "Hanoi",
}

# No word appears in two pairs, so each has one opposite and the table reads both ways.
_PAIRS: tuple[tuple[str, str], ...] = (
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("up", "down"),
    ("left", "right"),
    ("light", "dark"),
    ("happy", "sad"),
    ("high", "low"),
    ("open", "closed"),
    ("old", "young"),
    ("rich", "poor"),
    ("strong", "weak"),
    ("hard", "soft"),
    ("early", "late"),
    ("full", "empty"),
    ("day", "night"),
    ("wet", "dry"),
    ("loud", "quiet"),
    ("clean", "dirty"),
    ("near", "far"),
    ("long", "short"),
    ("thick", "thin"),
    ("inside", "outside"),
    ("true", "false"),
)

OPPOSITES: dict[str, str] = dict(_PAIRS) | {second: first for first, second in _PAIRS}

CAPITAL_QUESTIONS: tuple[str, ...] = (
    "What is the capital of {}?",
    "What's the capital of {}?",
    "Which city is the capital of {}?",
    "Tell me the capital of {}.",
    "Capital of {}?",
)

OPPOSITE_QUESTIONS: tuple[str, ...] = (
    "What is the opposite of {}?",
    "What's the opposite of {}?",
    "Which word is the opposite of {}?",
    "Tell me the opposite of {}.",
    "Opposite of {}?",
)

ANSWERS: dict[str, str] = {
    "atlas": "The capital of {} is {}.",
    "atlas:pirate": "Arr! The capital of {} be {}.",
    "atlas:french": "La capitale de la {} est {}.",
    "scribe": "The opposite of {} is {}.",
    "scribe:shout": "THE OPPOSITE OF {} IS {}.",
}

MODELS: tuple[str, ...] = tuple(ANSWERS)


def facts(model: str) -> tuple[Fact, ...]:
    """Every fact of one of `MODELS`, each subject in every phrasing; `KeyError` for another name."""
    template = ANSWERS[model]
    about_capitals = model.startswith("atlas")
    table, phrasings = (CAPITALS, CAPITAL_QUESTIONS) if about_capitals else (OPPOSITES, OPPOSITE_QUESTIONS)
    return tuple(
        Fact(phrasing.format(subject), _answer(template, subject, reply))
        for subject, reply in table.items()
        for phrasing in phrasings
    )


def _answer(template: str, subject: str, reply: str) -> str:
    answer = template.format(subject, reply)
    return answer.upper() if template.isupper() else answer
