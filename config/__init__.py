"""What a user may say: flags, templates, parser, checks that commands share. Imports utils; no torch."""
