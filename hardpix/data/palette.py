"""Colours for classes that have none of their own."""

from __future__ import annotations


def voc_palette(classes: int) -> tuple[tuple[int, int, int], ...]:
    """The PASCAL VOC colours of indices 1.. (0, black, is left to void): the index's bits, spread over RGB."""
    return tuple(_voc_colour(index) for index in range(1, classes + 1))


def _voc_colour(index: int) -> tuple[int, int, int]:
    colour = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            colour[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return colour[0], colour[1], colour[2]
