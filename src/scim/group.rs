//! A group as SCIM writes it, with who is in it itself.

use serde_json::{Value, json};

use super::{Document, Kind, Resource, Wrong, text};
use crate::domain::ids::{GroupId, UserId};
use crate::domain::organization::Organization;
use crate::domain::organization::group::{Group, Member, Profile};

/// The document of a group.
#[must_use]
pub fn document(group: &Group, members: impl Iterator<Item = Member>) -> Document {
    let Group { id, profile, version, created_at, updated_at } = group;
    let id = id.to_string();
    let mut document = Document::new();
    let mut put = |name: &str, value: Value| drop(document.insert(name.to_owned(), value));
    put("schemas", json!([Resource::Group.urn()]));
    put("id", json!(id));
    if let Some(external_id) = &profile.external_id {
        put("externalId", json!(external_id));
    }
    put("displayName", json!(profile.display_name));
    let members: Vec<Value> = members.map(member).collect();
    if !members.is_empty() {
        put("members", Value::Array(members));
    }
    put("meta", super::schema::meta(Resource::Group, &id, *created_at, *updated_at, *version));
    document
}

fn member(member: Member) -> Value {
    let (kind, id) = match member {
        Member::User(_) => (Resource::User, member.id()),
        Member::Group(_) => (Resource::Group, member.id()),
    };
    json!({ "value": id, "$ref": kind.location(&id), "type": kind.name() })
}

/// What a document says of a group. `before` is what it takes the place of.
///
/// # Errors
/// [`Kind::InvalidValue`].
pub fn profile(document: &Document, before: Option<&Profile>) -> Result<Profile, Wrong> {
    let invalid = |detail: String| Wrong::new(Kind::InvalidValue, detail);
    let display_name = text(document, "displayName")?.ok_or_else(|| invalid("displayName is required".into()))?;
    let external_id = text(document, "externalId")?;
    let kept = before.cloned().unwrap_or_else(|| Profile::named(&display_name));
    let profile = Profile { display_name, external_id, ..kept };
    match profile.flaws().first() {
        None => Ok(profile),
        Some(flaw) => Err(invalid(format!("{}: {}", flaw.pointer, flaw.message))),
    }
}

/// Who a document says is in the group. Whether an id is a user's or a group's is looked up.
///
/// # Errors
/// [`Kind::InvalidValue`] for somebody that there is not.
pub fn members(document: &Document, people: &Organization) -> Result<Vec<Member>, Wrong> {
    let invalid = |detail: String| Wrong::new(Kind::InvalidValue, detail);
    let items = match document.get("members") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(invalid("members must be a list".into())),
    };
    let mut members = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let id = item.get("value").and_then(Value::as_str);
        let id = id.ok_or_else(|| invalid(format!("members[{at}] has no value")))?;
        let user = id.parse::<UserId>().ok().filter(|id| people.user(*id).is_some()).map(Member::User);
        let group = || id.parse::<GroupId>().ok().filter(|id| people.group(*id).is_some()).map(Member::Group);
        members.push(user.or_else(group).ok_or_else(|| invalid(format!("members[{at}] is nobody's id")))?);
    }
    members.sort_unstable();
    members.dedup();
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::organization::Limits;
    use crate::domain::organization::user::{self, User};
    use crate::domain::time::Timestamp;

    #[test]
    fn members_are_looked_up_whatever_they_say_they_are() {
        let limits = Limits { users: 9, groups: 9, members: 9, role_assignments: 9 };
        let mut people = Organization::default();
        let uuid = uuid::Uuid::from_u128;
        let at = Timestamp(0);
        let jane = User {
            id: UserId(uuid(1)),
            profile: user::Profile::named("jane"),
            version: 1,
            created_at: at,
            updated_at: at,
        };
        let team = Group {
            id: GroupId(uuid(2)),
            profile: Profile { description: Some("all".into()), ..Profile::named("team") },
            version: 1,
            created_at: at,
            updated_at: at,
        };
        people.put_user(jane, &limits).unwrap();
        people.put_group(team.clone(), &limits).unwrap();
        let all = [Member::User(UserId(uuid(1))), Member::Group(GroupId(uuid(2)))];
        let written = document(&team, all.into_iter());
        assert_eq!(members(&written, &people), Ok(all.to_vec()));
        assert_eq!(profile(&written, Some(&team.profile)), Ok(team.profile));
        let read = |value: Value| {
            let document = [("members".to_owned(), value)].into_iter().collect();
            members(&document, &people).map_err(|wrong| wrong.kind)
        };
        let one = json!({"value": uuid(1).to_string(), "type": "Group"});
        assert_eq!(read(json!([one, one])), Ok(vec![all[0]]), "twice is once");
        for wrong in [json!("x"), json!([{}]), json!([{"value": "x"}]), json!([{"value": uuid(3).to_string()}])] {
            assert_eq!(read(wrong.clone()), Err(Kind::InvalidValue), "{wrong}");
        }
        assert_eq!(profile(&Document::new(), None).map_err(|wrong| wrong.kind), Err(Kind::InvalidValue));
    }
}
