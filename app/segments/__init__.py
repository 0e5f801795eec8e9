"""The door of recorded film: segments through queues, a backend, and back together."""
