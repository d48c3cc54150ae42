"""The round state machine, over protocols: it knows no Ray, no files and no model."""
