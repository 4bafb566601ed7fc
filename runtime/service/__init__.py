"""Captions over HTTP: `captionlite serve`. Needs the extra `serve`.

A request goes through `guard` (who may ask), `body` (its bytes, bounded in size and time), `pool` (a bounded queue and
the workers behind it), and in a worker through `uploads` (the photograph and the options in it) and `answers` (the
caption). `openapi` describes that, `unit` keeps it running.
"""
