"""A real server under mixed traffic while things are done to it: see `bench.chaos.__main__`."""
