//! What the engine asks of the world.

use std::sync::Arc;

use crate::types::directive::DirectiveSet;
use crate::types::ids::{ApprovalId, IncidentId, SilenceId};
use crate::types::notice::Notice;

/// One thing to do, as data; a loop outside makes it real.
///
/// The order in which they are carried out: what is in force at once, then what has to be remembered, and people are
/// told when that is durable.
#[derive(Debug, Clone)]
pub enum Effect {
    /// These directives are in force from now on, in place of all earlier ones.
    Publish(Arc<DirectiveSet>),
    /// Tell people.
    Tell(Box<Notice>),
    /// Something about this incident is worth a record: opened, changed, closed.
    Changed(IncidentId),
    /// Something about this question is worth a record: asked, answered, void. Its incident has changed as well.
    Asked(ApprovalId),
    /// Something about this silence is worth a record: made, ended.
    Silenced(SilenceId),
    /// What the engine holds beside incidents is worth a record: the brake, counts that go on.
    Kept,
}
