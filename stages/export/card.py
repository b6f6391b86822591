"""A model card: what was tuned and on how much, how it can be checked, how good it is, and how to load it.

Everything on it comes from artifacts.  The format is Hugging Face's: YAML between dashes, then Markdown.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.benchmark import BenchmarkManifest
from schemas.evaluation import Estimate, EvaluationManifest
from schemas.methods import MethodSettings
from schemas.perplexity import PerplexityManifest
from schemas.plan import PlanManifest
from schemas.visible import visible
from stages.report.tables import markdown_table
from stages.store.lineage import HistoryLine

Evaluated = EvaluationManifest | PerplexityManifest | BenchmarkManifest


@dataclass(frozen=True)
class Subject:
    """What the card is about.  `history`: newest first, as far as it was found."""

    plan_digest: str
    plan: PlanManifest
    history: Sequence[HistoryLine]
    evaluations: Sequence[Evaluated]


LOADING = {
    "hf": """from transformers import {loader}, AutoTokenizer

model = {loader}.from_pretrained("FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER")""",
    "adapterhub": """from adapters import {loader}

model = {loader}.from_pretrained("BASE MODEL")
name = model.load_adapter("FOLDER", use_safetensors=True)
model.set_active_adapters(name)""",
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
(logits,) = session.run(["logits"], {{"input_ids": ids, "attention_mask": mask}})""",
}
TAGS = "tags: [chainctl, adapters, federated]"  # by which an export is recognised
WARNINGS = {
    "hf": "`trust_remote_code` runs `modeling_chainctl.py` of this folder: it is short, read it first.",
    "adapterhub": "The base model is not in this folder: use the one with the fingerprint above.",
    "onnx": "Checked against the model it was made from, at lengths other than those it was traced with.",
}


def model_card(subject: Subject, *, format: str, loader: str, notes: Sequence[str] = ()) -> str:
    """README.md of an export.  `notes` are printed after the format's own warning."""
    parts = [
        front_matter(subject.plan),
        f"# {plain(subject.plan.model.model_type)} tuned by a federation\n",
        "Bottleneck adapters in a frozen base model, tuned by chainctl (ChainFed, arXiv 2604.06819) on data that "
        "never left the devices.\n",
        "## What it is\n",
        facts(subject),
        "## How good it is\n",
        metrics(subject.evaluations),
        "## How to load it\n",
        f"```python\n{LOADING[format].format(loader=loader)}\n```\n",
        *(f"{note}\n" for note in (WARNINGS[format], *notes)),
        "## Licence\n",
        "That of the base model, and whatever the owners of the data agreed on. chainctl adds none.\n",
    ]
    return "\n".join(parts)


def front_matter(plan: PlanManifest) -> str:
    """The YAML that model hubs read."""
    task = "text-generation" if plan.settings.task.kind == "causal-lm" else "text-classification"
    return f"---\nlibrary_name: transformers\npipeline_tag: {task}\n{TAGS}\n---\n"


def facts(subject: Subject) -> str:
    """Model, state, lineage, data and settings, one row each."""
    plan, model, history = subject.plan, subject.plan.model, subject.history
    settings, newest = plan.settings, history[0]
    trained = [line for line in history if line.devices]
    missing = next((line.missing_parent for line in history if line.missing_parent), "")
    texts = sum(line.texts for line in trained)
    rows: list[tuple[str, object]] = [
        (
            "base model",
            f"{plain(model.model_type)}, {model.num_layers} layers, hidden size {model.hidden_size}",
        ),
        ("fingerprint of the base model", model.digest),
        ("plan", subject.plan_digest),
        ("state", newest.state),
        ("rounds", newest.round),
        ("devices planned", plan.device_count),
        ("texts on them", plan.example_count),
        ("updates accepted", sum(line.devices for line in trained)),
        ("texts in them (counted once per round)", texts),
        ("history", f"found back to round {history[-1].round}" + (f"; {missing} was not" if missing else "")),
        ("task", settings.task.kind),
        ("labels", ", ".join(plain(label) for label in settings.task.labels) or "none"),
        ("method", f"{settings.chain.method}, layers {plan.decisions.first_layer} to {model.num_layers - 1}"),
        ("settings of the method", _settings(settings.chain)),
        ("adapters", f"bottleneck {plan.bottleneck}, {settings.adapter.activation}"),
        ("optimiser", f"{settings.optimizer.name}, {settings.optimizer.learning_rate:g}"),
        ("longest text", f"{settings.encoding.most_tokens} tokens"),
        ("numbers", settings.numerics.computes_in),
        ("signed", "yes: every update by its device" if plan.trust.required else "no"),
    ]
    return markdown_table(("", ""), [(name, str(value)) for name, value in rows]) + "\n"


def _settings(chosen: MethodSettings) -> str:
    """Each setting of a method and its value."""
    values = chosen.model_dump(exclude={"method"})
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "none"


def plain(label: str) -> str:
    """A name from outside with the characters escaped that mean something in Markdown, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!&])", r"\\\1", visible(" ".join(label.split())))


def metrics(evaluations: Sequence[Evaluated]) -> str:
    """One row per metric, with its 95 % interval."""
    rows = [row for evaluation in evaluations for row in _metrics_of(evaluation)]
    if not rows:
        return "No evaluation was given.\n"
    return markdown_table(("metric", "value", "95 %", "texts", "data"), rows) + "\n"


def _metrics_of(evaluation: Evaluated) -> list[tuple[str, ...]]:
    found: list[tuple[str, Estimate]]
    if isinstance(evaluation, EvaluationManifest):
        found = [("accuracy", evaluation.accuracy), ("macro-F1", evaluation.macro_f1)]
    elif isinstance(evaluation, PerplexityManifest):
        found = [("perplexity", evaluation.perplexity)]
    else:
        found = [(plain(f"{evaluation.benchmark}: {score.metric}"), score.overall) for score in evaluation.scores]
    count, data = str(evaluation.example_count), evaluation.data[:19]
    return [(name, f"{value.value:.4f}", f"{value.low:.4f} to {value.high:.4f}", count, data) for name, value in found]
