"""Structured output: what an answer has to be, as a grammar that decides each of its tokens. Never touches mlx.

Compiling is work for a thread of its own; a finished gate goes with its row to the engine's.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from cachetools import LRUCache
from llguidance import LLMatcher, LLTokenizer

from mlx_roster.core import Format, Generation, Tools
from mlx_roster.engine import channels
from mlx_roster.engine.gates import Grammar, GrammarGate, Thinking, Vocabulary
from mlx_roster.engine.schemas import LIMITS, enforceable, explained, parsed
from mlx_roster.engine.toolforms import forced_form
from mlx_roster.errors import InvalidRequest

#: So many last tokens of a prompt are looked at for the end of the model's thoughts.
TAIL = 32

#: llguidance has room for tokens of about this many bytes, and panics over longer ones.
LONGEST = 1000

#: A grammar is tried for so many tokens, where it can along these texts: names and nested values come early by them.
TRIED = 48
TRYING = ('"', ":", "{", "[", ",")

#: The schemas of one request's functions have together at most so many bytes.
TOOLS = 256 * 2**10


class Grammars:
    """One model's grammars. For the compiling thread only, `wanted` aside.

    `tokenizer` is one of mlx-lm's, and `vocabulary` the size of the model's logits.
    """

    def __init__(
        self, tokenizer: Any, vocabulary: int, eos_token_ids: Iterable[int] | None = None, *, kept: int = 32
    ) -> None:
        self._tokenizer = tokenizer
        self._size = vocabulary
        self._eos = sorted(set(tokenizer.eos_token_ids if eos_token_ids is None else eos_token_ids))
        self._compiled: LRUCache[bytes, Grammar] = LRUCache(maxsize=kept)

    @staticmethod
    def wanted(generation: Generation) -> bool:
        """Whether the answer is held to anything. From any thread."""
        return generation.format is not None or _forced(generation.tools) is not None

    def gate(self, generation: Generation, prompt_ids: list[int]) -> GrammarGate | None:
        """A gate for one sequence, or None where none is wanted. With a large vocabulary the first takes a second.

        Raises InvalidRequest over what cannot be enforced.
        """
        if not self.wanted(generation):
            return None
        key = msgspec.json.encode((generation.format, generation.tools))
        grammar = self._compiled.get(key)
        if grammar is None or grammar.spent:
            self._compiled[key] = grammar = self._compile(generation.format, generation.tools)
        return GrammarGate(grammar, self._vocabulary, self._thinking(prompt_ids))

    def _compile(self, wanted: Format | None, tools: Tools | None) -> Grammar:
        forced = _forced(tools)
        exits: frozenset[int] = frozenset()
        if forced is not None:
            param, rules = "tools", ["answer: calls", *self._calls(forced)]
        else:
            param, rules = "response_format", [f"json: %json {_schema(wanted or Format())}"]
            answers = ["json"]
            if tools is not None and self._exits and forced_form(self._tokenizer) != "array":
                answers.append("calls")
                rules += self._calls(tools)
            elif tools is not None:
                # How this model writes a call is not known here.
                exits = self._exits
                answers += map(_token, exits)
            rules.append(f"answer: {' | '.join(answers)}")
        # Between thoughts and answer models break lines.
        blank = "BREAK? " if self._tokenizer.has_thinking else ""
        lark = "\n".join([f"start: {blank}answer", "BREAK: /[ \\n]{1,4}/", *rules])
        try:
            vocabulary = self._vocabulary
        except ValueError as error:
            raise InvalidRequest("this model's tokenizer cannot be constrained", param=param) from error
        matcher = LLMatcher(vocabulary.tokens, LLMatcher.grammar_from_lark(lark), log_level=0, limits=LIMITS)
        problem = _tried(matcher, vocabulary)
        if problem:
            what = "the schema" if param == "response_format" else "a call of these functions"
            raise InvalidRequest(f"{what} cannot be enforced: {explained(problem)}", param=param)
        return Grammar(matcher, exits, param)

    def _calls(self, tools: Tools) -> list[str]:
        """The rules of one call or, in parallel, any number. Calls that are not demanded may have any arguments."""
        functions = [spec["function"] for spec in tools.specs]
        if tools.choice == "named":
            functions = [function for function in functions if function["name"] == tools.name]
        if not functions:
            raise InvalidRequest("there is no such function to call", param="tools")
        rules = ["call: " + " | ".join(f"call{index}" for index in range(len(functions)))]
        free = _forced(tools) is None
        schemas = [_parameters({"name": "any"})] if free else list(map(_parameters, functions))
        if sum(map(len, schemas)) > TOOLS:
            raise InvalidRequest(f"the parameters of all functions are larger than {TOOLS // 2**10} KiB", param="tools")
        rules += [f"arguments{index}: %json {schema}" for index, schema in enumerate(schemas)]
        for index, function in enumerate(functions):
            rules.append(f"call{index}: {self._call(function['name'], f'arguments{0 if free else index}')}")
        # Who names a function reads one call of it.
        return [f"calls: {self._said(tools.parallel and tools.choice != 'named')}", *rules]

    def _said(self, parallel: bool) -> str:
        """One `call` or several, in the form that `forced_form` says."""
        start, end = self._marker(self._tokenizer.tool_call_start), self._marker(self._tokenizer.tool_call_end)
        array = '"[" call (", " call)* "]"' if parallel else '"[" call "]"'
        match forced_form(self._tokenizer):
            case "tagged":
                tagged = f'{start} "\\n" call "\\n" {end}'
                return f'{tagged} ("\\n" {tagged})*' if parallel else tagged
            case "mistral" if self._headed:
                return f"({start} call)+" if parallel else f"{start} call"
            case "mistral":
                return f"{start} {array}"
            case _:
                return array

    def _call(self, name: str, arguments: str) -> str:
        if self._headed:
            return f"{json.dumps(name)} {self._marker('[ARGS]')} {arguments}"
        opening = json.dumps(f'{{"name": {json.dumps(name)}, "arguments": ')
        return f'{opening} {arguments} "}}"'

    @cached_property
    def _headed(self) -> bool:
        """Whether a call is a name, `[ARGS]` and the arguments, as of Mistral's later models."""
        return forced_form(self._tokenizer) == "mistral" and "[ARGS]" in self._tokenizer.get_vocab()

    @cached_property
    def _exits(self) -> frozenset[int]:
        """What begins a call in place of the answer, where the model may make one."""
        start: tuple[int, ...] = self._tokenizer.tool_call_start_tokens or ()
        return self._added.intersection(start) if len(start) == 1 else frozenset()

    def _marker(self, text: str | None) -> str:
        """As a grammar has it: by its id where it is a token of its own, which text never is."""
        ids = self._tokenizer.encode(text, add_special_tokens=False) if text else []
        return _token(ids[0]) if len(ids) == 1 and ids[0] in self._added else json.dumps(text or "")

    def _thinking(self, prompt_ids: list[int]) -> Thinking | None:
        if not self._tokenizer.has_thinking:
            return None
        now = channels.thinking(self._tokenizer, prompt_ids)
        start, end = self._tokenizer.think_start_tokens, self._tokenizer.think_end_tokens
        return Thinking(start, end, now, may=not now and not self._thought(prompt_ids[-TAIL:]))

    def _thought(self, tail: list[int]) -> bool:
        """Whether a prompt ends with the end of thoughts: what else comes after one is of an earlier turn."""
        ended = self._tokenizer.rfind_think_end(tail)
        if ended < 0:
            return False
        rest = tail[ended + len(self._tokenizer.think_end_tokens) :]
        return not self._tokenizer.decode(rest, skip_special_tokens=False).strip()

    @cached_property
    def _added(self) -> frozenset[int]:
        """Tokens that were added to the vocabulary whole."""
        return frozenset(self._tokenizer.added_tokens_decoder)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        """Raises ValueError over a tokenizer that llguidance cannot take."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None or max(map(len, self._tokenizer.get_vocab())) > LONGEST:
            raise ValueError("slow, or with tokens that are too long")
        known = len(self._tokenizer)
        eos = [token for token in self._eos if 0 <= token < min(known, self._size)]
        tokens = LLTokenizer(copy.copy(backend).to_str(), n_vocab=max(known, self._size), eos_token=eos)
        call = [token for token in self._exits if token < self._size]
        return Vocabulary.of(tokens, self._size, known, eos, call)


def _forced(tools: Tools | None) -> Tools | None:
    """The tools of which one must be called."""
    return tools if tools is not None and tools.choice != "auto" else None


def _schema(wanted: Format) -> str:
    what, param = "the schema", "response_format"
    schema = {"type": "object"} if wanted.schema is None else parsed(wanted.schema, what, param)
    return enforceable(schema, what, param)


def _parameters(function: dict[str, Any]) -> str:
    """Arguments are an object, whether the schema says so or not."""
    what = f"the schema of function {function['name']!r}"
    schema = function.get("parameters")
    schema = {} if schema is None else schema
    if isinstance(schema, dict) and schema.get("type", "object") != "object":
        raise InvalidRequest(f"{what} must be of type 'object'", param="tools")
    return enforceable({"type": "object", **schema} if isinstance(schema, dict) else schema, what, "tools")


def _token(token: int) -> str:
    return f"<[{token}]>"


def _tried(matcher: LLMatcher, vocabulary: Vocabulary) -> str:
    """What goes wrong with the first tokens, some limits being met only then; and those are the slowest, too."""
    trial, words = matcher.deep_copy(), np.empty(vocabulary.words, dtype=np.int32)
    liked = [token for text in TRYING for token in vocabulary.tokens.tokenize_str(text)[:1]]
    for _ in range(TRIED):
        trial.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if trial.is_stopped():
            break
        allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
        trial.consume_token(next((token for token in liked if token in allowed), int(allowed[0])))
    return (trial.get_error() or "limit") if trial.is_error() else ""
