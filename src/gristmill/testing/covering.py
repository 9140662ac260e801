"""Few rows out of many that together have every pair of values."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Sequence


def covering(rows: Sequence[tuple[Hashable, ...]]) -> list[int]:
    """The positions of rows, in order, that have between them every pair of values which two
    columns of any of the rows have.

    What breaks only where two choices meet is found by them; how many there are follows the two
    longest columns and not, as the rows themselves do, the product of all. Greedy, and always the
    same. (D. M. Cohen et al., The AETG system, 1997.)
    """
    pairs = [frozenset(itertools.combinations(enumerate(row), 2)) for row in rows]
    missing = set().union(*pairs)
    # A row adds no more than when it was last looked at: only the best one is looked at again.
    queue = [(-len(found), n) for n, found in enumerate(pairs)]
    heapq.heapify(queue)
    chosen = []
    while missing:
        promised, n = heapq.heappop(queue)
        added = len(pairs[n] & missing)
        if added < -promised:
            heapq.heappush(queue, (-added, n))
        else:
            chosen.append(n)
            missing -= pairs[n]
    return sorted(chosen)
