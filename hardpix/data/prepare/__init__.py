"""Recipes that turn the published files of a data set into what its reader reads."""

from __future__ import annotations

from importlib import import_module

from hardpix.data.prepare.recipe import Recipe
from hardpix.types import ConfigError

# Name on the command line -> the class, imported when it is asked for.
RECIPES: dict[str, str] = {
    "ade20k": "hardpix.data.prepare.photos.ADE20KRecipe",
    "camvid": "hardpix.data.prepare.street_scenes.CamVidRecipe",
    "cifar100": "hardpix.data.prepare.photos.CIFAR100Recipe",
    "cityscapes": "hardpix.data.prepare.street_scenes.CityscapesRecipe",
    "gtav": "hardpix.data.prepare.street_scenes.GTAVRecipe",
    "nyuv2": "hardpix.data.prepare.nyuv2.NYUv2Recipe",
    "nyuv2_raw": "hardpix.data.prepare.nyuv2.NYUv2RawRecipe",
    "sunrgbd": "hardpix.data.prepare.sunrgbd.SUNRGBDRecipe",
    "isaid": "hardpix.data.prepare.photos.ISAIDRecipe",
    "total_text": "hardpix.data.prepare.photos.TotalTextRecipe",
}


def find_recipe(name: str) -> type[Recipe]:
    """The recipe of that name; ``ConfigError`` that names them all where there is none."""
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}; the recipes are {', '.join(sorted(RECIPES))}")
    module, _, recipe = RECIPES[name].rpartition(".")
    return getattr(import_module(module), recipe)
