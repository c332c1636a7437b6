"""Running plans: kernel of one super-tile, graph, runners.  The only importer of Dask."""
