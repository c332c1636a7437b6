"""The axes of a patcher: boxes, anchors, geometry, sampler, window.  Pure numpy, no I/O."""
