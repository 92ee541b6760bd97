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
use crate::store::organization as rows;
use crate::tenant::task::{Change, Halt};

/// A role, given. Whether there is such an API key is known at the door.
#[derive(Debug)]
pub struct AssignRole {
    pub id: RoleAssignmentId,
    pub role: String,
    pub holder: Holder,
    pub limits: Limits,
}

impl Change for AssignRole {
    type Done = Arc<RoleAssignment>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<RoleAssignment>, Halt<Refusal>> {
        if !posting.books.policies.knows_role(&self.role) {
            return Err(Halt::Refused(Refusal::UnknownRole));
        }
        let (role, holder) = (self.role.clone(), self.holder.clone());
        let assignment = RoleAssignment { id: self.id, role, holder, created_at: posting.now() };
        let assignment = organization(posting).assign(assignment, &self.limits).map_err(Halt::Refused)?;
        rows::insert_assignment(database, &assignment).await?;
        note(posting, request, "role.assigned", &assignment);
        Ok(assignment)
    }
}

/// A role, taken back.
#[derive(Debug)]
pub struct UnassignRole {
    pub id: RoleAssignmentId,
}

impl Change for UnassignRole {
    type Done = Arc<RoleAssignment>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<RoleAssignment>, Halt<Refusal>> {
        let assignment = organization(posting).unassign(self.id).map_err(Halt::Refused)?;
        rows::delete_assignment(database, self.id).await?;
        note(posting, request, "role.unassigned", &assignment);
        Ok(assignment)
    }
}

fn note(posting: &mut Posting, request: &Request, action: &str, assignment: &RoleAssignment) {
    let RoleAssignment { id, role, holder, .. } = assignment;
    let payload = json!({ "assignment": id.to_string(), "role": role });
    record(posting, request, action, format!("{}:{}", holder.kind(), holder.id()), payload);
}
