//! What the engine asks of the world.

use std::sync::Arc;

use crate::types::directive::DirectiveSet;
use crate::types::ids::IncidentId;
use crate::types::notice::Notice;

/// One thing to do, as data; a loop outside makes it real.
#[derive(Debug, Clone)]
pub enum Effect {
    /// These directives are in force from now on, in place of all earlier ones.
    Publish(Arc<DirectiveSet>),
    /// Tell people.
    Tell(Box<Notice>),
    /// Something about this incident is worth a record: opened, changed, closed.
    Changed(IncidentId),
}
