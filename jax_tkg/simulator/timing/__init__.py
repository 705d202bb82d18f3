"""The modelled time of a recorded run."""
