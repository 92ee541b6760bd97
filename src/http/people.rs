//! What the resources of an organization have in common.

use std::sync::Arc;

use super::authorize::Ask;
use super::problem::{Code, Problem};
use super::view::JsonObject;
use crate::domain::organization::attributes::{Attributes, AttributesPatch};
use crate::domain::organization::{Flaw, Organization};
use crate::tenant::handle::Handle;

/// The doorbell of the tenant in question.
///
/// # Errors
/// 400 when the platform's administrator has not said which.
pub(super) async fn home(ask: &Ask) -> Result<Handle, Problem> {
    if ask.admitted.tenant.is_none() {
        return Err(Problem::parameter("tenantId", "is required for an administrator of the platform"));
    }
    ask.handle().await
}

/// The people of the tenant in question, as of its last commit.
///
/// # Errors
/// As [`home`].
pub(super) async fn people(ask: &Ask) -> Result<Arc<Organization>, Problem> {
    Ok(home(ask).await?.organization()?)
}

/// An id in the path. One that cannot be an id is one of nothing.
///
/// # Errors
/// `missing`.
pub(super) fn id<T: std::str::FromStr>(text: &str, missing: Code) -> Result<T, Problem> {
    text.parse().map_err(|_| Problem::new(missing))
}

/// An id in the query.
///
/// # Errors
/// 400 when it cannot be one.
pub(super) fn id_parameter<T: std::str::FromStr>(name: &str, text: Option<&str>) -> Result<Option<T>, Problem> {
    text.map(|text| text.parse().map_err(|_| Problem::parameter(name, "not a UUID in its hyphenated form"))).transpose()
}

/// `true` or `false` in the query.
///
/// # Errors
/// 400 for anything else.
pub(super) fn truth_parameter(name: &str, text: Option<&str>) -> Result<Option<bool>, Problem> {
    let read = |text| match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Problem::parameter(name, "must be true or false")),
    };
    text.map(read).transpose()
}

/// A filter that may be asked for, with nothing beside it that would have to be looked for as well.
///
/// # Errors
/// 400 for an empty text.
pub(super) fn text_parameter<'a>(name: &str, text: Option<&'a str>) -> Result<Option<&'a str>, Problem> {
    match text {
        Some("") => Err(Problem::parameter(name, "must not be empty")),
        other => Ok(other),
    }
}

pub(super) fn attributes(given: Option<&JsonObject>, flaws: &mut Vec<Flaw>) -> Attributes {
    let read = given.map_or(Ok(Attributes::default()), |given| Attributes::read(&given.0));
    read.unwrap_or_else(|found| {
        flaws.extend(found);
        Attributes::default()
    })
}

pub(super) fn attributes_patch(
    given: Option<&Option<JsonObject>>,
    flaws: &mut Vec<Flaw>,
) -> Option<Option<AttributesPatch>> {
    let patch = given?.as_ref().map(|given| {
        AttributesPatch::read(&given.0).unwrap_or_else(|found| {
            flaws.extend(found);
            AttributesPatch::default()
        })
    });
    Some(patch)
}

/// The first `limit` that pass, and whether there are more.
pub(super) fn page<T>(all: impl Iterator<Item = T>, limit: usize) -> (Vec<T>, bool) {
    let mut found: Vec<T> = all.take(limit + 1).collect();
    let more = found.len() > limit;
    found.truncate(limit);
    (found, more)
}
