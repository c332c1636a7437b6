"""Clusters by name: this machine, a batch system, Kubernetes, or one that runs already."""
