//! Tests the life of a generation cell by cell.
