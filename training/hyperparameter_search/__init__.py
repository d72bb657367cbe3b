"""A search over the flags of train.py: its space, trials, study and end; may import what training/ may."""
