"""The one registry of documents: names, and where the model of each is defined.

A name costs nothing.  Building the pydantic models of all kinds takes a third of a second, so a model is imported where
it is used, by `document_model` or `artifact_model`; nothing here imports one.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel

    from schemas.base import Manifest

# Directories with a manifest, by kind, in the order in which a federation makes them.
ARTIFACTS: Mapping[str, str] = {
    "profile": "schemas.profile:ProfileManifest",
    "plan": "schemas.plan:PlanManifest",
    "state": "schemas.state:StateManifest",
    "update": "schemas.update:UpdateManifest",
    "checkpoint": "schemas.checkpoint:CheckpointManifest",
    "evaluation": "schemas.evaluation:EvaluationManifest",
    "perplexity": "schemas.perplexity:PerplexityManifest",
    "benchmark": "schemas.benchmark:BenchmarkManifest",
}

# What is said of a state's quality.
EVALUATIONS = ("evaluation", "perplexity", "benchmark")

# What is not a manifest: lines of files beside one (schemas/devices.py), and the recipe, which a person writes.
LINES = ("planned-device", "participant", "accepted-update")

# Every document with a JSON Schema.
DOCUMENTS: Mapping[str, str] = {
    **ARTIFACTS,
    "measured": "schemas.measured:Measured",
    "bundle": "schemas.bundle:BundleManifest",
    "refusal": "schemas.refusal:RefusalManifest",
    "federation": "schemas.run:FederationManifest",
    "simulation-summary": "schemas.run:SimulationSummary",
    "demo-summary": "schemas.run:DemoSummary",
    "recipe": "schemas.settings:Settings",
    "planned-device": "schemas.devices:PlannedDevice",
    "participant": "schemas.devices:Participant",
    "accepted-update": "schemas.devices:AcceptedUpdate",
}

# What is never on disk, and has a JSON Schema too: a line of `--log-format jsonl`.
STREAMED: Mapping[str, str] = {"log-event": "schemas.events:LogEvent"}


def document_model(name: str) -> "type[BaseModel]":
    """The model of a document, or of what is streamed.  Raises `KeyError` for a name that is not registered."""
    module, _, attribute = {**DOCUMENTS, **STREAMED}[name].partition(":")
    model: type[BaseModel] = getattr(import_module(module), attribute)
    return model


def artifact_model(kind: str) -> "type[Manifest]":
    """The manifest of a kind of artifact.  Raises `KeyError` for one that is not registered."""
    from schemas.base import Manifest

    if kind not in ARTIFACTS:
        raise KeyError(kind)
    model = document_model(kind)
    assert issubclass(model, Manifest)
    return model
