"""Chats through a chat template: tools, histories of calls, variables, the roster's template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_roster.config import templates as roster
from mlx_roster.core import Chat, Generation, Tools
from mlx_roster.engine import templates
from mlx_roster.engine.prompts import Prompts
from mlx_roster.errors import InvalidRequest, UnsupportedParameter
from tests.engine import tiny
from tests.engine.speech import JSON, TOOLS

#: Says everything that it is given.
TELLING = (
    "{%- if tools %}{{ tools | tojson }}|{% endif -%}"
    "{%- for message in messages %}{{ message | tojson }}|{% endfor -%}"
    "{{ enable_thinking }}|{{ colour }}|{{ add_generation_prompt }}"
)
PLAIN = "{% for message in messages %}{{ message.role }}:{{ message.content }}|{% endfor %}"

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("templates")


class Rendered:
    """A model's prompts, as the text that they come to."""

    def __init__(self, folder: Path, template: Any, *, wrapper: dict[str, Any] | None = None, **options: Any) -> None:
        plain = tiny.write_tokenizer(folder, template if isinstance(template, str) else None)
        if isinstance(template, dict):
            plain.chat_template = template
        self.tokenizer = TokenizerWrapper(plain, **(wrapper or {}))
        self.prompts = Prompts(self.tokenizer, 1000, None, **options)

    def __call__(self, messages: list[dict[str, Any]], tools: Tools | None = None, /, **args: Any) -> str:
        generation = Generation(Chat(messages, template_args=args), 5, tools=tools)
        return str(self.tokenizer.decode(self.prompts.encode(generation)[0].ids))


@pytest.fixture(scope="module")
def telling(folder: Path) -> Rendered:
    return Rendered(folder, TELLING, wrapper=JSON)


def parts(text: str) -> tuple[list[Any], list[str]]:
    """What is JSON of a text by TELLING, and the variables."""
    *told, thinking, colour, answer = text.split("|")
    return [json.loads(part) for part in told], [thinking, colour, answer]


USER = {"role": "user", "content": "hi"}

#: Models of which the tokenizer or the template knows no tools.
TOOLLESS = [(TELLING, {}), (PLAIN, JSON), (None, JSON), ({"default": PLAIN}, JSON)]


def test_functions_are_told_as_the_request_has_them(telling: Rendered) -> None:
    told, _ = parts(telling([USER], TOOLS))
    assert told == [list(TOOLS.specs), USER]
    assert parts(telling([USER], Tools(TOOLS.specs, "required")))[0][0] == list(TOOLS.specs)
    assert parts(telling([USER], Tools(TOOLS.specs, "named", "now")))[0][0] == [TOOLS.specs[1]]
    assert parts(telling([USER]))[0] == [USER]


@pytest.mark.parametrize(("template", "wrapper"), TOOLLESS)
def test_functions_are_refused_where_nothing_would_come_of_them(
    folder: Path, template: Any, wrapper: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        Rendered(folder, template, wrapper=wrapper)([USER], TOOLS)
    assert refusal.value.param == "tools"


def test_template_for_tools_is_taken_where_there_are_several(folder: Path) -> None:
    both = Rendered(folder, {"default": PLAIN, "tool_use": TELLING}, wrapper=JSON)
    assert parts(both([USER], TOOLS))[0] == [list(TOOLS.specs), USER]
    assert both([USER]) == "user:hi|"


def test_calls_of_the_history_have_their_arguments_as_objects(telling: Rendered) -> None:
    (_, call, result), _ = parts(telling(HISTORY))
    assert call["content"] == ""
    assert call["tool_calls"] == [{**CALL, "function": {"name": "weather", "arguments": {"city": "Zürich"}}}]
    assert result == {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "rain"}
    assert HISTORY[1]["tool_calls"] == [CALL], "the request's own is left alone"


@pytest.mark.parametrize("arguments", ["hello", "[1]", "", '{"a":'])
def test_arguments_that_are_no_object_stay_as_they_are(telling: Rendered, arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    (_, told), _ = parts(telling([USER, {"role": "assistant", "content": "", "tool_calls": [call]}]))
    assert told["tool_calls"] == [call]


def test_template_that_puts_arguments_into_text_is_given_text(folder: Path) -> None:
    template = (
        "{% for message in messages %}{% for call in message.tool_calls or [] %}"
        "{{ call.function.name + '(' + call.function.arguments + ')' }}{% endfor %}{% endfor %}"
    )
    assert Rendered(folder, template)(HISTORY) == 'weather({"city": "Zürich"})'
    concerning = Rendered(folder, "{{ messages[0].content + 1 }}")
    with pytest.raises(InvalidRequest) as refusal:
        concerning(HISTORY)
    assert refusal.value.param == "messages"


def test_name_of_a_result_is_left_as_the_client_has_it(telling: Rendered) -> None:
    (*_, result), _ = parts(telling([*HISTORY[:2], {**HISTORY[2], "name": "mine"}]))
    assert result["name"] == "mine"
    (_, stray), _ = parts(telling([USER, {"role": "tool", "tool_call_id": "other", "content": "x"}]))
    assert "name" not in stray


def test_developer_is_a_system_message_unless_the_template_knows_better(folder: Path, telling: Rendered) -> None:
    developer = {"role": "developer", "content": "be brief"}
    assert parts(telling([developer]))[0] == [{**developer, "role": "system"}]
    knowing = Rendered(folder, TELLING + "{# developer #}")
    assert parts(knowing([developer]))[0] == [developer]


def test_variables_of_the_request_go_over_those_of_the_roster(folder: Path, telling: Rendered) -> None:
    assert parts(telling([USER]))[1] == ["False", "", "True"]
    assert parts(telling([USER], colour="red", enable_thinking=True))[1] == ["True", "red", "True"]
    roster = Rendered(folder, TELLING, template_args={"colour": "blue", "enable_thinking": True})
    assert parts(roster([USER]))[1] == ["True", "blue", "True"]
    assert parts(roster([USER], colour="red"))[1] == ["True", "red", "True"]


@pytest.mark.parametrize(
    "name",
    [
        "tools",
        "messages",
        "conversation",
        "tokenize",
        "chat_template",
        "add_generation_prompt",
        "return_dict",
        "self",
        "namespace",
        "range",
        "raise_exception",
    ],
)
def test_names_that_would_not_reach_the_template_are_refused(telling: Rendered, name: str) -> None:
    with pytest.raises(InvalidRequest, match=name) as refusal:
        telling([USER], **{name: "x"})
    assert refusal.value.param == "chat_template_kwargs"


@pytest.mark.parametrize("own", [None, PLAIN, {"default": PLAIN}])
def test_template_of_the_roster_is_in_place_of_the_models(folder: Path, own: Any) -> None:
    rendered = Rendered(folder, own, wrapper=JSON, chat_template="{{ eos_token }}" + TELLING)
    assert rendered.prompts.chat
    assert rendered([USER]).startswith("<|endoftext|>{")
    assert parts(rendered([USER], TOOLS).removeprefix("<|endoftext|>"))[0] == [list(TOOLS.specs), USER]


def test_template_of_the_roster_is_in_place_of_a_renderer(folder: Path) -> None:
    def render(messages: Any, add_generation_prompt: bool = False, **args: Any) -> str:
        return f"renderer {messages[0]['content']} {sorted(args)}"

    wrapper = {"chat_template": render, **JSON}
    assert Rendered(folder, None, wrapper=wrapper)([USER]) == "renderer hi ['enable_thinking']"
    assert Rendered(folder, None, wrapper=wrapper)([USER], TOOLS) == "renderer hi ['enable_thinking', 'tools']"
    assert Rendered(folder, None, wrapper=wrapper, chat_template=PLAIN)([USER]) == "user:hi|"


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_template_of_the_roster_is_rendered_in_a_sandbox(folder: Path, template: str) -> None:
    with pytest.raises(InvalidRequest):
        Rendered(folder, PLAIN, chat_template=template)([USER])


@pytest.mark.parametrize(
    ("template", "variables"),
    [
        (TELLING, ("add_generation_prompt", "colour", "enable_thinking", "messages", "tools")),
        ("{% set a = 1 %}{{ a }}{% generation %}{{ b }}{% endgeneration %}", ("b",)),
        (
            "{% for m in messages %}{% if m %}{% break %}{% endif %}{% endfor %}"
            "{% generation %}{{ strftime_now(f) if raise_exception }}{% endgeneration %}{% set n = namespace(x=y) %}",
            ("f", "messages", "y"),
        ),
        ("{% nonsense", ()),
        (None, ()),
    ],
)
def test_variables_are_what_the_template_looks_up(
    folder: Path, template: str | None, variables: tuple[str, ...]
) -> None:
    assert Rendered(folder, template).prompts.variables == variables


def test_marks_take_tools_and_variables_into_account(folder: Path) -> None:
    rendered = Rendered(folder, TELLING, wrapper=JSON, marking=True)

    def marked(tools: Tools | None, **args: Any) -> list[str]:
        system = {"role": "system", "content": "be brief"}
        generation = Generation(Chat([system, USER], template_args=args), 5, tools=tools)
        prompt, _ = rendered.prompts.encode(generation)
        return [rendered.tokenizer.decode(prompt.ids[:mark]) for mark in prompt.marks]

    for _ in range(2):
        assert not any("weather" in mark for mark in marked(None))
        assert all("weather" in mark for mark in marked(TOOLS))


def test_rosters_refuse_the_names_that_requests_may_not_use() -> None:
    # The server process has no transformers to ask.
    assert templates.RESERVED <= roster.RESERVED
