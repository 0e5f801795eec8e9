"""The live door: WebSocket sessions, admission, and the plain HTTP routes beside them."""
