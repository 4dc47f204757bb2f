"""What the scripted models say, turn by turn: read by the clients' tests and in the server's own environment."""

from __future__ import annotations

import json
from typing import Any


def call(function: str, /, **arguments: Any) -> str:
    """A tool call as Qwen's models write it."""
    return f"<tool_call>\n{json.dumps({'name': function, 'arguments': arguments})}\n</tool_call>"


COUNTRY = {"name": "France", "capital": "Paris"}
HELLO = """def hello() -> None:
    print("Hello!")
"""
#: Longer than 100 tokens, which is where an answer ends if neither a request nor the roster says more.
GREETING = """def hello(name: str = "world", *, loud: bool = False) -> None:
    # Greets someone by name, or else the whole world. If it has to be loud, the greeting is in capital letters, for
    # those who are too far away to hear anything else; they may well be, as nobody knows where on this planet a program
    # will run that only wanted to say something friendly, and whether there is any terminal, window or printer near the
    # person it was written for, or just another program that reads what it is told, and then goes on with its own work.
    greeting = f"Hello, {name}!"
    print(greeting.upper() if loud else greeting)
"""
COMMIT = "feat: greet by name"

SCRIPTS: dict[str, list[str]] = {
    # Asks for the weather, and says what it was told it is.
    "weather": [call("get_weather", city="Paris", days=2), "It is sunny in Paris."],
    # The same, of two cities in one answer.
    "traveller": [
        call("get_weather", city="Paris", days=2) + "\n" + call("get_weather", city="Rome", days=1),
        "Sunny in Paris, rain in Rome.",
    ],
    "thinker": ["<think>\nFrance, then. Its capital?\n</think>\n\nParis, naturellement."],
    "geographer": [json.dumps(COUNTRY)],
    # What is a tool to some clients that want a structured answer.
    "instructed": [call("Country", **COUNTRY)],
    "final": [call("final_result", **COUNTRY)],
    # An edit in aider's own forms, and what its commit is called.
    "whole": [f"Here is the greeting with a name.\n\nhello.py\n```\n{GREETING}```\n"],
    "diff": [f"hello.py\n```python\n<<<<<<< SEARCH\n{HELLO}=======\n{GREETING}>>>>>>> REPLACE\n```\n"],
    "committer": [COMMIT],
    # The same as opencode has it: the call of a tool, and what is said when that is done.
    "writer": [call("write", filePath="hello.py", content=GREETING), "It greets by name now."],
}
