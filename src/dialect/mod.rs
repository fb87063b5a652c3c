//! The APIs that pass through: one row each, and all that is read from and written to their bodies.

mod answer;
pub mod batch;
mod cursor;
mod decode;
mod documents;
mod edit;
pub mod error_body;
mod eventstream;
pub mod fingerprint;
mod framing;
mod hints;
pub mod include_usage;
pub mod json;
pub mod meter;
mod model_name;
pub mod models;
mod multipart;
pub mod parameters;
pub mod price;
pub mod request;
pub mod rewrite;
mod sse;
pub mod table;
mod tally;
mod usage;
mod whole;
