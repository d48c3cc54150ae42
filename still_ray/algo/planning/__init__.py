"""What a recipe will need before anything is downloaded or started: pure arithmetic, every formula with its source."""
