"""Which models are resident: names to Refs, leases, admission by bytes, eviction."""
