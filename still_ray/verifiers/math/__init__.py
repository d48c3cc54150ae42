"""Reading mathematical answers and comparing them; `verdict` is where to begin."""
