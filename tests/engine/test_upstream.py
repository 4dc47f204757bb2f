"""What we rely on in mlx and mlx-lm, and nothing of ours: an upgrade that breaks us fails here first."""

from __future__ import annotations

import copy
import pkgutil
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import chat_templates
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import ArraysCache, BatchKVCache, BatchRotatingKVCache, KVCache, make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_model
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template


class Spy:
    """A cache entry that only notes which verbs it is asked for, and with what."""

    def __init__(self, names: list[str], log: list[tuple[str, Any]]) -> None:
        self.names = names
        self.log = log

    def merge(self, caches: list[Spy]) -> Spy:
        self.log.append(("merge", [name for cache in caches for name in cache.names]))
        return Spy([name for cache in caches for name in cache.names], self.log)

    def filter(self, keep: Any) -> None:
        assert isinstance(keep, list)
        assert all(isinstance(index, int) for index in keep)
        self.log.append(("filter", keep))
        self.names = [self.names[index] for index in keep]

    def extend(self, other: Spy) -> None:
        self.log.append(("extend", other.names))
        self.names = self.names + other.names

    def extract(self, index: int) -> Spy:
        self.log.append(("extract", index))
        return Spy([self.names[index]], self.log)

    def prepare(self, **padding: Any) -> None:
        self.log.append(("prepare", sorted(padding)))

    def finalize(self) -> None:
        self.log.append(("finalize", None))

    def __deepcopy__(self, memo: dict[int, Any]) -> Spy:
        self.log.append(("deepcopy", self.names))
        return Spy(self.names, self.log)

    @property
    def state(self) -> list[mx.array]:
        return []

    @property
    def nbytes(self) -> int:
        return 0


class Watched:
    """A model that notes who is in each forward pass, and takes the spy off its caches."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.passes: list[tuple[list[str], tuple[int, ...]]] = []

    def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        self.passes.append((list(cache[-1].names), tuple(inputs.shape)))
        logits: mx.array = self.model(inputs, cache=cache[:-1])
        assert logits.shape[0] == len(cache[-1].names)
        return logits


class Sampled:
    """A greedy sampler that notes the shapes it is called with."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, logprobs: mx.array) -> mx.array:
        self.shapes.append(tuple(logprobs.shape))
        return mx.argmax(logprobs, axis=-1)


class Rig:
    """A BatchGenerator with spies at every seam that we use."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.log: list[tuple[str, Any]] = []
        model, _ = load_model(folder)
        self.watched = Watched(model)
        self.sampled = Sampled()
        self.generator = BatchGenerator(self.watched, sampler=self.sampled, **options)

    def insert(self, name: str, prompt: list[int], max_tokens: int = 8) -> int:
        cache = [*make_prompt_cache(self.watched.model), Spy([name], self.log)]
        (uid,) = self.generator.insert([prompt], [max_tokens], caches=[cache])
        assert isinstance(uid, int)
        return uid

    def step(self) -> list[Any]:
        _, responses = self.generator.next()
        return list(responses)


@pytest.fixture
def rig(model: Path) -> Rig:
    return Rig(model)


def test_prompt_is_taken_in_without_its_last_token_then_the_first_forward_pass_samples(rig: Rig) -> None:
    rig.insert("a", [5, 6, 7])
    assert rig.step() == []
    assert rig.watched.passes == [(["a"], (1, 2))]
    assert rig.sampled.shapes == []
    assert rig.step() == []
    assert rig.watched.passes[1:] == [(["a"], (1, 1))]
    assert len(rig.sampled.shapes) == 1
    (response,) = rig.step()
    assert (response.token, response.finish_reason) == (response.token, None)
    assert isinstance(response.token, int)


def test_each_token_is_returned_after_the_next_one_was_sampled(rig: Rig) -> None:
    rig.insert("a", [5, 6, 7])
    returned = 0
    for _ in range(6):
        returned += len(rig.step())
        if returned:
            assert len(rig.sampled.shapes) == returned + 1


def test_a_sampler_that_all_rows_share_is_called_once_per_step_with_all_rows(rig: Rig) -> None:
    for name in "abc":
        rig.insert(name, [5, 6, 7])
    rig.step(), rig.step()
    calls = len(rig.sampled.shapes)
    assert len(rig.step()) == 3
    assert [shape[0] for shape in rig.sampled.shapes[calls:]] == [3]


def test_sampler_is_called_right_after_the_forward_pass_of_the_same_rows(rig: Rig) -> None:
    rig.insert("a", [5, 6, 7])
    rig.step(), rig.step(), rig.step()
    rig.insert("b", [5, 6, 7, 8])
    for _ in range(4):
        rig.step()
    decoding = [len(names) for names, shape in rig.watched.passes if shape[1] == 1]
    assert decoding == [shape[0] for shape in rig.sampled.shapes]


def test_every_row_is_sampled_exactly_once_per_token_of_its_own(rig: Rig) -> None:
    lengths = {"a": 3, "b": 5, "c": 2}
    for index, (name, length) in enumerate(lengths.items()):
        rig.insert(name, list(range(4, 7 + index)), length)
    while rig.step() or rig.generator.prompt_cache_nbytes:
        pass
    sampled = [name for names, shape in rig.watched.passes if shape[1] == 1 for name in names]
    # Of those that finish by length the token after the last is sampled too, and thrown away.
    assert {name: sampled.count(name) for name in lengths} == {name: length + 1 for name, length in lengths.items()}


def test_prompts_of_unequal_length_are_padded_on_the_right_between_prepare_and_finalize(rig: Rig) -> None:
    rig.insert("a", [5, 6, 7])
    rig.insert("b", [5, 6, 7, 8, 9])
    rig.step()
    verbs = [verb for verb, _ in rig.log]
    assert verbs.index("prepare") < verbs.index("finalize")
    assert rig.watched.passes == [(["a", "b"], (2, 4))]


def test_joining_a_batch_is_a_deepcopy_filtered_apart_and_an_extend(rig: Rig) -> None:
    rig.insert("a", [5, 6, 7])
    rig.step(), rig.step(), rig.step()
    rig.log.clear()
    rig.insert("b", [5, 6, 7])
    rig.step(), rig.step()
    assert ("merge", ["b"]) in rig.log
    assert ("deepcopy", ["b"]) in rig.log
    assert ("filter", [0]) in rig.log
    assert ("extend", ["b"]) in rig.log
    rig.step()
    assert rig.watched.passes[-1][0] == ["a", "b"]


def test_remove_filters_by_a_list_and_only_what_is_left_runs_on(rig: Rig) -> None:
    rig.insert("a", [5, 6, 7])
    uid = rig.insert("b", [5, 6, 7])
    rig.insert("c", [5, 6, 7])
    rig.step(), rig.step(), rig.step()
    rig.generator.remove([uid])
    assert rig.log[-1] == ("filter", [0, 2])
    rig.step()
    assert rig.watched.passes[-1][0] == ["a", "c"]


def test_remove_takes_sequences_that_are_still_waiting_or_in_their_prompt(model: Path) -> None:
    rig = Rig(model, prefill_step_size=2)
    long = rig.insert("long", list(range(3, 40)))
    waiting = rig.insert("waiting", [5, 6, 7])
    rig.generator.remove([waiting])
    rig.step()
    rig.generator.remove([long])
    passes = len(rig.watched.passes)
    assert rig.step() == []
    assert len(rig.watched.passes) == passes


def test_stop_token_and_last_token_are_returned_with_their_reason_and_leave_the_batch(model: Path) -> None:
    first = Rig(model)
    first.insert("a", [5, 6, 7])
    first.step(), first.step()
    (token,) = [response.token for response in first.step()]
    rig = Rig(model, stop_tokens=[(token,)])
    rig.insert("a", [5, 6, 7])
    rig.step(), rig.step()
    assert [(response.token, response.finish_reason) for response in rig.step()] == [(token, "stop")]
    assert rig.step() == []
    first.insert("b", [5, 6, 7], 1)
    finished = [response.finish_reason for _ in range(12) for response in first.step()]
    assert finished.count("length") == 2


def test_prompt_of_one_token_needs_no_prompt_pass(rig: Rig) -> None:
    rig.insert("a", [5])
    rig.step()
    assert rig.watched.passes == [(["a"], (1, 1))]


def test_prompts_are_taken_in_by_prefill_step_size(model: Path) -> None:
    rig = Rig(model, prefill_step_size=4)
    rig.insert("a", list(range(3, 14)))
    for _ in range(3):
        assert rig.step() == []
    assert [shape for _, shape in rig.watched.passes] == [(1, 4), (1, 4), (1, 2)]


def held(caches: list[Any]) -> list[int]:
    """How many tokens each of the caches before the spy holds."""
    return [cache.size() for cache in caches[:-1]]


def test_what_finishes_hands_out_its_caches_and_just_the_tokens_they_hold(rig: Rig) -> None:
    rig.insert("long", [5, 6, 7, 8, 9], 20)
    rig.insert("a", [5, 6, 7], 4)
    steps = [rig.step() for _ in range(6)]
    said = [response.token for _, response in steps[2:]]
    response = steps[-1][1]
    assert response.finish_reason == "length"
    assert response.all_tokens == [5, 6, 7, *said]
    assert held(response.prompt_cache) == [7, 7]
    assert response.prompt_cache[0].keys.shape[2] == 7
    assert all(one.prompt_cache is None and one.all_tokens is None for one in rig.step())


def test_what_is_removed_hands_out_its_caches_and_just_the_tokens_they_hold(model: Path) -> None:
    rig = Rig(model, prefill_step_size=4)
    decoding = rig.insert("decoding", [5, 6, 7])
    said = [response.token for _ in range(5) for response in rig.step()]
    prompt = list(range(3, 40))
    reading = rig.insert("reading", prompt)
    said += [response.token for _ in range(2) for response in rig.step()]
    waiting = rig.insert("waiting", [5, 6])
    removed = rig.generator.remove([decoding, reading, waiting], return_prompt_caches=True)
    assert removed[decoding][1] == [5, 6, 7, *said]
    assert held(removed[decoding][0]) == [3 + len(said)] * 2
    assert removed[reading][1] == prompt[:8]
    assert held(removed[reading][0]) == [8, 8]
    assert removed[waiting][1] == []


def test_more_may_run_from_one_step_to_the_next_and_caches_can_be_counted(model: Path) -> None:
    rig = Rig(model, completion_batch_size=1, prefill_batch_size=1)
    assert rig.generator.prompt_cache_nbytes == 0
    for name in "abc":
        rig.insert(name, [5, 6, 7], 20)
    while not rig.step():
        pass
    # 256 tokens of two layers with two heads of eight numbers each, keys and values.
    assert rig.generator.prompt_cache_nbytes == 256 * 2 * 2 * 8 * 2 * 4
    assert len(rig.step()) == 1
    rig.generator.completion_batch_size = 3
    rig.generator.prefill_batch_size = 3
    while len(rig.step()) < 3:
        pass
    assert rig.generator.prompt_cache_nbytes == 3 * 256 * 2 * 2 * 8 * 2 * 4


def test_segments_are_stopped_between_and_the_caches_can_be_had_there(rig: Rig) -> None:
    cache = [*make_prompt_cache(rig.watched.model), Spy(["a"], rig.log)]
    rig.insert("other", [5, 6, 7, 8, 9, 10, 11])
    (uid,) = rig.generator.insert_segments([[[5, 6], [7, 8, 9]]], [4], caches=[cache], all_tokens=[[]])
    stops = []
    for _ in range(3):
        responses, _ = rig.generator.next()
        (mine,) = [response for response in responses if response.uid == uid]
        stops.append((mine.progress, mine.end_of_segment, mine.end_of_prompt))
        if not mine.end_of_prompt:
            caches, tokens = rig.generator.extract_cache([uid])[uid]
            assert held(caches) == [len(tokens)] * 2
            assert tokens == [5, 6, 7, 8][: mine.progress[0]]
    assert stops == [((2, 5), True, False), ((4, 5), True, False), ((5, 5), True, True)]


def test_caches_that_a_prompt_comes_with_are_copied_and_counted_by_what_is_left(rig: Rig) -> None:
    rig.insert("a", [5, 6, 7], 1)
    (response,) = [one for _ in range(3) for one in rig.step()]
    kept = response.prompt_cache[:-1]
    mx.eval([cache.state for cache in kept])
    before = [mx.array(cache.keys) for cache in kept]
    mx.eval(before)
    given = [*copy.deepcopy(kept), Spy(["b"], rig.log)]
    (uid,) = rig.generator.insert_segments([[[8, 9]]], [3], caches=[given], all_tokens=[[5, 6, 7, response.token]])
    progress = [one.progress for one in rig.generator.next()[0]]
    assert progress == [(1, 2)]
    caches, tokens = rig.generator.extract_cache([uid])[uid]
    assert (held(caches), tokens) == ([5, 5], [5, 6, 7, response.token, 8])
    for _ in range(3):
        rig.step()
    assert all(mx.array_equal(cache.keys, keys) for cache, keys in zip(kept, before, strict=True))


def test_copied_array_shares_its_buffer_until_one_is_written_to() -> None:
    original = mx.zeros((1024, 1024))
    mx.eval(original)
    before = mx.get_active_memory()
    copied = copy.deepcopy(original)
    mx.eval(copied)
    assert mx.get_active_memory() == before
    copied[0] = 1
    mx.eval(copied)
    assert original.sum().item() == 0


def test_keys_and_values_are_extracted_whole_and_other_state_as_views() -> None:
    for batch in (BatchKVCache([0] * 64), BatchRotatingKVCache(16, [0] * 64)):
        batch.update_and_fetch(mx.ones((64, 2, 16, 256)), mx.ones((64, 2, 16, 256)))
        mx.eval(batch.state)
        before = mx.get_active_memory()
        one = batch.extract(3)
        mx.eval(one.state)
        assert mx.get_active_memory() == before + one.nbytes
        del one
    arrays = ArraysCache(1)
    arrays[0] = mx.ones((64, 2**14))
    mx.eval(arrays.state)
    before = mx.get_active_memory()
    view = arrays.extract(3)
    mx.eval(view.state)
    assert mx.get_active_memory() == before


def test_model_needs_no_more_than_a_call(model: Path) -> None:
    """`Routed` is no mlx module: the generator asks nothing else of it where caches are given."""
    assert not hasattr(Rig(model).watched, "layers")


def test_kv_cache_merges_from_an_instance_and_copies_deeply() -> None:
    cache = KVCache()
    merged = cache.merge([cache, KVCache()])
    copy.deepcopy(merged).filter([1])
    assert merged.left_padding.tolist() == [0, 0]


def test_generator_runs_on_a_thread_that_did_not_import_it(model: Path) -> None:
    said: list[int] = []

    def run() -> None:
        rig = Rig(model)
        rig.insert("a", [5, 6, 7], 2)
        while len(said) < 2:
            said.extend(response.token for response in rig.step())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(said) == 2


def test_array_made_from_memory_on_one_thread_is_usable_on_another() -> None:
    made: list[mx.array] = []
    thread = threading.Thread(target=lambda: made.append(mx.array([1.0, 2.0])))
    thread.start()
    thread.join()
    assert (made[0] * 2).tolist() == [2.0, 4.0]


def test_vmapped_noise_equals_noise_drawn_alone() -> None:
    keys = mx.array([[1, 2], [3, 4], [2**32 - 1, 0]], dtype=mx.uint32)
    together = mx.vmap(lambda key: mx.random.gumbel((50,), key=key))(keys)
    alone = mx.stack([mx.random.gumbel((50,), key=key) for key in keys])
    assert mx.array_equal(together, alone)


def test_gather_mm_picks_a_matrix_per_row_for_one_token_and_for_many() -> None:
    stack = mx.random.normal((3, 8, 4))
    slots = mx.array([2, 0], dtype=mx.uint32)
    for length in (1, 5):
        x = mx.random.normal((2, length, 8))
        expected = mx.stack([x[0] @ stack[2], x[1] @ stack[0]])
        assert mx.allclose(mx.gather_mm(x, stack, rhs_indices=slots), expected, atol=1e-5)


def test_decoders_describe_themselves_as_json() -> None:
    assert b'"ByteLevel"' in decoders.ByteLevel().__getstate__()


def test_tokenizer_of_a_loaded_model_decodes_as_transformers_does(engine: Any) -> None:
    assert engine.tokenizer.decode.__func__ is PreTrainedTokenizerBase.decode


def test_formats_lead_between_states_of_these_names() -> None:
    forms = [module for _, module, _ in pkgutil.iter_modules(chat_templates.__path__)]
    loaded = [import_module(f"mlx_lm.chat_templates.{form}") for form in forms]
    formats = [module.RESPONSE_FORMAT for module in loaded if hasattr(module, "RESPONSE_FORMAT")]
    assert formats
    for form in formats:
        leads = {state for edges in form["transitions"].values() for _, state in edges}
        assert {form["initial_state"], *form["transitions"], *leads} <= {"header", "normal", "reasoning", "tool"}


def test_tokenizer_names_its_markers_and_finds_them(engine: Any) -> None:
    tokenizer = engine.tokenizer
    assert tokenizer.response_transitions == {}
    assert tokenizer.response_initial_state is None
    assert tuple(tokenizer.structural_markers) == ()
    assert (tokenizer.has_thinking, tokenizer.think_start, tokenizer.think_end) == (False, None, None)
    assert (tokenizer.has_tool_calling, tokenizer.tool_call_start, tokenizer.tool_parser) == (False, None, None)
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, [])))
    plain.add_tokens(["<think>", "</think>"])
    thinking = TokenizerWrapper(plain)
    assert (thinking.think_start, thinking.think_end) == ("<think>", "</think>")
    assert thinking.think_start_tokens == (2,)
    assert [thinking.rfind_think_start(ids) for ids in ([2, 0, 2, 1], [0], [])] == [2, -1, -1]


def test_template_is_rendered_as_apply_chat_template_does(engine: Any) -> None:
    tokenizer, messages = engine.tokenizer, [{"role": "user", "content": "hi"}]
    source = "{{ eos_token }}{{ messages[0].content }}{{ tools }}{{ add_generation_prompt }}{{ a }}"
    (text,), _ = render_jinja_template(
        [messages], tools=None, chat_template=source, add_generation_prompt=True, a=1, **tokenizer.special_tokens_map
    )
    asked = {"chat_template": source, "add_generation_prompt": True, "tokenize": False, "a": 1}
    assert text == tokenizer.apply_chat_template(messages, **asked)


def test_importing_mlx_lm_sets_the_limit_of_open_files_for_good() -> None:
    """Only workers import it: they have one socket, and the files of a model one after the other. The server keeps the
    limit that it has raised for its clients. Where so many may not be had, the import fails: `workers/diagnosis.py`."""
    says = "import resource, mlx_lm.utils; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    done = subprocess.run([sys.executable, "-c", says], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2048", "4096"]
