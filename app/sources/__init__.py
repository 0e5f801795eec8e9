"""Reads frames from every kind of source: files, folders, RTSP, HTTP, HLS, cameras of this machine.

`address.parse` parses an address, `options.Options` says how to read it, `reader.open_source` opens it. `send`, the
fleet's ingest and recorded video use the same code for orientation, clocks, deinterlacing, the protocols that FFmpeg
may use, truncated files, and the secrets in addresses.
"""
