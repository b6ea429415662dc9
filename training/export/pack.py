"""An artifact becomes `model.tar.gz`, which Grand Challenge extracts to `/opt/ml/model`.

    python -m training pack --model model/ --out model.tar.gz

The same artifact gives the same bytes.
"""

import argparse
from pathlib import Path

from acouslic.errors import AcouslicError
from algorithm.model.artifact import pack_artifact
from algorithm.model.file_hashes import hash_file


def main(arguments: list[str]) -> int:
    """The command `python -m training pack`."""
    parser = argparse.ArgumentParser(prog="acouslic train pack", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the artifact")
    parser.add_argument("--out", type=Path, required=True, help="archive to write")
    options = parser.parse_args(arguments)
    write_archive(options.model, options.out)
    return 0


def refuse_inside(model: Path, path: Path) -> None:
    """Raises AcouslicError for a file in the artifact's own folder, which may hold nothing else."""
    if path.resolve().is_relative_to(model.resolve()):
        raise AcouslicError(
            f"{path} lies in the model's own folder, which holds the artifact alone: name another place"
        )


def write_archive(model: Path, archive: Path) -> None:
    """Pack the artifact in `model`, and say how large the archive is and what its hash is.

    Raises AcouslicError where the artifact is not sound or the archive cannot be written.
    """
    refuse_inside(model, archive)
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        pack_artifact(model, archive)
    except OSError as error:
        raise AcouslicError(f"{archive} could not be written: {error.strerror or error}") from None
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB, sha256 {hash_file(archive)}")
