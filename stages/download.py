"""Stage download@<dataset>: get a dataset's archives, verify them, and keep the images as plain arrays.

Reads   params.yaml: datasets.<dataset>
Writes  data/raw/<dataset>/: {train,test}_images.npy (uint8, N×C×H×W), {train,test}_labels.npy (int64),
        classes.json
"""

from __future__ import annotations

import shutil

from stages.datasets import arrays
from stages.datasets.fetch import fetch
from stages.datasets.sources import source_module
from stages.program.command import command
from stages.program.files import new_folder
from stages.program.options import blame, read_block


def main(dataset: str) -> None:
    """Fetch, verify, decode and keep dataset `dataset`."""
    where = f"datasets.{dataset}"
    module, source = source_module(read_block("datasets", dataset), where)

    with blame(where), new_folder(arrays.ROOT / dataset) as folder:
        archives = folder / "archives"
        archives.mkdir()
        for archive in module.archives(source):
            fetch(archive, archives)
        images = module.read(source, archives)
        arrays.save(images, folder)
        shutil.rmtree(archives)
    shape = "×".join(str(size) for size in images.shape)
    print(
        f"{dataset}: {len(images.train):,} training and {len(images.test):,} test images of {shape}, "
        f"{len(images.classes)} classes"
    )


if __name__ == "__main__":
    command(main, "DATASET", __doc__)
