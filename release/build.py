"""The sdist of a commit and the wheel of that sdist: the same bytes whenever and wherever they are built."""

import gzip
import io
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from tempfile import TemporaryDirectory

from release.shell import ROOT, Failed, run


def build_release(out: Path) -> tuple[Path, Path]:
    """Build HEAD twice, in two folders; the sdist and the wheel, in `out`.  Raises `Failed` where the builds differ."""
    first, second = build_once(out), build_twin(out)
    for one, other in zip(first, second, strict=True):
        if one.read_bytes() != other:
            raise Failed(f"two builds of {one.name} differ")
    return first


def build_twin(out: Path) -> list[bytes]:
    """The files of another build, made in another folder."""
    with TemporaryDirectory(prefix="chainctl-", dir=out.parent) as folder:
        return [path.read_bytes() for path in build_once(Path(folder))]


def build_once(out: Path) -> tuple[Path, Path]:
    """The sdist of HEAD and the wheel of that sdist, dated as the commit is."""
    epoch = int(run("git", "log", "-1", "--format=%ct"))
    with TemporaryDirectory(prefix="chainctl-") as folder:
        source = Path(folder) / "source"
        source.mkdir()
        run("git", "archive", "--output", f"{folder}/source.tar", "HEAD")
        run("tar", "-x", "-f", f"{folder}/source.tar", "-C", source)
        build(source, "--sdist", out, epoch)
        sdist = only(out, "*.tar.gz")
        normalize_sdist(sdist, epoch)
        run("tar", "-x", "-f", sdist, "-C", folder)
        build(Path(folder) / sdist.name.removesuffix(".tar.gz"), "--wheel", out, epoch)
    return sdist, only(out, "*.whl")


def build(source: Path, kind: str, out: Path, epoch: int) -> None:
    """`python -m build` with the backend that is installed here."""
    command = (sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", out, source)
    run(*command, extra={"SOURCE_DATE_EPOCH": str(epoch)})


def only(folder: Path, pattern: str) -> Path:
    """The one file of that name.  Raises `Failed` if there are more or none."""
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise Failed(f"{folder} holds {len(found)} files {pattern}, expected 1")
    return found[0]


def normalize_sdist(path: Path, epoch: int) -> None:
    """Give all members one date and no owner: setuptools dates what it generates by the clock, and gzip too."""
    packed = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda one: one.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    path.write_bytes(gzip.compress(packed.getvalue(), mtime=epoch))


def sdist_names(sdist: Path) -> set[str]:
    """The files of an sdist that are not generated, relative to its root."""
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    return {name for name in names if name not in ("PKG-INFO", "setup.cfg") and ".egg-info/" not in name}


def wheel_metadata(wheel: Path) -> Message:
    """The METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return HeaderParser().parsestr(archive.read(name).decode())


def committed_names() -> set[str]:
    """The files of HEAD."""
    return set(run("git", "ls-tree", "-r", "--name-only", "-z", "HEAD", cwd=ROOT).split("\0")) - {""}
