"""docs/measurements.svg, drawn from the JSON of the parts `peers`, `glue` and `memory`.

No background and middle greys, so that it reads on a light page and on a dark one.
"""

import json
import math
import shutil
from typing import Any, Final, NamedTuple
from xml.sax.saxutils import escape

import click

from benchmarks.data import OUTPUT, ROOT

SIZE: Final = "100k"
RESULTS: Final = ROOT / "benchmarks" / "results"
PICTURE: Final = ROOT / "docs" / "measurements.svg"
OURS_COLOUR, OTHER_COLOUR, TEXT_COLOUR = "#3b82f6", "#9aa0a6", "#80868b"
WIDTH, MARGIN, GAP = 840, 12, 40
NAME_WIDTH, VALUE_WIDTH, ROW_HEIGHT, TITLE_HEIGHT = 156, 52, 17, 26
LOG_FROM: Final = 12.0
"""Values further apart than this are dots on a logarithmic scale: bars would hide the small ones."""


class Panel(NamedTuple):
    part: str
    column: str
    title: str


PANELS: Final = (
    Panel(f"glue-{SIZE}", "p50_ms", "Request to answer over MQTT, median, ms"),
    Panel(f"glue-{SIZE}", "anonymous_mib", "Anonymous memory of the whole process, MiB"),
    Panel(f"glue-{SIZE}", "cold_start_s", "Start of the process to first answer, s"),
    Panel(f"glue-{SIZE}", "8_clients_questions_a_second", "Eight clients at once, questions a second"),
    Panel(f"peers-{SIZE}", "hybrid_embedded_p50_ms", "Search in process, with texts, median, ms"),
    Panel(f"peers-{SIZE}", "disk_mb", "Disk with texts, MB"),
    Panel(f"peers-{SIZE}", "ndcg", "Ranking: nDCG@10 on SciFact"),
    Panel("memory", "anonymous_mib", "Agent by papers: anonymous memory, MiB"),
)


def draw() -> None:
    """Write the picture, and keep the results that it shows."""
    parts = {part: _read(part) for part in dict.fromkeys(panel.part for panel in PANELS)}
    body: list[str] = []
    heights = [0, 0]
    column_width = (WIDTH - 2 * MARGIN - GAP) // 2
    for number, panel in enumerate(PANELS):
        side = number % 2
        rows = {name: row[panel.column] for name, row in parts[panel.part]["rows"].items() if panel.column in row}
        drawn, height = _panel(panel.title, rows, column_width)
        body.append(f'<g transform="translate({MARGIN + side * (column_width + GAP)},{MARGIN + heights[side]})">')
        body += [*drawn, "</g>"]
        heights[side] += height
        if side:
            heights = [max(heights)] * 2
    machine = parts[f"peers-{SIZE}"]["machine"]
    caption = f"{machine['cpu']}, {machine['cores']} cores, {SIZE} papers, {parts[f'peers-{SIZE}']['date']}"
    total = max(heights) + 3 * MARGIN
    body.append(_text(MARGIN, total - MARGIN, caption, anchor="start"))
    style = f"text{{font:12px sans-serif;fill:{TEXT_COLOUR}}} .title{{font-weight:600}}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" role="img">'
    PICTURE.write_text("\n".join([head, f"<style>{style}</style>", *body, "</svg>"]) + "\n", "utf-8")
    RESULTS.mkdir(exist_ok=True)
    for part in parts:
        shutil.copy(OUTPUT / f"{part}.json", RESULTS)
    click.echo(f"{PICTURE.relative_to(ROOT)}, from {', '.join(parts)}")


def _read(part: str) -> Any:
    path = OUTPUT / f"{part}.json"
    if not path.is_file():
        name, _, size = part.partition("-")
        raise click.ClickException(f"{path.name} is missing: scripts/bench {name}{f' --size {size}' if size else ''}")
    return json.loads(path.read_text("utf-8"))


def _panel(title: str, rows: dict[str, float], width: int) -> tuple[list[str], int]:
    """The marks of one panel, in the order given, and its height."""
    values = list(rows.values())
    logarithmic = max(values) / max(min(values), 1e-9) > LOG_FROM
    room = width - NAME_WIDTH - VALUE_WIDTH
    lines = [_text(0, 12, title + (" (log scale)" if logarithmic else ""), anchor="start", kind="title")]
    for number, (name, value) in enumerate(rows.items()):
        y = TITLE_HEIGHT + number * ROW_HEIGHT
        colour = OURS_COLOUR if name == "ours" or set(rows) == {"10k", "100k", "750k"} else OTHER_COLOUR
        lines.append(_text(NAME_WIDTH - 8, y + 4, name, anchor="end"))
        if logarithmic:
            least = min(values) / 2
            end = NAME_WIDTH + room * math.log(value / least) / math.log(max(values) / least)
            lines.append(f'<path d="M{NAME_WIDTH} {y}H{end:.1f}" stroke="{colour}" stroke-opacity=".35"/>')
            lines.append(f'<circle cx="{end:.1f}" cy="{y}" r="4" fill="{colour}"/>')
        else:
            end = NAME_WIDTH + room * value / max(values)
            lines.append(
                f'<rect x="{NAME_WIDTH}" y="{y - 5}" width="{end - NAME_WIDTH:.1f}" height="10" fill="{colour}"/>'
            )
        lines.append(_text(end + 8, y + 4, f"{value:.0f}" if value >= 100 else f"{value:.3g}", anchor="start"))
    return lines, TITLE_HEIGHT + len(rows) * ROW_HEIGHT + MARGIN


def _text(x: float, y: float, content: str, *, anchor: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}"{mark}>{escape(content)}</text>'
