"""Every flag, declared once: a file for each group of flags, and one for each command. Imports config and utils."""
