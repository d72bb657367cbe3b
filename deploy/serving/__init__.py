"""The server and its page: models that answer requests over HTTP; imports prediction/ and what lies below it."""
