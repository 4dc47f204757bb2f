"""What one row's sampling parameters mean, spelt out token by token, without mlx: the judge of the batched sampler."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from mlx_roster.core import Sampling


def edited(
    logits: np.ndarray,
    sampling: Sampling,
    tokens: Sequence[int],
    *,
    early: Collection[int] = (),
    allowed: Collection[int] | None = None,
) -> np.ndarray:
    """Logits (V,) after bias and penalties for `tokens`; -inf for `early` ones, and for those not `allowed`."""
    values = logits.astype(np.float64)
    for token, bias in sampling.logit_bias.items():
        values[token] += bias
    for token in set(_last(tokens, sampling.repetition_context_size)):
        penalty = sampling.repetition_penalty
        values[token] = values[token] * penalty if values[token] < 0 else values[token] / penalty
    for token in set(_last(tokens, sampling.presence_context_size)):
        values[token] -= sampling.presence_penalty
    for token in _last(tokens, sampling.frequency_context_size):
        values[token] -= sampling.frequency_penalty
    values[list(early)] = -np.inf
    if allowed is not None:
        values[~np.isin(np.arange(len(values)), list(allowed))] = -np.inf
    return values


def left(values: np.ndarray, sampling: Sampling, *, coin: bool = False, kept: Collection[int] = ()) -> set[int]:
    """The tokens that may be drawn. `coin`: XTC strikes."""
    order = [token for token in np.argsort(-values, kind="stable").tolist() if values[token] > -np.inf]
    mass = np.exp(values - values.max()).tolist()
    if sampling.top_p < 1:
        above, nucleus, wanted = 0.0, [], sampling.top_p * sum(mass)
        for token in order:
            if above < wanted:
                nucleus.append(token)
            above += mass[token]
        order = nucleus
    order = [token for token in order if mass[token] >= sampling.min_p]
    if coin:
        whole = sum(mass[token] for token in order)
        likely = [token for token in order if mass[token] > sampling.xtc_threshold * whole]
        struck = set(likely[:-1]) - set(kept)
        order = [token for token in order if token not in struck]
    return set(order[: sampling.top_k] if sampling.top_k > 0 else order)


def _last(tokens: Sequence[int], size: int) -> Sequence[int]:
    return tokens[max(len(tokens) - size, 0) :] if size > 0 else ()
