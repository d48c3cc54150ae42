"""The command `still-ray rehearse`."""
