"""C that runs below Python: sources in this folder, compiled for this Python at their first use."""
