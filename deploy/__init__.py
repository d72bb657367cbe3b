"""Export, the page and the server. Imports prediction and the floors below."""
