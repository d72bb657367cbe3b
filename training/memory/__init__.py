"""What fits into the memory of the devices. Imports training and the floors below."""
