"""Running plans, in rooms of which each knows only those below it.

::

    api          what users call
    check/       verify and doctor: what is stored, recomputed, compared, mended
    runs/        one run from its beginning to its report; jobs, retries, schedulers
    driving/     the driver and its workers; a first pass on a cluster; the compiled graph
    attempt/     one attempt at one super-tile, or leaf: policy, kernel, task, what it tells
    target/      the target before the first task, while it is worked on, and as found again
"""
