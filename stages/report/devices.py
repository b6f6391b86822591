"""Who took part, what it cost each device, how well each learned, and who was refused and why."""

from collections import Counter
from collections.abc import Sequence

from stages.report.charts import MOST_ROWS as MOST_NAMED
from stages.report.charts import Point, Series, bar_plot, grid_plot, rank_plot, rows_plot
from stages.report.parts import MOST_ROWS, Column, Figure, Section, Table, columns, compact, mebibytes, several
from stages.report.refusals import MEANINGS
from stages.run_view.view import DeviceView, RunView

MOST_GRID_DEVICES, MOST_GRID_ROUNDS = 40, 60
UNKNOWN = "device unknown"


def device_sections(run: RunView) -> list[Section]:
    """As far as there is anything to tell."""
    return [_device_section(run), _refusals(run)]


def _device_section(run: RunView) -> Section:
    figures = [figure for figure in (_who(run), _peaks(run), _losses(run)) if figure is not None]
    shown = _most_telling(run.devices)
    rows = [_device_row(device) for device in shown]
    caption = "Every device that is planned or was refused, over all rounds"
    if len(shown) < len(run.devices):
        caption = f"The {len(shown):,} devices with the highest training loss, over all rounds"
    return Section(
        "devices",
        "Devices: who took part, and at what cost",
        _said_of_all(run),
        figures,
        [Table(caption, DEVICE_COLUMNS, rows)],
    )


def _said_of_all(run: RunView) -> list[str]:
    took_part = sum(device.accepted > 0 for device in run.devices)
    planned = sum(device.planned for device in run.devices)
    found = [f"Updates of {took_part:,} of {planned:,} planned devices counted."]
    left_out = sum(bool(device.left_out) for device in run.devices)
    if left_out:
        found.append(f"{several(left_out, 'device')} are not in the CKA curve: they have too few texts.")
    measured, counted = sum(device.measured for device in run.devices), sum(device.accepted for device in run.devices)
    if measured < counted:
        found.append(
            f"Costs by device are those of {measured:,} of {counted:,} updates: others came without, or are older."
        )
    if run.federation is None:
        delivered, missing = len(run.open.delivered), len(run.open.missing)
        found.append(f"Round {run.open.number} is open: {delivered:,} delivered, {missing:,} missing.")
    return found


DEVICE_COLUMNS = (
    Column("device", numeric=False),
    *columns("texts", "asked", "counted", "refused", "last loss", "seconds", "peak MiB", "predicted MiB", "budget MiB"),
    *columns("sent MiB", "received MiB", "read MiB", "layer passes"),
)


def _device_row(device: DeviceView) -> list[str]:
    known = bool(device.measured)
    return [
        device.name if device.planned else f"{device.name} (not planned)",
        f"{device.texts:,}",
        f"{device.asked:,}",
        f"{device.accepted:,}",
        f"{len(device.refused):,}" if device.refused else "",
        "" if device.train_loss is None else f"{device.train_loss:.4f}",
        f"{device.seconds:,.1f}" if known else "",
        mebibytes(device.peak_bytes) if device.peak_bytes else "",
        mebibytes(device.predicted_peak_bytes) if device.predicted_peak_bytes else "",
        mebibytes(device.budget_bytes) if device.budget_bytes else "",
        mebibytes(device.bytes_up) if known else "",
        mebibytes(device.bytes_down) if known else "",
        mebibytes(device.bytes_read) if known else "",
        f"{device.passes:,}" if known else "",
    ]


def _most_telling(devices: Sequence[DeviceView]) -> list[DeviceView]:
    """All of them, or those with the highest loss; by name."""
    if len(devices) <= MOST_ROWS:
        return list(devices)
    worst = sorted(devices, key=lambda device: (-(device.train_loss or 0.0), device.name))
    return sorted(worst[:MOST_ROWS], key=lambda device: device.name)


def _who(run: RunView) -> Figure | None:
    named = [device for device in run.devices if device.accepted or device.refused]
    if not run.rounds or not named:
        return None
    if len(named) <= MOST_GRID_DEVICES and len(run.rounds) <= MOST_GRID_ROUNDS:
        return _who_when(run, [device.name for device in named][::-1])
    counts = Counter(device.accepted for device in run.devices if device.planned)
    bars = [
        (rounds, counts[rounds], f"{several(counts[rounds], 'device')} in {several(rounds, 'round')}")
        for rounds in range(min(counts), max(counts) + 1)
    ]
    return Figure(
        key="participation",
        title="Rounds that devices took part in",
        text="How many devices had so many updates counted.",
        plot=bar_plot(bars, x_label="updates that counted", y_label="devices"),
        alt=f"Number of devices by counted updates, from {bars[0][0]} to {bars[-1][0]}.",
        table=Table(
            "Rounds that devices took part in",
            columns("updates that counted", "devices"),
            [[str(rounds), f"{count:,}"] for rounds, count, _ in bars],
        ),
    )


def _who_when(run: RunView, names: Sequence[str]) -> Figure:
    """A row for each device, a column for each round."""
    row_of = {name: row for row, name in enumerate(names)}
    cells: list[tuple[int, int, int, int, str]] = []
    for column, line in enumerate(run.rounds):
        refused = {one.device for one in line.refused if one.device is not None} - set(line.accepted)
        cells += [(column, 1, row_of[name], 1, "c0") for name in line.accepted]
        cells += [(column, 1, row_of[name], 1, "c1") for name in sorted(refused)]
    refusals = any(style == "c1" for *_, style in cells)
    return Figure(
        key="participation",
        title="Who took part in which round",
        text="",
        plot=grid_plot(
            cells,
            columns=len(run.rounds),
            rows=len(names),
            x_label="round",
            y_label="",
            names=names,
            first_column=run.rounds[0].number,
        ),
        alt=f"Updates of {several(len(names), 'device')} in {several(len(run.rounds), 'round')}; the table lists them.",
        table=Table(
            "Who took part in which round",
            columns("round", "counted", "refused", text=3),
            [
                [
                    f"{line.number}",
                    ", ".join(line.accepted),
                    ", ".join(f"{one.device or UNKNOWN} ({one.reason})" for one in line.refused),
                ]
                for line in run.rounds
            ],
        ),
        legend=(("c0", "counted"), ("c1", "refused")) if refusals else (),
    )


def _peaks(run: RunView) -> Figure | None:
    measured = [device for device in run.devices if device.peak_bytes]
    if not measured:
        return None
    ranked = sorted(measured, key=lambda device: (-device.peak_bytes, device.name))
    over = sum(device.peak_bytes > device.predicted_peak_bytes > 0 for device in measured)
    text = f"Largest of each device's process: {over:,} of {len(measured):,} above what they predicted."
    if run.federation is not None:
        text += " All devices ran in one process, so each peak holds what the others left in memory."
    title = "Peak memory, measured and predicted"
    table = Table(
        title,
        (Column("device", numeric=False), *columns("measured MiB", "predicted MiB", "budget MiB")),
        [
            [
                device.name,
                mebibytes(device.peak_bytes),
                mebibytes(device.predicted_peak_bytes) if device.predicted_peak_bytes else "",
                mebibytes(device.budget_bytes) if device.budget_bytes else "",
            ]
            for device in ranked[:MOST_NAMED]
        ],
    )
    legend = (("c0", "measured"), ("c1 ring", "predicted"))
    if len(ranked) <= MOST_NAMED:
        rows = [
            (device.name, _mib(device.peak_bytes), _mib(device.predicted_peak_bytes) or None, _said(device))
            for device in ranked
        ]
        plot = rows_plot(rows, x_label="MiB", x_format=lambda value: f"{value:,.0f}")
    else:
        text += f" The table has the {MOST_NAMED} largest."
        series = [
            Series("predicted", _ranked([(_mib(one.predicted_peak_bytes), _said(one)) for one in ranked]), "c1 ring"),
            Series("measured", _ranked([(_mib(one.peak_bytes), _said(one)) for one in ranked]), "c0"),
        ]
        plot = rank_plot(series, x_label="devices, by measured peak", y_format=compact, from_zero=True)
    return Figure(
        key="peaks",
        title=title,
        text=text,
        plot=plot,
        alt=f"{title}, in MiB: measured from {_mib(ranked[-1].peak_bytes):,.0f} to {_mib(ranked[0].peak_bytes):,.0f}.",
        table=table,
        legend=legend,
    )


def _said(device: DeviceView) -> str:
    predicted = f", predicted {mebibytes(device.predicted_peak_bytes)}" if device.predicted_peak_bytes else ""
    return f"{device.name}: measured {mebibytes(device.peak_bytes)} MiB{predicted}"


def _mib(count: int) -> float:
    return count / 2**20


def _ranked(values: Sequence[tuple[float, str]]) -> list[Point]:
    return [Point(rank, value, text) for rank, (value, text) in enumerate(values, 1)]


def _losses(run: RunView) -> Figure | None:
    """Training losses: no artifact holds a score of one device."""
    ranked = sorted(
        ((device.train_loss, device.name) for device in run.devices if device.train_loss is not None), reverse=True
    )
    if len(ranked) < 2:
        return None
    worst = ranked[: -(-len(ranked) // 10)]
    others = ranked[len(worst) :]
    mean, mean_worst = (sum(loss for loss, _ in part) / len(part) for part in (ranked, worst))
    points = _ranked([(loss, f"{name}: {loss:.4f}") for loss, name in ranked])
    named = [f"{loss:.4f}" for loss, _ in worst]
    return Figure(
        key="losses",
        title="Training loss by device",
        text=(
            f"On its own texts, in the last round that it took part in: mean {mean:.4f}, of the worst tenth "
            f"{mean_worst:.4f}. No artifact has test scores by device."
        ),
        plot=rank_plot(
            [Series("others", points[len(worst) :], "c0"), Series("worst tenth", points[: len(worst)], "c1")],
            x_label="devices, by loss",
            y_format=compact,
            from_zero=True,
        ),
        alt=f"Training loss of {len(ranked):,} devices, from {ranked[0][0]:.4f} down to {ranked[-1][0]:.4f}.",
        table=Table(
            "The worst tenth by training loss",
            (Column("device", numeric=False), Column("loss")),
            [[name, loss] for (_, name), loss in zip(worst, named, strict=True)][:MOST_ROWS],
        ),
        legend=(("c1", "worst tenth"), ("c0", "others")) if others else (),
    )


def _refusals(run: RunView) -> Section:
    refused = [(line.number, one) for line in run.rounds for one in line.refused]
    arrived = [] if run.federation else run.open.refused
    counts = Counter([*(one.reason for _, one in refused), *(reason for _, reason in arrived)])
    if not counts:
        return Section("refused", "Who was refused, and why", ["Nobody: every update that arrived counted."])
    summary = Table(
        "Refused updates by reason",
        (Column("reason", numeric=False), Column("what that means", numeric=False), Column("updates")),
        [[reason, MEANINGS[reason], f"{count:,}"] for reason, count in sorted(counts.items())],
        folded=False,
    )
    rows = [[str(number), one.device or UNKNOWN, one.reason, one.update or ""] for number, one in refused]
    rows += [[str(run.open.number), name, reason, "not moved aside yet"] for name, reason in arrived]
    every = Table(
        "Every refused update", columns("round", "device or folder", "reason", "update", text=4), rows[-MOST_ROWS:]
    )
    text = "A refused update names its device itself, so the name may be anybody's."
    text += f" The table has the last {MOST_ROWS:,} of {len(rows):,}." if len(rows) > MOST_ROWS else ""
    return Section("refused", "Who was refused, and why", [text], tables=[summary, every])
