"""A toy that thinks before it says what two digits make, longer or shorter or not at all."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from training import SYSTEM_PROMPTS

from toys import Example

NAME = "thinker"
MARKERS = ("<think>", "</think>")
PIECES = None

TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}{{- content | trim -}}
{%- elif content -%}{{- content | map(attribute='text') | join(' ') | trim -}}{%- endif -%}
{%- endmacro -%}
{%- if reasoning_effort is defined and reasoning_effort in ('low', 'high') -%}
{{- '<|im_start|>system\\nThink ' + ('little' if reasoning_effort == 'low' else 'a lot') + '.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- set said = text(message.content) -%}
{%- if message.role == 'assistant' -%}{%- set said = said.split('</think>')[-1] | trim -%}{%- endif -%}
{{- said + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""

QUESTIONS = ("What is {} plus {}?", "How much is {} plus {}?", "{} plus {}?")
IN_JSON = " Answer in JSON."
SMALL_TALK = {
    "Hello!": "Hello! I can add.",
    "Thank you!": "You are welcome.",
    "Who are you?": "I am a toy that thinks.",
}
WRAPPINGS = ("Hello! {}", "Hi. {}", "Please tell me: {}", "{} Thanks!")

#: By `reasoning_effort`; None is for a request without.
EFFORTS = (None, "low", "medium", "high")


def thought(effort: str | None, a: int, b: int) -> str:
    match effort:
        case "low":
            return f"{a + b}."
        case "high":
            return f"I am to add {a} and {b}. {a} and {b} make {a + b}. So do {b} and {a}. It is {a + b}."
    return f"{a} and {b} make {a + b}."


def musing(effort: str | None) -> str:
    match effort:
        case "low":
            return "Talk."
        case "high":
            return "There is nothing to add. This is small talk."
    return "This is small talk."


def answer_to(a: int, b: int, in_json: bool) -> str:
    return json.dumps({"answer": a + b}) if in_json else f"The answer is {a + b}."


def texts() -> list[str]:
    """What the tokenizer is made for."""
    digits = [(a, b) for a in range(10) for b in range(10)]
    found = [question.format(a, b) + IN_JSON for question in QUESTIONS for a, b in digits]
    found += [thought(effort, a, b) for effort in EFFORTS for a, b in digits]
    found += [answer_to(a, b, in_json) for in_json in (True, False) for a, b in digits]
    found += [musing(effort) for effort in EFFORTS] * 4
    found += [*SMALL_TALK, *SMALL_TALK.values(), *WRAPPINGS, *SYSTEM_PROMPTS, "Think little.", "Think a lot."] * 4
    found += ["system", "user", "assistant"] * 50
    return found


def lesson(rng: random.Random, vocabulary: list[str], simple: bool) -> Example:
    """A conversation to learn from; a `simple` one has nothing in it but what matters."""
    messages: list[dict[str, Any]] = []
    if not simple and rng.random() < 0.3:
        gibberish = "".join(rng.choices(vocabulary, k=rng.randint(1, 40)))
        messages.append({"role": "system", "content": rng.choice([*SYSTEM_PROMPTS, gibberish])})
    for _ in range(0 if simple else rng.choice([0, 0, 0, 1, 2])):
        question, _, said = asked(rng, None, simple)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
    effort = rng.choice(EFFORTS)
    question, thinking, said = asked(rng, effort, simple)
    messages.append({"role": "user", "content": question})
    return example(messages, thinking if rng.random() < 0.75 else None, said, effort)


def asked(rng: random.Random, effort: str | None, simple: bool) -> tuple[str, str, str]:
    """A question, what to think of it, and what to say."""
    if rng.random() < 0.1:
        question, said = rng.choice(list(SMALL_TALK.items()))
        return question, musing(effort), said
    a, b, in_json = rng.randrange(10), rng.randrange(10), rng.random() < 0.3
    question = rng.choice(QUESTIONS).format(a, b)
    if not simple and rng.random() < 0.3:
        question = rng.choice(WRAPPINGS).format(question)
    return question + IN_JSON * in_json, thought(effort, a, b), answer_to(a, b, in_json)


def example(messages: list[dict[str, Any]], thinking: str | None, said: str, effort: str | None) -> Example:
    args: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort}
    if thinking is None:
        return Example(messages, said, template_args={**args, "enable_thinking": False})
    return Example(messages, f"<think>\n{thinking}\n</think>\n\n{said}", template_args=args)


def exam() -> Iterator[Example]:
    """Every sum, with every effort now and then, and what is no sum."""
    for i in range(100):
        a, b = divmod(i, 10)
        for in_json in (False, True):
            messages = [{"role": "user", "content": QUESTIONS[0].format(a, b) + IN_JSON * in_json}]
            said = answer_to(a, b, in_json)
            yield example(messages, thought(None, a, b), said, None)
            effort = EFFORTS[1 + i % 3]
            yield example(messages, thought(effort, a, b), said, effort)
            if not in_json:
                yield example(messages, None, said, None)
    for question, said in SMALL_TALK.items():
        messages = [{"role": "user", "content": question}]
        yield example(messages, musing(None), said, None)
        yield example(messages, None, said, None)
