"""Reviews and what decides them; which rows to label next. Imports generation and the floors below."""
