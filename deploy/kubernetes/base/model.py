"""The operator of the example: what is done to a patch."""

import numpy as np


def ndvi(patch: np.ndarray) -> np.ndarray:
    """Vegetation index of a patch (bands, y, x): red first, near infrared second."""
    red, nir = patch[0].astype("float64"), patch[1].astype("float64")
    return (nir - red) / np.maximum(nir + red, 1e-6)
