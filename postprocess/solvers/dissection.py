"""The order in which a sparse Hamiltonian is eliminated: nested dissection or minimum degree on the graph of atoms.

*Nested dissection*: a part of the graph is cut by a separator into two halves that share no bond; the halves are
eliminated first, each by the same rule, the separator last (George, SIAM J. Numer. Anal. 10, 345 (1973)). The cut
follows the levels of a breadth-first search (Gibbs, Poole and Stockmeyer, SIAM J. Numer. Anal. 13, 236 (1976)), so that
nothing but the graph has to be known, and cells that close upon themselves need no special care. *Minimum degree* wins
where the separators are as large as what they part.

Vertices that are eliminated together form a node of a tree. Nodes are merged where one larger dense block is cheaper
than two: it holds more zeros, but is moved once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from numpy.typing import NDArray
from scipy.sparse.csgraph import breadth_first_order, connected_components

__all__ = ["Tree", "best_order", "elimination_tree", "fill_of_order", "minimum_degree", "nested_dissection"]

# Smaller parts are not cut any more.
_LEAF_ROWS = 200
# Cost of a front beside its products, in real operations: for each of its entries (moved a few times), and once.
_OPERATIONS_PER_ENTRY, _OPERATIONS_PER_FRONT = 300.0, 5e6


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """Groups of vertices in the order of elimination: children come before their parents.

    vertices : one array for each node. parent : (n_nodes,), −1 for roots.
    """

    vertices: tuple[NDArray[np.int64], ...]
    parent: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.vertices)


def nested_dissection(graph: scipy.sparse.csr_matrix, weights: NDArray[np.int64]) -> Tree:
    """Elimination tree of a symmetric pattern (n, n) whose vertices have so many rows each, (n,) `weights`."""
    pieces: list[NDArray[np.int64]] = []
    parents: list[int] = []
    n_pieces, membership = connected_components(graph, directed=False)
    # Top down: each part with the piece (separator) above it; reversed at the end, children stand before parents.
    stack = [(np.flatnonzero(membership == piece), -1) for piece in range(n_pieces)]
    while stack:
        part, above = stack.pop()
        halves, separator = _cut(graph, weights, part)
        pieces.append(separator)
        parents.append(above)
        stack.extend((half, len(pieces) - 1) for half in halves)
    last = len(pieces) - 1
    parent = np.array([-1 if above < 0 else last - above for above in reversed(parents)], np.int64)
    return Tree(tuple(reversed(pieces)), parent)


def _cut(
    graph: scipy.sparse.csr_matrix, weights: NDArray, part: NDArray
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """The pieces that a separator leaves, and the separator; no pieces where the part is small or cannot be cut."""
    total = int(weights[part].sum())
    if total <= _LEAF_ROWS or len(part) < 3:
        return [], part
    inner = graph[part][:, part]
    best: tuple[float, NDArray[np.int64], NDArray[np.int64]] | None = None
    for levels in _level_structures(inner):
        below = np.bincount(levels, weights=weights[part]).cumsum()
        for level in range(1, int(levels.max())):
            here = _thinned(inner, levels, level)
            rows = float(weights[part[here]].sum())
            small = min(below[level - 1], total - below[level])
            # Work on the separator, and on the larger half that is left: cubes of what a plane cut leaves.
            cost = rows * (1 + (max(total - rows - small, 0) / total - 0.5) ** 2 * 8)
            if small > 0.2 * total and (best is None or cost < best[0]):
                best = (cost, here, levels)
    if best is None:
        return [], part
    separator = best[1]
    rest = np.setdiff1d(np.arange(len(part)), separator)
    n_pieces, membership = connected_components(inner[rest][:, rest], directed=False)
    return [part[rest[membership == piece]] for piece in range(n_pieces)], part[separator]


def _thinned(inner: scipy.sparse.csr_matrix, levels: NDArray, level: int) -> NDArray[np.int64]:
    """Vertices of a level with a bond to the next one: the others belong to the near side."""
    here = np.flatnonzero(levels == level)
    beyond = (levels == level + 1).astype(np.int64)
    return here[inner[here] @ beyond > 0]


def _level_structures(inner: scipy.sparse.csr_matrix) -> list[NDArray[np.int64]]:
    """Distances from the ends of a longest way through the graph, and from its middle."""
    found = []
    start = 0
    for _ in range(4):
        levels = _distances(inner, start)
        found.append(levels)
        start = int(np.argmax(levels))
    return found[1:]


def _distances(inner: scipy.sparse.csr_matrix, start: int) -> NDArray[np.int64]:
    order, before = breadth_first_order(inner, start, directed=False)
    levels = np.zeros(len(inner.indptr) - 1, np.int64)
    for vertex in order[1:].tolist():
        levels[vertex] = levels[before[vertex]] + 1
    return levels


def minimum_degree(graph: scipy.sparse.csr_matrix) -> NDArray[np.int64]:
    """(n,) vertices in an order of elimination: always one with few neighbours left (Liu, SIAM Rev. 31, 1 (1989)).

    SuperLU knows how; it is given numbers on the graph, one for each vertex and bond.
    """
    n = len(graph.indptr) - 1
    rows = np.repeat(np.arange(n), np.diff(graph.indptr))
    # Any numbers will do with which nothing vanishes.
    values = np.where(rows == graph.indices, 2.0 * n, 1.0)
    matrix = scipy.sparse.csc_matrix((values, graph.indices.copy(), graph.indptr.copy()), shape=graph.shape)
    lu = scipy.sparse.linalg.splu(
        matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
    )
    return np.argsort(np.asarray(lu.perm_c)).astype(np.int64)


def fill_of_order(
    graph: scipy.sparse.csr_matrix, weights: NDArray[np.int64], order: NDArray[np.int64]
) -> tuple[int, float]:
    """Entries of L and real operations of L D L† (complex) for vertices of `weights` rows eliminated in this order."""
    size = weights[order].astype(float).tolist()
    entries = flops = 0.0
    for own, touched in zip(size, _structure(graph, order), strict=True):
        rest = sum(size[v] for v in touched)
        entries += own * (own + 1) / 2 + own * rest
        flops += _operations(own, rest)
    return int(entries), flops


def best_order(graph: scipy.sparse.csr_matrix, weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) vertices by minimum degree or nested dissection, whichever takes fewer operations."""
    orders = [minimum_degree(graph), np.concatenate(nested_dissection(graph, weights).vertices)]
    return min(orders, key=lambda order: fill_of_order(graph, weights, order)[1])


def elimination_tree(graph: scipy.sparse.csr_matrix, weights: NDArray[np.int64]) -> Tree:
    """The tree by which a symmetric pattern is eliminated with fewest operations, by either order.

    weights : (n,) rows of each vertex.
    """
    order = best_order(graph, weights)
    return _merged(_structure(graph, order), weights, order)


def _structure(graph: scipy.sparse.csr_matrix, order: NDArray[np.int64]) -> list[set[int]]:
    """Places in the order that the elimination of each vertex, in this order, touches afterwards."""
    place = np.argsort(order)
    later: list[set[int]] = [set() for _ in range(len(order))]
    rows = np.repeat(place, np.diff(graph.indptr)).tolist()
    for row, column in zip(rows, place[graph.indices].tolist(), strict=True):
        if column > row:
            later[row].add(column)
    for touched in later:
        if touched:
            first = min(touched)
            later[first] |= touched - {first}
    return later


def _operations(own: float, rest: float) -> float:
    """Complex products of a symmetric half: 4 real operations for each of n₁³/3 + n₁² n₂ + n₁ n₂²."""
    return 4 * (own**3 / 3 + own**2 * rest + own * rest**2)


def _cost(own: float, rest: float) -> float:
    return _operations(own, rest) + _OPERATIONS_PER_ENTRY * (own + rest) ** 2 + _OPERATIONS_PER_FRONT


def _merged(structure: list[set[int]], weights: NDArray[np.int64], order: NDArray[np.int64]) -> Tree:
    """Nodes of single vertices merged into their parents as long as that is cheaper, children before parents."""
    n = len(order)
    parent = [min(touched) if touched else -1 for touched in structure]
    own = weights[order].astype(float).tolist()
    rest = [sum(own[v] for v in touched) for touched in structure]
    members: list[list[int]] = [[v] for v in range(n)]
    children: list[list[int]] = [[] for _ in range(n)]
    for node in range(n):
        # The children of a node are final when it comes: all they could be merged with came before.
        while children[node]:
            gains = [
                _cost(own[c], rest[c]) + _cost(own[node], rest[node]) - _cost(own[c] + own[node], rest[node])
                for c in children[node]
            ]
            best = int(np.argmax(gains))
            if gains[best] <= 0:
                break
            child = children[node].pop(best)
            members[node] = members[child] + members[node]
            own[node] += own[child]
            children[node] += children[child]
            members[child] = []
        if parent[node] >= 0:
            children[parent[node]].append(node)
    # Depth first; what needs most memory beside what it leaves comes first (Liu, ACM Trans. Math. Softw. 12, 249).
    peak = [0.0] * n
    for node in range(n):
        if not members[node]:
            continue
        children[node].sort(key=lambda c: rest[c] ** 2 - peak[c])
        waiting = 0.0
        for child in children[node]:
            peak[node] = max(peak[node], waiting + peak[child])
            waiting += rest[child] ** 2
        peak[node] = max(peak[node], waiting + own[node] * (own[node] + rest[node]) + rest[node] ** 2)
    nodes: list[int] = []
    stack = [node for node in range(n) if members[node] and parent[node] < 0]
    while stack:
        # Backwards: parents before children, the last child first.
        node = stack.pop()
        nodes.append(node)
        stack.extend(children[node])
    nodes.reverse()
    number = {node: place for place, node in enumerate(nodes)}
    above = np.full(len(nodes), -1, np.int64)
    for node in nodes:
        for child in children[node]:
            above[number[child]] = number[node]
    return Tree(tuple(order[np.array(sorted(members[node]))] for node in nodes), above)
