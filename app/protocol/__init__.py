"""The wire: what clients and service say to each other. Pure; imports nothing of the house but errors."""
