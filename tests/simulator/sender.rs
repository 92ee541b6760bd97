//! What senders make: events as they go over the wire, and as the oracle remembers them.

use bytes::Bytes;
use platform_api::domain::ids::TenantId;
use platform_api::domain::time::{MICROS_PER_DAY, MICROS_PER_HOUR, MICROS_PER_MINUTE, Timestamp};
use uuid::Uuid;

use super::dice::Dice;
use super::plan::Plan;

/// How long events are taken: short, so that some are too old.
pub const RETENTION_MICROS: i64 = 40 * MICROS_PER_DAY;
/// The mark of an event that the database refuses to write.
pub const UNWRITABLE: &str = "unwritable";

/// One event somebody sent, in the sender's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    pub tenant: usize,
    pub id: String,
    /// To the millisecond, as JSON has it.
    pub occurred_at: i64,
    pub user: &'static str,
    pub group: &'static str,
    pub model: &'static str,
    pub prompt: i64,
    pub completion: i64,
    /// Nano-US-dollars.
    pub cost: i64,
    pub kind: DraftKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DraftKind {
    Good,
    /// Bytes that are no event.
    Garbage,
    /// A good event that the database cannot write.
    Unwritable,
    /// Names a tenant other than the one it is sent for.
    Misdirected,
}

impl Draft {
    pub fn json(&self) -> String {
        let tenant = match self.kind {
            DraftKind::Garbage => return format!("{{\"eventId\": \"{}\", \"occurredAt\": 7}}", self.id),
            DraftKind::Misdirected => tenant_id(77),
            DraftKind::Good | DraftKind::Unwritable => tenant_id(self.tenant),
        };
        let call_type = if self.kind == DraftKind::Unwritable { UNWRITABLE } else { "chat" };
        format!(
            r#"{{"eventId":"{}","occurredAt":"{}","tenantId":"{tenant}","actor":{{"userId":"{}","groupId":"{}"}},"payload":{{"source":"sim","callType":"{call_type}","model":"{}","usage":{{"promptTokens":{},"completionTokens":{}}},"costUsd":"{}.{:09}"}}}}"#,
            self.id,
            Timestamp(self.occurred_at),
            self.user,
            self.group,
            self.model,
            self.prompt,
            self.completion,
            self.cost / 1_000_000_000,
            self.cost % 1_000_000_000,
        )
    }
}

/// The body of a message or request that holds these events.
pub fn body(drafts: &[&Draft]) -> Bytes {
    match drafts {
        [one] => one.json().into(),
        many => format!("[{}]", many.iter().map(|draft| draft.json()).collect::<Vec<_>>().join(",")).into(),
    }
}

pub fn tenant_id(number: usize) -> TenantId {
    TenantId(Uuid::from_u128(0x5eed_0000_0000_4000_8000_0000_0000_0001 + number as u128))
}

/// Makes an event for one of the tenants; sometimes an earlier one again, as it was or with another body.
pub fn draft(dice: &mut Dice, plan: &Plan, sent: &[Draft], now: i64) -> Draft {
    if !sent.is_empty() && dice.chance(plan.repeats) {
        // Mostly a recent one: retries come soon.
        let back = if dice.chance(0.8) { sent.len().min(12) } else { sent.len() };
        let mut again = sent[sent.len() - 1 - dice.below(back)].clone();
        if again.kind == DraftKind::Good && dice.chance(plan.conflicts) {
            change_body(dice, &mut again);
        }
        return again;
    }
    let kind = if dice.chance(plan.poison) {
        dice.pick(&[DraftKind::Garbage, DraftKind::Unwritable, DraftKind::Misdirected])
    } else {
        DraftKind::Good
    };
    let number = sent.len();
    Draft {
        tenant: dice.below(plan.tenants),
        id: if dice.chance(0.3) { format!("{}.{number}|x", 1_790_000_000 + number) } else { format!("e{number}") },
        occurred_at: occurred_at(dice, plan, now) / 1_000 * 1_000,
        user: dice.pick(&["ada", "bob", "eve"]),
        group: dice.pick(&["", "red", "blue"]),
        model: dice.pick(&["small", "large"]),
        prompt: dice.between(0, 400),
        completion: dice.between(0, 200),
        cost: dice.between(0, 5_000_000),
        kind,
    }
}

fn change_body(dice: &mut Dice, draft: &mut Draft) {
    match dice.below(4) {
        0 => draft.prompt += 1 + dice.between(0, 5),
        1 => draft.user = if draft.user == "ada" { "bob" } else { "ada" },
        2 => draft.cost += 1,
        _ => draft.occurred_at += 1_000 * dice.between(1, 100_000),
    }
}

fn occurred_at(dice: &mut Dice, plan: &Plan, now: i64) -> i64 {
    let recent = now - dice.between(0, 3_000_000);
    if !dice.chance(plan.odd_times) {
        return recent;
    }
    match dice.below(7) {
        // Late, some into a period that is over.
        0 => now - dice.between(0, 3 * MICROS_PER_HOUR),
        1 => now - dice.between(0, 39 * MICROS_PER_DAY),
        // Around both ends of what is taken.
        2 => now - RETENTION_MICROS + dice.between(-2_000_000, 60_000_000),
        3 => now - RETENTION_MICROS - MICROS_PER_DAY,
        4 => now + 5 * MICROS_PER_MINUTE + dice.between(-60_000_000, 2_000_000),
        5 => now + MICROS_PER_HOUR,
        // On the edge of an hour, to the microsecond the wire can carry.
        _ => now.div_euclid(MICROS_PER_HOUR) * MICROS_PER_HOUR - 1_000 * dice.between(0, 1),
    }
}
