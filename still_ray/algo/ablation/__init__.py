"""Ablation matrices: which stages several runs share, and the table over their results."""
