"""The fields that say how tokens are picked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from mlx_roster.core import Sampling
from mlx_roster.server.openai.fields import shown
from mlx_roster.server.openai.schema.values import MAX_COUNT, MAX_INT, CountOrZero, Strict, at_most

MAX_BIASES = 1024

#: Fields of a request that are those of a worker's `Sampling`, by the same names.
NAMES = Sampling.__struct_fields__
_WHOLE = frozenset(name for name, kind in Sampling.__annotations__.items() if kind == "int")

# Each id in one way only.
_TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}")

Share = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]


def _by_token(biases: dict[str, float]) -> dict[int, float]:
    for key in biases:
        if not (
            key.isascii() and key.isdecimal() and len(key) <= 10 and str(int(key)) == key and int(key) <= MAX_COUNT
        ):
            raise PydanticCustomError("token_id", "has the key {key}, which is no token id", {"key": shown([key])})
    return {int(key): bias for key, bias in biases.items()}


Biases = Annotated[
    dict[str, Bias],
    at_most(MAX_BIASES),
    AfterValidator(_by_token),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MAX_BIASES,
            "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,8})$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "examples": [{"50256": -100}],
        }
    ),
]


class SamplingRequest(Strict):
    """Fields that are None were left out."""

    temperature: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="0 always takes the likeliest token; 1.0 if nobody says anything."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Only the likeliest tokens that together are so likely."
    )
    top_k: CountOrZero | None = Field(default=None, description="Only so many of the likeliest tokens; 0 is off.")
    min_p: Share | None = Field(
        default=None, description="Only tokens so likely, relative to the likeliest one; 0 is off."
    )
    xtc_probability: Share | None = Field(
        default=None, description="How often all tokens above xtc_threshold but the least likely of them are left out."
    )
    xtc_threshold: Annotated[float, Field(ge=0, le=0.5)] | None = Field(default=None, description="See above; 0.1.")
    repetition_penalty: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Makes tokens that were there already less likely where it is above 1."
    )
    repetition_context_size: CountOrZero | None = Field(
        default=None, description="How many of the last tokens that penalty looks at, the prompt's included; 20."
    )
    presence_penalty: Penalty | None = Field(default=None, description="Taken once from tokens that were there.")
    presence_context_size: CountOrZero | None = Field(default=None, description="As repetition_context_size.")
    frequency_penalty: Penalty | None = Field(default=None, description="Taken as often as a token was there.")
    frequency_context_size: CountOrZero | None = Field(default=None, description="As repetition_context_size.")
    logit_bias: Biases | None = Field(default=None, description="Added to the logits of tokens, by their ids.")
    seed: Annotated[int, Field(ge=-MAX_INT - 1, le=MAX_INT)] | None = Field(
        default=None, description="The same seed gives the same tokens, whatever else is computed at the time."
    )
    min_tokens: CountOrZero | None = Field(
        default=None, description="No end-of-sequence token, and no stop string, in so many tokens."
    )
    ignore_eos: bool | None = Field(default=None, description="Go on past end-of-sequence tokens.")

    def sampling(self, defaults: Mapping[str, Any]) -> Sampling:
        """The request's own values, then `defaults`, then the built-in ones."""
        values: dict[str, Any] = {name: defaults[name] for name in NAMES if name in defaults}
        for name in NAMES:
            asked = getattr(self, name)
            if asked is not None:
                values[name] = asked
        # A model's own file may well say 50.0.
        values |= {name: int(values[name]) for name in _WHOLE & values.keys()}
        return Sampling(**values)
