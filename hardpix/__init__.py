"""hardpix: fair, repeatable comparisons of hard-pixel methods in semantic segmentation."""

__version__ = "0.1.0"
