"""Whether S(k) is positive definite: all counts of states rest on it (Sylvester's law for H − σS with S > 0)."""

from __future__ import annotations

from hamnet.errors import SolverError

from .backends import analyse
from .factor import SingularFactorError
from .pencil import SparsePencil

__all__ = ["OverlapCheck"]


class OverlapCheck:
    """Counts the negative eigenvalues of S(k), once for each k.

    With spin S is half as large as H: an eighth of a factorisation.
    """

    def __init__(self, pencil: SparsePencil, backend: str = "auto") -> None:
        self._pencil = pencil
        self._analysis = analyse(pencil.overlap, backend)
        self._positive: set[tuple[float, ...]] = set()

    def require_positive(self, k_frac: tuple[float, ...]) -> None:
        """Raises :class:`SolverError` with the number of negative eigenvalues of S(k), if there are any."""
        if k_frac in self._positive:
            return
        try:
            negative = self._analysis.factor(self._pencil.at(k_frac).s_data).negative
        except SingularFactorError as error:
            raise SolverError("a singular overlap", expected=_EXPECTED, remedy=_REMEDY) from error
        if negative:
            place = ", ".join(f"{x:g}" for x in k_frac)
            text = f"an overlap with {negative} negative eigenvalue{'s' * (negative > 1)} at k = ({place})"
            raise SolverError(text, expected=_EXPECTED, remedy=_REMEDY)
        self._positive.add(k_frac)


_EXPECTED = "a positive definite overlap"
_REMEDY = "check that structure, basis and overlap belong together, and that no atom occurs twice"
