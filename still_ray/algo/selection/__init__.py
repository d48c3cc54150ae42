"""Which trajectories become training rows, and which of them become preference pairs."""
