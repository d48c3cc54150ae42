"""The commands `still-ray run` and `still-ray demo`, and what is checked before a run starts."""
