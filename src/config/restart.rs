//! Which keys of the file a reload does not change: what is bound, sized or started once.

/// The keys that need a restart, as [`super::schema::keys`] names them. Every other key is in force after a reload.
pub(super) const NEEDED: [&str; 23] = [
    "listeners[].listen",
    "listeners[].tls.certificate_file",
    "listeners[].tls.key_file",
    "listeners[].agent",
    "admin.listen",
    "admin.token",
    "admin.token_file",
    "admin.allowed_hosts",
    "admin.open_metrics",
    "admin.max_label_sets",
    "limits.max_agents",
    "limits.max_connections",
    "observations.file",
    "log.format",
    "log.level",
    "drain_deadline",
    "workers",
    "watch",
    "engine.observation_queue",
    "engine.max_subjects",
    "engine.max_executions",
    "engine.execution_idle",
    "engine.max_closed_incidents",
];
