"""What an evaluation says: accuracy with its interval, pass@k, majority votes, comparisons, repeated runs."""
