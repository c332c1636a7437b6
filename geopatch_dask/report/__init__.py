"""What people see of a run: outcomes and their sums, the report, how far a target is."""
