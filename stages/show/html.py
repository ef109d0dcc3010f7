"""What all pages of labdag are made with: jinja's environment, and pictures that lie inside a page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PIXELS_PER_INCH = 110  # of a page, not of a picture: a higher `dpi` makes pictures sharper, not larger
METRES_PER_INCH = 0.0254


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Fill in a template of this folder: HTML without scripts and without pictures in other files.

    Values are escaped. Templates have the filters `percent` (of a fraction of 1), `grouped` (of a whole number),
    `signed` (of a difference in points), `data_uri` and `size` (of a PNG).

    Args:
        template: file name, such as `report.html`.
        values: by the names that the template uses; a name that is missing is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent="{:.2%}".format, grouped="{:,}".format, signed=signed, data_uri=_data_uri, size=_size
    )
    return environment.get_template(template).render(values)


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, a minus as long as the plus; without one where it rounds to 0."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG on the page, in its pixels, by the resolution that the PNG states."""
    resolution = png.index(b"pHYs") + 4
    inch = int.from_bytes(png[resolution : resolution + 4], "big") * METRES_PER_INCH
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    return round(width / inch * PIXELS_PER_INCH), round(height / inch * PIXELS_PER_INCH)
