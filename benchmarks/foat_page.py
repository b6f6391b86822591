"""docs/foat-decoders.md and its picture, from the results of `benchmarks.foat` and nothing else."""

import io
import textwrap
from pathlib import Path
from string import Template
from typing import Any

from benchmarks.harness import ROOT
from schemas.errors import BadInput
from stages.report.figure import COLOURS, QUIET, STYLE
from stages.report.tables import markdown_table
from stages.store.files import write_file

TEMPLATE = Path(__file__).with_name("foat.md")
PAGE = ROOT / "docs" / "foat-decoders.md"
PICTURE = ROOT / "docs" / "foat-decoders.svg"
T = "0.8"
WIDTH = 120


def write(results: dict[str, Any]) -> None:
    """Write the page and the picture."""
    write_file(PAGE, render(results).encode())
    write_file(PICTURE, draw(results))


def find(results: dict[str, Any], **wanted: str) -> dict[str, Any]:
    """The curve of one setting; what is not named is `all`, `unit`, `mean`, `embeddings`, `unbiased`."""
    names = {"tokens": "all", "scale": "unit", "pooling": "mean", "reference": "embeddings", "estimator": "unbiased"}
    names |= wanted
    found: list[dict[str, Any]] = [
        row for row in results["curves"] if all(row[name] == value for name, value in names.items())
    ]
    return found[0]


def render(results: dict[str, Any]) -> str:
    """The page.  `foat.md` has its words; a number that it asks for and that is not here is an error."""
    names = {name: results[name] for name in ("model", "texts", "max_length", "window_size", "fingerprint")}
    numbers = {"tokens": f"{results['tokens']:,}"} | _layers(results) | _sinks(results) | _claims(results)
    tables = {"curves": curves_table(results), "starts": starts_table(results)}
    values = names | numbers | tables | {"threshold": T}
    parts = Template(TEMPLATE.read_text()).substitute(values).strip().split("\n\n")
    return "\n\n".join(_wrap(part) for part in parts) + "\n"


def _wrap(part: str) -> str:
    """A paragraph as wide as the other pages; anything else as it is."""
    return part if part.startswith(("#", "|", "`", "-", "!")) else textwrap.fill(" ".join(part.split()), WIDTH)


def _layers(results: dict[str, Any]) -> dict[str, str]:
    """Single values of single curves, by layer."""
    plain, unit = find(results, scale="none"), find(results)
    skip = find(results, scale="none", tokens="skip-first")
    without = {row["layer"]: row["cka_without"] for row in results["sinks"]}
    values = {f"plain{layer}": plain["cka"][layer] for layer in (1, 2, 10, 11, 21)}
    values |= {f"unit{layer}": unit["cka"][layer] for layer in (0, 1, 2, 10, 11)}
    values |= {f"skip{layer}": skip["cka"][layer] for layer in (10, 11)}
    values |= {f"without{layer}": without[layer] for layer in (2, 10, 11)}
    dip = min(range(4, 11), key=lambda layer: unit["cka"][layer])
    values |= {"dip": unit["cka"][dip], "before_dip": unit["cka"][4], "after_dip": unit["cka"][11]}
    values |= {"low0": unit["low"][0], "high0": unit["high"][0]}
    aligned = {row["layer"]: row["aligned_others"] for row in results["sinks"]}
    shares = {"aligned_dip": f"{aligned[dip]:.0%}", "aligned_start": f"{aligned[-1]:.0%}", "dip_layer": str(dip)}
    return {name: f"{value:.3f}" for name, value in values.items()} | shares


def _sinks(results: dict[str, Any]) -> dict[str, str]:
    by_layer = {row["layer"]: row for row in results["sinks"]}
    before, after = by_layer[10], by_layer[11]
    return {
        "first10": f"{before['first_length']:,.0f}",
        "first11": f"{after['first_length']:,.0f}",
        "other11": f"{after['other_length']:,.0f}",
        "ratio11": f"{after['first_length'] / after['other_length']:.0f}",
        "share11": f"{after['first_in_mean']:.0%}",
        "another11": str(after["texts_with_another"]),
        "position11": str(after["last_position"]),
    }


def _claims(results: dict[str, Any]) -> dict[str, str]:
    """What the page says of many curves at once."""
    recommended = find(results, reference="first-layer")["starts"][T]
    earliest, latest = recommended["between"]
    starts = [
        start["start"]
        for row in results["curves"]
        if row["reference"] == "embeddings"
        for start in row["starts"].values()
    ]
    differences = [
        there - here
        for row in results["curves"]
        if (row["scale"], row["pooling"], row["estimator"]) == ("unit", "mean", "unbiased")
        for here, there in zip(row["cka"], _twin(results, row, estimator="biased")["cka"], strict=True)
    ]
    skipped = zip(find(results)["cka"], find(results, tokens="skip-first")["cka"], strict=True)
    return {
        "start_recommended": str(recommended["start"]),
        "between_recommended": f"{earliest} to {latest}" if earliest != latest else f"only {earliest}",
        "zero_embeddings": str(sum(start == 0 for start in starts)),
        "count_embeddings": str(len(starts)),
        "bias_low": f"{min(differences):.3f}",
        "bias_high": f"{max(differences):.3f}",
        "skip_unit": f"{max(abs(mine - its) for mine, its in skipped):.3f}",
    }


def _twin(results: dict[str, Any], row: dict[str, Any], **changes: str) -> dict[str, Any]:
    """The curve that differs from `row` in one choice."""
    names = ("tokens", "scale", "pooling", "reference", "estimator")
    return find(results, **{name: row[name] for name in names} | changes)


def curves_table(results: dict[str, Any]) -> str:
    """Layer by layer."""
    first = find(results, reference="first-layer")
    columns = {
        "plain": find(results, scale="none")["cka"],
        "skip-first": find(results, scale="none", tokens="skip-first")["cka"],
        "no sinks": [row["cka_without"] for row in results["sinks"] if row["layer"] >= 0],
        "unit": find(results)["cka"],
        "unit, from layer 0": first["cka"],
        "last": find(results, reference="first-layer", pooling="last")["cka"],
        "tokens": find(results, reference="first-layer", pooling="tokens")["cka"],
    }
    interval = [f"{low:.2f} to {high:.2f}" for low, high in zip(first["low"], first["high"], strict=True)]
    longer = [row["first_length"] / row["other_length"] for row in results["sinks"] if row["layer"] >= 0]
    rows = [
        (layer, *(f"{curve[layer]:.3f}" for curve in columns.values()), interval[layer], f"{longer[layer]:.1f}x")
        for layer in range(len(first["cka"]))
    ]
    names = ["layer", *columns, "interval of unit, from layer 0", "longer by"]
    names = [f"unit, {name}, from layer 0" if name in ("last", "tokens") else name for name in names]
    return markdown_table(names, rows)


def starts_table(results: dict[str, Any]) -> str:
    """The start layer that each rule gives."""
    columns = [(reference, threshold) for reference in ("embeddings", "first-layer") for threshold in (T, "0.9")]
    rows = []
    for row in results["curves"]:
        if (row["reference"], row["estimator"]) == ("embeddings", "unbiased"):
            cells = [_start(results, row, reference, threshold) for reference, threshold in columns]
            rows.append((row["tokens"], row["scale"], row["pooling"], *cells))
    names = [f"{reference}, T = {threshold}" for reference, threshold in columns]
    return markdown_table(["tokens", "scale", "pooling", *names], rows)


def _start(results: dict[str, Any], row: dict[str, Any], reference: str, threshold: str) -> str:
    mine, biased = (
        _twin(results, row, reference=reference, estimator=estimator)["starts"][threshold]["start"]
        for estimator in ("unbiased", "biased")
    )
    return str(mine) if mine == biased else f"{mine} ({biased})"


def draw(results: dict[str, Any]) -> bytes:
    """The picture: against the embeddings, and against the first layer.  Raises `BadInput` without matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("pictures need matplotlib", hint="pip install 'chainctl[report]'") from None
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for name, colour, wanted in (
            ("plain mean", COLOURS[1], {"scale": "none"}),
            ("first token left out", COLOURS[3], {"scale": "none", "tokens": "skip-first"}),
            ("unit length", COLOURS[0], {}),
        ):
            left.plot(find(results, **wanted)["cka"], color=colour, label=name)
        for name, colour, pooling in (
            ("mean", COLOURS[0], "mean"),
            ("last token", COLOURS[2], "last"),
            ("tokens as rows", COLOURS[3], "tokens"),
        ):
            right.plot(find(results, reference="first-layer", pooling=pooling)["cka"], color=colour, label=name)
        first = find(results, reference="first-layer")
        right.fill_between(range(len(first["cka"])), first["low"], first["high"], color=COLOURS[0], alpha=0.15)
        for axes, title in (
            (left, "CKA with the embeddings"),
            (right, "CKA with the first layer's output, unit length"),
        ):
            _finish(axes, title)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    for threshold in (0.8, 0.9):
        axes.axhline(threshold, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(f"T = {threshold}", (29, threshold), (0, 3), textcoords="offset points", ha="right", color=QUIET)
    axes.set_xlabel("layer")
    axes.set_ylim(0, 1.03)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
