//! The APIs that pass through: one row each, and all that is read from and written to their bodies.

pub mod models;
pub mod price;
pub mod table;
