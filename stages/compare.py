"""Stage compare@<group>: labs side by side, in a table, in pictures and on one page.

Reads   params.yaml: compare.<group>
        per lab of it, results/<lab>/: model.json, history.csv, metrics.json
Writes  results/compare/<group>/table.csv: a row a lab with parameters, mult_adds (of one image), epochs,
        best_accuracy, best_epoch, final_accuracy and test_loss
        results/compare/<group>/plots/: curves and accuracy.png; per_class.png where the labs share classes
        results/compare/<group>/report.html: one page with everything inside
"""

from __future__ import annotations

from pathlib import Path

from stages.learning.group import Group
from stages.program.command import command
from stages.program.files import new_folder, write_bytes, write_text
from stages.program.options import PARAMS_FILE, UserError, check, read_block
from stages.show import comparison
from stages.show.grids import png

DPI = 110


def main(group: str, *declared: str) -> None:
    """Compare the labs of group `group`.

    Args:
        group: its name.
        declared: labs whose results dvc.yaml declares as inputs; the same one may come twice. None are no check.

    Raises:
        UserError: they are not those of the group, so that DVC would not see when one of them changes.
    """
    section = check(Group, read_block("compare", group), f"compare.{group}")
    if declared and set(declared) != set(section.labs):
        raise UserError(
            f"{PARAMS_FILE}: compare.{group}.labs are {', '.join(section.labs)}, but dvc.yaml was written for "
            f"{', '.join(dict.fromkeys(declared))}; run `make dag`."
        )
    results = Path("results/compare") / group
    sides = [comparison.load(lab) for lab in section.labs]
    rows = comparison.table(sides)
    drawings = {name: png(figure, DPI) for name, figure in comparison.draw(sides).items()}
    page = comparison.render(group, section, sides, drawings)

    comparison.save_table(rows, results / "table.csv")
    with new_folder(results / "plots") as folder:
        for name, drawing in drawings.items():
            write_bytes(folder / f"{name}.png", drawing)
    write_text(results / "report.html", page)
    _print(rows)
    print(f"{group}: {len(rows)} labs side by side: {results / 'report.html'}")


def _print(rows: list[comparison.Row]) -> None:
    """Print the table: names to the left, numbers to the right."""
    titles = ("lab", "parameters", "mult_adds", "best accuracy", "best epoch", "final accuracy", "test loss")
    cells = [
        (
            row.lab,
            f"{row.parameters:,}",
            f"{row.mult_adds:,}",
            f"{row.best_accuracy:.2%}",
            f"{row.best_epoch} of {row.epochs}",
            f"{row.final_accuracy:.2%}",
            f"{row.test_loss:.4f}",
        )
        for row in rows
    ]
    widths = [max(len(row[column]) for row in (titles, *cells)) for column in range(len(titles))]
    for first, *others in (titles, *cells):
        print("  ".join((first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True)))))


if __name__ == "__main__":
    command(main, "GROUP", __doc__, others="LAB")
