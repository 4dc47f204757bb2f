"""A chat with one adapter, then the same question to another: python chat.py, after pip install openai.

ROSTER_URL and ROSTER_KEY say where the server is and what opens it; MODEL which model, and ADAPTER which adapter of it.
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("ROSTER_URL", "http://127.0.0.1:8080/v1"), api_key=os.environ.get("ROSTER_KEY", "no-key")
)
model, adapter = os.environ.get("MODEL", "atlas"), os.environ.get("ADAPTER", "pirate")
question = {"role": "user", "content": "What is the capital of France?"}

print("There are:", ", ".join(one.id for one in client.models.list()))

answer = client.chat.completions.create(model=model, messages=[question], temperature=0)
print(f"{answer.model}: {answer.choices[0].message.content}")

# The same base, through an adapter, token by token. "model": "atlas:pirate" would say the same.
stream = client.chat.completions.create(
    model=model, messages=[question], temperature=0, stream=True, extra_body={"adapters": adapter}
)
print(f"{model}:{adapter}: ", end="")
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
