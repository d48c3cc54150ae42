"""The run directory: Parquet tables of records, trajectories, manifests, and writes that are whole or absent."""
