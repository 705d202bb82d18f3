"""The machine that runs a kernel: cores, ranks, meetings and the record of a run."""
