//! fusebox
fn main() {}
