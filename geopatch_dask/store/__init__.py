"""Where results live: locations, Zarr targets, georeference, records of what is done."""
