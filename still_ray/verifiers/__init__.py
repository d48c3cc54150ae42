"""Verdicts on answers: extraction, comparison by domain, and killable processes for the comparisons that may hang.

Importing this package loads no sympy: only the verifier processes do, when they start.
"""
