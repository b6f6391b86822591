"""What people give in place of a model directory is told apart, and each hint is followed to a model that opens."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas.errors import BadInput
from stages import import_model
from stages.doctor import examine
from stages.model_info import look
from tests import fleet
from tests.fleet.gguf_file import write_gguf


def opens(path: Path) -> None:
    look(path, fleet.settings())


def refusal(path: Path, match: str, *, importable: bool = False) -> str:
    """The hint of the commands that open a model; import says the same where it could not read it either."""
    hints = set()
    for command in (opens, lambda path: examine(path, fleet.settings())):
        with pytest.raises(BadInput, match=match) as caught:
            command(path)
        hints.add(caught.value.hint)
    if not importable:
        with pytest.raises(BadInput, match=match) as caught:
            import_model.run(path, path.parent / "imported")
        hints.add(caught.value.hint)
    (hint,) = hints
    return hint


def save(folder: Path, **options: object) -> Path:
    fleet.save_model(folder, "llama", factory=AutoModelForCausalLM, **options)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("name", ["bert-base-uncased", "org/model-1.5"])
def test_a_name_on_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hint = refusal(Path(name), "are not fetched")
    assert f"hf download {name} --local-dir {name}" in hint
    save(tmp_path / name)  # where that command puts it
    opens(Path(name))


def test_a_path_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "check the path" in refusal(tmp_path / "nowhere", "it does not exist")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert "hub" not in refusal(Path("models/typo"), "it does not exist")


def test_a_quoted_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "models" / "own")
    assert "$HOME" in refusal(Path("~/models/own"), "inside quotes")
    opens(Path.home() / "models" / "own")


def test_a_file_of_the_model(tmp_path: Path) -> None:
    save(tmp_path / "own")
    hint = refusal(tmp_path / "own" / "model.safetensors", "is a file")
    opens(Path(hint.removeprefix("give its folder: ")))


def test_the_folder_above(tmp_path: Path) -> None:
    save(tmp_path / "models--own" / "snapshots" / "0123")
    hint = refusal(tmp_path / "models--own", "in a folder below")
    opens(Path(hint.removeprefix("give ")))


def test_a_comma_too_much(tmp_path: Path) -> None:
    path = save(tmp_path / "own") / "config.json"
    whole = path.read_text()
    path.write_text(whole.rstrip()[:-1].rstrip() + ",\n}")
    with pytest.raises(BadInput) as caught:
        opens(tmp_path / "own")
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(path.read_text())
    assert caught.value.fact == f"{path} is not JSON"
    assert (caught.value.values["line"], caught.value.values["column"]) == (expected.value.lineno, expected.value.colno)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_configuration_saved_by_an_editor_in_another_encoding(encoding: str, tmp_path: Path) -> None:
    path = save(tmp_path / "own") / "config.json"
    text = path.read_text()
    path.write_text(text, encoding=encoding)
    assert 'save it as "UTF-8"' in refusal(tmp_path / "own", "byte order mark")
    path.write_text(text, encoding="utf-8")
    opens(tmp_path / "own")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_snapshot_copied_without_what_it_links_to(name: str, tmp_path: Path) -> None:
    snapshot = save(tmp_path / "snapshot")
    (tmp_path / "blobs").mkdir()
    (snapshot / name).rename(tmp_path / "blobs" / "0")
    (snapshot / name).symlink_to(Path("..", "blobs", "0"))
    opens(snapshot)
    shutil.copytree(snapshot, tmp_path / "deep" / "copy", symlinks=True)
    copied, broken = tmp_path / "deep" / "copy", f"{name} is a link to a file that is not there"
    hint = refusal(copied, broken, importable=name == "tokenizer.json")  # which import names itself
    assert "cp -rL FROM TO" in hint
    shutil.copytree(snapshot, tmp_path / "whole")
    opens(tmp_path / "whole")


def test_shards_without_their_index(tmp_path: Path) -> None:
    index = save(tmp_path / "own", shard_size="60KB") / "model.safetensors.index.json"
    kept = index.read_bytes()
    index.unlink()
    hint = refusal(tmp_path / "own", "has shards of weights, but not their index")
    assert index.name in hint
    index.write_bytes(kept)
    opens(tmp_path / "own")


def test_an_index_that_names_what_is_missing(tmp_path: Path) -> None:
    folder = save(tmp_path / "own", shard_size="60KB")
    shard = folder / "model-00001-of-00003.safetensors"
    shard = shard if shard.exists() else min(folder.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(BadInput, match="names a file that is not in") as caught:
        opens(folder)
    assert shard.name in str(caught.value)


def test_weights_of_another_name(tmp_path: Path) -> None:
    folder = save(tmp_path / "own")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    hint = refusal(folder, "holds no safetensors weights")
    assert "rename it to model.safetensors" in hint
    (folder / "model.fp16.safetensors").rename(folder / "model.safetensors")
    opens(folder)


@pytest.mark.parametrize("name", ["model.onnx", "tf_model.h5", "flax_model.msgpack", "model.ckpt", "model.pt"])
def test_weights_of_other_libraries(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "own")
    (folder / "model.safetensors").rename(folder / name)
    hint = refusal(folder, "holds no safetensors weights")
    assert hint.startswith(("an ONNX", "these are"))


def test_pickles_are_to_be_imported(tmp_path: Path) -> None:
    model = fleet.save_model(tmp_path / "own", "llama", factory=AutoModelForCausalLM)
    (tmp_path / "own" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "own" / "pytorch_model.bin")
    follow_import(refusal(tmp_path / "own", "holds no safetensors weights", importable=True), tmp_path)


@pytest.mark.parametrize("with_config", [True, False])
def test_gguf_files_are_to_be_imported(with_config: bool, tmp_path: Path) -> None:
    folder = save(tmp_path / "own")
    for file in folder.iterdir():
        if file.name != "config.json" or not with_config:
            file.unlink()
    if with_config:
        fleet.save_tokenizer(folder)
    write_gguf(folder / "own.gguf")
    match = "holds no safetensors" if with_config else "it holds GGUF files"
    follow_import(refusal(folder, match, importable=True), tmp_path)
    shutil.rmtree(tmp_path / "out")
    follow_import(refusal(folder / "own.gguf", "is a file", importable=True), tmp_path)


def follow_import(hint: str, folder: Path) -> None:
    """Do what a hint says, with the path that it names."""
    source = hint.split("chainctl model import ")[1].split(" --out")[0]
    import_model.run(Path(source), folder / "out")
    opens(folder / "out")


def test_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "merge_and_unload" in refusal(tmp_path / "adapter", "is an adapter for a model")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_clone_without_its_large_files(name: str, tmp_path: Path) -> None:
    path = save(tmp_path / "own") / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 90\n")
    with pytest.raises(BadInput, match="pointer of Git LFS") as caught:
        opens(tmp_path / "own")
    assert "git lfs pull" in caught.value.hint


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed = fleet.chainctl("model", "info", "bert-base-uncased", check=False)
    assert failed.returncode == 3
    assert "hf download" in failed.stderr
