"""A camera that captions: sources of frames, a thread that keeps the newest, captions of it, and where they are told.

    source ── capture thread ──> newest frame ──> watcher ──> text or JSON, speech, overlay

One frame waits at most: whatever takes long, the next caption is of what the camera sees now.
"""
