"""Tables, charts and the HTML report of a run."""
