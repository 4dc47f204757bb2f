"""The HTTP side: an ASGI application over a registry."""
