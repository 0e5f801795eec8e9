"""`sightline send`: streams a source through a session; results become JSON lines or an annotated video."""
