"""Running plans: the kernel of one super-tile, the graph, the runners.  The only importer of Dask."""
