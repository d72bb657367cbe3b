"""Pretraining on raw text: its checks, and its rows for the loop of train.py; may import what training/ may."""
