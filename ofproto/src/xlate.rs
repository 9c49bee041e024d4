//! Translation (being built).
