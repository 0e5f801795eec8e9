"""Every reader of moving pictures: files, folders, RTSP, HTTP, HLS, cameras of this machine.

`address.parse` takes an address apart, `options.Options` says how it is to be read, `reader.open_source` reads it. What
`send`, the fleet's ingest and recorded film have in common is here and nowhere else: which way up pictures are, their
clock, fields, what FFmpeg may open, what a file lacks, and what may be shown of an address.
"""
