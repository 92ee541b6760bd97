//! Roles, given and taken back.

use std::sync::Arc;

use serde_json::json;

use super::{organization, record};
use crate::domain::books::Posting;
use crate::domain::ids::RoleAssignmentId;
use crate::domain::organization::role::{Holder, RoleAssignment};
use crate::domain::organization::{Limits, Refusal};
use crate::domain::request::Request;
use crate::store::database::Connection;
use crate::store::{StoreError, organization as rows};
use crate::tenant::task::Change;

/// A role, given. Whether there is such an API key is known at the door.
#[derive(Debug)]
pub struct AssignRole {
    pub id: RoleAssignmentId,
    pub role: String,
    pub holder: Holder,
    pub limits: Limits,
    pub render: fn(&RoleAssignment) -> String,
}

impl Change for AssignRole {
    type Done = Arc<RoleAssignment>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Result<Arc<RoleAssignment>, Refusal>, StoreError> {
        if !posting.books.policies.knows_role(&self.role) {
            return Ok(Err(Refusal::UnknownRole));
        }
        let (role, holder) = (self.role.clone(), self.holder.clone());
        let assignment = RoleAssignment { id: self.id, role, holder, created_at: posting.now() };
        let assignment = match organization(posting).assign(assignment, &self.limits) {
            Ok(assignment) => assignment,
            Err(refusal) => return Ok(Err(refusal)),
        };
        rows::insert_assignment(database, &assignment).await?;
        note(posting, request, "role.assigned", &assignment);
        Ok(Ok(assignment))
    }

    fn render(&self, done: &Arc<RoleAssignment>) -> String {
        (self.render)(done)
    }
}

/// A role, taken back.
#[derive(Debug)]
pub struct UnassignRole {
    pub id: RoleAssignmentId,
    pub render: fn(&RoleAssignment) -> String,
}

impl Change for UnassignRole {
    type Done = Arc<RoleAssignment>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Result<Arc<RoleAssignment>, Refusal>, StoreError> {
        let assignment = match organization(posting).unassign(self.id) {
            Ok(assignment) => assignment,
            Err(refusal) => return Ok(Err(refusal)),
        };
        rows::delete_assignment(database, self.id).await?;
        note(posting, request, "role.unassigned", &assignment);
        Ok(Ok(assignment))
    }

    fn render(&self, done: &Arc<RoleAssignment>) -> String {
        (self.render)(done)
    }
}

fn note(posting: &mut Posting, request: &Request, action: &str, assignment: &RoleAssignment) {
    let RoleAssignment { id, role, holder, .. } = assignment;
    let payload = json!({ "assignment": id.to_string(), "role": role });
    record(posting, request, action, format!("{}:{}", holder.kind(), holder.id()), payload);
}
