"""The command `still-ray prepare`."""
