"""Stage stats@<dataset>: what a dataset looks like, in numbers and in pictures.

Reads   data/raw/<dataset>/
Writes  data/stats/<dataset>.json: mean and std per channel (0-1 scale), images per class
        data/stats/<dataset>_4x5.png, data/stats/<dataset>_8x5.png: grids of sample training images
"""

from __future__ import annotations

from stages.datasets import arrays, statistics
from stages.program.command import command
from stages.program.files import write_bytes, write_json
from stages.show.grids import sample_grid

GRIDS = ((4, 5), (8, 5))


def main(dataset: str) -> None:
    """Compute and show the statistics of dataset `dataset`."""
    images = arrays.load(dataset)
    computed = statistics.compute(images)
    for rows, columns in GRIDS:
        picture = sample_grid(images.train, images.classes, rows, columns)
        write_bytes(statistics.ROOT / f"{dataset}_{rows}x{columns}.png", picture)
    write_json(statistics.ROOT / f"{dataset}.json", computed.model_dump())
    for channel, (mean, std) in enumerate(zip(computed.mean, computed.std, strict=True)):
        print(f"{dataset}, channel {channel}: mean {mean:.6f}, std {std:.6f}")


if __name__ == "__main__":
    command(main, "DATASET", __doc__)
