"""The target of a run: made or recognised, looked after, and its plan built again."""
