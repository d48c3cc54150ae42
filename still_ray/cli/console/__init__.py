"""What a person sees of a command: progress on stderr, tables on stdout, the report of a run that goes on."""
