"""Numbers and tables in text."""

from collections.abc import Sequence

from schemas.measured import Cost

STEP = 1024


def format_bytes(count: int) -> str:
    """`438 MiB`: binary units, about three digits."""
    value, unit = float(count), "B"
    for following in ("KiB", "MiB", "GiB", "TiB"):
        if value < STEP:
            break
        value, unit = value / STEP, following
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A GitHub-flavoured Markdown table, aligned in plain text too."""
    cells = [[str(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def describe_cost(cost: Cost) -> str:
    """What updates cost their devices, in a line."""
    passes = f"{cost.per_text:.1f} layer passes per text and step" if cost.visits else "no layer passes"
    return (
        f"{cost.updates} updates, {cost.seconds:,.0f} s on devices, {passes}, read {format_bytes(cost.bytes_read)}, "
        f"sent {format_bytes(cost.bytes_up)}, received {format_bytes(cost.bytes_down)}, "
        f"largest peak {format_bytes(cost.peak_bytes)}"
    )
