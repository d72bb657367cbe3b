"""What every package uses: errors, console, files, escapes, digests, padding, launch. Imports nothing of ours."""
