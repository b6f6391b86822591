"""What of that which lies around is looked at as an update."""

from pathlib import Path

import pytest

from schemas.errors import UsageProblem
from stages.federated.delivery import candidates, claims_to_be_an_update, counted_once
from stages.store.artifact import MANIFEST_FILE, Artifact
from tests.fleet import make_world, update_manifest


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """A folder with updates (by name alone), something hidden, a file, a folder without a manifest and a link."""
    folder = tmp_path / "inbox"
    for name in ("c", "a", "b", ".hidden"):
        (folder / name).mkdir(parents=True)
        (folder / name / MANIFEST_FILE).touch()
    (folder / "notes.txt").touch()
    (folder / "empty").mkdir()
    (folder / "link").symlink_to(folder / "nowhere")
    return folder


def test_the_updates_of_a_folder_are_looked_at_by_name_and_what_is_none_is_named(inbox: Path) -> None:
    ignored: list[Path] = []
    assert [path.name for path in candidates([inbox], ignored)] == ["a", "b", "c", "link"]
    assert [path.name for path in ignored] == ["empty", "notes.txt"]


def test_a_folder_behind_a_link_is_looked_into_and_a_file_is_taken_as_given(inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(inbox)
    given = [tmp_path / "link", inbox / "notes.txt", inbox / "a"]
    found = list(candidates(given, []))
    assert [path.name for path in found] == ["a", "b", "c", "link", "notes.txt", "a"]


def test_a_path_that_does_not_exist_is_a_mistake_of_whoever_typed_it(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="there is no"):
        list(candidates([tmp_path / "nowhere"], []))


def test_what_is_of_another_kind_or_a_file_was_given_by_mistake_and_a_link_is_judged(inbox: Path) -> None:
    plan, _ = make_world(inbox.parent)
    (inbox / "plan").symlink_to(plan.path)
    (inbox / "dead").symlink_to(inbox / "nowhere")
    claims = {name: claims_to_be_an_update(inbox / name) for name in ("a", "notes.txt", "plan", "dead", "link")}
    assert claims == {"a": True, "notes.txt": False, "plan": True, "dead": True, "link": True}
    assert not claims_to_be_an_update(plan.path)


def test_an_update_that_a_killed_writer_had_put_away_is_looked_at(inbox: Path) -> None:
    (inbox / "b").rename(inbox / ".b.1f2e3d4c.old.partial")
    assert [path.name for path in candidates([inbox], [])] == ["a", "b", "c", "link"]


def test_of_updates_without_tensors_those_with_the_same_numbers_count_once() -> None:
    told = {"a": 1.0, "b": 2.0, "c": 1.0}
    updates = [
        Artifact(Path(name), manifest, manifest.digest)
        for name, value in told.items()
        for manifest in [update_manifest(device=name, tensors=(), files=(), numbers={"loss": value})]
    ]
    counting, same = counted_once(updates)
    assert [one.manifest.device for one in counting] == ["a", "b"]
    assert [one.manifest.device for one in same] == ["c"]
