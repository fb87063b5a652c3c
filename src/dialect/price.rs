//! What tokens cost, by model, from a dated table.

/// Prices by model.
#[derive(Debug, Clone, Default)]
pub struct PriceTable {}
