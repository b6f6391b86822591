"""A CI runner in thirty lines: each job gets an empty workspace with only the artifacts that it needs."""

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path


def main(pipeline: Path, work: Path) -> None:
    """Run the jobs of `pipeline` in order, and keep the artifacts that they make in `work/artifacts`."""
    published = work / "artifacts"
    shutil.rmtree(published, ignore_errors=True)
    published.mkdir(parents=True)
    for job in tomllib.loads(pipeline.read_text())["job"]:
        print(f"--- {job['name']}", flush=True)
        with tempfile.TemporaryDirectory(prefix="job-", dir=work) as folder:
            workspace = Path(folder)
            for name in job.get("needs", []):
                shutil.copytree(published / name, workspace / name)
            done = subprocess.run(["bash", "-euc", job["run"]], cwd=workspace, check=False)
            if done.returncode:
                sys.exit(f"job {job['name']} failed with exit code {done.returncode}")
            for name in job["makes"]:
                shutil.copytree(workspace / name, published / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
