"""Models with weights that nobody trained: one that babbles, for streams that are long rather than right, and one that
says what it is told to, for answers that must be exact."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tokenizers import AddedToken, Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from mlx_roster.demo import directory

#: The scripted model's special tokens, and those which tool calls and reasoning begin and end with.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<tool_call>", "</tool_call>", "<think>", "</think>")

#: ChatML with tools: the last token says which turn of the conversation is next, and whether to think first.
TEMPLATE = """
{%- macro text(content) -%}
{%- if content is string -%}{{- content -}}
{%- elif content -%}{{- content | map(attribute='text') | join('') -}}{%- endif -%}
{%- endmacro -%}
{%- if tools -%}
{{- '<|im_start|>system\\nCall a function with <tool_call>{"name": ..., "arguments": ...}</tool_call>:' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- set turns = namespace(count=0) -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}{%- set turns.count = turns.count + 1 -%}{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' + text(message.content) -}}
{%- for tool_call in message.tool_calls or [] -%}
{%- if tool_call.function -%}{%- set tool_call = tool_call.function -%}{%- endif -%}
{{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' -}}
{{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{%- set turn = [turns.count, LAST] | min -%}
{{- '<|im_start|>assistant\\n' -}}
TURN
{%- endif -%}
"""
TURN = "{{- '<|turn-' + turn | string + '|>' -}}"
#: With it, `enable_thinking: false` has the answer begin after its reasoning.
THINKING = f"""
{{%- if enable_thinking is defined and not enable_thinking -%}}
{{{{- '<think>\\n\\n</think>\\n\\n<|brief-' + turn | string + '|>' -}}}}
{{%- else -%}}{TURN}{{%- endif -%}}
"""


def babbler(folder: Path, *, seed: int = 0, hidden: int = 64, layers: int = 2) -> Path:
    """A random llama that never ends a sentence by itself, with the tokenizer of the demo's atlas."""
    shutil.copytree(directory() / "models" / "atlas", folder)
    config = json.loads((folder / "config.json").read_text())
    arguments = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": hidden * 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "vocab_size": config["vocab_size"],
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "eos_token_id": config["eos_token_id"],
    }
    mx.random.seed(seed)
    model = llama.Model(llama.ModelArgs.from_dict(arguments))
    # The logit of the end of a sentence is always 0, and so never the largest: generation ends by max_tokens.
    model.lm_head.weight[config["eos_token_id"]] = 0
    mx.eval(model.parameters())
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(arguments))
    return folder


def scripted(folder: Path, *answers: str, thinking: bool = False) -> Path:
    """A llama that says exactly `answers`, whatever it is asked: the one for each turn, and then the last again.

    Which turn it is follows from how many messages of the assistant a chat has; a text completion gets the first.
    `<tool_call>`, `</tool_call>` and, with `thinking`, `<think>` and `</think>` are single tokens, and so are the words
    of the answers. Most of a prompt becomes one token for each of its bytes.

    Raises ValueError where a text cannot be said: each token follows from the 25 before it.
    """
    folder.mkdir(parents=True)
    markers = MARKERS if thinking else MARKERS[:2]
    turns = [f"<|turn-{turn}|>" for turn in range(len(answers))]
    briefs = [f"<|brief-{turn}|>" for turn in range(len(answers))]
    tokenizer = _tokenizer(answers, markers, [*SPECIAL, *turns, *briefs])
    _save(
        tokenizer,
        folder,
        TEMPLATE.replace("LAST", str(len(answers) - 1)).replace("TURN", THINKING if thinking else TURN),
    )
    scripts = []
    for answer, turn, brief in zip(answers, turns, briefs, strict=True):
        scripts.append(_ids(tokenizer, f"{turn}{answer}<|im_end|>"))
        if thinking:
            scripts.append(_ids(tokenizer, f"{brief}{answer.partition('</think>')[2]}<|im_end|>"))
    config = _config(tokenizer.get_vocab_size(), tokenizer.token_to_id("<|im_end|>"))
    (folder / "config.json").write_text(json.dumps(config))
    model = _model(llama.ModelArgs.from_dict(config), scripts)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _tokenizer(answers: Sequence[str], markers: Sequence[str], special: Sequence[str]) -> Tokenizer:
    """Byte-level, with merges for the words of the answers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [part for answer in answers for part in re.split("|".join(markers), answer)],
        BpeTrainer(vocab_size=100_000, min_frequency=0, initial_alphabet=ByteLevel.alphabet(), show_progress=False),
    )
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in markers])
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    first = "<|turn-0|>"
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {first}", special_tokens=[(first, tokenizer.token_to_id(first))]
    )
    return tokenizer


def _save(tokenizer: Tokenizer, folder: Path, template: str) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "TokenizersBackend",
        "backend": "tokenizers",
        "chat_template": template.strip(),
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


#: The scripted model's state: a code of the last token, what each layer's heads have seen, and a constant.
CODE, HEAD, HEADS, LAYERS = 128, 32, 4, 2
HIDDEN = CODE + LAYERS * HEADS * HEAD + 8


def _model(arguments: llama.ModelArgs, scripts: Sequence[Sequence[int]]) -> llama.Model:
    """Each head of the first layer looks at one of the tokens just before, and each of the second at what the first
    layer has seen so much earlier. From that, the output layer learns the scripts.
    """
    random = np.random.default_rng(0)
    codes = random.choice(np.float32([-1, 1]), (arguments.vocab_size, CODE))
    # What no script has is like the header of the first turn: after it comes the first answer.
    unused = np.setdiff1d(np.arange(arguments.vocab_size), np.concatenate(scripts))
    codes[unused] = codes[scripts[0][0]]
    embedding = np.zeros((arguments.vocab_size, HIDDEN), np.float32)
    embedding[:, :CODE], embedding[:, -1] = codes, 8
    weights = {"model.embed_tokens.weight": embedding}
    for layer in range(LAYERS):
        seen = CODE + layer * HEADS * HEAD
        value = np.eye(HEAD, HIDDEN, dtype=np.float32)
        if layer:
            value[:, :seen] = random.normal(size=(HEAD, seen)) / np.sqrt(seen)
        for name, weight in _attention((HEADS + 1) ** layer, seen, value).items():
            weights[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = weight
        weights[f"model.layers.{layer}.mlp.down_proj.weight"] = np.zeros((HIDDEN, HEAD), np.float32)
    model = llama.Model(arguments)
    model.load_weights([(name, mx.array(weight)) for name, weight in weights.items()], strict=False)
    model.lm_head.weight = mx.array(_learned(model, scripts, unused))
    mx.eval(model.parameters())
    return model


def _attention(stride: int, seen: int, value: np.ndarray) -> dict[str, np.ndarray]:
    """Rotated by its position, the query of head h matches best the key of (h + 1) x `stride` positions before."""
    angles = 10000.0 ** -(np.arange(HEAD // 2) * 2 / HEAD) * stride * np.arange(1, HEADS + 1)[:, None]
    query, key = np.zeros((HEADS * HEAD, HIDDEN), np.float32), np.zeros((HEAD, HIDDEN), np.float32)
    query[:, -1] = np.concatenate([np.cos(angles), -np.sin(angles)], axis=1).ravel()
    key[: HEAD // 2, -1] = 10
    output = np.zeros((HIDDEN, HEADS * HEAD), np.float32)
    output[seen:][: HEADS * HEAD] = np.eye(HEADS * HEAD)
    return {"q": query, "k": key, "v": value, "o": output}


def _learned(model: llama.Model, scripts: Sequence[Sequence[int]], unused: np.ndarray) -> np.ndarray:
    """The output layer, learned as a perceptron learns, after prompts that have nothing to do with the scripts."""
    random = np.random.default_rng(1)
    states, right = [], []
    for script in scripts:
        for _ in range(4):
            prompt = random.choice(unused, 40).tolist()
            hidden = model.model(mx.array([[*prompt, *script[:-1]]]))
            states.append(np.array(hidden[0, len(prompt) :]))
            right.append(script[1:])
    state, said = np.concatenate(states), np.concatenate(right)
    rows, head = np.arange(len(said)), np.zeros((model.args.vocab_size, HIDDEN), np.float32)
    for _ in range(1000):
        logits = state @ head.T
        wanted = logits[rows, said].copy()
        logits[rows, said] = -np.inf
        unsure = wanted - logits.max(axis=1) < 40
        if not unsure.any():
            return head
        np.add.at(head, said[unsure], state[unsure] / 10)
        np.subtract.at(head, logits.argmax(axis=1)[unsure], state[unsure] / 10)
    raise ValueError("this script cannot be said: after the same 25 tokens comes always the same")


def _config(vocabulary: int, end: int) -> dict[str, object]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "head_dim": HEAD,
        "num_hidden_layers": LAYERS,
        "intermediate_size": HEAD,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "vocab_size": vocabulary,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "eos_token_id": end,
        "torch_dtype": "float32",
    }
