"""Where temporary files go: beside the output, but never unasked to a stick, and memory counts as memory."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import UsageProblem
from stages.process import scratch
from stages.process.scratch import Medium, choose, medium_of_mount, mount_of, read_mounts, scratch_folder

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
30 27 0:27 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=24684084k
31 27 0:28 / /tmp rw - tmpfs tmpfs rw
40 27 8:17 / /media/anna/blue\040stick rw,nosuid shared:9 master:2 - vfat /dev/sdb1 rw,uid=1000
41 27 8:33 / /media/anna/big rw - ext4 /dev/sdc1 rw
42 27 253:1 / /media/anna/secret rw - ext4 /dev/mapper/luks rw
43 27 0:51 / /mnt/office rw - nfs4 server:/office rw
44 27 0:52 / /mnt/far rw - fuse.sshfs anna@server: rw
45 27 8:49 / /mnt/card rw - ext4 /dev/sdd1 rw
46 27 8:2 /srv /mnt/over rw - ext4 /dev/sda2 rw
47 46 0:60 / /mnt/over rw - ramfs none rw
"""


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    """/sys/dev/block of a machine: a disk, a USB disk, an encrypted one on USB, a card."""
    devices, folder = tmp_path / "devices", tmp_path / "block"
    folder.mkdir()
    for number, place, removable in (
        ("8:2", "pci0/ata1/block/sda/sda2", "0"),
        ("8:33", "pci0/usb2/2-1/block/sdc/sdc1", "0"),
        ("8:49", "pci0/mmc/block/sdd/sdd1", "1"),
        ("253:1", "virtual/block/dm-1", "0"),
    ):
        device = devices / place
        device.mkdir(parents=True)
        (device if "dm-1" in place else device.parent).joinpath("removable").write_text(f"{removable}\n")
        (folder / number).symlink_to(device)
    slaves = devices / "virtual/block/dm-1/slaves"
    slaves.mkdir()
    (slaves / "sdc1").symlink_to(devices / "pci0/usb2/2-1/block/sdc/sdc1")
    return folder


@pytest.mark.parametrize(
    ("folder", "medium"),
    [
        ("/home/anna/run", "disk"),
        ("/", "disk"),
        ("/dev/shm/run", "memory"),
        ("/tmp", "memory"),
        ("/tmpfiles", "disk"),
        ("/media/anna/blue stick/updates", "removable"),
        ("/media/anna/big", "removable"),
        ("/media/anna/secret", "removable"),
        ("/media/anna", "disk"),
        ("/mnt/office/run", "network"),
        ("/mnt/far", "network"),
        ("/mnt/card/a/b", "removable"),
        ("/mnt/over/run", "memory"),  # mounted over another
    ],
)
def test_a_folder_is_on_the_medium_of_its_mount(folder: str, medium: Medium, blocks: Path) -> None:
    mount = mount_of(Path(folder), read_mounts(MOUNTS))
    assert mount is not None
    assert medium_of_mount(mount, blocks) == medium


def test_lines_that_say_nothing_are_passed_over() -> None:
    assert read_mounts("") == []
    assert read_mounts("\nnonsense\n1 2 3:4 / /x rw\n") == []
    assert mount_of(Path("/home"), []) is None


def media(**of: Medium) -> Callable[[Path], Medium]:
    return lambda folder: of[folder.name]


@pytest.mark.parametrize(
    ("beside", "expected"),
    [("disk", "out"), ("memory", "out"), ("removable", "other"), ("network", "other")],
)
def test_only_a_stick_and_a_network_send_temporary_files_elsewhere(
    beside: Medium, expected: str, tmp_path: Path
) -> None:
    """What is in memory stays there: whoever put it there may not want it on a disk."""
    out, other = tmp_path / "out", tmp_path / "other"
    assert choose(out, [other], media(out=beside, other="disk")).name == expected


def test_the_first_disk_that_can_be_written_is_taken_and_the_outputs_folder_where_there_is_none(tmp_path: Path) -> None:
    out, ram, stick, locked, free = (tmp_path / name for name in ("out", "ram", "stick", "locked", "free"))
    locked.touch()  # not a folder
    medium = media(out="removable", ram="memory", stick="removable", locked="disk", free="disk")
    assert choose(out, [ram, stick, locked, free], medium) == free
    assert choose(out, [ram, stick, locked], medium) == out


def test_the_places_are_the_cache_then_the_users_cache_then_temporary_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAINCTL_CACHE", str(tmp_path / "home"))
    monkeypatch.setattr("stages.process.scratch.tempfile.gettempdir", lambda: str(tmp_path / "temp"))
    seen: list[Path] = []

    def medium(folder: Path) -> Medium:
        seen.append(folder)
        return "removable"

    monkeypatch.setattr(scratch, "medium_of", medium)
    assert scratch_folder(None, beside=tmp_path / "out", cache=tmp_path / "cache") == tmp_path / "out"
    names = ("out", "cache", "home", "temp")
    assert seen == [*(tmp_path / name for name in names), Path("/var/tmp")]


def test_a_folder_that_was_asked_for_is_taken_whatever_it_is_on(tmp_path: Path) -> None:
    assert scratch_folder(Path("/dev/shm/x"), beside=tmp_path, cache=None) == Path("/dev/shm/x")
    (tmp_path / "file").touch()
    with pytest.raises(UsageProblem, match="not a directory"):
        scratch_folder(tmp_path / "file", beside=tmp_path, cache=None)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")
def test_a_stick_may_have_a_name_in_any_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_bytes(b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n36 22 8:17 / /media/F\xf6to rw - vfat /dev/sdb1 rw\n")
    monkeypatch.setattr(scratch, "MOUNTS", mounts)
    assert scratch.medium_of(Path(os.fsdecode(b"/media/F\xf6to/updates"))) == "removable"


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageProblem, match="no temporary files can be put into"):
        scratch_folder(tmp_path / "file" / "scratch", beside=tmp_path, cache=None)


def test_this_machine(tmp_path: Path) -> None:
    """As its kernel says: /dev/shm is a tmpfs on Linux, whether or not a folder in it exists yet."""
    for folder in (Path("/dev/shm"), Path("/dev/shm/chainctl-that-is-not-there/x")):
        assert scratch.medium_of(folder) == "memory"
    link = tmp_path / "link"
    link.symlink_to("/dev/shm")
    assert scratch.medium_of(link / "x") == "memory"
    assert scratch_folder(None, beside=Path("/dev/shm"), cache=None) == Path("/dev/shm")
