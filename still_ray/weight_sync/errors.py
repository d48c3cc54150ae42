"""The error of this package, apart from its users so that raising it needs no heavy import."""

from still_ray.types import StillRayError


class SyncError(StillRayError):
    """A weight update does not fit the model, or its proof failed."""
