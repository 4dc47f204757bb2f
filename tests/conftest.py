"""What every test may use."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A test never asserts a time: on a machine that is busy with other things, what is slow is no fault.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
