//! What models can do and which cheaper one stands in for each.

/// Capabilities and cheaper stand-ins of models, looked up by the name that requests use.
#[derive(Debug, Clone, Default)]
pub struct ModelTable {}
