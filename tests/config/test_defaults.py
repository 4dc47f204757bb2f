"""Defaults of request fields, and the names that carry some."""

from __future__ import annotations

import pytest

from mlx_roster.config import Defaults
from mlx_roster.core import Sampling
from tests.config.rosters import problems, read, with_model

LOW_AND_HIGH = {
    "max_tokens": (1, 2**31 - 1),
    "temperature": (0, 1e6),
    "top_p": (1e-9, 1),
    "top_k": (0, 2**31 - 1),
    "min_p": (0, 1),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 0.5),
    "repetition_penalty": (1e-9, 1e6),
    "repetition_context_size": (0, 2**31 - 1),
    "presence_penalty": (-2, 2),
    "presence_context_size": (0, 2**31 - 1),
    "frequency_penalty": (-2, 2),
    "frequency_context_size": (0, 2**31 - 1),
}

#: Just out of range, where there is an end.
BEYOND = {
    "max_tokens": (0, 2**31),
    "temperature": (-1e-9,),
    "top_p": (0, 1.000001),
    "top_k": (-1, 2**31),
    "min_p": (-1e-9, 1.000001),
    "xtc_probability": (-1e-9, 1.000001),
    "xtc_threshold": (-1e-9, 0.500001),
    "repetition_penalty": (0, -1),
    "repetition_context_size": (-1, 2**31),
    "presence_penalty": (-2.000001, 2.000001),
    "presence_context_size": (-1, 2**31),
    "frequency_penalty": (-2.000001, 2.000001),
    "frequency_context_size": (-1, 2**31),
}


def test_every_field_of_sampling_is_here_but_for_those_of_one_request() -> None:
    own = {"logit_bias", "seed", "min_tokens", "ignore_eos"}
    assert set(Defaults.model_fields) == {*Sampling.__struct_fields__, "max_tokens", "stop"} - own
    assert set(Defaults.model_fields) == {*LOW_AND_HIGH, "stop"}


@pytest.mark.parametrize("place", ["file", "model", "adapter", "alias"])
@pytest.mark.parametrize("field", LOW_AND_HIGH)
def test_the_bounds_of_each_field_are_in_and_what_is_beyond_is_out(field: str, place: str) -> None:
    def with_value(value: float) -> str:
        said = f"{{{field}: {value:.9f}}}" if isinstance(value, float) else f"{{{field}: {value}}}"
        models = "models: {m: {source: ./m"
        match place:
            case "file":
                return f"{models}}}}}\ndefaults: {said}"
            case "model":
                return f"{models}, defaults: {said}}}}}"
            case "adapter":
                return f"{models}, adapters: {{a: {{source: ./a, defaults: {said}}}}}}}}}"
        return f"{models}, aliases: {{n: {said}}}}}}}"

    for value in LOW_AND_HIGH[field]:
        read(with_value(value))
    for value in BEYOND[field]:
        (problem,) = problems(with_value(value))
        assert f"{field}: should be " in problem


def test_stop_is_a_list_of_strings() -> None:
    assert read(with_model('defaults: {stop: [END, "\\n\\n"]}')).models["atlas"].defaults.stop == ("END", "\n\n")
    assert problems(with_model('defaults: {stop: [""]}')) == [
        "roster.yaml:4: models.atlas.defaults.stop[0]: should not be empty"
    ]
    assert problems(with_model("defaults: {stop: END}")) == [
        "roster.yaml:4: models.atlas.defaults.stop: should be a list"
    ]


def test_a_seed_is_no_default() -> None:
    assert problems("defaults: {seed: 1}\nmodels: {m: {source: ./m}}") == [
        "roster.yaml:1: defaults.seed: unknown key",
    ]


def test_what_one_says_comes_over_what_the_other_does() -> None:
    first, second = Defaults(temperature=0, top_k=5), Defaults(temperature=1, stop=("END",))
    assert first.over(second) == Defaults(temperature=0, top_k=5, stop=("END",))
    assert second.over(first) == Defaults(temperature=1, top_k=5, stop=("END",))
    assert Defaults().over(first) == first


def test_aliases_are_a_list_of_names_or_names_with_defaults() -> None:
    listed = read(with_model("aliases: [gpt-4o, fast]")).models["atlas"].aliases
    assert listed == {"gpt-4o": Defaults(), "fast": Defaults()}
    mapped = read(with_model("aliases: {gpt-4o: , creative: {temperature: 1.2}, fast: {}}")).models["atlas"].aliases
    assert mapped == {"gpt-4o": Defaults(), "creative": Defaults(temperature=1.2), "fast": Defaults()}
    assert read(with_model("aliases: {}")).models["atlas"].aliases == {}


def test_an_alias_with_defaults_may_be_the_default_model() -> None:
    text = "default_model: warm\n" + with_model("aliases: {warm: {temperature: 1.2}}")
    assert read(text).default_model == "warm"


def test_names_clash_in_mappings_as_they_do_in_lists() -> None:
    text = """\
        models:
          atlas:
            source: ./a
            aliases:
              scribe: {top_k: 1}
              fast:
            adapters:
              french: {source: ./f, aliases: {fast: {top_k: 2}}}
          scribe:
            source: ./b
            aliases: [fast]
    """
    assert problems(text) == [
        'roster.yaml:5: models.atlas.aliases.scribe: "scribe" is already the name of a model (line 9)',
        'roster.yaml:8: models.atlas.adapters.french.aliases.fast: "fast" is already an alias of "atlas" (line 6)',
        'roster.yaml:11: models.scribe.aliases[0]: "fast" is already an alias of "atlas" (line 6)',
    ]


def test_a_list_that_has_a_name_twice_is_told_so() -> None:
    assert problems(with_model("aliases: [a, b, a]")) == [
        'roster.yaml:4: models.atlas.aliases[2]: "a" is already an alias of "atlas" (line 4)'
    ]


@pytest.mark.parametrize(
    ("aliases", "problem"),
    [
        ("{a: {temprature: 1}}", '.a.temprature: unknown key, did you mean "temperature"?'),
        ("{a: {temperature: -1}}", ".a.temperature: should be greater than or equal to 0"),
        ("{a: [1]}", ".a: should be a mapping"),
        ("{a b: }", '.a b: should be a name without spaces, ":", "$" or braces'),
        ("gpt-4o", ": should be a list, or a mapping from names to defaults"),
        ("3", ": should be a list, or a mapping from names to defaults"),
        ("", ": is empty; give it a value or leave the key out"),
    ],
)
def test_what_aliases_are_not(aliases: str, problem: str) -> None:
    assert problems(with_model(f"aliases: {aliases}")) == [f"roster.yaml:4: models.atlas.aliases{problem}"]


@pytest.mark.parametrize("limit", ["0", "1.5", "many"])
def test_n_limit_is_at_least_one(limit: str) -> None:
    (problem,) = problems(f"server: {{n_limit: {limit}}}\nmodels: {{m: {{source: ./m}}}}")
    assert problem.startswith("roster.yaml:1: server.n_limit: should be ")
