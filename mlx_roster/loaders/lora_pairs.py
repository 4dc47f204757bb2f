"""From checked tensors to `LoraPair`s, for both formats."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import numpy as np

from mlx_roster.loaders.adapter_files import Floats, Tensor
from mlx_roster.loaders.offences import Offences, refusal
from mlx_roster.tensors import AdapterWeights, LoraPair, Targets

#: Ranks in use end at 256. A bank pads every adapter of a base to the largest rank among them.
MAX_RANK = 512


def most_bytes(targets: Targets) -> int:
    """What the tensors of an adapter take at most, on every layer that there is."""
    return sum((target.inputs + target.outputs + 1) * max(target.experts, 1) for target in targets.values()) * (
        4 * MAX_RANK
    )


def most_tensors(targets: Targets) -> int:
    """How many tensors an adapter has at most: two matrices and a magnitude for every layer, or expert, there is."""
    return 3 * sum(max(target.experts, 1) for target in targets.values())


def rank(value: int, where: str) -> int:
    """`value`, found at `where` in the config, if it is a rank that can be served."""
    if not 1 <= value <= MAX_RANK:
        raise refusal(f"its {where} is {value}; ranks from 1 to {MAX_RANK} can be served")
    return value


def floats(name: str, tensor: Tensor, shape: tuple[int | None, ...], offences: Offences) -> Floats | None:
    """The tensor's values if it has this shape, where None stands for any rank; else None, and an offence."""
    if not tensor.readable:
        offences.add(name, f"{tensor.dtype} of shape {tensor.shape}; F32, F16 and BF16 can be read")
        return None
    ranks = [have for have, want in zip(tensor.shape, shape, strict=False) if want is None]
    if len(tensor.shape) != len(shape) or any(
        want not in (None, have) for have, want in zip(tensor.shape, shape, strict=True)
    ):
        wanted = ", ".join("rank" if size is None else str(size) for size in shape)
        offences.add(name, f"shape {tensor.shape}, where it should be ({wanted}{',' * (len(shape) == 1)})")
        return None
    if not all(1 <= found <= MAX_RANK for found in ranks):
        offences.add(name, f"shape {tensor.shape}, of rank {ranks[0]}; ranks from 1 to {MAX_RANK} can be served")
        return None
    values = tensor.floats()
    if not np.isfinite(values).all():
        offences.add(name, f"shape {tensor.shape}, holds NaN or infinite values")
        return None
    return values


def scaled(name: str, values: Floats, scale: float, offences: Offences) -> Floats | None:
    """The values times the adapter's scale, or None and an offence where that leaves float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        product = values * np.float32(scale)
    if np.isfinite(product).all():
        return product
    offences.add(name, f"shape {values.shape}, is infinite or NaN once multiplied by the scale of {scale:g}")
    return None


def pair(a: Floats, b: Floats, magnitude: Floats | None = None) -> LoraPair:
    """The pair in mlx arrays, oriented as LoraPair says; `b` has the scale.

    Made from memory, not computed: there is nothing left to evaluate, so they are not bound to this thread.
    """
    first, last = mx.array(np.ascontiguousarray(a)), mx.array(np.ascontiguousarray(b))
    return LoraPair(first, last, None if magnitude is None else mx.array(magnitude))


def weights(name: str, identity: str, layers: Mapping[str, LoraPair], heads: Mapping[str, LoraPair]) -> AdapterWeights:
    """The adapter, its bytes counted; a pair that serves as both layer and head counts once."""
    distinct = {id(each): each for each in (*layers.values(), *heads.values())}.values()
    arrays = [array for each in distinct for array in (each.a, each.b, each.magnitude) if array is not None]
    return AdapterWeights(name, identity, layers, heads, sum(array.nbytes for array in arrays))
