//! Error events: what a stream says, in its API's own shape, when fusebox stops it. No end is made up after it.

use serde_json::{Value, json};

use super::ending::{Frame, write};
use super::error_body::{Refusal, render};
use super::eventstream;
use super::table::{Api, Family};

/// The event that tells `refusal` inside a stream; `None` where the API has no way to say it.
pub(super) fn interruption(api: Api, azure: bool, frame: Frame, refusal: &Refusal) -> Option<Vec<u8>> {
    let body = render(api, azure, refusal).body;
    let mut out = Vec::with_capacity(body.len() + 128);
    let event: Value = serde_json::from_slice(&body).ok()?;
    let (name, event) = match (api, frame) {
        (Api::BedrockConverse | Api::BedrockInvoke, Frame::Aws) => {
            let headers = [
                (":exception-type", "accessDeniedException"),
                (":content-type", "application/json"),
                (":message-type", "exception"),
            ];
            eventstream::write(&mut out, &headers, &body);
            return Some(out);
        }
        (_, Frame::Aws) => return None,
        (Api::OpenAiResponses, Frame::Events) => ("error", response_error(event)),
        (Api::AnthropicMessages, Frame::Events) => ("error", event),
        (Api::GeminiInteractions, Frame::Events) => {
            let error = json!({"code": refusal.code, "message": event["error"]["message"]});
            ("error", json!({"event_type": "error", "error": error}))
        }
        (Api::CohereChat, Frame::Events) => {
            let delta =
                json!({"finish_reason": "ERROR", "error": event["message"], "fusebox": event["fusebox"]});
            ("message-end", json!({"type": "message-end", "delta": delta}))
        }
        (Api::CohereChat, Frame::Lines) => (
            "",
            json!({"is_finished": true, "event_type": "stream-end", "finish_reason": "ERROR",
                "error": event["message"], "fusebox": event["fusebox"]}),
        ),
        _ if api.family() == Family::Other => return None,
        _ => ("", event),
    };
    write(&mut out, api, frame, name, &event);
    if let Frame::Elements { .. } = frame {
        // An array that is not closed is no JSON, and then the error in it is not read either.
        out.extend_from_slice(b"]");
    }
    Some(out)
}

/// Both spellings that are seen of it: the event's own, and the nested one that SDKs raise.
fn response_error(body: Value) -> Value {
    let error = &body["error"];
    json!({
        "type": "error",
        "code": error["code"],
        "message": error["message"],
        "param": null,
        "error": error,
    })
}
