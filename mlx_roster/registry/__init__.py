"""Which models are resident: names to Refs, leases, admission by bytes, eviction."""

from mlx_roster.registry.holding import Lease
from mlx_roster.registry.listing import Listing
from mlx_roster.registry.registry import Registry

__all__ = ["Lease", "Listing", "Registry"]
