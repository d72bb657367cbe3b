"""A device that says `cuda:0`, computes on the CPU, and counts what a GPU would be asked to do; for tests."""
