"""Mixed image sizes for Composer and timm."""

__version__ = "0.1.0"
