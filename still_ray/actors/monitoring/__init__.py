"""What a person sees of a run: metrics, the run's monitor, the status actor, and one line for each failure."""
