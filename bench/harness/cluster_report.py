"""The results of bench/cluster.py as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.clusters import KINDS, SPREAD_NODES, WORKLOADS
from harness.report import circumstances, number, replaced, table


def across(results: dict[str, Any]) -> str:
    """One table for each workload, with one row for each kind of cluster."""
    parts = []
    head = ["servers", "nodes' CPU", "engine's CPU", "a CPU second", "a second", "p50", "p99"]
    for work in WORKLOADS:
        medians = results["medians"].get(work.name)
        if not medians:
            continue
        rows = []
        for kind in KINDS:
            figures = medians.get(kind.name)
            if figures is None:
                continue
            row = [kind.title, *(f"{number(figures[which])} µs" for which in ("cpu_us", "engine_us"))]
            row += [f"{1e6 / figures['cpu_us']:,.0f}", f"{figures['ops_per_s']:,.0f}"]
            row += [f"{number(figures[which])} ms" for which in ("p50_ms", "p99_ms")]
            alone = [f"{number(figures['alone_cpu_us'])} µs"]
            alone += [f"{number(figures[which])} ms" for which in ("alone_p50_ms", "alone_p99_ms")]
            rows.append(row + alone)
        columns = [*head, "alone: CPU", "alone: p50", "alone: p99"]
        parts.append(f"**{work.title}**\n\n{table(columns, rows)}")
    return "\n\n".join(parts)


def rates(results: dict[str, Any]) -> str:
    """Cost and latency of a message at rising rates, also as a difference to one server."""
    rows = []
    for kind in KINDS:
        for rate, figures in results.get("rates", {}).get(kind.name, {}).items():
            busy = (figures["cpu_us"] + figures["engine_us"]) * figures["ops_per_s"] / 1e6
            row = [kind.title, f"{int(rate):,}", f"{figures['ops_per_s']:,.0f}", f"{busy:.2f}"]
            row += [f"{number(figures[which])} µs" for which in ("cpu_us", "engine_us", "alone_cpu_us")]
            row += [f"{number(figures[which])} ms" for which in ("p50_ms", "p99_ms", "alone_p99_ms")]
            rows.append([*row, f"{figures['p99_ms'] - figures['alone_p99_ms']:.2f} ms"])
    if not rows:
        return ""
    head = ["servers", "begun a second", "arrived a second", "cores busy", "nodes' CPU", "engine's CPU", "alone: CPU"]
    head += ["p50", "p99", "alone: p99", "the hop adds at p99"]
    return f"**From user to user, 50 pairs, at rising rates**\n\n{table(head, rows)}"


def spread(results: dict[str, Any]) -> str:
    """Many users on several nodes."""
    found = results["spread"]
    head = [
        "engine",
        "connected in",
        "nodes' CPU",
        "engine's CPU",
        "node memory",
        "engine memory",
        "`online()`",
        "`left`",
    ]
    rows = []
    for name, title in (("alone", "none"), *((kind.name, kind.engine) for kind in KINDS)):
        figures = found.get(name)
        if figures is None:
            continue
        row = [title, f"{figures['wall_s']:.1f} s", f"{number(figures['cpu_us'])} µs"]
        if "engine_us" in figures:
            row += [f"{number(figures['engine_us'])} µs", f"{number(figures['rss_kib'])} KiB"]
            row += [f"{number(figures['engine_rss_kib'])} KiB", f"{number(figures['online_ms'])} ms"]
            row += [f"{figures['left_s']:.1f} s for {figures['lost_users']:,.0f}"]
        else:
            row += ["", f"{number(figures['rss_kib'])} KiB", "", "", ""]
        rows.append(row)
    if not rows:
        return ""
    title = f"**{results['users']:,} users on {SPREAD_NODES} nodes; time and memory for each of them**"
    return f"{title}\n\n{table(head, rows)}"


def engines(results: dict[str, Any]) -> str:
    """The engines' CPU for a message to every node."""
    costs = results.get("engines")
    if not costs:
        return ""
    counts = list(next(iter(costs.values())))
    rows = [[name, *(f"{number(by_nodes[count])} µs" for count in counts)] for name, by_nodes in costs.items()]
    title = "**One message of 200 bytes to every node, the engine's CPU**"
    return f"{title}\n\n{table(['engine', *(f'{count} node' + 's' * (int(count) > 1) for count in counts)], rows)}"


def markdown(results: dict[str, Any]) -> str:
    """The whole report."""
    parts = [
        circumstances(results, "spread users: once"),
        across(results),
        rates(results),
        spread(results),
        engines(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def update_docs(results: dict[str, Any], page: Path) -> None:
    """Put the tables into the page, between its marks.

    Raises:
        ValueError: The page has no marks.
    """
    page.write_text(replaced(page.read_text(), "cluster", markdown(results)))
