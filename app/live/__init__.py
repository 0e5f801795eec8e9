"""The live entry point: WebSocket sessions, admission, and the HTTP routes beside them."""
