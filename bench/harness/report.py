"""The results as Markdown and as SVG."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from harness.peers import CLIENTS, FLOOR, PEERS, WORKLOADS

MARKS = {name: (f"<!-- {name}:begin -->", f"<!-- {name}:end -->") for name in ("bench", "instructions", "cluster")}
COLOURS = {"floor": "#8a8f98", "ours": "#2563eb", "python": "#d08700", "node": "#2f9e5b"}
RATIOS = ("call-1", "fanout-1")  # each message is one write for all peers; in other workloads the floor does less
LEGEND = {"floor": "C floor", "ours": "wse", "python": "Python", "node": "Node"}


def number(value: float) -> str:
    """A figure with three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def titles(name: str) -> dict[str, tuple[str, str]]:
    """Title and kind of the rows of a workload, in order."""
    rows = CLIENTS if name.startswith("client") else PEERS
    return {row.name: (row.title, row.kind) for row in rows}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary(results: dict[str, Any]) -> str:
    """Server CPU per operation and memory, one row a server."""
    medians = results["medians"]
    columns = [
        ("call, 1 in flight", "call-1", "cpu_us"),
        ("call, 32 in flight", "call-32", "cpu_us"),
        ("fan-out, 1 in flight", "fanout-1", "cpu_us"),
        ("fan-out, 4 in flight", "fanout-4", "cpu_us"),
        ("item", "items-32", "cpu_us"),
        ("connect", "connect", "cpu_us"),
        ("come back", "return", "cpu_us"),
        ("idle connection", "connect", "rss_kib"),
    ]
    columns = [column for column in columns if medians.get(column[1])]
    rows, notes = [], []
    for peer in PEERS:
        if not any(peer.name in medians[work] for _, work, _ in columns):
            continue
        row = [peer.title]
        if peer.note:
            notes.append(f"- {peer.title}: {peer.note}.")
        for _, work, figure in columns:
            value = medians[work].get(peer.name, {}).get(figure)
            floor = medians[work].get(FLOOR, {}).get(figure)
            if value is None:
                row.append("")
            elif figure == "rss_kib":
                row.append(f"{number(value)} KiB")
            else:
                row.append(f"{number(value)} µs" + (f" ({value / floor:.2f} C)" if floor and work in RATIOS else ""))
        rows.append(row)
    if not rows:
        return ""
    return table(["server", *(title for title, _, _ in columns)], rows) + "\n\n" + "\n".join(notes)


def details(results: dict[str, Any]) -> str:
    """All figures, one table a workload."""
    parts = []
    for work in WORKLOADS:
        medians = results["medians"].get(work.name)
        if not medians:
            continue
        idle, client = work.mode == "idle", work.mode == "client"
        head = [
            "client" if client else "server",
            f"{'own' if client else 'server'} CPU",
            "of it kernel",
            "a second",
            "p50",
            "p99",
        ]
        rows = []
        for name, (title, _) in titles(work.name).items():
            figures = medians.get(name)
            if figures is None:
                continue
            row = [title, *(f"{number(figures[which])} µs" for which in ("cpu_us", "kernel_us"))]
            row.append(f"{figures['ops_per_s']:,.0f}")
            row += [f"{number(figures[which])} ms" for which in ("p50_ms", "p99_ms")]
            rows.append([*row, f"{number(figures['rss_kib'])} KiB"] if idle else row)
        parts.append(f"**{title_of(work, results)}**\n\n{table([*head, 'memory'] if idle else head, rows)}")
    return "\n\n".join(parts)


def title_of(work: Any, results: dict[str, Any]) -> str:
    """The workload's title, with the counts of this run if they are lower."""
    counts = results["settings"]["connections"].get(work.name)
    if counts and counts != [work.connections, work.window] and work.mode == "idle":
        return f"Connect and authenticate {counts[1]:,}, then hold {counts[0]:,} idle"
    if counts and counts[0] != work.connections:
        return f"{work.title} (here: {counts[0]:,} connections)"
    title: str = work.title
    return title


def circumstances(results: dict[str, Any], exceptions: str) -> str:
    """Machine, versions and remarks; `exceptions` are figures with another number of rounds."""
    machine, settings = results["machine"], results["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    measured = (
        f"Measured {results['when']} with `{results['command']}`: medians of {settings['rounds']} rounds of "
        f"{settings['seconds']:g} s ({exceptions})."
    )
    ended = f", {machine['load_after']} when it ended" if "load_after" in machine else ""
    where = (
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory']}, {machine['system']}; "
        f"load {machine['load_before']} when it began{ended}. Versions: {versions}."
    )
    return "\n\n".join([measured, where, *(f"Note: {note}." for note in results["notes"])])


def markdown(results: dict[str, Any]) -> str:
    """The whole report."""
    exceptions = f"connecting and memory: {results['settings']['idle_rounds']} rounds"
    parts = [circumstances(results, exceptions), summary(results), details(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def svg(results: dict[str, Any]) -> str:
    """A plot with one panel for each workload and one bar for each peer."""
    panels: list[tuple[str, list[tuple[str, str, float]], str]] = []

    def panel(title: str, work: str, figure: str, unit: str) -> None:
        medians = results["medians"].get(work, {})
        bars = [(name, kind, medians[row][figure]) for row, (name, kind) in titles(work).items() if row in medians]
        if bars:
            panels.append((title, bars, unit))

    panel("Call, 1 in flight: server CPU", "call-1", "cpu_us", "µs")
    panel("Call, 32 in flight: server CPU", "call-32", "cpu_us", "µs")
    panel("Fan-out, 1 in flight: server CPU per delivery", "fanout-1", "cpu_us", "µs")
    panel("Fan-out, 4 in flight: server CPU per delivery", "fanout-4", "cpu_us", "µs")
    panel("Items, 32 on their way: server CPU per item", "items-32", "cpu_us", "µs")
    panel("Connect and authenticate: server CPU", "connect", "cpu_us", "µs")
    panel("Idle connection: resident memory", "connect", "rss_kib", "KiB")
    panel("Client, 1 call in flight: own CPU per call", "client-1", "cpu_us", "µs")
    panel("Client, 32 calls in flight: own CPU per call", "client-32", "cpu_us", "µs")

    width, half, left, bar = 1000, 500, 206, 17
    shapes: list[str] = []
    y = 52
    for index in range(0, len(panels), 2):
        pair = panels[index : index + 2]
        for column, (title, bars, unit) in enumerate(pair):
            x0 = column * half
            shapes.append(f'<text x="{x0 + 14}" y="{y}" class="title">{escape(title)}</text>')
            longest = max(value for _, _, value in bars) or 1
            for row, (name, kind, value) in enumerate(bars):
                top = y + 10 + row * (bar + 5)
                size = max(1.0, value / longest * (half - left - 90))
                weight = ' font-weight="600"' if kind == "ours" else ""
                shapes.append(
                    f'<text x="{x0 + left - 6}" y="{top + 13}" text-anchor="end"{weight}>{escape(name)}</text>'
                    f'<rect x="{x0 + left}" y="{top}" width="{size:.1f}" height="{bar}" fill="{COLOURS[kind]}"/>'
                    f'<text x="{x0 + left + size + 5:.1f}" y="{top + 13}"{weight}>{number(value)} {unit}</text>'
                )
        y += max(len(bars) for _, bars, _ in pair) * (bar + 5) + 44
    x = 14
    for kind, colour in COLOURS.items():
        shapes.append(f'<rect x="{x}" y="12" width="12" height="12" fill="{colour}"/>')
        shapes.append(f'<text x="{x + 17}" y="22">{LEGEND[kind]}</text>')
        x += 32 + 8 * len(LEGEND[kind])
    shapes.append(f'<text x="{width - 14}" y="22" text-anchor="end">shorter is better</text>')
    machine = results["machine"]
    caption = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {results['when']}"
    shapes.append(f'<text x="14" y="{y - 14}" class="small">{escape(caption)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" role="img" '
        'aria-label="Server CPU per operation and memory per connection, wse beside other servers">\n'
        "<style>text{font:12px system-ui,sans-serif;fill:#1f2328}.title{font-size:14px;font-weight:600}"
        ".small{font-size:11px;fill:#59636e}</style>\n"
        f'<rect width="{width}" height="{y}" fill="#ffffff"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )


def instructions(records: list[dict[str, Any]]) -> str:
    """The recorded instruction counts, with one column for each build of the interpreter."""
    head = ["operation", *(record["build"]["python"] for record in records)]

    def count(record: dict[str, Any], name: str) -> str:
        return f"{record['counts'][name]:,}" if name in record["counts"] else ""

    rows = [[name, *(count(record, name) for record in records)] for name in records[0]["counts"]]
    libraries = records[0]["build"]
    return table(head, rows) + f"\n\nWith msgspec {libraries['msgspec']} and picows {libraries['picows']}."


def replaced(text: str, name: str, content: str) -> str:
    """A page with the text between two of its marks replaced.

    Raises:
        ValueError: The page has no such marks.
    """
    begin, end = MARKS[name]
    before, found, rest = text.partition(begin)
    _, found_too, after = rest.partition(end)
    if not found or not found_too:
        raise ValueError(f"the page needs the marks {begin} and {end}")
    return f"{before}{begin}\n\n{content.strip()}\n\n{end}{after}"


def update_docs(results: dict[str, Any], records: list[dict[str, Any]], page: Path) -> None:
    """Put tables and plot into the page, between its marks, and the plot beside it.

    Raises:
        ValueError: The page has no marks.
    """
    plot = page.with_suffix(".svg")
    image = f"![Server CPU per operation and memory per connection, in bars]({plot.name})"
    text = replaced(page.read_text(), "bench", f"{image}\n\n{markdown(results)}")
    if records:
        text = replaced(text, "instructions", instructions(records))
    page.write_text(text)
    plot.write_text(svg(results))
