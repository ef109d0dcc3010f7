"""Whether a dataset's archives are still what params.yaml says, wherever they come from.

python -m stages.datasets.upstream DATASET     print the checksum of each archive; fail if one has become another

An archive that no address gives just now is no news: what was made of it stays.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from stages.datasets.fetch import ChangedError, fetch
from stages.datasets.sources import source_module
from stages.program.command import command
from stages.program.options import UserError, blame, read_block


def main(dataset: str) -> None:
    """Hold the archives of `dataset` against their checksums.

    Raises:
        UserError: one has another checksum.
    """
    where = f"datasets.{dataset}"
    module, source = source_module(read_block("datasets", dataset), where)
    with blame(where), tempfile.TemporaryDirectory() as folder:
        for archive in module.archives(source):
            try:
                with redirect_stdout(sys.stderr):  # from where it came is no part of what is printed
                    fetch(archive, Path(folder))
            except ChangedError:
                raise
            except UserError as error:
                print(f"not checked: {error}", file=sys.stderr)
            print(f"{archive.name} {archive.algorithm} {archive.digest}")
        module.verify(source)


if __name__ == "__main__":
    command(main, "DATASET", __doc__)
