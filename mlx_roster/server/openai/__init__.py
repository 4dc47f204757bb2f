"""Routes that speak OpenAI's dialect."""
