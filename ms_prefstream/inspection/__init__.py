"""What rows become, as text: `mps.encode` for one row, `ms-prefstream inspect` for those of a source or of a step."""

from ms_prefstream.inspection.encoded import EncodedRow, EncodedSide, Kind, Part, Section
from ms_prefstream.inspection.rows import FoundRow, RowEncoder, encode, rows_of

__all__ = ["EncodedRow", "EncodedSide", "FoundRow", "Kind", "Part", "RowEncoder", "Section", "encode", "rows_of"]
