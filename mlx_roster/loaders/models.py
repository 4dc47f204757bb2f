"""Base models from local folders. Never touches the network, and runs code that lies in a model's folder only where
its source says `trust_remote_code`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model, load_tokenizer

from mlx_roster.core import DraftSource, ModelSource
from mlx_roster.errors import LoadFailed, LoadOutOfMemory
from mlx_roster.loaders.generation_config import generation_defaults
from mlx_roster.loaders.kv import context
from mlx_roster.loaders.sizes import weights_bytes
from mlx_roster.tensors import Draft, Loaded

#: Weights are brought into memory in portions of about this many bytes, so that progress can be seen.
PORTION = 32 * 2**20

#: What mlx-lm, transformers, mlx and a model's own code raise over a folder that is not as it should be.
_FOREIGN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def load(source: ModelSource, on_progress: Callable[[int, int], None], portion: int = PORTION) -> Loaded:
    """Load a model and its tokenizer on the thread that will run it.

    `on_progress(done, total)` is called in bytes of weights. Raises LoadFailed, or LoadOutOfMemory, with a message
    for clients: names of files and tensors, never a path of this host.
    """
    mapped = _map(source)
    drafts = [_map_draft(source, draft) for draft in source.drafts]
    _read_weights(source, [mapped.model, *(draft.model for draft in drafts)], on_progress, portion)
    vocabulary = _try_out(source, mapped.model)
    tokenizer = _tokenizer(source, mapped)
    tried = {
        draft.name: _draft(source, draft, one, tokenizer) for draft, one in zip(source.drafts, drafts, strict=True)
    }
    generation = generation_defaults(mapped.folder)
    return Loaded(mapped.model, tokenizer, mapped.config, context(mapped.config), vocabulary, tried, generation)


class _Mapped(NamedTuple):
    """A model with its weights mapped but not yet read."""

    model: Module
    config: dict[str, Any]
    folder: Path


def _map(source: ModelSource) -> _Mapped:
    folder = Path(source.path)
    _read_config(source, folder)
    return _Mapped(*_build(source, folder), folder)


def _map_draft(source: ModelSource, draft: DraftSource) -> _Mapped:
    with _drafting_for(source):
        return _map(_own(source, draft))


def _draft(source: ModelSource, draft: DraftSource, mapped: _Mapped, tokenizer: Any) -> Draft:
    """A draft model whose weights are there. Its token ids must mean what they mean to the model it drafts for."""
    own = _own(source, draft)
    with _drafting_for(source):
        vocabulary = _try_out(own, mapped.model)
        if _tokenizer(own, mapped).get_vocab() != tokenizer.get_vocab():
            _fail(own, "its vocabulary is another one")
    return Draft(mapped.model, draft.tokens, context(mapped.config), vocabulary)


def _own(source: ModelSource, draft: DraftSource) -> ModelSource:
    """A draft model as if it were to be served itself."""
    return ModelSource(draft.name, draft.path, source.memory, trust_remote_code=draft.trust_remote_code)


@contextmanager
def _drafting_for(source: ModelSource) -> Iterator[None]:
    """Whose load it is that a draft model has failed."""
    try:
        yield
    except LoadFailed as error:
        raise type(error)(f"model {source.name!r} cannot be drafted for: {error.message}") from error


def _fail(source: ModelSource, reason: str, cause: BaseException | None = None) -> NoReturn:
    raise LoadFailed(f"model {source.name!r}: {reason}") from cause


def _fail_over(source: ModelSource, what: str, error: Exception) -> NoReturn:
    """Out of memory, or `what`: foreign messages are not passed on, for they name paths of this host."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate" in text or "malloc" in text:
        raise LoadOutOfMemory(f"model {source.name!r}: not enough memory to load it") from error
    _fail(source, what, error)


def _read_config(source: ModelSource, folder: Path) -> None:
    """Refuse what can be refused before anything is read: mlx-lm would take a missing folder for a Hub repo."""
    if not folder.is_dir():
        _fail(source, "its folder is missing")
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError as error:
        _fail(source, "config.json is missing", error)
    except OSError as error:
        _fail(source, "config.json cannot be read", error)
    except ValueError as error:
        _fail(source, "config.json is not valid JSON", error)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        _fail(source, "config.json names no model_type")
    if config.get("model_file") is not None and not source.trust_remote_code:
        _fail(
            source,
            "it needs a Python file of its own (model_file in config.json), and such code is run only with "
            "trust_remote_code: true",
        )
    try:
        # mlx-lm takes the files that are there for all there are.
        weights_bytes(folder)
    except LoadFailed as error:
        _fail(source, error.message, error)


def _build(source: ModelSource, folder: Path) -> tuple[Module, dict[str, Any]]:
    """The model with its weights mapped but not yet read."""
    try:
        model, config = load_model(folder, lazy=True, trust_remote_code=source.trust_remote_code)
    except ValueError as error:
        _fail_over(source, _explain(error, folder), error)
    except (*_FOREIGN, MemoryError) as error:
        _fail_over(source, "its config and its weights do not make a model that can be served", error)
    return model, config


def _explain(error: ValueError, folder: Path) -> str:
    """mlx-lm's own words where they are known to name only types, tensors and shapes."""
    text = str(error).replace(str(folder), "its folder").strip().removesuffix(".")
    known = ("Model type", "Missing", "Received", "Expected shape", "Unsupported")
    if not text.startswith(known) or "/" in text.splitlines()[0]:
        return "its config and its weights do not make a model that can be served"
    lines = text.splitlines()
    return " ".join(lines[:4]) + (" …" if len(lines) > 4 else "")


def _read_weights(
    source: ModelSource, models: list[Module], on_progress: Callable[[int, int], None], size: int
) -> None:
    arrays = [array for model in models for array in _arrays(model)]
    total = sum(array.nbytes for array in arrays)
    done = 0
    on_progress(done, total)
    for portion in _portions(arrays, size):
        try:
            mx.eval(portion)
        except (*_FOREIGN, MemoryError) as error:
            _fail_over(source, "its weights cannot be read", error)
        done += sum(array.nbytes for array in portion)
        on_progress(done, total)
    # Reading may leave as much in mlx's cache of buffers as it read.
    mx.clear_cache()


def _arrays(model: Any) -> list[mx.array]:
    leaves: Any = tree_flatten(model.parameters())
    return [leaf for _, leaf in leaves]


def _portions(arrays: list[mx.array], size: int) -> Iterator[list[mx.array]]:
    portion: list[mx.array] = []
    for array in arrays:
        portion.append(array)
        if sum(one.nbytes for one in portion) >= size:
            yield portion
            portion = []
    if portion:
        yield portion


def _try_out(source: ModelSource, model: Module) -> int:
    """Build the forward pass of one token, and return the size of its logits: a model that cannot run is not loaded.

    Nothing is computed: of a large model that would be a good part of the wait for the first token.
    """
    try:
        cache = make_prompt_cache(model)
        for entry in cache:
            entry.merge([entry])
    except (AttributeError, NotImplementedError) as error:
        # A kind without `merge` has no batched form in mlx-lm (chunked attention, for one).
        _fail(source, "its kind of attention cache cannot be decoded in batches, and is not supported", error)
    try:
        logits = model(mx.array([[0]]), cache=cache)
    except (*_FOREIGN, MemoryError) as error:
        _fail_over(source, "it cannot compute a single token", error)
    return int(logits.shape[-1])


def _tokenizer(source: ModelSource, mapped: _Mapped) -> Any:
    try:
        # Left out, trust_remote_code makes transformers ask on the terminal.
        settings: dict[str, Any] = {"trust_remote_code": source.trust_remote_code}
        if source.chat_template is not None:
            # Also instead of one that is not Jinja, which mlx-lm has for some models.
            settings |= {"chat_template": source.chat_template, "chat_template_type": None}
        return load_tokenizer(mapped.folder, settings, eos_token_ids=mapped.config.get("eos_token_id"))
    except _FOREIGN as error:
        _fail_over(source, "its tokenizer cannot be loaded", error)
