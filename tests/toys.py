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
    tail = "<|im_end|>\n<|im_start|>assistant\n"
    tails = [_ids(tokenizer, ending) for ending in ("", tail, f"{tail}<think>\n\n</think>\n\n")]
    model = _model(llama.ModelArgs.from_dict(config), scripts, tails)
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


#: The scripted model's state: a code of the last token, parts of the codes of those before it, and a constant. With a
#: single layer the attention over a prompt's tokens is never computed, its last one's aside: long prompts are cheap.
CODE, HEAD, HEADS = 128, 32, 24
HIDDEN = CODE + HEADS * HEAD + 16


def _model(arguments: llama.ModelArgs, scripts: Sequence[Sequence[int]], tails: Sequence[Sequence[int]]) -> llama.Model:
    """Each head looks at one of the tokens before the last. From what they see the output layer learns the scripts."""
    random = np.random.default_rng(0)
    codes = random.choice(np.float32([-1, 1]), (arguments.vocab_size, CODE))
    # What no script has is like the header of the first turn: after it comes the first answer.
    codes[np.setdiff1d(np.arange(arguments.vocab_size), np.concatenate(scripts))] = codes[scripts[0][0]]
    embedding = np.zeros((arguments.vocab_size, HIDDEN), np.float32)
    embedding[:, :CODE], embedding[:, -1] = codes, 8
    # Rotated by its position, the query of head h matches best the key of h + 1 positions before.
    angles = 10000.0 ** -(np.arange(HEAD // 2) * 2 / HEAD) * np.arange(1, HEADS + 1)[:, None]
    query, key = np.zeros((HEADS * HEAD, HIDDEN), np.float32), np.zeros((HEAD, HIDDEN), np.float32)
    query[:, -1] = np.concatenate([np.cos(angles), -np.sin(angles)], axis=1).ravel()
    key[: HEAD // 2, -1] = 10
    # What is further away counts less, and so is learned from only where it has to be.
    output = np.eye(HIDDEN, HEADS * HEAD, -CODE, dtype=np.float32) * 0.93 ** np.repeat(np.arange(HEADS), HEAD)
    model = llama.Model(arguments)
    layer = model.layers[0]
    layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight = mx.array(query), mx.array(key)
    layer.self_attn.v_proj.weight = mx.eye(HEAD, HIDDEN)
    layer.self_attn.o_proj.weight = mx.array(output.astype(np.float32))
    layer.mlp.down_proj.weight = mx.zeros_like(layer.mlp.down_proj.weight)
    model.model.embed_tokens.weight = mx.array(embedding)
    model.lm_head.weight = mx.array(_learned(model, scripts, tails))
    return model


def _learned(model: llama.Model, scripts: Sequence[Sequence[int]], tails: Sequence[Sequence[int]]) -> np.ndarray:
    """The output layer, learned as a perceptron learns: each script after tokens at random and one of `tails`."""
    random = np.random.default_rng(1)
    states, right = [], []
    for script in scripts:
        for turn, tail in enumerate(tails * 4):
            prompt = [*random.integers(model.args.vocab_size, size=random.integers(HEADS)).tolist(), *tail]
            # After the first time only what is said with the prompt in sight.
            shown = script[: HEADS + 2] if turn else script
            states.append(np.array(model.model(mx.array([[*prompt, *shown[:-1]]]))[0, len(prompt) :]))
            right.append(shown[1:])
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
        "num_hidden_layers": 1,
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
