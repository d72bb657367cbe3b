"""What a user may say: flags, parser, checks that commands share. Imports utils; no torch."""
