"""The live protocol: the messages between clients and the service. Does no I/O; of `app` it imports only `errors`."""
