"""Serve many MLX models and LoRA adapters from one OpenAI-compatible endpoint."""

__version__ = "0.1.0"
