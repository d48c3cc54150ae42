"""The command `still-ray ablate`."""
