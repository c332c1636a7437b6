"""``python -m geopatch_dask`` is ``geopatch``."""

import sys

from geopatch_dask.cli import main

if __name__ == "__main__":  # workers import this module again
    sys.exit(main())
