"""The command `still-ray evaluate`."""
