"""Recipes that turn the published files of a data set into what its reader reads."""

from __future__ import annotations

from importlib import import_module

from hardpix.data.prepare.recipe import Recipe
from hardpix.types import ConfigError

# Name on the command line -> module of this package and class.
RECIPES: dict[str, tuple[str, str]] = {
    "ade20k": ("ade20k", "ADE20KRecipe"),
    "camvid": ("camvid", "CamVidRecipe"),
    "cifar100": ("cifar100", "CIFAR100Recipe"),
    "cityscapes": ("cityscapes", "CityscapesRecipe"),
    "gtav": ("gtav", "GTAVRecipe"),
    "nyuv2": ("nyuv2", "NYUv2Recipe"),
    "nyuv2_raw": ("nyuv2_raw", "NYUv2RawRecipe"),
    "sunrgbd": ("sunrgbd", "SUNRGBDRecipe"),
    "isaid": ("isaid", "ISAIDRecipe"),
    "total_text": ("total_text", "TotalTextRecipe"),
}


def find_recipe(name: str) -> type[Recipe]:
    """The recipe of that name; ``ConfigError`` that names them all where there is none."""
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}; the recipes are {', '.join(sorted(RECIPES))}")
    module, recipe = RECIPES[name]
    return getattr(import_module(f"hardpix.data.prepare.{module}"), recipe)
