"""The operators: public functions, `get_op`, and what makes them of an op's declaration.

A third party's op gets its function as ours do, by `public`.
"""

from gristmill.ops._dispatch import public

__all__ = ["public"]
