"""A quarter of an hour of everything at once, and what the server holds all the while."""
