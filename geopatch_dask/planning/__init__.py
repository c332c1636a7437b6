"""What will happen, before anything does: super-tiles, memory, cost, identity.  Pure, no Dask."""
