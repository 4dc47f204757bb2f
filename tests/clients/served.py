"""Run by the server's own virtual environment, for clients that live in another: a server over the demo and all toys.

It prints its address, and serves until its input ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.clients.said import SCRIPTS
from tests.serving import demo_roster, serving
from tests.toys import babbler, scripted

#: Models that `scripts/train_toys.py` has trained.
ASSETS = Path(__file__).parents[1] / "assets"


def main(folder: Path) -> None:
    entries = [f"  babbler: {{source: {babbler(folder / 'babbler')}}}"]
    entries += [f"  trained-{name}: {{source: {ASSETS / name}}}" for name in ("caller", "thinker")]
    for name, answers in SCRIPTS.items():
        thinking = any("<think>" in answer for answer in answers)
        source = scripted(folder / name, *answers, thinking=thinking)
        entries.append(f"  {name}: {{source: {source}, defaults: {{max_tokens: 1000}}}}")
    with serving("serve", str(demo_roster(folder, models=entries))) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
