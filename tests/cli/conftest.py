"""A Hub and its cache, as the tests of the loaders have them."""

from tests.loaders.conftest import cache, hub

__all__ = ["cache", "hub"]
