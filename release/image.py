"""The Dockerfile's steps in a chroot, where no base image can be fetched: `just image-check`.

Each stage is a folder: debootstrap makes the one of the base image (Debian's official images are made by it too), and
a stage that builds on another begins as its copy.  RUN happens in a chroot with the stage's environment and user.  The
last stage is then run as `docker run --read-only --network none --tmpfs /tmp` would: its root is read-only, only
volumes can be written, there is no network, and the user is the image's.

It needs root, debootstrap and the network.  The arguments of the build (`ARG`) are taken from the environment; where
PIP_FIND_LINKS names folders, these are mounted, and the first stands in for the index of torch.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from release.build import only
from release.dockerfile import Stage, Step, read_dockerfile
from release.shell import ROOT, Failed, folder_mib, run, say

BASES = {"debian:bookworm-slim": "bookworm"}
CERTIFICATES = "/mnt/certificates.pem"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

ENTER = r"""
set -eu
root=$1 mode=$2 user=$3 folder=$4 command=$5 mounts=$6
shift 6
mount --bind "$root" "$root"
[ "$mode" = rw ] || mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
[ "$mode" = rw ] || mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
while read -r source target how; do
  mount --bind "$source" "$root$target"
  mount -o "remount,bind,$how" "$root$target"
done < "$mounts"
exec chroot --userspec="$user" "$root" /usr/bin/env -i "$@" \
  /bin/sh -c 'cd "$0" && eval "$1"' "$folder" "$command" < /dev/null
"""


class Mount(NamedTuple):
    """A file or folder of this machine inside a stage."""

    source: Path
    target: str
    mode: str = "ro"


class Image:
    """A stage while it is made: its folder and what has been set."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {"PATH": PATH, "HOME": "/root"}
        self.user, self.folder = "0:0", "/"
        self.entrypoint: list[str] = []
        self.volumes: list[str] = []

    def shell(
        self, command: str, mounts: list[Mount], *, mode: str = "rw", extra: Mapping[str, str] | None = None
    ) -> str:
        """Run a command inside; what it printed.  Raises `Failed`."""
        for mount in mounts if mode == "rw" else ():
            self.make_mount_point(mount)
        listed = self.root.parent / "mounts"
        listed.write_text("".join(f"{one.source} {one.target} {one.mode}\n" for one in mounts))
        environment = [f"{name}={value}" for name, value in (self.environment | dict(extra or {})).items()]
        namespaces = ("--mount", "--pid", *(("--net",) if mode == "ro" else ()))
        enter = ("unshare", *namespaces, "--fork", "/bin/sh", "-c", ENTER, "sh")
        return run(*enter, self.root, mode, self.user, self.folder, command, listed, *environment)

    def make_mount_point(self, mount: Mount) -> None:
        """What a mount covers has to exist."""
        target = self.root / mount.target.lstrip("/")
        if mount.source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif not target.exists():
            target.touch()


def main() -> None:
    """Make the image's folder and run what it is for; exit 1 with the fact where it fails."""
    try:
        if os.getuid() != 0 or shutil.which("debootstrap") is None:
            raise Failed("image-check needs root and debootstrap (apt-get install debootstrap)")
        run(Path(sys.executable).parent / "hadolint", ROOT / "Dockerfile")
        only(ROOT / "dist", "chainctl-*.whl")
        with TemporaryDirectory(prefix="chainctl-image-") as folder:
            print(json.dumps(try_image(make_image(read_dockerfile(ROOT / "Dockerfile"), Path(folder)), Path(folder))))
    except Failed as reason:
        sys.exit(f"error: {reason}")


def make_image(stages: list[Stage], work: Path) -> Image:
    """Carry out all stages; the last one."""
    made: dict[str, Image] = {}
    for number, stage in enumerate(stages):
        image = Image(work / f"stage-{number}" / "root")
        image.root.parent.mkdir()
        say(f"FROM {stage.base}")
        if stage.base in made:
            run("cp", "-a", "--reflink=auto", made[stage.base].root, image.root)
        elif stage.base in BASES:
            run("debootstrap", "--variant=minbase", BASES[stage.base], image.root)
        else:
            raise Failed(f"FROM {stage.base}: known are {', '.join(BASES)} and earlier stages")
        arguments: dict[str, str] = {}
        for step in stage.steps:
            say(f"{step.instruction} {step.value[:100]}")
            carry_out(step, image, arguments, made)
        made[stage.name] = image
    return image


def carry_out(step: Step, image: Image, arguments: dict[str, str], made: Mapping[str, Image]) -> None:
    """One instruction."""
    match step.instruction:
        case "RUN":
            image.shell(step.value, network_mounts() + link_mounts(), extra=arguments | pip_settings())
        case "COPY":
            copy(step, image, made)
        case "ARG":
            defaults = step.pairs(image.environment)
            arguments |= {name: given(name, default) for name, default in defaults.items()}
        case "ENV":
            image.environment |= step.pairs(image.environment | arguments)
        case "USER":
            image.user = step.value
        case "WORKDIR":
            image.folder = step.value
        case "VOLUME":
            image.volumes = step.words()
        case "ENTRYPOINT":
            image.entrypoint = step.words()


def copy(step: Step, image: Image, made: Mapping[str, Image]) -> None:
    """From an earlier stage or the checkout; a target that ends with a slash is a folder."""
    *sources, target = step.value.split()
    place = ROOT
    if sources[0].startswith("--from="):
        place = made[sources.pop(0).removeprefix("--from=")].root
    found = [path for source in sources for path in place.glob(source.lstrip("/"))]
    if not found:
        raise Failed(f"COPY {step.value}: nothing of that name")
    run("cp", "-a", *found, str(image.root / target.lstrip("/")) + ("/" if target.endswith("/") else ""))


def given(name: str, default: str) -> str:
    """A build argument, as `docker build --build-arg NAME` would take it."""
    if name == "TORCH_INDEX" and link_mounts():
        default = link_mounts()[0].source.as_uri()
    return os.environ.get(name, default)


def link_mounts() -> list[Mount]:
    """The folders with wheels that pip was told about."""
    folders = [Path(one) for one in os.environ.get("PIP_FIND_LINKS", "").split() if Path(one).is_dir()]
    return [Mount(one, str(one)) for one in folders]


def network_mounts() -> list[Mount]:
    """How this machine finds hosts and whose certificates pip accepts, as Docker's network would provide."""
    found = [Mount(Path(name).resolve(), name) for name in ("/etc/resolv.conf", "/etc/hosts") if Path(name).exists()]
    return [*found, *(Mount(Path(name).resolve(), CERTIFICATES) for name in [os.environ.get("PIP_CERT")] if name)]


def pip_settings() -> dict[str, str]:
    """Settings of pip and of proxies that this machine needs."""
    prefixes = ("PIP_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    found = {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
    return found | ({"PIP_CERT": CERTIFICATES} if "PIP_CERT" in found else {})


def try_image(image: Image, work: Path) -> dict[str, object]:
    """Run the image as its user, with a read-only root and without a network; what was found.  Raises `Failed`."""
    say("docker run --read-only --network none --tmpfs /tmp")
    volumes = [volume(image, name, work) for name in image.volumes]
    script = image.root / "mnt" / "tryout.py"
    shutil.copy(ROOT / "release" / "tryout.py", script)
    user = image.shell("id -u", volumes, mode="ro").strip()
    home = image.shell('stat -c %a "$CHAINCTL_HOME"', volumes, mode="ro").strip()
    root = image.shell(
        "touch /opt/chainctl/x 2>/dev/null && echo writable || echo read-only", volumes, mode="ro"
    ).strip()
    if (user == "0", home, root) != (False, "700", "read-only"):
        raise Failed(f"user {user}, CHAINCTL_HOME {home}, root {root}: expected not 0, 700, read-only")
    entry = " ".join(image.entrypoint)
    image.shell(f"{entry} --help", volumes, mode="ro")
    image.shell(f"{entry} keys new device-00", volumes, mode="ro")
    found: dict[str, object] = json.loads(image.shell("python /mnt/tryout.py /federation/run", volumes, mode="ro"))
    model = Mount(next(one.source for one in volumes if one.target == "/federation") / "run/model", "/mnt")
    image.shell(f"{entry} doctor --model /mnt", [*volumes, model], mode="ro")
    script.unlink()
    return found | {"MiB": folder_mib(image.root), "of which torch and chainctl": folder_mib(image.root / "opt")}


def volume(image: Image, name: str, work: Path) -> Mount:
    """An anonymous volume: it begins as a copy of what the image holds there, with its owner and mode."""
    place = work / "volumes" / name.strip("/").replace("/", "-")
    place.parent.mkdir(exist_ok=True)
    run("cp", "-a", image.root / name.lstrip("/"), place)
    return Mount(place, name, "rw")


if __name__ == "__main__":
    main()
