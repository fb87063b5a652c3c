//! The bodies for generic webhooks: as Standard Webhooks recommend, and as a CloudEvent.

use schemars::JsonSchema;
use serde::Serialize;

use crate::types::notice::Notice;
use crate::types::time::Wall;

/// What a generic webhook receives, in the shape that Standard Webhooks recommend.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct WebhookBody<'a> {
    /// What happened, as `incident.opened`.
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// When it happened.
    pub timestamp: Wall,
    /// The notice itself.
    pub data: &'a Notice,
}

/// What a generic webhook receives with `format: cloudevents`: a CloudEvent 1.0 in structured mode.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct CloudEventBody<'a> {
    /// `1.0`.
    pub specversion: &'a str,
    /// The notice's id: with the source it is unique.
    pub id: &'a str,
    /// Who says it.
    pub source: &'a str,
    /// What happened, as `dev.fusebox.incident.opened`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The incident that it is about.
    pub subject: &'a str,
    /// When it happened.
    pub time: Wall,
    /// `application/json`.
    pub datacontenttype: &'a str,
    /// The notice itself.
    pub data: &'a Notice,
}

impl<'a> WebhookBody<'a> {
    pub(super) const fn new(notice: &'a Notice) -> Self {
        Self {
            kind: notice.event.wire_name(),
            timestamp: notice.at,
            data: notice,
        }
    }
}

impl<'a> CloudEventBody<'a> {
    pub(super) fn new(notice: &'a Notice, source: &'a str) -> Self {
        Self {
            specversion: "1.0",
            id: &notice.id,
            source,
            kind: format!("dev.fusebox.{}", notice.event.wire_name()),
            subject: notice.incident.as_str(),
            time: notice.at,
            datacontenttype: "application/json",
            data: notice,
        }
    }
}
