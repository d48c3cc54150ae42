"""The report of a run: one HTML file, written from the run directory alone.

facts -> outcome, exploration, pool, running, provenance -> page
         (what to show: parts, charts)              browser_data

`facts` reads the directory into one record. The five topic modules decide what to show, as figures with their numbers;
`charts` draws. `browser_data` packs the texts. `page` puts it together with `templates` and `assets`. `background` has
all this done by another process while a run goes on.
"""

from typing import Final

REPORT_FILE: Final = "report.html"
"""In the run directory."""
