"""The command `still-ray plan`."""
