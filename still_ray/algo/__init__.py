"""Pure decisions: no files, no clocks, no processes. The same input gives the same answer, whatever its order."""
