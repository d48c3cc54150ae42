"""Sampling and verification on Ray: replicas, verifier workers, and the loop that feeds them from Ray Data."""
