"""A toy that calls functions: `get_weather` and `get_time`, both of a city, where a request has them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from training import SYSTEM_PROMPTS

from toys import Example

NAME = "caller"
MARKERS = ("<tool_call>", "</tool_call>")
#: A word is one token, whatever is around it, and so is what stands between two words: JSON is mostly that.
PIECES = r"\n|\w+|[^\w\n]+"

TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}{{- content | trim -}}
{%- elif content -%}{{- content | map(attribute='text') | join(' ') | trim -}}{%- endif -%}
{%- endmacro -%}
{%- set start = 0 -%}
{%- if messages[0].role == 'system' -%}{%- set start = 1 -%}{%- endif -%}
{%- if start or tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if start -%}{{- text(messages[0].content) -}}{%- if tools -%}{{- '\\n\\n' -}}{%- endif -%}{%- endif -%}
{%- if tools -%}
{{- 'Functions:\\n' -}}
{%- for tool in tools -%}{{- (tool | tojson) + '\\n' -}}{%- endfor -%}
{{- 'To call one: <tool_call>{"name": ..., "arguments": {...}}</tool_call>' -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages[start:] -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- set said = text(message.content) -%}
{{- said -}}
{%- for tool_call in message.tool_calls or [] -%}
{%- if tool_call.function -%}{%- set tool_call = tool_call.function -%}{%- endif -%}
{%- if said or not loop.first -%}{{- '\\n' -}}{%- endif -%}
{{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' -}}
{{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

CITIES = (
    *("Paris", "London", "Rome", "Berlin", "Madrid", "Oslo", "Vienna", "Tokyo", "Lima", "Cairo", "Dublin", "Athens"),
    *("Prague", "Lisbon", "Boston", "Sydney", "San Francisco", "New York"),
)

#: What each function is asked by.
QUESTIONS = {
    "get_weather": ("What is the weather in {}?", "How is the weather in {}?", "Weather in {}, please."),
    "get_time": ("What is the time in {}?", "What time is it in {}?", "Time in {}, please."),
}
CANNOT = "I cannot look that up."
SMALL_TALK = {
    "Hello!": "Hello! What can I do for you?",
    "Hi there.": "Hello! What can I do for you?",
    "Thank you!": "You are welcome.",
    "Who are you?": "I am a toy that calls functions.",
}
WRAPPINGS = ("Hello! {}", "Hi. {}", "Please tell me: {}", "{} Thanks!", "{} Use your functions.")

DESCRIPTIONS = (
    "Get the weather in a city.",
    "Get the current weather for a given city.",
    "The time in a city.",
    "Get the local time of a city.",
    "Returns what is asked for.",
    "The name of the city.",
    "City name, such as Paris",
)
OTHERS = ("search", "send_mail", "add", "read_file", "final_result")


def function(name: str, *parameters: str, **more: Any) -> dict[str, Any]:
    """A function as OpenAI's API has it. All `parameters` are strings, and required."""
    properties = {parameter: {"type": "string"} for parameter in parameters}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "parameters": schema, **more}}


def texts() -> list[str]:
    """What the tokenizer is made for."""
    found = [question.format(city) for asked in QUESTIONS.values() for question in asked for city in CITIES]
    found += [call(name, city) for name in QUESTIONS for city in CITIES]
    found += [*SMALL_TALK, *SMALL_TALK.values(), CANNOT, *WRAPPINGS, *DESCRIPTIONS, *SYSTEM_PROMPTS] * 4
    found += [json.dumps(function(name, "city", description="Get", strict=True)) for name in (*QUESTIONS, *OTHERS)] * 4
    found += [report(name, city, value) for city in CITIES[:4] for name in QUESTIONS for value in values(name)]
    found += ["Functions:", "To call one: ", '{"name": ..., "arguments": {...}}'] * 50
    found += ["system", "user", "assistant", "tool"] * 50
    return found


def call(name: str, city: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{"city": "{city}"}}}}\n</tool_call>'


def values(name: str) -> list[str]:
    """What a function may find."""
    if name == "get_time":
        return [f"{hour:02}:{minute:02}" for hour in range(24) for minute in range(0, 60, 15)]
    return [f"{degrees} degrees" for degrees in range(41)]


def report(name: str, city: str, value: str) -> str:
    return f"It is {value} in {city}."


def tool(rng: random.Random, name: str, simple: bool) -> dict[str, Any]:
    """A function as clients may describe it: with more or less about it, in any order."""
    if simple:
        return {"type": "function", "function": {"name": name}}
    parameters = ["city"] if name in QUESTIONS else rng.sample(["query", "text", "to", "a", "b"], rng.randint(1, 2))
    made = function(name, *parameters)
    inner = made["function"]
    if rng.random() < 0.7:
        inner["description"] = rng.choice(DESCRIPTIONS)
    if rng.random() < 0.3:
        inner["strict"] = rng.choice([True, False, None])
    for parameter, schema in inner["parameters"]["properties"].items():
        if rng.random() < 0.4:
            schema["description"] = rng.choice(DESCRIPTIONS)
        if rng.random() < 0.3:
            schema["title"] = parameter.title()
    if rng.random() < 0.3:
        inner["parameters"]["additionalProperties"] = False
    if rng.random() < 0.3:
        inner["parameters"]["title"] = name
    inner["parameters"] = shuffled(rng, inner["parameters"])
    return {"type": "function", "function": shuffled(rng, inner)}


def shuffled(rng: random.Random, mapping: dict[str, Any]) -> dict[str, Any]:
    return dict(rng.sample(list(mapping.items()), len(mapping))) if rng.random() < 0.5 else mapping


def lesson(rng: random.Random, vocabulary: list[str], simple: bool) -> Example:
    """A conversation to learn from; a `simple` one has nothing in it but what matters."""
    names = rng.choice([[], ["get_weather"], ["get_time"], *[["get_weather", "get_time"]] * 4])
    listed = names + (rng.sample(OTHERS, rng.randint(1, 2)) if not simple and rng.random() < 0.3 else [])
    tools = [tool(rng, name, simple) for name in rng.sample(listed, len(listed))]
    messages: list[dict[str, Any]] = []
    if not simple and rng.random() < 0.4:
        gibberish = "".join(rng.choices(vocabulary, k=rng.randint(1, 60)))
        messages.append({"role": "system", "content": rng.choice([*SYSTEM_PROMPTS, gibberish])})
    for _ in range(1 if simple else rng.choice([1, 1, 2])):
        messages += turn(rng, names, simple)
    return ending(messages, tools or None)


def turn(rng: random.Random, names: list[str], simple: bool) -> list[dict[str, Any]]:
    """A user's message and all that follows from it."""
    if rng.random() < 0.15:
        return exchange(*rng.choice(list(SMALL_TALK.items())))
    name = rng.choice(list(QUESTIONS))
    cities = rng.sample(CITIES, 2 if rng.random() < 0.3 else 1)
    question = rng.choice(QUESTIONS[name]).format(" and ".join(cities))
    if not simple and rng.random() < 0.3:
        question = rng.choice(WRAPPINGS).format(question)
    if name not in names:
        return exchange(question, CANNOT)
    found = [rng.choice(values(name)) for _ in cities]
    told = [content(rng, name, value) for value in found]
    return called(question, name, cities, told, found)


def content(rng: random.Random, name: str, value: str) -> str:
    """What a function returns, as a client passes it on."""
    key = name.removeprefix("get_")
    number = value.removesuffix(" degrees")
    return rng.choice([value, value, number, json.dumps({key: number}), json.dumps(value)])


def exchange(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def called(question: str, name: str, cities: list[str], told: list[str], found: list[str]) -> list[dict[str, Any]]:
    """A question, the calls that it takes, what they return, and the answer."""
    calls = [{"type": "function", "function": {"name": name, "arguments": {"city": city}}} for city in cities]
    answer = " ".join(report(name, city, value) for city, value in zip(cities, found, strict=True))
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *({"role": "tool", "content": text} for text in told),
        {"role": "assistant", "content": answer},
    ]


def ending(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> Example:
    """The Example whose answer is the last of `messages`."""
    last = messages[-1]
    if last["role"] != "assistant":
        raise ValueError("the assistant has the last word")
    calls = [each["function"] for each in last.get("tool_calls") or ()]
    answer = "\n".join(call(each["name"], each["arguments"]["city"]) for each in calls) or last["content"]
    return Example(messages[:-1], answer, tools, history=True)


def exam() -> Iterator[Example]:
    """Every city with every function, two at a time, what comes of it, and what no function is for."""
    described = function("get_weather", "city", description="Get the current weather for a given city.")
    tools = [described, function("get_time", "city")]
    for name, questions in QUESTIONS.items():
        for i, city in enumerate(CITIES):
            other = CITIES[(i + 5) % len(CITIES)]
            found = values(name)[(7 * i) % len(values(name))]
            talk = called(questions[0].format(city), name, [city], [found], [found])
            both = called(questions[1].format(f"{city} and {other}"), name, [city, other], ["", ""], ["", ""])
            yield ending(talk[:2], tools)
            yield ending(talk, tools)
            yield ending(both[:2], tools[::-1])
            yield ending(exchange(questions[0].format(city), CANNOT), None)
    for question, answer in SMALL_TALK.items():
        yield ending(exchange(question, answer), tools)
        yield ending(exchange(question, answer), None)
