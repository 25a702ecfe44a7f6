"""The typeface of pictures: matplotlib's, which has the letters of most languages, unlike Pillow's own."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import ImageFont


@lru_cache(maxsize=8)
def typeface(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, ``size`` pixels high."""
    from matplotlib import get_data_path  # not needed by those who draw no text

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
