"""Recorded video: cut into segments, which pass through queues and a backend, and joined again. Start at `commands`."""
