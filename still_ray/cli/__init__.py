"""The command line: wires recipe, files, actors and driver together. Importing it loads none of the heavy packages."""

from still_ray.cli.main import main

__all__ = ["main"]
