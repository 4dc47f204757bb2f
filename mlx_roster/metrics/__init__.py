"""What is counted: requests by the server, all else by the registry and the workers."""

from mlx_roster.metrics.account import Account
from mlx_roster.metrics.gauges import RESIDENT
from mlx_roster.metrics.metrics import Metrics

__all__ = ["RESIDENT", "Account", "Metrics"]
