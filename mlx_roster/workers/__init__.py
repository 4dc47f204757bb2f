"""Handles on worker processes: the only place that knows a Resident is a process."""
