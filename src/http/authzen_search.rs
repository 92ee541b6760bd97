//! AuthZEN's searches: which subjects may, which things may be done something to, and which actions may be done.
//!
//! A search asks the question of one candidate after the other, so what it finds is what an evaluation allows. The
//! candidates are what we know: the tenant's own, and what its rules name. However few of them may, a page looks at a bounded
//! number and says where the next one goes on.

use std::collections::BTreeSet;
use std::sync::Arc;

use aws_lc_rs::digest;
use serde_json::{Map, Value, json};

use super::authorize::Ask;
use super::authzen::{Sought, bad, searched};
use super::people::home;
use super::problem::{Code, Problem};
use crate::access::authorizer::{Authority, Inquiry};
use crate::config::SubjectIds;
use crate::domain::ids::UserId;
use crate::domain::organization::user::User;

/// Results of one page of a search.
pub(super) const RESULTS_MAX: usize = 100;
/// Candidates that one request looks at.
const SCAN_MAX: usize = 1_000;
/// The same where each of them may be asked about elsewhere.
const SCAN_RELATIONS_MAX: usize = 25;

/// Something that may be what is sought.
struct Candidate {
    /// Its place in the order of them all.
    position: String,
    inquiry: Inquiry,
    shown: Value,
}

/// Users who may, in the order of their making. Nobody else can be listed.
pub(super) async fn subjects(ask: &Ask, authority: &Authority, body: &Map<String, Value>) -> Result<Value, Problem> {
    let asked = searched(body, Sought::Subject).map_err(bad)?;
    let page = Page::read(ask, body)?;
    if asked.subject_type != "user" {
        return Ok(results(Vec::new(), ""));
    }
    let after: Option<UserId> = match page.after.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| Problem::new(Code::InvalidCursor))?),
    };
    let candidate = |user: &Arc<User>| Candidate {
        position: user.id.to_string(),
        inquiry: Inquiry { subject_id: user.id.to_string(), ..asked.clone() },
        shown: json!({ "type": "user", "id": called(ask.api.subject_ids, authority, user) }),
    };
    page.fill(ask, authority, authority.people.users_after(after).map(candidate)).await
}

/// What gateways call a user. A name that another user answers to is not this one's.
fn called(ids: SubjectIds, authority: &Authority, user: &User) -> String {
    let name = match ids {
        SubjectIds::Id => None,
        SubjectIds::UserName => Some(&user.profile.user_name),
        SubjectIds::ExternalId => user.profile.external_id.as_ref(),
    };
    let is_own = |name: &&String| authority.people.user_called(name).is_some_and(|found| found.id == user.id);
    name.filter(is_own).map_or_else(|| user.id.to_string(), String::clone)
}

/// Things of one type that the subject may do this to, in the order of their ids.
pub(super) async fn resources(ask: &Ask, authority: &Authority, body: &Map<String, Value>) -> Result<Value, Problem> {
    let asked = searched(body, Sought::Resource).map_err(bad)?;
    let page = Page::read(ask, body)?;
    // One more than is looked at shows that there are more.
    let known = known(ask, authority, &asked.resource_type, &page.after, scan_max(authority) + 1).await?;
    let candidate = |id: String| Candidate {
        position: id.clone(),
        shown: json!({ "type": asked.resource_type, "id": id }),
        inquiry: Inquiry { resource_id: Some(id), ..asked.clone() },
    };
    page.fill(ask, authority, known.into_iter().map(candidate)).await
}

/// The first ids of this type after `after`, `most` of them: the tenant's own, and those that its rules name.
async fn known(
    ask: &Ask,
    authority: &Authority,
    kind: &str,
    after: &str,
    most: usize,
) -> Result<BTreeSet<String>, Problem> {
    let (people, policies) = (&authority.people, &authority.policies);
    let mut known: BTreeSet<String> = authority.set().resources_of(kind).map(str::to_owned).collect();
    let mut add = |own: &mut dyn Iterator<Item = String>| {
        known.extend(own.filter(|id| id.as_str() > after).take(most));
    };
    // The tenant's books have their things in the order of their ids, so the first ones suffice.
    match kind {
        "users" => add(&mut people.users_after(after.parse().ok()).map(|user| user.id.to_string())),
        "groups" => add(&mut people.groups_after(after.parse().ok()).map(|group| group.id.to_string())),
        "roleAssignments" => add(&mut people.assignments_after(after.parse().ok()).map(|given| given.id.to_string())),
        "policies" => add(&mut policies.policies().map(|policy| policy.id.to_string())),
        "providers" => {
            let books = home(ask).await?.providers()?;
            add(&mut books.after(after.parse().ok()).map(|provider| provider.id.to_string()));
        }
        // These are few, and in another order.
        "roles" => {
            let built_in = ask.api.gate.authorizer().built_in();
            known.extend(built_in.rights().map(|(role, _)| role.name().to_owned()));
            known.extend(policies.roles().map(|role| role.name.clone()));
        }
        "apiKeys" => known.extend(ask.api.directory.api_keys(authority.tenant).into_iter().map(|key| key.id)),
        "flags" => known.extend(home(ask).await?.flags()?.flags.iter().map(|flag| flag.key.clone())),
        _ => {}
    }
    known.retain(|id| id.as_str() > after);
    Ok(known.into_iter().take(most).collect())
}

/// Actions that the subject may do, of those that any rule names.
pub(super) async fn actions(ask: &Ask, authority: &Authority, body: &Map<String, Value>) -> Result<Value, Problem> {
    let asked = searched(body, Sought::Action).map_err(bad)?;
    let page = Page::read(ask, body)?;
    let named = authority.set().actions_on(&asked.resource_type);
    let candidate = |action: String| Candidate {
        position: action.clone(),
        shown: json!({ "name": action }),
        inquiry: Inquiry { action, ..asked.clone() },
    };
    let later: Vec<String> = named.into_iter().filter(|action| *action > page.after).collect();
    page.fill(ask, authority, later.into_iter().map(candidate)).await
}

fn scan_max(authority: &Authority) -> usize {
    if authority.set().has_relations() { SCAN_RELATIONS_MAX } else { SCAN_MAX }
}

/// The page comes first: whoever reads a long answer knows at once how long it is.
pub(super) fn results(found: Vec<Value>, next: &str) -> Value {
    json!({ "page": { "count": found.len(), "next_token": next }, "results": found })
}

/// Which results of a search are asked for.
struct Page {
    limit: usize,
    /// The position of the last candidate before; empty at the beginning.
    after: String,
    /// Of everything that must not change from one page to the next.
    digest: String,
}

impl Page {
    /// A token belongs to the question that it was given for, and keeps its limit: a later page may say it again.
    fn read(ask: &Ask, body: &Map<String, Value>) -> Result<Page, Problem> {
        let page = match body.get("page") {
            None | Some(Value::Null) => None,
            Some(Value::Object(page)) => Some(page),
            Some(_) => return Err(bad("page must be an object".into())),
        };
        let limit = match page.and_then(|page| page.get("limit")) {
            None | Some(Value::Null) => None,
            Some(limit) => {
                let limit =
                    limit.as_u64().ok_or_else(|| bad("page.limit must be an integer, and not negative".into()))?;
                Some(usize::try_from(limit).unwrap_or(usize::MAX).min(RESULTS_MAX))
            }
        };
        let digest = digest_of(body);
        let token = match page.and_then(|page| page.get("token")) {
            None | Some(Value::Null) => "",
            Some(Value::String(token)) => token.as_str(),
            Some(_) => return Err(bad("page.token must be a string".into())),
        };
        if token.is_empty() {
            return Ok(Page { limit: limit.unwrap_or(RESULTS_MAX), after: String::new(), digest });
        }
        let parts = |text: &str| {
            let (kept, rest) = text.split_once(' ')?;
            let (of, after) = rest.split_once(' ')?;
            Some((kept.parse::<usize>().ok()?, of.to_owned(), after.to_owned()))
        };
        let (kept, of, after) = ask.open(Some(token), parts)?.ok_or_else(|| Problem::new(Code::InvalidCursor))?;
        if of != digest || limit.is_some_and(|limit| limit != kept) {
            return Err(bad("page.token belongs to another question, or another page.limit".into()));
        }
        Ok(Page { limit: kept, after, digest })
    }

    /// Asks about one candidate after the other.
    async fn fill(
        self,
        ask: &Ask,
        authority: &Authority,
        candidates: impl Iterator<Item = Candidate> + Send,
    ) -> Result<Value, Problem> {
        let scan_max = scan_max(authority);
        let (mut found, mut last, mut next) = (Vec::new(), self.after, String::new());
        for (looked_at, candidate) in candidates.enumerate() {
            if looked_at == scan_max || found.len() == self.limit {
                next = ask.seal(&format!("{} {} {last}", self.limit, self.digest));
                break;
            }
            // Each may cost a while; others have their turn between them.
            tokio::task::yield_now().await;
            if ask.api.gate.authorizer().decide(authority, &candidate.inquiry).await.allowed {
                found.push(candidate.shown);
            }
            last = candidate.position;
        }
        Ok(results(found, &next))
    }
}

/// Short enough for a token; a difference costs whoever makes it no more than an error.
fn digest_of(body: &Map<String, Value>) -> String {
    let parts = ["subject", "action", "resource", "context"].map(|name| body.get(name).cloned().unwrap_or_default());
    let digest = digest::digest(&digest::SHA256, Value::from(parts.to_vec()).to_string().as_bytes());
    digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_of_one_question_however_it_is_written() {
        let digest = |text: &str| digest_of(serde_json::from_str::<Value>(text).unwrap().as_object().unwrap());
        let first =
            digest(r#"{"subject": {"type": "user", "id": "a"}, "action": {"name": "x"}, "page": {"limit": 2}}"#);
        let again = digest(r#"{"action": {"name": "x"}, "subject": {"id": "a", "type": "user"}, "later": true}"#);
        assert_eq!(first, again);
        assert_ne!(first, digest(r#"{"action": {"name": "y"}, "subject": {"id": "a", "type": "user"}}"#));
        assert_ne!(
            first,
            digest(r#"{"action": {"name": "x"}, "subject": {"id": "a", "type": "user"}, "context": {"a": 1}}"#)
        );
    }
}
