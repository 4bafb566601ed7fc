"""Named bundles: an index that somebody publishes (`index.py`), what is fetched of it (`fetch.py`, `pull.py`) and where
it is kept (`cache.py`). Nothing here is imported by a caption with the packaged bundle or a path.
"""
