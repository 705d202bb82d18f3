"""The modeled time of a recorded run."""
