"""JSON Schemas of every document, for tools that are not ours."""

from typing import Any

from pydantic import BaseModel

from schemas.benchmark import BenchmarkManifest
from schemas.bundle import BundleManifest
from schemas.checkpoint import CheckpointManifest
from schemas.evaluation import EvaluationManifest
from schemas.measured import Measured
from schemas.perplexity import PerplexityManifest
from schemas.plan import PlanManifest
from schemas.profile import ProfileManifest
from schemas.refusal import RefusalManifest
from schemas.settings import Settings
from schemas.state import StateManifest
from schemas.update import UpdateManifest

DOCUMENTS: dict[str, type[BaseModel]] = {
    "profile": ProfileManifest,
    "plan": PlanManifest,
    "state": StateManifest,
    "update": UpdateManifest,
    "evaluation": EvaluationManifest,
    "perplexity": PerplexityManifest,
    "benchmark": BenchmarkManifest,
    "measured": Measured,
    "bundle": BundleManifest,
    "refusal": RefusalManifest,
    "checkpoint": CheckpointManifest,
    "recipe": Settings,
}


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a document.  In manifests every field is required."""
    return DOCUMENTS[name].model_json_schema(mode="validation" if name == "recipe" else "serialization")
