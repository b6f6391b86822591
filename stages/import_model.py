"""Convert a published model into the directory that the stages stream.

Reads:  a GGUF file, or a folder with safetensors or with PyTorch's `.bin` files.
Writes: a model directory: config.json, tokenizer.json and its companions, safetensors weights.  8-bit floats become
        plain weights; what else is quantized is refused.

Folders are converted tensor by tensor, with at most one shard mapped.  The result is opened as the stages open it and
must hold every parameter of the architecture.  No code of the model is run, and no socket is opened.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from transformers import AutoTokenizer, PreTrainedModel

from schemas.errors import BadInput, some
from schemas.refs import ModelFingerprint
from stages.data.model_folder import check_model_folder, check_there, without_weights
from stages.data.template import chat_template
from stages.data.tokenizer import ModelTokenizer
from stages.model.architecture import load_config
from stages.model.claims import check_gguf_claims
from stages.process import intent
from stages.process.measure import mebibytes
from stages.process.progress import Progress
from stages.store.debris import without_debris
from stages.store.files import complete_directory
from stages.store.foreign import check_document, read_document, read_json
from stages.store.output import check_output, refuse_overlap
from stages.streaming.whole import check_whole, published_model
from stages.weights.files import FLOAT_DTYPES, WeightFiles, checkpoint_files, has_weights
from stages.weights.importing.fp8 import plain_entries
from stages.weights.importing.gguf import GgufFile, entries_of
from stages.weights.importing.pickles import pickle_files, read_pickle
from stages.weights.quantized import block_size, is_fp8, name_of, refuse_quantized
from stages.weights.writer import Entry, entry_on_disk, group, shard_name, write_index, write_shard

Kind = Literal["gguf", "bin", "safetensors"]
Shard = Callable[[], dict[str, Entry]]  # reads its tensors by name
TOKENIZER = "tokenizer.json"
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
VOCABULARIES = (".txt", ".model", ".vocab", ".tiktoken", ".spm", ".bpe")  # how their files end


class Header(NamedTuple):
    """What is known of a tensor before it is read."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Imported:
    """The result of an import.  `left_out` names tied parameters that the source stores twice."""

    kind: Kind
    fingerprint: ModelFingerprint
    tensors: int
    weight_bytes: int
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def run(
    source: Path, out: Path, *, dtype: str | None = None, force: bool = False, progress: Progress = lambda *_: None
) -> Imported:
    """Import `source` to `out`.  `dtype`: how floating-point weights are stored; None: unchanged, GGUF as float32.

    Raises `BadInput` if `source` is not a complete model, `NotTrusted` for a pickle that holds more than weights,
    `DoesNotFit` if a GGUF file needs more memory than there is, `UsageProblem` if something else is at `out`.
    """
    refuse_overlap(out, source)
    kind, path = find_source(source)
    stored = FLOAT_DTYPES[dtype] if dtype else None
    weight_bytes = sum(file.stat().st_size for file in _weights(kind, path))
    needed_bytes = weight_bytes // 2 if dtype else weight_bytes  # float32 may be halved
    check_output(out, force=force, needed_bytes=needed_bytes, or_holding="config.json")
    intent.will_read(path, "model")
    intent.will_write(out, needed_bytes)
    with complete_directory(out, force=force, or_same=True) as directory:
        if kind == "gguf":
            file = GgufFile.open(path)
            notes = file.notes()
            shards = _unpack(file, directory, stored or torch.float32)
        else:
            shards, dequantized = _dequantized(path, _open_folder(path, kind), stored)
            notes = [f"8-bit floats dequantized to {name_of(dequantized)}"] if dequantized else []
            _copy_documents(path, directory, stored or dequantized)
        left_out = _doubled(published_model(directory), shards)
        count, size = _write(directory, shards, stored, left_out, progress)
        fingerprint = check_whole(directory)
    return Imported(kind, fingerprint, count, size, tuple(sorted(left_out)), tuple(notes))


def lines(imported: Imported) -> list[str]:
    """A summary for people, line by line."""
    one = imported
    tied = [f"tied, so stored once: {', '.join(one.left_out)}"] if one.left_out else []
    return [
        f"{one.kind}: {one.tensors} tensors, {mebibytes(one.weight_bytes)}, nothing missing",
        *tied,
        *one.notes,
        f"fingerprint {one.fingerprint.digest}",
    ]


def find_source(source: Path) -> tuple[Kind, Path]:
    """The kind and path of a source; in a folder safetensors come before `.bin` before GGUF.  Raises `BadInput`."""
    check_there(source)
    if source.is_file() and source.suffix not in (".safetensors", ".bin"):
        return "gguf", source
    if (source / "config.json").is_file():
        if has_weights(source):
            return "safetensors", source
        if pickle_files(source):
            return "bin", source
    files = sorted(without_debris(source.glob("*.gguf")))
    if len(files) == 1:
        return "gguf", files[0]
    if not files:
        check_model_folder(source)
        raise without_weights(source)
    raise BadInput(
        f"{source} is not a model that can be imported",
        values={
            "expected": "a GGUF file, or a folder with config.json and safetensors or .bin weights",
            "found": f"{len(files)} GGUF files: {some([file.name for file in files], most=4)}",
        },
        hint="name one of the files",
    )


def _weights(kind: Kind, path: Path) -> list[Path]:
    return [path] if kind == "gguf" else pickle_files(path) if kind == "bin" else checkpoint_files(path)


def _unpack(file: GgufFile, directory: Path, dtype: torch.dtype) -> list[Shard]:
    """Write a GGUF file's configuration and tokenizer to `directory`; its weights, in memory."""
    check_gguf_claims(file.path, file.values)
    model = file.read_model(dtype)
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    # `general.name`, quantization and library version are not part of the model, but would enter its fingerprint.
    dropped = ("_model_name_or_path", "quantization_config", "transformers_version")
    content = {name: value for name, value in json.loads(config.to_json_string()).items() if name not in dropped}
    (directory / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    file.save_tokenizer(directory)
    return [_constant({entry.name: entry for entry in shard}) for shard in group(entries_of(model))]


def _constant(entries: dict[str, Entry]) -> Shard:
    return lambda: entries


def _open_folder(folder: Path, kind: Kind) -> list[Shard]:
    """The shards of a folder; each is read when it is called."""
    if kind == "bin":
        return [_pickled(file) for file in pickle_files(folder)]
    checkpoint = WeightFiles.open(folder)
    return [_on_disk(checkpoint, file) for file in checkpoint_files(folder)]


def _dequantized(
    folder: Path, shards: Sequence[Shard], dtype: torch.dtype | None
) -> tuple[list[Shard], torch.dtype | None]:
    """Shards of plain weights, and the dtype that 8-bit floats become; None where there are none.

    Raises `BadInput` for other quantized weights.
    """
    config = load_config(folder)
    parts = [{name: Header(name, entry.dtype, entry.shape) for name, entry in shard().items()} for shard in shards]
    headers = {name: header for part in parts for name, header in part.items()}
    if not is_fp8(headers):
        refuse_quantized(config, headers.values(), folder)
        return list(shards), None
    chosen = dtype or next((one for one in FLOAT_DTYPES.values() if one == config.dtype), torch.bfloat16)
    everything = {name: entry for shard in shards for name, entry in shard().items()}
    plain = plain_entries(everything, chosen, block_size(config))
    kept = [{name: plain[name] for name in part if name in plain} for part in parts]
    return [_constant(part) for part in kept if part], chosen


def _pickled(file: Path) -> Shard:
    return lambda: read_pickle(file)


def _on_disk(checkpoint: WeightFiles, file: Path) -> Shard:
    mine = [tensor for tensor in checkpoint.tensors.values() if tensor.file == file]
    return lambda: {tensor.name: entry_on_disk(checkpoint, tensor) for tensor in mine}


def _copy_documents(folder: Path, directory: Path, dtype: torch.dtype | None) -> None:
    """Copy configuration and tokenizer; if there is no fast tokenizer, transformers makes one.

    Raises `BadInput` where one of them cannot be read.
    """
    (directory / "config.json").write_bytes(read_document(folder / "config.json"))
    if dtype:
        _set_dtype(directory / "config.json", name_of(dtype))
    if not (folder / TOKENIZER).is_file():
        _convert_tokenizer(folder, directory)
    for name in COPIED:
        if (folder / name).exists() and not (directory / name).exists():
            (directory / name).write_bytes(read_document(folder / name))
    ModelTokenizer.load(directory)
    chat_template(directory)


def _set_dtype(path: Path, dtype: str) -> None:
    content = read_json(path)
    content.pop("torch_dtype", None)  # the name in older configurations
    content.pop("quantization_config", None)
    path.write_text(json.dumps(content | {"dtype": dtype}, indent=2) + "\n")


def _convert_tokenizer(folder: Path, directory: Path) -> None:
    """Make a fast tokenizer from tokenizer.model or vocabulary files.  Raises `BadInput`."""
    for path in folder.iterdir():
        if path.suffix in VOCABULARIES or path.name in (*COPIED, "vocab.json"):  # what the library opens itself
            check_document(path)
    reason = "no vocabulary was found"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if tokenizer.is_fast and len(tokenizer) > len(tokenizer.all_special_tokens):
            tokenizer.save_pretrained(directory)
    except Exception as error:  # each vocabulary library raises its own
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    if not (directory / TOKENIZER).is_file():
        raise BadInput(
            f"{folder} has no tokenizer.json, and transformers cannot create one",
            values={"expected": "tokenizer.json, or tokenizer.model, vocab.txt or the like", "reason": reason},
            hint="copy the tokenizer's files too; for tokenizer.model: pip install sentencepiece protobuf",
        )


def _doubled(model: PreTrainedModel, shards: Sequence[Shard]) -> set[str]:
    """Tied parameters that are stored twice, with equal values."""
    tied = {target: source for target, source in model.all_tied_weights_keys.items() if target != source}
    names = {name: shard for shard in shards for name in shard()} if tied else {}
    there = {target: source for target, source in tied.items() if target in names and source in names}
    return {target for target, source in there.items() if names[target]()[target].equals(names[source]()[source])}


def _write(
    directory: Path, shards: Sequence[Shard], dtype: torch.dtype | None, left_out: set[str], progress: Progress
) -> tuple[int, int]:
    """Write shard by shard; the number of tensors and of bytes."""
    places: dict[str, str] = {}
    size = 0
    for index, shard in enumerate(shards):
        progress("shards", index, len(shards))
        entries = [entry.as_dtype(dtype) for name, entry in sorted(shard().items()) if name not in left_out]
        write_shard(directory / shard_name(index, len(shards)), entries)
        for entry in entries:
            _place_once(places, entry.name, shard_name(index, len(shards)))
        size += sum(entry.size for entry in entries)
    progress("shards", len(shards), len(shards))
    write_index(directory, places, size)
    return len(places), size


def _place_once(places: dict[str, str], name: str, file: str) -> None:
    if name in places:
        raise BadInput(
            f"tensor {name} is in two files of the model",
            values={"first": places[name], "second": file},
            hint="copy the model again",
        )
    places[name] = file
