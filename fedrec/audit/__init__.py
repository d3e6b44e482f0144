"""The audit: attacks on a run's own code path, and what they show beside what the run claims."""
