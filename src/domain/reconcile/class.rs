//! The classes of amounts that are compared one by one: tokens of each kind, and the cost. Never a total.

use super::finding::Difference;
use super::reading::GatewayCount;
use crate::domain::amount::NanoUsd;
use crate::domain::usage::Amounts;

/// How many there are.
pub const COUNT: usize = 7;

/// Their names, in the order in which they are told.
pub const NAMES: [&str; COUNT] = [
    "promptTokens",
    "completionTokens",
    "cacheReadTokens",
    "cacheWriteTokens",
    "reasoningTokens",
    "unclassifiedTokens",
    "costNanoUsd",
];

/// Where the cost stands among them.
pub(super) const COST: usize = COUNT - 1;

/// What the ledger has of each class.
pub(super) fn of_amounts(amounts: &Amounts) -> [i64; COUNT] {
    [
        amounts.prompt_tokens,
        amounts.completion_tokens,
        amounts.cache_read_tokens,
        amounts.cache_write_tokens,
        amounts.reasoning_tokens,
        amounts.unclassified_tokens,
        amounts.cost.0,
    ]
}

/// What a gateway counted of each class, if it did. A gateway without prices states a cost of zero, which says nothing.
pub(super) fn of_count(counted: &GatewayCount) -> [Option<i64>; COUNT] {
    [
        counted.prompt_tokens,
        counted.completion_tokens,
        counted.cached_tokens,
        None,
        counted.reasoning_tokens,
        None,
        counted.cost.map(|cost| cost.0).filter(|nanos| *nanos > 0),
    ]
}

/// The classes that differ.
pub(super) fn differences(gateway: &[i64; COUNT], ledger: &[i64; COUNT]) -> Vec<Difference> {
    let differs = |class: &usize| gateway[*class] != ledger[*class];
    (0..COUNT).filter(differs).map(|class| difference(class, gateway, ledger)).collect()
}

pub(super) fn difference(class: usize, gateway: &[i64; COUNT], ledger: &[i64; COUNT]) -> Difference {
    Difference { class: NAMES[class].to_owned(), gateway: gateway[class], ledger: ledger[class] }
}

/// What has to be added to the ledger, so that nothing differs any more.
pub(super) fn missing(differences: &[Difference]) -> Amounts {
    let mut missing = [0_i64; COUNT];
    for difference in differences {
        if let Some(class) = NAMES.iter().position(|name| *name == difference.class) {
            missing[class] = difference.gateway.saturating_sub(difference.ledger);
        }
    }
    let [
        prompt_tokens,
        completion_tokens,
        cache_read_tokens,
        cache_write_tokens,
        reasoning_tokens,
        unclassified_tokens,
        cost,
    ] = missing;
    Amounts {
        requests: 0,
        prompt_tokens,
        cache_read_tokens,
        cache_write_tokens,
        completion_tokens,
        reasoning_tokens,
        unclassified_tokens,
        cost: NanoUsd(cost),
    }
}
