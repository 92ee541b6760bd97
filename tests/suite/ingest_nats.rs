//! Usage over NATS JetStream: acknowledged after commit, once, and never stopped by what is broken.

use serde_json::{Value, json};

use crate::harness::database::Database;
use crate::harness::events::Envelope;
use crate::harness::oracle::Oracle;
use crate::harness::{Daemon, Engine, Setup, eventually, on_both};

async fn counted(daemon: &Daemon, tenant: &str, events: i64) {
    eventually("the events in the ledger", || async {
        let mut database = Database::of_tenant(daemon, tenant).await;
        (database.number("SELECT COUNT(*) FROM usage_ledger").await >= events).then_some(())
    })
    .await;
}

async fn quarantined(daemon: &Daemon, rows: usize) -> Vec<Value> {
    eventually("the quarantine to fill", || async {
        let found = daemon.platform.pages("/v1/quarantine", 50).await;
        (found.len() >= rows).then_some(found)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_counted_once_however_often_it_is_published() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with_nats().start().await;
        let bus = daemon.bus().await;
        let tenants = [daemon.onboard("Acme").await, daemon.onboard("Globex").await];
        let oracles = [Oracle::default(), Oracle::default()];
        for round in 0..200 {
            let at = round % 2;
            let event = Envelope::new(&tenants[at].id).tokens(round as i64, 1);
            oracles[at].sends(&event);
            for _ in 0..1 + round % 3 {
                let sequence = if round % 5 == 0 {
                    bus.publish_for(&tenants[at].id, &event.json()).await
                } else {
                    bus.publish(&event.json()).await
                };
                oracles[at].published(sequence, &event);
            }
        }
        daemon.drained(&bus).await;
        for (tenant, oracle) in tenants.iter().zip(&oracles) {
            oracle.check(&daemon, tenant).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_goes_to_quarantine_and_the_pipeline_goes_on() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with_nats().start().await;
        let bus = daemon.bus().await;
        let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
        let nobody = "0199a8b2-5c00-7abc-8def-0123456789ab";
        let day = 86_400_000_000;
        bus.publish(&acme.event().json()).await;
        let poison: Vec<(Vec<u8>, &str)> = vec![
            (b"not json".to_vec(), "MALFORMED_EVENT"),
            (b"".to_vec(), "MALFORMED_EVENT"),
            (b"\xff\xfe{".to_vec(), "MALFORMED_EVENT"),
            (b"{\"eventId\":\"nul-\\u0000\",\"payload\":{}}".to_vec(), "MALFORMED_EVENT"),
            (vec![b'['; 100_000], "MALFORMED_EVENT"),
            (json!({"eventId": "x"}).to_string().into_bytes(), "MALFORMED_EVENT"),
            (negative(&acme.event()).to_string().into_bytes(), "MALFORMED_EVENT"),
            (Envelope::new(nobody).json().to_string().into_bytes(), "UNKNOWN_TENANT"),
            (Envelope::new("acme").json().to_string().into_bytes(), "UNKNOWN_TENANT"),
            (
                acme.event().at(acme.event().occurred_at.plus_micros(-500 * day)).json().to_string().into_bytes(),
                "EVENT_TOO_OLD",
            ),
            (
                acme.event().at(acme.event().occurred_at.plus_micros(day)).json().to_string().into_bytes(),
                "EVENT_FROM_THE_FUTURE",
            ),
        ];
        let mut expected: Vec<String> = poison.iter().map(|(_, code)| (*code).to_owned()).collect();
        for (bytes, _) in poison {
            bus.publish_bytes(&bus.subject, bytes).await;
        }
        // The subject speaks for Globex, the body for Acme.
        bus.publish_for(&globex.id, &acme.event().json()).await;
        expected.push("TENANT_MISMATCH".into());
        bus.publish(&acme.event().json()).await;

        counted(&daemon, &acme.id, 2).await;
        let rows = quarantined(&daemon, expected.len()).await;
        let mut reasons: Vec<String> = rows.iter().map(|row| row["reason"].as_str().unwrap().to_owned()).collect();
        reasons.sort();
        expected.sort();
        assert_eq!(reasons, expected);
        assert!(rows.iter().all(|row| row["origin"].as_str().unwrap().starts_with("nats:")));
        daemon.drained(&bus).await;
        assert!(globex.ledger().await.is_empty());
        assert_eq!(acme.ledger().await.len(), 2);
    })
    .await;
}

fn negative(event: &Envelope) -> Value {
    let mut json = event.json();
    json["payload"]["usage"]["promptTokens"] = json!(-5);
    json
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_for_a_tenant_that_comes_later_is_replayed_from_quarantine() {
    let daemon = Setup::on(Engine::Postgres).with_nats().start().await;
    let bus = daemon.bus().await;
    let event = json!({"litellm_call_id": "later", "id": "later", "status": "success",
        "startTime": crate::harness::events::now().0 as f64 / 1e6, "endTime": crate::harness::events::now().0 as f64 / 1e6,
        "prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10, "response_cost": 0.1,
        "metadata": {"user_api_key_team_id": "team-later"}});
    bus.publish(&event).await;
    let row = quarantined(&daemon, 1).await.remove(0);
    assert_eq!(row["reason"], "UNKNOWN_TENANT");
    let ids = json!({"externalIds": [{"source": "litellm", "kind": "team", "id": "team-later"}]});
    let tenant = daemon.onboard_as(ids, "Later").await;
    let path = format!("/v1/quarantine/{}/replay", row["id"].as_str().unwrap());
    assert_eq!(daemon.platform.raw(reqwest::Method::POST, &path, &[], Vec::new()).await.ok()["outcome"], "counted");
    assert_eq!(tenant.ledger().await.len(), 1);
}

/// A tenant that takes less than it is sent holds its own events back, and nobody else's.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_one_tenant_waits_and_its_neighbour_does_not() {
    on_both(|engine| async move {
        let setup = Setup::on(engine).with_nats().with("TENANTS__PERMITS_EVENTS", 50);
        // What waits for the loud one waits in the stream.
        let setup = setup.with("TENANTS__COMMIT_EVENTS_MAX", 50).with("NATS__PARK_AFTER_MS", 120_000);
        let daemon = setup.start().await;
        let bus = daemon.bus().await;
        let (loud, quiet) = (daemon.onboard("Loud").await, daemon.onboard("Quiet").await);
        let mut holder = Database::of_tenant(&daemon, &loud.id).await;
        let hold = match engine {
            Engine::Sqlite => "PRAGMA busy_timeout = 10000; BEGIN IMMEDIATE",
            Engine::Postgres => "BEGIN; SELECT 1 FROM books FOR UPDATE",
        };
        holder.script(hold.into()).await.expect("the books");
        let mut sent = Vec::new();
        for _ in 0..3_000 {
            let bytes = loud.event().json().to_string();
            sent.push(bus.jetstream.publish(bus.subject.clone(), bytes.into()).await.expect("connected"));
        }
        for ack in sent {
            ack.await.expect("the stream takes it");
        }
        bus.publish(&quiet.event().json()).await;
        counted(&daemon, &quiet.id, 1).await;
        holder.script("ROLLBACK".into()).await.expect("they are ours");
        counted(&daemon, &loud.id, 3_000).await;
        daemon.drained(&bus).await;
        let mut database = Database::of_tenant(&daemon, &loud.id).await;
        assert_eq!(database.number("SELECT COUNT(*) FROM usage_ledger").await, 3_000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_while_the_daemon_was_away_is_counted_when_it_is_back() {
    on_both(|engine| async move {
        let mut daemon = Setup::on(engine).with_nats().start().await;
        let bus = daemon.bus().await;
        let tenant = daemon.onboard("Acme").await;
        bus.publish(&tenant.event().json()).await;
        daemon.drained(&bus).await;
        daemon.terminate().await;
        for _ in 0..100 {
            bus.publish(&tenant.event().json()).await;
        }
        daemon.restart().await;
        counted(&daemon, &tenant.id, 101).await;
        daemon.drained(&bus).await;
    })
    .await;
}

/// A right that was taken away, as far as the server's answers go, and a table that is elsewhere.
const TAKE_AWAY: &str = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'permission denied for table usage_ledger' USING ERRCODE = '42501'; END $$;
    CREATE TRIGGER refusing BEFORE INSERT ON usage_ledger EXECUTE FUNCTION refuse()";
const GIVE_BACK: &str = "DROP TRIGGER refusing ON usage_ledger; DROP FUNCTION refuse()";
const MOVE_AWAY: &str = "ALTER TABLE usage_ledger RENAME TO elsewhere";
const MOVE_BACK: &str = "ALTER TABLE elsewhere RENAME TO usage_ledger";

#[tokio::test(flavor = "multi_thread")]
async fn events_that_a_database_refuses_through_no_fault_of_theirs_are_counted_when_it_is_mended() {
    let daemon = Setup::on(Engine::Postgres).with_nats().start().await;
    let bus = daemon.bus().await;
    let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
    let mut database = Database::of_tenant(&daemon, &acme.id).await;
    let (mut sent, mut passed) = (0, 0);
    for (spoil, mend) in [(TAKE_AWAY, GIVE_BACK), (MOVE_AWAY, MOVE_BACK)] {
        acme.post_events(&[acme.event()]).await;
        database.script(spoil.to_owned()).await.unwrap();
        // One that is inserted and one that is copied, from either side.
        for _ in 0..100 {
            bus.publish(&acme.event().json()).await;
        }
        let batch: Vec<Envelope> = (0..100).map(|_| acme.event()).collect();
        let body = Value::Array(batch.iter().map(Envelope::json).collect());
        let (path, headers) = ("/v1/usage/events", [("content-type", "application/json")]);
        let refused = acme.api.once(reqwest::Method::POST, path, &headers, body.to_string().into_bytes()).await;
        assert_eq!(refused.status, 503, "{}", refused.text);
        sent += 201;
        // Nobody else notices.
        bus.publish(&globex.event().json()).await;
        passed += 1;
        counted(&daemon, &globex.id, passed).await;
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        database.script(mend.to_owned()).await.unwrap();
        acme.post_events(&batch).await;
        counted(&daemon, &acme.id, sent).await;
        daemon.drained(&bus).await;
    }
    assert_eq!(acme.ledger().await.len(), sent as usize);
    let kept_aside = daemon.platform.pages("/v1/quarantine", 50).await;
    let refused: Vec<&Value> = kept_aside.iter().filter(|row| row["reason"] == "MALFORMED_EVENT").collect();
    assert!(refused.is_empty(), "L3: {refused:?}");
    let log = daemon.log();
    let told = log.lines().filter(|line| line.contains("\"ERROR\"") && line.contains("permission denied")).count();
    assert!(told > 0, "on-call is told");
}

/// A stream that would forget what we may have to read again is refused, in words.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_another_retention_is_refused() {
    let daemon = Daemon::prepare(Setup::on(Engine::Sqlite).with_nats()).await;
    let client = async_nats::connect(crate::harness::services::nats_url()).await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    let config = async_nats::jetstream::stream::Config {
        name: daemon.names.stream.clone(),
        subjects: vec![daemon.names.subject.clone(), format!("{}.*", daemon.names.subject)],
        retention: async_nats::jetstream::stream::RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    jetstream.create_stream(config).await.unwrap();
    let mut daemon = daemon;
    daemon.spawn();
    eventually("a clear word about the stream", || async {
        let log = daemon.log();
        (log.contains("retention") && log.contains(&daemon.names.stream)).then_some(())
    })
    .await;
}
