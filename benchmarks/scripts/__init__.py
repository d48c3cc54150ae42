"""The scripts that people write for a round: sample, grade, train, evaluate; baselines of `benchmarks`."""
