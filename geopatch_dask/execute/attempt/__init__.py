"""One attempt at one super-tile, or one leaf of a first pass, in the process that computes it."""
