"""Rehearsals: a run's own driver, placement, store and verifiers on declared machines; engines and trainer are fake."""
