"""The registry of kinds: complete, true, and free of cost until a model is asked for."""

import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from schemas.base import Manifest
from schemas.devices import Line
from schemas.kinds import ARTIFACTS, DOCUMENTS, EVALUATIONS, LINES, artifact_model, document_model

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(set(DOCUMENTS) - {"recipe", *LINES}))
def test_a_kind_is_registered_under_the_name_that_its_documents_carry(name: str) -> None:
    model = cast("type[Manifest]", document_model(name))
    assert issubclass(model, Manifest)
    assert (model.KIND, model.model_fields["kind"].default) == (name, name)
    assert model.model_fields["version"].default == model.VERSION


def test_artifacts_and_evaluations_are_documents() -> None:
    assert set(EVALUATIONS) < set(ARTIFACTS) < set(DOCUMENTS)
    assert {artifact_model(kind).KIND for kind in ARTIFACTS} == set(ARTIFACTS)


def test_lines_are_registered_under_their_kinds_and_some_artifact_has_them() -> None:
    registered = {document_model(name) for name in LINES}
    assert {cast("type[Line]", model).KIND for model in registered} == set(LINES)
    assert {line for kind in ARTIFACTS for line in artifact_model(kind).LINES.values()} == registered


@pytest.mark.parametrize("name", ["", "recipe", "measured", "nothing", "participant"])
def test_what_is_not_an_artifact_has_no_manifest(name: str) -> None:
    with pytest.raises(KeyError):
        artifact_model(name)


def test_the_registry_builds_no_model() -> None:
    script = (
        "import sys, schemas.kinds, schemas.published\n"
        "assert 'pydantic' not in sys.modules\n"
        "schemas.kinds.document_model('update')\n"
        "assert 'schemas.plan' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
