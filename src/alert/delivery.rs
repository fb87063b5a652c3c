//! One notice on its way to one target, and what becomes of it: plain data, so that a ledger can keep it.

use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::destination::{AllowedDestinations, Destination};
use super::redact;
use crate::types::notice::Notice;
use crate::types::secret::Secret;
use crate::types::time::Wall;

/// How names of ad-hoc targets begin.
const ADHOC: &str = "adhoc:";

/// One notice on its way to one target. Kept by whoever wants it to survive a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// The notice's id and the target's name: the same over attempts and restarts.
    pub id: String,
    /// Name of the target; `adhoc:HOST#HASH` for one that no configuration names.
    pub target: String,
    /// What is told.
    pub notice: Arc<Notice>,
    /// When it was queued.
    pub created: Wall,
    /// Attempts made so far.
    #[serde(default)]
    pub attempts: u32,
    /// No attempt before this.
    pub next_attempt: Wall,
    /// Where an ad-hoc target is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<AdhocUrl>,
}

/// URL of an ad-hoc target: never printed, yet written to the ledger, since without it nothing could be delivered.
#[derive(Clone, PartialEq, Eq)]
pub struct AdhocUrl(Secret);

/// What one attempt made of a delivery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settled {
    /// [`Delivery::id`].
    pub id: String,
    /// [`Delivery::target`].
    pub target: String,
    /// When.
    pub at: Wall,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a delivery. Texts hold no URL and no secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// The target took it.
    Delivered,
    /// It will be tried again.
    Failed {
        /// Attempts made so far.
        attempts: u32,
        /// No attempt before this.
        next_attempt: Wall,
        /// What went wrong.
        error: String,
    },
    /// It will not be tried again unless somebody asks for it.
    Dead {
        /// Why.
        why: String,
    },
}

/// Told after each attempt, on the task that made it: must not wait.
pub type SettledHook = Arc<dyn Fn(&Settled) + Send + Sync>;

/// A delivery that was given up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// What was to be delivered.
    pub delivery: Delivery,
    /// Why it was not.
    pub why: String,
    /// When it was given up.
    pub at: Wall,
}

/// A dead letter as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DeadLetterView {
    /// Id of the delivery.
    pub id: String,
    /// Id of the incident that it is about.
    pub incident: String,
    /// What was to be told, as `incident.opened`.
    pub event: String,
    /// Title of the notice.
    pub title: String,
    /// Why it was given up.
    pub why: String,
    /// When.
    pub at: Wall,
}

impl Delivery {
    /// A delivery to a target of the configuration.
    pub(super) fn new(notice: &Arc<Notice>, target: &str, now: Wall) -> Self {
        Self {
            id: format!("{}/{target}", notice.id),
            target: target.to_owned(),
            notice: Arc::clone(notice),
            created: now,
            attempts: 0,
            next_attempt: now,
            url: None,
        }
    }

    /// A delivery to a URL that a request named. The kind of the target is told from its host: Slack, Microsoft Teams,
    /// Discord, else a webhook in the standard form.
    ///
    /// # Errors
    /// Why nothing is sent there, without the URL's secret parts.
    pub fn adhoc(
        notice: &Notice,
        url: &str,
        allowed: &AllowedDestinations,
        now: Wall,
    ) -> Result<Self, String> {
        let destination = Destination::check(url, allowed)?;
        let notice = Arc::new(redact::notice(notice));
        let mut delivery = Self::new(&notice, &adhoc_name(&destination), now);
        delivery.url = Some(AdhocUrl(Secret::new(url.trim())));
        Ok(delivery)
    }
}

impl AdhocUrl {
    /// The URL itself.
    pub(super) fn secret(&self) -> &Secret {
        &self.0
    }
}

impl fmt::Debug for AdhocUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for AdhocUrl {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.0.expose())
    }
}

impl<'de> Deserialize<'de> for AdhocUrl {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d).map(|text| Self(Secret::new(text)))
    }
}

impl DeadLetter {
    /// What people see of it.
    pub fn view(&self) -> DeadLetterView {
        let notice = &self.delivery.notice;
        DeadLetterView {
            id: self.delivery.id.clone(),
            incident: notice.incident.as_str().to_owned(),
            event: notice.event.wire_name().to_owned(),
            title: notice.title.clone(),
            why: self.why.clone(),
            at: self.at,
        }
    }
}

/// The host, and enough of a hash to tell two URLs on it apart.
/// The name of an ad-hoc target: tells its host, and apart from others there, and nothing of what is secret in its URL.
pub(super) fn adhoc_name(destination: &Destination) -> String {
    let hash = Sha256::digest(destination.url().expose());
    let short: String = hash.iter().take(5).map(|b| format!("{b:02x}")).collect();
    format!("{ADHOC}{}#{short}", destination.host())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::tests::notice;
    use crate::types::notice::NoticeEvent;

    const NOW: Wall = Wall::from_unix_millis(1_700_000_000_000);

    #[test]
    fn an_adhoc_url_is_kept_and_never_shown() {
        let allowed = AllowedDestinations::default();
        let url = "https://hooks.slack.com/services/T0/B0/hunter2";
        let n = notice("n1", NoticeEvent::Opened, "inc");
        let one = Delivery::adhoc(&n, url, &allowed, NOW).unwrap();
        assert!(one.target.starts_with("adhoc:hooks.slack.com#"), "{}", one.target);
        assert_eq!(one.id, format!("n1/{}", one.target));
        assert!(!format!("{one:?}").contains("hunter2"));
        let kept = serde_json::to_string(&one).unwrap();
        assert!(kept.contains("hunter2"));
        assert_eq!(serde_json::from_str::<Delivery>(&kept).unwrap(), one);
        let other = Delivery::adhoc(&n, "https://hooks.slack.com/services/T0/B0/x", &allowed, NOW).unwrap();
        assert_ne!(one.target, other.target);
        let why = Delivery::adhoc(&n, "http://127.0.0.1/hunter2", &allowed, NOW).unwrap_err();
        assert!(!why.contains("hunter2"), "{why}");
    }
}
