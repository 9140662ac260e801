"""C that runs below Python: the module behind bound calls (`calls.py`), and the runtime that
artifacts are built with (`runtime.py`)."""
