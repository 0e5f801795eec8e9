"""The inference backends, one a file. INFERENCE_BACKEND chooses one; `ports.Backend` is what they implement."""
