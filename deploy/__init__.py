"""Export, and the server in serving/. Imports prediction and the floors below."""
