//! The commands that work on databases and end: `migrate` and `audit verify`.

use std::process::ExitCode;

use anyhow::Context;

use crate::config::Config;
use crate::domain::ids::TenantId;
use crate::domain::report::ChainReport;
use crate::store::database::Store;
use crate::store::{audit, catalogue};

/// Brings every database to this program's schema.
///
/// # Errors
/// When a database cannot be opened or migrated; those before it are done.
pub async fn migrate(config: Config) -> anyhow::Result<()> {
    let store = Store::open(&config.store).await.context("opening the store")?;
    let mut control = store.control().await.context("migrating the control database")?;
    let (rows, _) = catalogue::load(&mut control).await?;
    println!("control database: ready");
    for row in rows {
        store.open_tenant(row.tenant.id).await.with_context(|| format!("migrating tenant {}", row.tenant.id))?;
        println!("tenant {} ({}): ready", row.tenant.id, row.tenant.slug);
    }
    Ok(())
}

/// Recomputes the chains and prints one line for each.
///
/// # Errors
/// When a database cannot be read. A broken chain is no error but an exit code of 1.
pub async fn verify(config: Config, tenant: Option<String>) -> anyhow::Result<ExitCode> {
    let only: Option<TenantId> = tenant.map(|text| text.parse()).transpose().context("--tenant")?;
    let store = Store::inspect(&config.store).await.context("opening the store")?;
    let mut broken = false;
    let mut control = store.control_reader().await.context("reading the control database")?;
    if only.is_none() {
        broken |= tell("platform", &audit::verify(&mut control, "platform").await?);
    }
    let (rows, _) = catalogue::load(&mut control).await?;
    let tenants: Vec<TenantId> =
        rows.iter().map(|row| row.tenant.id).filter(|id| only.is_none_or(|one| one == *id)).collect();
    anyhow::ensure!(only.is_none() || !tenants.is_empty(), "no such tenant");
    for tenant in tenants {
        let mut reader = store.reader(tenant).await.with_context(|| format!("reading tenant {tenant}"))?;
        broken |= tell(&tenant.to_string(), &audit::verify(&mut reader, &tenant.to_string()).await?);
    }
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn tell(chain: &str, report: &ChainReport) -> bool {
    match &report.broken {
        None => println!("{chain}: ok, {} records, head {}", report.head.seq, report.head.hash),
        Some(broken) => println!("{chain}: BROKEN at record {}: {}", broken.seq, broken.reason),
    }
    report.broken.is_some()
}
