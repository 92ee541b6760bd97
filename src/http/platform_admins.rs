//! `/v1/platform-admins`: people who administer the platform.

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::authorize::Ask;
use super::body::{Strict, present};
use super::document::Tag;
use super::people::{id, page};
use super::problem::{Code, Problem};
use super::reply::Reply;
use super::view::{instant, page_limit};
use crate::domain::organization::user::{ISSUER_BYTES_MAX, SUBJECT_BYTES_MAX};
use crate::domain::organization::{Flaw, NAME_BYTES_MAX};
use crate::domain::platform_admin::PlatformAdmin;

pub(super) struct PlatformAdmins;

#[OpenApi(tag = "Tag::Organization")]
impl PlatformAdmins {
    /// Let somebody administer the platform
    ///
    /// Whoever comes with a token of this issuer for this subject that names no tenant. A person is known by these two
    /// alone: user names change hands. It holds from the next request on.
    #[oai(path = "/v1/platform-admins", method = "post", operation_id = "createPlatformAdmin")]
    async fn create(
        &self,
        ask: Ask,
        body: Strict<AppointPlatformAdmin>,
    ) -> Result<Reply<PlatformAdminView, 201>, Problem> {
        let AppointPlatformAdmin { issuer, subject, name } = body.0.checked()?;
        let name = name.unwrap_or_else(|| subject.clone());
        let directory = &ask.api.directory;
        let answer = directory.appoint_platform_admin(issuer, subject, name, ask.change(), render).await?;
        Ok(Reply::of(answer, |done| PlatformAdminView::of(&done)))
    }

    /// Page through the people who administer the platform, oldest first
    #[oai(path = "/v1/platform-admins", method = "get", operation_id = "listPlatformAdmins")]
    async fn list(
        &self,
        ask: Ask,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
    ) -> Result<Reply<PlatformAdminPage>, Problem> {
        let limit = page_limit(limit.0.as_deref())?;
        let after = ask.open(cursor.0.as_deref(), |text| text.parse().ok())?;
        let (found, more) = page(ask.api.directory.platform_admins(after, limit + 1).into_iter(), limit);
        let next = found.last().filter(|_| more).map(|admin| ask.seal(&admin.id.to_string()));
        Ok(Reply::new(PlatformAdminPage {
            items: found.iter().map(PlatformAdminView::of).collect(),
            next_cursor: next,
        }))
    }

    /// Read who administers the platform
    #[oai(path = "/v1/platform-admins/:id", method = "get", operation_id = "getPlatformAdmin")]
    async fn get(
        &self,
        ask: Ask,
        /// The row's id.
        #[oai(name = "id")]
        admin: Path<String>,
    ) -> Result<Reply<PlatformAdminView>, Problem> {
        let found = ask.api.directory.platform_admin(id(&admin, Code::PlatformAdminNotFound)?);
        let found = found.ok_or_else(|| Problem::new(Code::PlatformAdminNotFound))?;
        Ok(Reply::new(PlatformAdminView::of(&found)))
    }

    /// Let somebody administer the platform no longer
    ///
    /// From the next request on. Answers the row as it was.
    #[oai(path = "/v1/platform-admins/:id", method = "delete", operation_id = "deletePlatformAdmin")]
    async fn delete(
        &self,
        ask: Ask,
        /// The row's id.
        #[oai(name = "id")]
        admin: Path<String>,
    ) -> Result<Reply<PlatformAdminView>, Problem> {
        let admin = id(&admin, Code::PlatformAdminNotFound)?;
        let answer = ask.api.directory.dismiss_platform_admin(admin, ask.change(), render).await?;
        Ok(Reply::of(answer, |done| PlatformAdminView::of(&done)))
    }
}

fn render(admin: &PlatformAdmin) -> String {
    serde_json::to_string(&PlatformAdminView::of(admin)).unwrap_or_default()
}

/// Who is to administer the platform.
#[derive(Debug, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct AppointPlatformAdmin {
    /// `iss` of their tokens, exactly; one of the configured issuers.
    issuer: String,
    /// `sub` of their tokens.
    subject: String,
    /// For people who read the list; the subject when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    name: Option<String>,
}

impl AppointPlatformAdmin {
    fn checked(self) -> Result<AppointPlatformAdmin, Problem> {
        let mut flaws = Vec::new();
        let mut check = |pointer: &str, text: &str, bytes_max: usize| {
            let fits = (1..=bytes_max).contains(&text.len()) && !text.chars().any(char::is_control);
            if !fits {
                flaws.push(Flaw::new(pointer, format!("must be 1 to {bytes_max} bytes without control characters")));
            }
        };
        check("/issuer", &self.issuer, ISSUER_BYTES_MAX);
        check("/subject", &self.subject, SUBJECT_BYTES_MAX);
        if let Some(name) = &self.name {
            check("/name", name, NAME_BYTES_MAX);
        }
        if flaws.is_empty() { Ok(self) } else { Err(Problem::flaws(flaws)) }
    }
}

/// Somebody who administers the platform.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "PlatformAdmin", rename_all = "camelCase", example)]
pub(super) struct PlatformAdminView {
    id: String,
    issuer: String,
    subject: String,
    name: String,
    created_at: String,
}

impl PlatformAdminView {
    fn of(admin: &PlatformAdmin) -> PlatformAdminView {
        PlatformAdminView {
            id: admin.id.to_string(),
            issuer: admin.issuer.clone(),
            subject: admin.subject.clone(),
            name: admin.name.clone(),
            created_at: instant(admin.created_at),
        }
    }
}

/// A page of people who administer the platform.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct PlatformAdminPage {
    items: Vec<PlatformAdminView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

impl Example for AppointPlatformAdmin {
    fn example() -> AppointPlatformAdmin {
        AppointPlatformAdmin {
            issuer: "https://id.example.com".into(),
            subject: "00u1a2b3".into(),
            name: Some("Jane Doe".into()),
        }
    }
}

impl Example for PlatformAdminView {
    fn example() -> PlatformAdminView {
        PlatformAdminView {
            id: "0199a8b2-5c00-7abc-8def-0123456789ab".into(),
            issuer: "https://id.example.com".into(),
            subject: "00u1a2b3".into(),
            name: "Jane Doe".into(),
            created_at: "2026-11-20T15:37:12.345Z".into(),
        }
    }
}
