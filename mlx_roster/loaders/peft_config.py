"""What a PEFT adapter's config says of each module: its rank and scale, and whether there is an adapter on it at all.

Read as PEFT 0.21 reads it, patterns included; what would change more than LoRA's delta is refused by name.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
import regex  # type: ignore[import-untyped]

from mlx_roster.errors import AdapterIncompatible
from mlx_roster.loaders.adapter_files import CONFIG
from mlx_roster.loaders.lora_pairs import rank
from mlx_roster.loaders.offences import named, refusal, shown

#: Keys that say how the adapter was made or saved, and change nothing of what it computes. The configurations of
#: initializations are among them: `_INITIALIZATIONS` decides about those. `fan_in_fan_out` is about the base's weight.
_INERT = frozenset(
    {"task_type", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "fan_in_fan_out"}
    | {"peft_version", "auto_mapping", "runtime_config", "megatron_core", "qalora_group_size"}
    | {"eva_config", "corda_config", "loftq_config", "lora_ga_config"}
)

#: Values of init_lora_weights that leave the base's weights as they are. Others take something out of them, which
#: the adapter then puts back: over an untouched base it would be there twice.
_INITIALIZATIONS = frozenset({"gaussian", "eva", "orthogonal", "mica"})

#: Why a key that asks for more than a delta is refused, where its name alone would not tell what to do.
_REFUSED = {
    "modules_to_save": "it replaces whole modules",
    "trainable_token_indices": "it changes rows of the vocabulary",
    "target_parameters": "it adapts parameters that are no layers of their own",
    "layer_replication": "it builds another stack of layers",
}

#: Seconds that matching all patterns of an adapter may take, and characters that one may have.
_PATIENCE = 3.0
_LENGTH = 10_000

#: What regex takes for approximate matching, and re for text.
_FUZZY = re.compile(r"\{(?!\d*,?\d*\})")

_Strings = frozenset[str] | str
_Number = TypeVar("_Number", int, float)


class _Config(msgspec.Struct):
    """The keys that decide about inference, with PEFT's defaults."""

    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    ensure_weight_tying: bool = False
    bias: str | None = "none"
    init_lora_weights: bool | str | None = True
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    target_modules: _Strings | None = None
    exclude_modules: _Strings | None = None
    layers_to_transform: list[Annotated[int, msgspec.Meta(ge=0)]] | int | None = None
    layers_pattern: list[str] | str | None = None


class Patterns:
    """Regular expressions from a file: all matching together may take `_PATIENCE`, then the adapter is refused.

    The matching lets other threads run.
    """

    def __init__(self) -> None:
        self._left = _PATIENCE
        self._compiled: dict[str, Any] = {}

    def full(self, pattern: str, text: str) -> bool:
        """Whether the pattern matches all of `text`."""
        return self._match(pattern, text, "fullmatch") is not None

    def start(self, pattern: str, text: str) -> Any:
        """The match of the pattern at the start of `text`, or None."""
        return self._match(pattern, text, "match")

    def _match(self, pattern: str, text: str, method: str) -> Any:
        begin = time.monotonic()
        if self._left <= 0:
            raise _slow()
        try:
            if pattern not in self._compiled:
                self._compiled[pattern] = _compiled(pattern)
            compiled = self._compiled[pattern]
            match = compiled.fullmatch if method == "fullmatch" else compiled.match
            return match(text, timeout=self._left)
        except (TimeoutError, MemoryError) as error:
            raise _slow() from error
        finally:
            self._left -= time.monotonic() - begin


def _slow() -> AdapterIncompatible:
    return refusal(f"matching the patterns in its {CONFIG} takes longer than {_PATIENCE:g} seconds")


def _compiled(pattern: str) -> Any:
    if len(pattern) > _LENGTH:
        raise refusal(f"a pattern in its {CONFIG} has {len(pattern)} characters; {_LENGTH} can be served")
    try:
        # PEFT matches with re, which has no timeout; regex has, and much that re has not, such as recursion.
        re.compile(pattern)
        if _FUZZY.search(pattern):
            raise refusal(f"a pattern in its {CONFIG} has a brace that counts nothing: {shown(pattern)}")
        return regex.compile(pattern)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise refusal(f"a pattern in its {CONFIG} is no regular expression: {shown(pattern)}") from error


class PeftConfig:
    """A checked config. Module paths are Hugging Face's, as in the names of the tensors."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = _checked(config)
        self._patterns = Patterns()

    @property
    def dora(self) -> bool:
        """Whether every pair has a magnitude."""
        return self._config.use_dora

    def rank(self, path: str) -> int:
        """The rank of the pair on a module."""
        return rank(self._of(self._config.rank_pattern, path, self._config.r), f"rank for {shown(path)}")

    def scale(self, path: str, rank: int) -> float:
        """What the product of the pair on a module, of that rank, is multiplied by."""
        alpha = self._of(self._config.alpha_pattern, path, self._config.lora_alpha)
        return alpha / math.sqrt(rank) if self._config.use_rslora else alpha / rank

    def uncovered(self, path: str, *, linear: bool) -> str | None:
        """Why PEFT puts no adapter on this module, None if it does. `linear` is whether it is a linear layer."""
        config = self._config
        if self._named(config.exclude_modules, path):
            return "but exclude_modules names its module"
        if config.target_modules is None:
            return None
        # PEFT gives a tied head the adapter of its embedding, and saves it as the head's without having it targeted.
        if config.ensure_weight_tying and _leaf(path) == "lm_head":
            return None
        if config.target_modules == "all-linear":
            return None if linear and _leaf(path) != "lm_head" else "but target_modules is 'all-linear'"
        if not self._named(config.target_modules, path):
            return "but target_modules does not name its module"
        # Whole paths are taken whatever their layer.
        if config.layers_to_transform in (None, []) or path in config.target_modules:
            return None
        return None if self._in_layers(path) else "but layers_to_transform does not name its layer"

    def _named(self, names: _Strings | None, path: str) -> bool:
        if not names:
            return False
        if isinstance(names, str):
            return self._patterns.full(names, path)
        # As many names as modules are possible: looked up, not gone through.
        parts = path.split(".")
        return any(".".join(parts[index:]) in names for index in range(len(parts)))

    def _in_layers(self, path: str) -> bool:
        wanted, within = self._config.layers_to_transform, self._config.layers_pattern or r"[^.]*"
        for pattern in [within] if isinstance(within, str) else within:
            match = self._patterns.start(rf".*?\.{pattern}\.(\d+)\.", path)
            if match is not None:
                # A group of the pattern's own would come first, for PEFT as for us.
                index = match.group(1)
                return index in ([str(wanted)] if isinstance(wanted, int) else map(str, wanted or ()))
        return False

    def _of(self, patterns: Mapping[str, _Number] | None, path: str, default: _Number) -> _Number:
        for pattern, value in (patterns or {}).items():
            if self._patterns.start(rf"(.*\.)?({pattern})$", path):
                return value
        return (patterns or {}).get(path, default)


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _checked(config: Mapping[str, Any]) -> _Config:
    if config.get("peft_type") != "LORA":
        raise refusal(f"its peft_type is {shown(config.get('peft_type'))}; of PEFT's, 'LORA' can be served")
    for key, value in config.items():
        if value and key not in _INERT and key not in _Config.__struct_fields__ and key != "peft_type":
            why = f": {_REFUSED[key]}" if key in _REFUSED else ""
            raise refusal(f"its {CONFIG} has {named(key)} {shown(value)}, which cannot be served{why}")
    try:
        # What is null means the default, as it does to PEFT.
        checked = msgspec.convert({key: value for key, value in config.items() if value is not None}, _Config)
    except msgspec.ValidationError as error:
        raise refusal(f"its {CONFIG} is not as PEFT writes it: {error}") from error
    _check_training(checked)
    _check_targets(checked)
    numbers = [checked.lora_alpha, *(checked.alpha_pattern or {}).values()]
    if not all(map(math.isfinite, numbers)):
        raise refusal("its lora_alpha or alpha_pattern has a number that is not finite")
    rank(checked.r, "r")
    return checked


def _check_training(config: _Config) -> None:
    """Refuse what was trained beside the pairs, or out of the base."""
    if config.bias != "none":
        raise refusal(f"its bias is {shown(config.bias)}, and an adapter that trains biases cannot be served")
    initial = config.init_lora_weights
    if isinstance(initial, str) and initial not in _INITIALIZATIONS:
        raise refusal(
            f"its init_lora_weights is {shown(initial)}, which changes the base model's own weights; "
            "save it with path_initial_model_for_weight_conversion to have a plain LoRA"
        )


def _check_targets(config: _Config) -> None:
    if isinstance(config.target_modules, str):
        if config.layers_to_transform is not None:
            raise refusal("its layers_to_transform is set, which needs target_modules to be a list")
        if config.target_modules.lower() == "all-linear":
            config.target_modules = "all-linear"
