"""How the training methods train: one module each, found by the path that the method of the same name gives."""
