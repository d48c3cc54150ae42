"""Running programs in a sandbox and judging them; `verdict` is where to begin."""
