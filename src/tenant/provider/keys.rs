//! Data keys: made, wrapped anew, replaced one secret at a time, and destroyed.
//!
//! A rotation is many small changes. Between any two of them every secret can be read: an older data key goes only when
//! nothing is encrypted under it any more.

use serde_json::json;

use super::{providers, record};
use crate::domain::books::Posting;
use crate::domain::ids::ProviderId;
use crate::domain::provider::Refusal;
use crate::domain::request::Request;
use crate::domain::secret::{StoredSecret, WrappedKey};
use crate::store::database::Connection;
use crate::store::provider as rows;
use crate::tenant::task::{Change, Halt};

/// Another data key, from now on the one that encrypts.
#[derive(Debug)]
pub struct AddDataKey(pub WrappedKey);

impl Change for AddDataKey {
    type Done = ();
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<(), Halt<Refusal>> {
        providers(posting).add_key(self.0.clone()).map_err(Halt::Refused)?;
        rows::insert_key(database, &self.0).await?;
        note(posting, request, "dataKey.created", &self.0);
        Ok(())
    }
}

/// The same data key, wrapped by another key of the platform's.
#[derive(Debug)]
pub struct RewrapDataKey {
    pub old: WrappedKey,
    pub new: WrappedKey,
}

impl Change for RewrapDataKey {
    type Done = ();
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<(), Halt<Refusal>> {
        providers(posting).rewrap(&self.old, self.new.clone()).map_err(Halt::Refused)?;
        rows::rewrap_key(database, &self.new).await?;
        note(posting, request, "dataKey.rewrapped", &self.new);
        Ok(())
    }
}

/// The same secret, under a newer data key. No record stands for it: nothing that anybody can see has changed, and the keys'
/// own records frame it.
#[derive(Debug)]
pub struct Reseal {
    pub provider: ProviderId,
    pub old: StoredSecret,
    pub new: StoredSecret,
}

impl Change for Reseal {
    type Done = ();
    type Refused = Refusal;

    async fn apply(&self, database: &mut Connection, posting: &mut Posting, _: &Request) -> Result<(), Halt<Refusal>> {
        providers(posting).reseal(self.provider, &self.old, self.new.clone()).map_err(Halt::Refused)?;
        rows::put_secret(database, self.provider, &self.new).await?;
        posting.has_other_rows = true;
        Ok(())
    }
}

/// Data keys go that nothing is encrypted under any more. Answers how many.
#[derive(Debug)]
pub struct RetireDataKeys;

impl Change for RetireDataKeys {
    type Done = usize;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<usize, Halt<Refusal>> {
        let retired = providers(posting).retire_keys();
        if !retired.is_empty() {
            rows::delete_keys(database, &retired).await?;
            record(posting, request, "dataKey.retired", "dataKeys".into(), json!({ "versions": retired }));
        }
        Ok(retired.len())
    }
}

/// The tenant leaves: its data keys and ciphertexts go, and nobody can read its secrets again, from no copy of the database
/// whose data keys are gone. Doing it again changes nothing.
#[derive(Debug)]
pub struct DestroyKeys;

impl Change for DestroyKeys {
    type Done = ();
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<(), Halt<Refusal>> {
        if posting.books.providers.is_destroyed() {
            return Ok(());
        }
        // Also of one that had none: from now on it takes none.
        let (keys, secrets) = providers(posting).destroy();
        rows::destroy(database, posting.now()).await?;
        posting.has_other_rows = true;
        if keys + secrets > 0 {
            let payload = json!({ "dataKeys": keys, "secrets": secrets });
            record(posting, request, "dataKey.destroyed", "dataKeys".into(), payload);
        }
        Ok(())
    }
}

fn note(posting: &mut Posting, request: &Request, action: &str, key: &WrappedKey) {
    record(posting, request, action, format!("dataKey:{}", key.version), json!({ "kek": key.kek }));
}
