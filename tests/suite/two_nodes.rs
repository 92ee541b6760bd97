//! Two nodes on one control database: what one changes in the catalogue the other goes by, without a restart, neither
//! overwrites what it has not seen, one of them reads the usage stream, and what one owed that is gone the other delivers.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::api::{Answer, Api};
use crate::harness::database::Database;
use crate::harness::events::{Envelope, token_quota};
use crate::harness::issuer::Issuer;
use crate::harness::receiver::Receiver;
use crate::harness::{Daemon, Engine, Setup, Tenant, eventually};

async fn put_flag(api: &Api, if_match: &str, enabled: bool) -> Answer {
    let flag = json!({"kind": "boolean", "variants": {"on": true, "off": false}, "defaultVariant": "off",
        "offVariant": "off", "enabled": enabled});
    let headers = [("content-type", "application/json"), ("if-match", if_match)];
    let headers = if if_match.is_empty() { &headers[..1] } else { &headers[..] };
    api.raw(Method::PUT, "/v1/flags/new-checkout", headers, flag.to_string().into_bytes()).await
}

/// The answer at another node, once it is the expected one.
async fn comes_to(api: &Api, path: &str, status: u16, holds: impl Fn(&Value) -> bool) {
    eventually(path, || async {
        let answer = api.get(path).await;
        (answer.status == status && holds(&answer.body)).then_some(())
    })
    .await;
}

/// Suspends a tenant or brings it back, by a node that may first have to take it over: asked again, it is so already.
async fn shift(api: &Api, tenant: &Tenant, to: &str) {
    let path = format!("/v1/tenants/{}/{to}", tenant.id);
    eventually(&path, || async {
        let answer = api.call(Method::POST, &path, None).await;
        matches!(answer.status, 200 | 409).then_some(())
    })
    .await;
}

async fn two_nodes(setup: Setup) -> (Daemon, Daemon) {
    let one = setup.start().await;
    let mut other = one.peer();
    other.restart().await;
    (one, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_changes_in_the_catalogue_the_other_goes_by() {
    let issuer = Issuer::start().await;
    let (one, other) = two_nodes(Setup::on(Engine::Postgres).with_section(&issuer.section())).await;
    let anything = |_: &Value| true;

    // A tenant that was made there, its key, and that the key is revoked.
    let acme = one.onboard("Acme").await;
    let row = format!("/v1/tenants/{}", acme.id);
    comes_to(&other.platform, &row, 200, |row| row["name"] == "Acme").await;
    let (key, reader) = acme.issue_key("reader").await;
    let there = other.platform.with(reader.credential());
    comes_to(&there, "/v1/flags", 200, anything).await;
    let revoked = acme.api.patiently(Method::DELETE, &format!("{row}/api-keys/{key}"), None).await;
    assert_eq!(revoked.status, 200, "{}", revoked.text);
    comes_to(&there, "/v1/flags", 401, anything).await;

    // A flag of the platform's: made, changed, deleted.
    let flag = "/v1/flags/new-checkout";
    other.platform.get(flag).await.refused(404, "FLAG_NOT_FOUND");
    assert!(put_flag(&one.platform, "", true).await.status < 300);
    comes_to(&other.platform, flag, 200, |flag| flag["enabled"] == true).await;
    assert!(put_flag(&one.platform, "\"1\"", false).await.status < 300);
    comes_to(&other.platform, flag, 200, |flag| flag["enabled"] == false).await;
    one.platform.raw(Method::DELETE, flag, &[("if-match", "\"2\"")], Vec::new()).await.ok();
    comes_to(&other.platform, flag, 404, anything).await;

    // Somebody who administers the platform no longer.
    let body = json!({"issuer": issuer.url, "subject": "root-1", "name": "Ada"});
    let appointed = one.platform.post("/v1/platform-admins", &body).await;
    assert_eq!(appointed.status, 201, "{}", appointed.text);
    let root = other.platform.with(&issuer.token("root-1", json!({})));
    comes_to(&root, "/v1/tenants", 200, anything).await;
    let path = format!("/v1/platform-admins/{}", appointed.body["id"].as_str().unwrap());
    one.platform.delete(&path).await.ok();
    comes_to(&root, "/v1/tenants", 401, anything).await;

    // A tenant that is suspended.
    let admin_there = acme.at(&other).api;
    comes_to(&admin_there, "/v1/flags", 200, anything).await;
    shift(&one.platform, &acme, "suspend").await;
    comes_to(&admin_there, "/v1/flags", 403, |body| body["error"]["code"] == "TENANT_SUSPENDED").await;
    shift(&one.platform, &acme, "reactivate").await;
    comes_to(&admin_there, "/v1/flags", 200, anything).await;
    let metrics = other.platform.anonymous().get("/metrics").await.text;
    for kind in ["tenant", "apiKey", "platformAdmin", "flag"] {
        let counted = format!("platform_api_catalogue_news_total{{kind=\"{kind}\"}} ");
        assert!(metrics.lines().any(|line| line.starts_with(&counted)), "{kind}: {metrics}");
    }
}

/// Who makes a tenant at one node has it used at once, at whichever node its usage comes in.
#[tokio::test(flavor = "multi_thread")]
async fn usage_of_a_tenant_that_another_node_has_just_made_is_counted() {
    let setup = Setup::on(Engine::Postgres).with_nats().with("STORE__CATALOGUE_POLL_MS", 1000);
    let (one, other) = two_nodes(setup).await;
    let bus = one.bus().await;
    for round in 0..5 {
        let ids = json!({"externalIds": [{"source": "litellm", "kind": "team", "id": format!("team-{round}")}]});
        let acme = one.onboard_as(ids, &format!("Acme {round}")).await;
        let event = acme.event().json();
        let answer = other.platform.post("/v1/usage/events", &event).await;
        assert_eq!(answer.body["accepted"], 1, "{}", answer.text);
        let late = one.onboard(&format!("Late {round}")).await;
        bus.publish(&late.event().json()).await;
        let later = other.onboard(&format!("Later {round}")).await;
        bus.publish(&later.event().json()).await;
    }
    one.drained(&bus).await;
    let kept_aside = one.platform.pages("/v1/quarantine", 50).await;
    assert!(kept_aside.is_empty(), "{kept_aside:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_node_overwrites_what_it_has_not_seen() {
    // So seldom that nothing but the change itself makes them look.
    let setup = Setup::on(Engine::Postgres).with("STORE__CATALOGUE_POLL_MS", 1000);
    let (one, other) = two_nodes(setup).await;
    assert!(put_flag(&one.platform, "", true).await.status < 300);
    for version in 1..8 {
        let node = if version % 2 == 1 { &other } else { &one };
        let written = put_flag(&node.platform, &format!("\"{version}\""), version % 3 == 0).await;
        assert_eq!(written.status, 200, "version {version}: {}", written.text);
        let stale = put_flag(&node.platform, &format!("\"{version}\""), true).await;
        stale.refused(412, "PRECONDITION_FAILED");
    }
    // A name that is taken there is taken here, at once.
    let body = json!({"issuer": "https://issuer.example", "subject": "root-1", "name": "Ada"});
    assert_eq!(one.platform.post("/v1/platform-admins", &body).await.status, 201);
    other.platform.post("/v1/platform-admins", &body).await.refused(409, "IDENTITY_TAKEN");
    // The platform's own chain has taken every record of both.
    Tenant::holds(&one.platform.get("/v1/audit/verify").await.ok());
}

/// Three alerts that a pager which is down was not told of, of a tenant that nobody asks for any more.
async fn owing(node: &Daemon, pager: &Receiver, name: &str) {
    pager.will_answer(&[500; 10_000]);
    let tenant = node.onboard(name).await;
    tenant.put_quotas(json!([token_quota(100, "month")])).await;
    for _ in 0..3 {
        tenant.post_events(&[tenant.event().tokens(50, 0)]).await;
    }
    eventually("the pager to be told in vain", || async { (!pager.received().is_empty()).then_some(()) }).await;
    assert_eq!(pager.taken().len(), 0, "nobody was told");
}

/// What the pager has taken, as it tells one message from another.
fn taken(pager: &Receiver) -> BTreeSet<String> {
    pager.taken().iter().map(|one| one.header("webhook-id").to_owned()).collect()
}

/// Nobody asks for the tenant: what one node owed another comes back to by itself, however the one ended.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_owed_that_is_gone_another_delivers() {
    let endings = ["killed", "frozen", "stopped"].map(|ending| async move {
        let pager = Receiver::start().await;
        let (mut one, mut other) = two_nodes(Setup::on(Engine::Postgres).with_section(&pager.channel("pager"))).await;
        owing(&one, &pager, "Acme").await;
        match ending {
            "killed" => one.kill().await,
            "frozen" => one.signal("STOP").await,
            _ => assert!(one.stop().await.success()),
        }
        pager.is_well();
        eventually("the pager to be told", || async { (taken(&pager).len() == 3).then_some(()) }).await;
        assert!(other.log().contains("taken up from nodes that are gone"), "{}", other.log());
        if ending == "frozen" {
            // It wakes up, with messages in its hands: the pager knows them. It learns that another has the tenant.
            one.signal("CONT").await;
        } else {
            assert_eq!(pager.taken().len(), 3, "{ending}: each once");
            one.restart().await;
        }
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert_eq!(taken(&pager).len(), 3);
        let lost = other.log().matches("another node has taken the tenant over").count();
        assert_eq!(lost, 0, "{ending}: who comes back leaves it to its heir");
        other.terminate().await;
    });
    futures_util::future::join_all(endings).await;
}

/// What a node says of the usage stream.
async fn stream_at(node: &Daemon) -> String {
    node.platform.anonymous().get("/health").await.body["dependencies"]["nats"].to_string()
}

async fn comes_to_say(node: &Daemon, words: &str) {
    eventually(words, || async { stream_at(node).await.contains(words).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_reads_the_stream_and_another_goes_on_when_it_is_killed_frozen_or_stopped() {
    let (mut one, mut other) = two_nodes(Setup::on(Engine::Postgres).with_nats()).await;
    let bus = one.bus().await;
    let acme = one.onboard("Acme").await;
    let publish = async |events: i64| {
        for _ in 0..events {
            bus.publish(&Envelope::new(&acme.id).json()).await;
        }
        events
    };
    let mut sent = 0;
    for ending in ["killed", "frozen", "stopped"] {
        // A node that was just started may have taken the turn; soon it is clear whose it is.
        let one_reads = eventually("a reader, and one who stands by", || async {
            let says = [stream_at(&one).await, stream_at(&other).await];
            let reads = says.each_ref().map(|says| says.contains("this node reads"));
            let stands_by = says.map(|says| says.contains("\"up\"") && says.contains("another node reads"));
            [(reads[0] && stands_by[1]).then_some(true), (reads[1] && stands_by[0]).then_some(false)]
                .into_iter()
                .flatten()
                .next()
        })
        .await;
        let (reader, heir) = if one_reads { (&mut one, &mut other) } else { (&mut other, &mut one) };
        sent += publish(200).await;
        eventually("something to be counted", || async { (bus.backlog().await < 200).then_some(()) }).await;
        sent += publish(50).await;
        match ending {
            "killed" => reader.kill().await,
            "frozen" => reader.signal("STOP").await,
            _ => assert!(reader.stop().await.success()),
        }
        sent += publish(200).await;
        comes_to_say(heir, "this node reads").await;
        heir.drained(&bus).await;
        match ending {
            "killed" => reader.restart().await,
            // It wakes up, learns that another reads, and leaves it at that.
            "frozen" => {
                reader.signal("CONT").await;
                comes_to_say(reader, "another node reads").await;
            }
            _ => {}
        }
        sent += publish(50).await;
        heir.drained(&bus).await;
    }
    let mut database = Database::of_tenant(&one, &acme.id).await;
    assert_eq!(database.number("SELECT COUNT(*) FROM usage_ledger").await, sent, "each event once");
    let begun = [&one, &other].map(|node| node.log().matches("reading the usage stream\"").count());
    assert!((4..=6).contains(&begun.iter().sum::<usize>()), "sessions begun, of which some ended others: {begun:?}");
}
