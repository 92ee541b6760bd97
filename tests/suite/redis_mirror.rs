//! Standings in Redis for gateways that read it, and a daemon that does not need it.

use redis::AsyncCommands;
use serde_json::{Value, json};

use crate::harness::events::token_quota;
use crate::harness::{Setup, eventually, on_both, services};

async fn read(key: &str) -> Option<(Value, i64)> {
    let mut connection = services::redis_at(&services::redis_url()).await;
    let text: Option<String> = connection.get(key).await.unwrap();
    let ttl: i64 = connection.pttl(key).await.unwrap();
    text.map(|text| (serde_json::from_str(&text).unwrap(), ttl))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_reads_in_redis_what_was_committed() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with_redis().with("REDIS__TTL_MS", 60_000).start().await;
        let tenant = daemon.onboard("Acme").await;
        tenant.put_quotas(json!([token_quota(100, "month")])).await;
        tenant.post_events(&[tenant.event().tokens(60, 20)]).await;
        let key = format!("{}{}", daemon.redis_prefix, tenant.id);
        let (document, ttl) = eventually("the standing in Redis", || async {
            read(&key).await.filter(|(document, _)| document["quotas"][0]["used"] == 80)
        })
        .await;
        assert_eq!(document["tenantId"], Value::String(tenant.id.clone()));
        assert_eq!(document["decision"], "warn");
        assert_eq!(document["quotas"][0]["remaining"], 20);
        assert_eq!(document["quotas"][0]["resetAt"], tenant.quotas().await[0]["resetAt"]);
        assert!((1..=60_000).contains(&ttl), "{ttl} ms");
        tenant.post_events(&[tenant.event().tokens(20, 0)]).await;
        eventually("the denial in Redis", || async {
            read(&key).await.filter(|(document, _)| document["decision"] == "deny")
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_out_of_reach_degrades_health_and_nothing_else() {
    on_both(|engine| async move {
        let nobody = format!("redis://127.0.0.1:{}/", services::free_port());
        let daemon = Setup::on(engine).with("REDIS__URL", nobody).start().await;
        let tenant = daemon.onboard("Acme").await;
        tenant.put_quotas(json!([token_quota(100, "month")])).await;
        tenant.post_events(&[tenant.event().tokens(60, 40)]).await;
        assert_eq!(tenant.decision("").await["decision"], "deny");
        let health = eventually("health to notice", || async {
            let health = daemon.platform.anonymous().get("/health").await;
            (health.body["dependencies"]["redis"]["status"] == "down").then_some(health)
        })
        .await;
        assert_eq!((health.status, &health.body["status"]), (200, &json!("degraded")), "{}", health.text);
        assert_eq!(daemon.platform.anonymous().get("/health/ready").await.status, 200);
    })
    .await;
}
