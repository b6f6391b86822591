"""Is this the folder of a model?  If not: what it is instead, and the way from there to one.

People give the name of a model on the Hugging Face hub, a quoted `~`, the folder above, an adapter, or a clone without
its large files.  Only names and first bytes are read.
"""

import codecs
import os
import re
from pathlib import Path

from schemas.errors import BadInput, some
from stages.store.foreign import read_document, read_json
from stages.store.regular import open_regular

EXPECTED = "a folder with config.json, tokenizer.json and safetensors weights"
HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
CONFIG_BYTES = 8 * 2**20  # names of 131,072 labels, twice
LFS = b"version https://git-lfs"
TILDE = "write the path without quotes, or use $HOME in place of ~"  # which the shell does not replace inside them
ADAPTER = "adapter_config.json"
FOREIGN = {  # weights that are not read, by the end of their names
    ".onnx": "an ONNX export does not train: get the model that it was exported from",
    ".h5": "these are TensorFlow's weights: get those for PyTorch, or safetensors",
    ".msgpack": "these are Flax's weights: get those for PyTorch, or safetensors",
    ".ckpt": "these are TensorFlow's or Lightning's weights: get the model as safetensors",
    ".pth": "these are not saved by transformers: get the model as safetensors, or save it with save_pretrained()",
    ".pt": "these are not saved by transformers: get the model as safetensors, or save it with save_pretrained()",
}


def check_model_folder(model_dir: Path) -> None:
    """Refuse what is not a folder with a readable `config.json`.  Raises `BadInput`."""
    check_there(model_dir)
    if not model_dir.is_dir():
        importable = model_dir.suffix == ".gguf"
        raise BadInput(
            f"{model_dir} is a file, not a model directory",
            values={"expected": EXPECTED},
            hint=_import_of(model_dir) if importable else f"give its folder: {model_dir.parent}",
        )
    config = model_dir / "config.json"
    if not config.exists():
        refuse_broken_links(model_dir)
        raise _without_config(model_dir)
    refuse_pointer(config)
    read_json(config, at_most=CONFIG_BYTES)
    if not _is_plain_utf8(config):
        raise BadInput(
            f"{config} is not UTF-8 without a byte order mark, as transformers reads it",
            values={"expected": "UTF-8", "found": "another encoding, or a mark before the first character"},
            hint='save it as "UTF-8", not as "UTF-8 with BOM" or "Unicode"',
        )


def check_there(path: Path) -> None:
    """Refuse a path that does not exist; a name on the hub and a `~` are told apart.  Raises `BadInput`."""
    if path.exists():
        return
    fact, hint = f"{path} is not a model directory: it does not exist", "check the path"
    if str(path).startswith("~"):
        fact = f"{path} does not exist: the shell does not replace ~ inside quotes"
        hint = TILDE
    elif HUB_ID.fullmatch(str(path)) and (len(path.parts) == 1 or not path.parent.exists()):
        fact += " here, and models of the Hugging Face hub are not fetched"
        hint += f"; to fetch a model of that name from the hub: hf download {path} --local-dir {path}"
    else:
        hint += "; 'chainctl assets get minilm' fetches a small model"
    raise BadInput(fact, values={"expected": EXPECTED}, hint=hint)


def without_weights(model_dir: Path) -> BadInput:
    """The error for a model directory without `model.safetensors` or its index, by what it holds instead.

    Raises `BadInput` itself where they are links that lead nowhere.
    """
    refuse_broken_links(model_dir)
    names = sorted(path.name for path in model_dir.iterdir())
    shards = [(name, match) for name in names if (match := SHARD.fullmatch(name))]
    if shards:
        return BadInput(
            f"{model_dir} has shards of weights, but not their index",
            values={
                "missing": "model.safetensors.index.json",
                "found": f"{len(shards)} of {int(shards[0][1][1])} shards",
            },
            hint="copy model.safetensors.index.json too: it lies beside the shards where they came from",
        )
    if ADAPTER in names:
        return _an_adapter(model_dir)
    return BadInput(
        f"{model_dir} holds no safetensors weights",
        values={
            "expected": "model.safetensors or model.safetensors.index.json",
            "found": some(names, most=6) or "an empty folder",
        },
        hint=_way_out(model_dir, names),
    )


def _way_out(model_dir: Path, names: list[str]) -> str:
    files = [model_dir / name for name in names if name.endswith(".gguf")]
    if "pytorch_model.bin" in names or "pytorch_model.bin.index.json" in names:
        return _import_of(model_dir)
    if files:
        return _import_of(files[0])
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return f"if {others[0]} is the whole model as transformers saves it, rename it to model.safetensors"
    ends = [end for end in FOREIGN if any(name.endswith(end) for name in names)]
    return FOREIGN[ends[0]] if ends else "copy the weights too: model.safetensors, or its shards and their index"


def refuse_pointer(path: Path) -> None:
    """Refuse a file that a clone without Git LFS has in place of a large one.  Raises `BadInput`."""
    with os.fdopen(open_regular(path, follow_links=True), "rb") as file:
        if file.read(len(LFS)) != LFS:
            return
    raise BadInput(
        f"{path} is a pointer of Git LFS, not the file itself",
        values={"file has": f"{path.stat().st_size} bytes"},
        hint="in the clone: git lfs install && git lfs pull",
    )


def refuse_broken_links(model_dir: Path) -> None:
    """Refuse what is left of a snapshot of the hub's cache that was copied without what it links to.

    Raises `BadInput`.
    """
    broken = sorted(path.name for path in model_dir.iterdir() if path.is_symlink() and not path.exists())
    if broken:
        raise BadInput(
            f"{model_dir / broken[0]} is a link to a file that is not there",
            values={"broken links": some(broken, most=6)},
            hint="copy the model again with the files that it links to: cp -rL FROM TO, or rsync -L",
        )


def _is_plain_utf8(path: Path) -> bool:
    data = read_document(path, at_most=CONFIG_BYTES)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return not data.startswith(codecs.BOM_UTF8)


def _without_config(model_dir: Path) -> BadInput:
    if (model_dir / ADAPTER).is_file():
        return _an_adapter(model_dir)
    files = sorted(model_dir.glob("*.gguf"))
    if files:
        return BadInput(
            f"{model_dir} is not a model directory: it holds GGUF files",
            values={"expected": EXPECTED, "found": some([file.name for file in files], most=4)},
            hint=_import_of(files[0]),
        )
    below = sorted(path.parent for depth in ("*", "snapshots/*") for path in model_dir.glob(f"{depth}/config.json"))
    if below:
        return BadInput(
            f"{model_dir} is not a model directory: config.json is in a folder below",
            values={"expected": EXPECTED, "found": some([str(path) for path in below], most=4)},
            hint=f"give {below[0]}",
        )
    names = sorted(path.name for path in model_dir.iterdir())
    return BadInput(
        f"{model_dir} is not a model directory",
        values={"expected": EXPECTED, "found": some(names, most=6) or "an empty folder"},
        hint="copy config.json and the tokenizer's files too; 'chainctl assets get minilm' fetches a small model",
    )


def _an_adapter(model_dir: Path) -> BadInput:
    return BadInput(
        f"{model_dir} is an adapter for a model, not a model",
        values={"expected": EXPECTED, "found": ADAPTER},
        hint="merge it into its model: PeftModel.from_pretrained(MODEL, DIR).merge_and_unload().save_pretrained(OUT)",
    )


def _import_of(path: Path) -> str:
    return f"'chainctl model import {path} --out DIR' converts it"
