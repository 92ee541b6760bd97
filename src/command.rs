//! The commands that work on databases or a Kong and end: `migrate`, `audit verify`, `kong check` and `kong render`.

use std::process::ExitCode;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::domain::ids::TenantId;
use crate::domain::report::ChainReport;
use crate::domain::tenant::Tenant;
use crate::outlet::kong;
use crate::outlet::kong::admin::Admin;
use crate::outlet::kong::check::{self, Finding, Severity};
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
    let chosen: Vec<_> = rows.iter().filter(|row| only.is_none_or(|one| one == row.tenant.id)).collect();
    anyhow::ensure!(only.is_none() || !chosen.is_empty(), "no such tenant");
    let stop = CancellationToken::new();
    for row in chosen {
        let tenant = row.tenant.id;
        let mut reader = store.reader(tenant).await.with_context(|| format!("reading tenant {tenant}"))?;
        let books = audit::Books { tenant, witness: row.head, stop: &stop };
        broken |= tell(&tenant.to_string(), &audit::verify_books(&mut reader, books).await?);
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

/// The status of a check that could not be made.
const NOT_CHECKED: u8 = 2;

/// Looks into each node of a Kong and names what makes our guarantees void.
///
/// # Errors
/// When a report cannot be written. A node that cannot be asked is an exit code of 2, a finding one of 1, whatever else.
pub async fn check_kong(
    config: Config,
    admin_url: Option<String>,
    logs_url: Option<String>,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let admin = config.gateway.kong.admin;
    let urls = admin_url.map_or(admin.urls, |url| vec![url]);
    if urls.is_empty() {
        eprintln!("platform-api: no Admin API is named: --admin-url or gateway.kong.admin.urls");
        return Ok(ExitCode::from(NOT_CHECKED));
    }
    let (mut nodes, mut unreached) = (Vec::new(), false);
    for url in urls {
        match observe(&url, admin.token.clone()).await {
            Ok(observed) => {
                let findings = check::judge(&observed, logs_url.as_deref());
                nodes.push((url, observed, findings));
            }
            Err(error) => {
                eprintln!("platform-api: {url}: {error:#}");
                unreached = true;
            }
        }
    }
    if as_json {
        let nodes: Vec<serde_json::Value> = nodes
            .iter()
            .map(|(url, observed, findings)| {
                serde_json::json!({ "url": url, "version": observed.version, "findings": findings })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "nodes": nodes }))?);
    } else {
        nodes.iter().for_each(|(url, observed, findings)| tell_node(url, observed, findings));
    }
    let void = nodes.iter().flat_map(|(_, _, findings)| findings).any(|finding| finding.severity == Severity::Void);
    Ok(match (void, unreached) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(NOT_CHECKED),
        (false, false) => ExitCode::SUCCESS,
    })
}

fn tell_node(url: &str, observed: &check::Observed, findings: &[Finding]) {
    let (plugins, consumers) = (observed.plugins.len(), observed.consumers);
    println!("{url}: Kong {}, {plugins} plugins, {consumers} consumers", observed.version);
    findings.iter().for_each(tell_finding);
    if findings.is_empty() {
        println!("nothing makes a guarantee void");
    }
}

async fn observe(url: &str, token: Option<secrecy::SecretString>) -> anyhow::Result<check::Observed> {
    let admin = Admin::at(url, token).map_err(anyhow::Error::msg)?;
    Ok(kong::observe(&admin).await?)
}

fn tell_finding(finding: &Finding) {
    let word = if finding.severity == Severity::Void { "VOID   " } else { "warning" };
    let place = if finding.place.is_empty() { String::new() } else { format!(" in {}", finding.place) };
    println!("{word} {}{place}: {}", finding.code, finding.message);
}

/// Prints what a Kong without a database should be given.
///
/// # Errors
/// When the catalogue or the base file cannot be read.
pub async fn render_kong(config: Config) -> anyhow::Result<()> {
    let store = Store::inspect(&config.store).await.context("opening the store")?;
    let mut control = store.control_reader().await.context("reading the control database")?;
    let (rows, _) = catalogue::load(&mut control).await?;
    let mut tenants: Vec<Tenant> = rows.into_iter().map(|row| row.tenant).collect();
    tenants.sort_by_key(|tenant| tenant.id);
    println!("{}", kong::rendered(&config.gateway.kong.admin, &tenants).await?);
    Ok(())
}
