"""What a rehearsal is made of, decided before anything starts: its sizes, its machines, its faults."""
