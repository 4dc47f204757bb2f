"""The diagram of docs/architecture.md: `python scripts/draw_architecture.py` writes docs/images/architecture.svg."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "architecture.svg"

INK, FAINT, LINE = "#1f2430", "#5b6475", "#8a93a5"
PLAIN, PROCESS, LAYER, COMPUTE, OTHER = "#ffffff", "#eef2fb", "#ffffff", "#e9f6ec", "#fbf3e4"

WIDTH, HEIGHT = 960, 640


@dataclass(frozen=True)
class Box:
    """A box with a title and lines below it. A process has a bold frame."""

    x: int
    y: int
    width: int
    height: int
    title: str
    lines: tuple[str, ...] = ()
    fill: str = LAYER
    process: bool = False

    def svg(self) -> str:
        parts = [
            f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="8" fill="{self.fill}" '
            f'stroke="{INK if self.process else LINE}" stroke-width="{1.8 if self.process else 1}"/>',
            text(self.x + 12, self.y + 22, self.title, bold=True),
        ]
        parts += [text(self.x + 12, self.y + 40 + 16 * n, line, FAINT, 12) for n, line in enumerate(self.lines)]
        return "".join(parts)


def text(x: float, y: float, words: str, ink: str = INK, size: int = 14, *, bold: bool = False, at: str = "") -> str:
    weight = ' font-weight="600"' if bold else ""
    anchor = f' text-anchor="{at}"' if at else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{ink}"{weight}{anchor}>{escape(words)}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float, *, both: bool = True, dashed: bool = False) -> str:
    start = ' marker-start="url(#tip)"' if both else ""
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.4" '
        f'marker-end="url(#tip)"{start}{dashes}/>'
    )


BOXES = (
    Box(20, 92, 170, 66, "clients", ("OpenAI clients, curl,", "mlx-roster chat, ps, …"), PLAIN),
    Box(20, 176, 170, 50, "Prometheus", ("GET /metrics",), PLAIN),
    Box(20, 244, 170, 50, "roster.yaml", ("read, and read anew",), PLAIN),
    Box(250, 20, 470, 326, "server process", ("asyncio on uvloop; never imports mlx",), PROCESS, process=True),
    Box(270, 76, 430, 66, "server/", ("routes, keys, limits; a request becomes a frozen model;", "JSON and SSE")),
    Box(270, 150, 430, 66, "registry/", ("names, leases, residency, budget: pure decisions,", "and a shell that acts")),
    Box(270, 224, 208, 50, "workers/", ("a handle for each worker",)),
    Box(492, 224, 208, 50, "metrics/, logs", ("an account of each request",)),
    Box(270, 282, 430, 50, "config/, core, errors", ("settings; the words that all parts share",)),
    Box(780, 224, 160, 82, "a download", ("a process of its own,", "ended by killing it"), OTHER, process=True),
    Box(780, 92, 160, 66, "the Hub", ("and its cache on disk",), PLAIN),
    Box(40, 440, 290, 180, "worker process: qwen", (), COMPUTE, process=True),
    Box(54, 474, 262, 74, "engine/", ("one loop: schedule, step, publish;", "batch, sampling, grammars, drafts")),
    Box(54, 556, 128, 50, "bank", ("none, sql, french",)),
    Box(190, 556, 126, 50, "KV caches", ("and of prompts",)),
    Box(352, 440, 290, 180, "worker process: coder", (), COMPUTE, process=True),
    Box(366, 474, 262, 74, "engine/", ("one loop: schedule, step, publish;", "batch, sampling, grammars, drafts")),
    Box(366, 556, 128, 50, "loaders/", ("weights, tokenizer",)),
    Box(502, 556, 126, 50, "KV caches", ("and of prompts",)),
    Box(
        664,
        440,
        276,
        180,
        "spare worker",
        ("mlx is imported, no model yet:", "the next load begins here"),
        COMPUTE,
        process=True,
    ),
)


def picture() -> str:
    """The whole of the file."""
    arrows = (
        arrow(190, 108, 268, 108),
        text(220, 100, "HTTP", FAINT, 12, at="middle"),
        arrow(190, 190, 268, 130, both=False, dashed=True),
        arrow(190, 270, 268, 306, both=False),
        arrow(720, 250, 778, 250),
        arrow(860, 222, 860, 160),
        arrow(280, 346, 216, 438),
        arrow(497, 346, 497, 438),
        arrow(690, 346, 754, 438, dashed=True),
        text(276, 386, "↓ load, submit, cancel", FAINT, 12),
        text(276, 404, "↑ one frame a step, of all deltas", FAINT, 12),
        text(508, 386, "msgpack over a socketpair,", FAINT, 12),
        text(508, 404, "whose end is death for both", FAINT, 12),
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'role="img" font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">'
        "<title>The processes of mlx-roster, what is in them, and what goes between them</title>"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PLAIN}"/>'
        + "".join(box.svg() for box in BOXES)
        + "".join(arrows)
        + "</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(picture())
