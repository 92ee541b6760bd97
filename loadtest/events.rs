//! Usage events as senders write them, made before the clock starts.

use anyhow::{Context, ensure};
use bytes::Bytes;
use platform_api::clock::{self, Clock};

use crate::plant::Tenant;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Payload {
    /// The platform envelope, about 350 bytes.
    Compact,
    /// LiteLLM's payload as captured, about 16 kB.
    Litellm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Ids {
    V7,
    V4,
}

/// LiteLLM's payload as its callback posted it.
const LITELLM: &str = include_str!("../tests/fixtures/litellm/chat_openai_nonstream_minimal.json");
/// What is the capture's own in it.
const TEAM: &str = "\"team-acme-eng\"";
/// Every event's prompt and completion tokens, in both payloads.
pub(crate) const TOKENS: i64 = 57 + 17;
/// Different users, models and groups: what makes rollups.
const USERS: u64 = 50;
const MODELS: [&str; 4] = ["gpt-4o", "gpt-4o-mini", "claude-sonnet-4", "gemini-2.5-pro"];

/// `count` events, by turns for each tenant.
pub(crate) fn make(payload: Payload, ids: Ids, tenants: &[Tenant], count: u64) -> anyhow::Result<Vec<Bytes>> {
    let template = Template::of(payload)?;
    let clock = Clock::system();
    let turns = tenants.iter().cycle();
    Ok((0..count).zip(turns).map(|(at, tenant)| template.event(ids, tenant, at, &clock)).collect())
}

enum Template {
    Compact,
    /// The capture, with the values that have to differ taken out.
    Litellm(Vec<Piece>),
}

enum Piece {
    Text(String),
    Id,
    CallId,
    Start,
    End,
    Team,
}

impl Template {
    fn of(payload: Payload) -> anyhow::Result<Template> {
        if payload == Payload::Compact {
            return Ok(Template::Compact);
        }
        let capture: serde_json::Value = serde_json::from_str(LITELLM)?;
        let text = capture.to_string();
        let id = capture["id"].to_string();
        let call = capture["litellm_call_id"].to_string();
        let start = format!("\"startTime\":{}", capture["startTime"]);
        let end = format!("\"endTime\":{}", capture["endTime"]);
        let mut pieces = vec![Piece::Text(text)];
        for (word, made) in [
            (id.as_str(), (|| Piece::Id) as fn() -> Piece),
            (call.as_str(), || Piece::CallId),
            (start.as_str(), || Piece::Start),
            (end.as_str(), || Piece::End),
            (TEAM, || Piece::Team),
        ] {
            let before = pieces.len();
            pieces = pieces.into_iter().flat_map(|piece| cut(piece, word, made)).collect();
            ensure!(pieces.len() > before, "the capture has no {word}");
        }
        Ok(Template::Litellm(pieces))
    }

    fn event(&self, ids: Ids, tenant: &Tenant, at: u64, clock: &Clock) -> Bytes {
        let id = match ids {
            Ids::V7 => clock::new_id(),
            Ids::V4 => uuid::Builder::from_random_bytes(clock::random_bytes()).into_uuid(),
        };
        let now = clock.now();
        let text = match self {
            Template::Compact => compact(&id.to_string(), &now.to_string(), tenant, at),
            Template::Litellm(pieces) => litellm(pieces, &id.to_string(), now.0, tenant),
        };
        Bytes::from(text)
    }
}

fn cut(piece: Piece, word: &str, made: fn() -> Piece) -> Vec<Piece> {
    let Piece::Text(text) = piece else { return vec![piece] };
    let mut pieces = Vec::new();
    for (at, part) in text.split(word).enumerate() {
        if at > 0 {
            pieces.push(made());
        }
        pieces.push(Piece::Text(part.to_owned()));
    }
    pieces
}

/// One compact event of `user`.
pub(crate) fn of_user(tenant: &Tenant, user: &str) -> Bytes {
    Bytes::from(envelope(&clock::new_id().to_string(), &Clock::system().now().to_string(), tenant, user, 0, 0))
}

fn compact(id: &str, now: &str, tenant: &Tenant, at: u64) -> String {
    let user = at % USERS;
    envelope(id, now, tenant, &format!("user-{user}"), user, at)
}

fn envelope(id: &str, now: &str, tenant: &Tenant, user_id: &str, user: u64, at: u64) -> String {
    let model = MODELS[(at % 4) as usize];
    format!(
        "{{\"eventId\":\"{id}\",\"occurredAt\":\"{now}\",\"tenantId\":\"{tenant}\",\"actor\":{{\"userId\":\"{user_id}\",\
         \"groupId\":\"group-{group}\",\"apiKeyId\":\"key-{user}\"}},\"payload\":{{\"source\":\"loadtest\",\
         \"model\":\"{model}\",\"provider\":\"openai\",\"status\":\"success\",\
         \"usage\":{{\"promptTokens\":57,\"completionTokens\":17}},\"costUsd\":\"0.0003125\"}}}}",
        tenant = tenant.id,
        group = user % 5,
    )
}

fn litellm(pieces: &[Piece], id: &str, now_micros: i64, tenant: &Tenant) -> String {
    let (seconds, micros) = (now_micros / 1_000_000, now_micros % 1_000_000);
    let mut text = String::with_capacity(LITELLM.len());
    for piece in pieces {
        match piece {
            Piece::Text(part) => text.push_str(part),
            Piece::Id => text.push_str(&format!("\"chatcmpl-{id}\"")),
            Piece::CallId => text.push_str(&format!("\"{id}\"")),
            Piece::Start => text.push_str(&format!("\"startTime\":{seconds}.{micros:06}")),
            Piece::End => text.push_str(&format!("\"endTime\":{seconds}.{micros:06}")),
            Piece::Team => text.push_str(&format!("\"{}\"", tenant.team)),
        }
    }
    text
}

/// One body of many events: an array.
pub(crate) fn body(events: &[Bytes]) -> Vec<u8> {
    let mut body = Vec::with_capacity(events.iter().map(|event| event.len() + 1).sum::<usize>() + 2);
    for (at, event) in events.iter().enumerate() {
        body.push(if at == 0 { b'[' } else { b',' });
        body.extend_from_slice(event);
    }
    body.push(b']');
    body
}

/// How long an event is, on average.
pub(crate) fn mean_bytes(events: &[Bytes]) -> anyhow::Result<usize> {
    let sum: usize = events.iter().map(Bytes::len).sum();
    sum.checked_div(events.len()).context("no events")
}
