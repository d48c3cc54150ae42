"""still-ray: imitate, explore and self-improve (STILL-2, arXiv 2412.09413) as a Ray system."""

__version__ = "0.1.0"
