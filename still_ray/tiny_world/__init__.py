"""A world small enough for a laptop: arithmetic chains, their demonstrations and a backbone that knows the facts."""
