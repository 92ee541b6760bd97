//! A user as SCIM writes it.
//!
//! `displayName` is there when it says something else than the user name. What only our own API knows of a user (subjects of
//! tokens, attributes) is left as it is by whatever comes from here.

use serde_json::{Value, json};

use super::{Document, Kind, Resource, Wrong, text, truth};
use crate::domain::organization::user::{Email, Profile, User};

/// The document of a user.
#[must_use]
pub fn document(user: &User) -> Document {
    let User { id, profile, version, created_at, updated_at } = user;
    let id = id.to_string();
    let mut document = Document::new();
    let mut put = |name: &str, value: Value| drop(document.insert(name.to_owned(), value));
    put("schemas", json!([Resource::User.urn()]));
    put("id", json!(id));
    if let Some(external_id) = &profile.external_id {
        put("externalId", json!(external_id));
    }
    put("userName", json!(profile.user_name));
    if profile.display_name != profile.user_name {
        put("displayName", json!(profile.display_name));
    }
    let mut name = Document::new();
    for (part, value) in [("givenName", &profile.given_name), ("familyName", &profile.family_name)] {
        if let Some(value) = value {
            name.insert(part.to_owned(), json!(value));
        }
    }
    if !name.is_empty() {
        put("name", Value::Object(name));
    }
    if !profile.emails.is_empty() {
        put("emails", profile.emails.iter().map(email).collect());
    }
    put("active", json!(profile.active));
    put("meta", super::schema::meta(Resource::User, &id, *created_at, *updated_at, *version));
    document
}

fn email(email: &Email) -> Value {
    let mut item = json!({ "value": email.value });
    if let Some(kind) = &email.kind {
        item["type"] = json!(kind);
    }
    // Said also of those that are not: whoever set it looks for what he set.
    item["primary"] = json!(email.primary);
    item
}

/// What a document says of a user. `before` is whom it takes the place of.
///
/// # Errors
/// [`Kind::InvalidValue`].
pub fn profile(document: &Document, before: Option<&Profile>) -> Result<Profile, Wrong> {
    let invalid = |detail: String| Wrong::new(Kind::InvalidValue, detail);
    let user_name = text(document, "userName")?.ok_or_else(|| invalid("userName is required".into()))?;
    let active = match document.get("active") {
        None | Some(Value::Null) => true,
        Some(value) => truth(value).ok_or_else(|| invalid("active must be true or false".into()))?,
    };
    let (mut given_name, mut family_name) = (None, None);
    match document.get("name") {
        None | Some(Value::Null) => {}
        Some(Value::Object(name)) => {
            (given_name, family_name) = (text(name, "givenName")?, text(name, "familyName")?);
        }
        Some(_) => return Err(invalid("name must be an object".into())),
    }
    let emails = match document.get("emails") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => items.iter().map(read_email).collect::<Result<_, _>>()?,
        Some(_) => return Err(invalid("emails must be a list".into())),
    };
    let profile = Profile {
        display_name: text(document, "displayName")?.unwrap_or_else(|| user_name.clone()),
        user_name,
        given_name,
        family_name,
        emails,
        external_id: text(document, "externalId")?,
        subjects: before.map(|before| before.subjects.clone()).unwrap_or_default(),
        attributes: before.map(|before| before.attributes.clone()).unwrap_or_default(),
        active,
    };
    match profile.flaws().first() {
        None => Ok(profile),
        Some(flaw) => Err(invalid(format!("{}: {}", flaw.pointer, flaw.message))),
    }
}

fn read_email(item: &Value) -> Result<Email, Wrong> {
    let invalid = || Wrong::new(Kind::InvalidValue, "an item of emails must be an object with a value");
    let item = item.as_object().ok_or_else(invalid)?;
    let value = text(item, "value")?.ok_or_else(invalid)?;
    let primary = item.get("primary").and_then(truth).unwrap_or(false);
    Ok(Email { value, kind: text(item, "type")?, primary })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::UserId;
    use crate::domain::organization::user::IssuedSubject;
    use crate::domain::time::Timestamp;
    use crate::scim::kept;

    fn read(value: Value, before: Option<&Profile>) -> Result<Profile, Kind> {
        let Value::Object(document) = value else { panic!("an object") };
        profile(&kept(&document, Resource::User), before).map_err(|wrong| wrong.kind)
    }

    #[test]
    fn a_user_is_read_as_it_is_written() {
        let subjects = vec![IssuedSubject { issuer: "https://id".into(), subject: "s".into() }];
        let emails = vec![
            Email { value: "j@a.b".into(), kind: Some("work".into()), primary: true },
            Email { value: "j@c.d".into(), kind: None, primary: false },
        ];
        let full = Profile {
            given_name: Some("Jane".into()),
            display_name: "Jane Doe".into(),
            external_id: Some("e".into()),
            active: false,
            emails,
            subjects,
            ..Profile::named("jane")
        };
        for profile in [full, Profile::named("jane")] {
            let user = User {
                id: UserId(uuid::Uuid::from_u128(7)),
                profile: profile.clone(),
                version: 3,
                created_at: Timestamp(0),
                updated_at: Timestamp(0),
            };
            let written = Value::Object(document(&user));
            assert_eq!(written["meta"]["version"], "\"3\"");
            assert_eq!(read(written, Some(&profile)), Ok(profile), "what only our own API knows stays");
        }
    }

    #[test]
    fn what_identity_providers_send_is_read_with_patience() {
        let given = json!({"schemas": ["x"], "USERNAME": "jane", "active": "True", "title": "Dr", "name": {"GivenName": "J"},
            "emails": [{"Value": "a@b.c", "Primary": "true"}], "displayName": "", "externalId": null, "password": "secret"});
        let profile = read(given, None).unwrap();
        assert_eq!((profile.user_name.as_str(), profile.display_name.as_str()), ("jane", "jane"));
        assert_eq!((profile.given_name.as_deref(), profile.emails[0].primary), (Some("J"), true));
        for wrong in [
            json!({}),
            json!({"userName": ""}),
            json!({"userName": 7}),
            json!({"userName": "j", "active": "maybe"}),
            json!({"userName": "j", "name": "J"}),
            json!({"userName": "j", "emails": "a@b.c"}),
            json!({"userName": "j", "emails": [{"type": "work"}]}),
            json!({"userName": "j", "emails": [{"value": "nowhere"}]}),
            json!({"userName": "j".repeat(300)}),
        ] {
            assert_eq!(read(wrong.clone(), None), Err(Kind::InvalidValue), "{wrong}");
        }
    }
}
