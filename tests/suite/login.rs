//! Browsers log in at a real OpenID provider (`tests/openid`) or with a password, and leave again; sessions are in a real
//! Redis or in the database.

use std::io::Write;

use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::harness::browser::{Browser, Provider};
use crate::harness::{Daemon, Engine, Setup, eventually, on_both};

const AUDIENCE: &str = "urn:platform-api";

/// A daemon at whose provider people log in.
async fn house(engine: Engine) -> (Daemon, Provider, String) {
    // Sessions in Redis with one engine, in the database with the other.
    let setup = if engine == Engine::Sqlite { Setup::on(engine).with_redis() } else { Setup::on(engine) };
    let mut daemon = Daemon::prepare(setup).await;
    let base = daemon.platform.base().to_owned();
    let clients = json!([
        {"id": "console", "secret": "secret", "redirectUris": [format!("{base}/v1/auth/callback")],
            "backChannelLogoutUri": format!("{base}/v1/auth/backchannel-logout")},
        {"id": "batch", "secret": "secret", "opaque": true},
    ]);
    let provider = Provider::start(&clients).await;
    let prefix = &daemon.redis_prefix;
    let settings = format!(
        "[auth.login]\npublic_url = \"{base}\"\nkey_prefix = \"{prefix}sessions:\"\ngrace_ms = 0\n\
         [[auth.issuers]]\nissuer = \"{}\"\naudience = \"{AUDIENCE}\"\nname = \"real\"\nprovision = true\n\
         introspection = {{ client_id = \"batch\", client_secret = \"secret\" }}\n\
         login = {{ client_id = \"console\", client_secret = \"secret\", scopes = [\"openid\", \"offline_access\"] }}\n",
        provider.issuer
    );
    std::fs::File::options()
        .append(true)
        .open(daemon.config_file())
        .and_then(|mut file| file.write_all(settings.as_bytes()))
        .expect("the folder is ours");
    daemon.restart().await;
    let acme = daemon.onboard("Acme").await;
    let jane = json!({"tenant": acme.id, "roles": ["admin"], "name": "Jane Doe", "preferred_username": "jane"});
    let users = json!({"jane": jane, "batch": {"tenant": acme.id, "roles": ["reader"]}});
    let told = Browser::new().send(Method::POST, &format!("{}/users", provider.issuer), &[], users.to_string()).await;
    assert_eq!(told.status, 204);
    (daemon, provider, acme.id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_logs_in_at_a_real_provider_works_and_leaves() {
    on_both(|engine| async move {
        let (daemon, provider, acme) = house(engine).await;
        let base = daemon.platform.base().to_owned();
        let mut browser = Browser::new();
        assert_eq!(browser.get(&format!("{base}/v1/auth/me")).await.code(), "AUTHENTICATION_REQUIRED");
        let back = browser.log_in(&base).await;
        assert_eq!((back.status, back.header("location")), (303, "/console"), "{}", back.text);
        let me = browser.get(&format!("{base}/v1/auth/me")).await.ok();
        assert_eq!(
            (&me["actor"], &me["tenantId"], &me["roles"]),
            (&json!("user:jane"), &json!(acme), &json!(["admin"]))
        );
        assert_eq!(me["session"]["name"], "Jane Doe");
        assert_eq!(me["session"]["csrfToken"], json!(browser.cookie(&base, "platform-csrf")));

        // She was added to her tenant's users, and a page of hers may change something; another's may not.
        let users = browser.get(&format!("{base}/v1/users?userName=jane")).await.ok();
        assert_eq!(users["items"][0]["subjects"][0], json!({"issuer": provider.issuer, "subject": "jane"}));
        let group = json!({"displayName": "Engineers"});
        let plain = [("content-type", "application/json"), ("origin", base.as_str())];
        let refused = browser.send(Method::POST, &format!("{base}/v1/groups"), &plain, group.to_string()).await;
        refused.refused(403, "CSRF_REFUSED");
        let token = browser.cookie(&base, "platform-csrf");
        let foreign =
            [("content-type", "application/json"), ("x-csrf-token", &token), ("origin", "https://evil.example.com")];
        let refused = browser.send(Method::POST, &format!("{base}/v1/groups"), &foreign, group.to_string()).await;
        refused.refused(403, "CSRF_REFUSED");
        assert_eq!(browser.change(&base, Method::POST, "/v1/groups", &group).await.status, 201);

        // Nor may a form of another site's, with which the browser sends no cookie, take the session's away.
        let mut elsewhere = Browser::new();
        let logout = format!("{base}/v1/auth/logout");
        let form = [("content-type", "application/x-www-form-urlencoded"), ("origin", "https://evil.example.com")];
        let refused = elsewhere.send(Method::POST, &logout, &form, String::new()).await;
        refused.refused(403, "CSRF_REFUSED");
        assert_eq!(refused.header("set-cookie"), "");

        // A refresh: the provider is asked with a refresh token that it changes each time.
        for _ in 0..2 {
            let before = browser.cookie(&base, "platform-session");
            browser.change(&base, Method::POST, "/v1/auth/refresh", &json!({})).await.ok();
            assert_ne!(browser.cookie(&base, "platform-session"), before);
        }
        assert_eq!(browser.get(&format!("{base}/v1/auth/me")).await.status, 200);
        let out = browser.change(&base, Method::POST, "/v1/auth/logout", &json!({})).await.ok();
        assert!(out["logoutUrl"].as_str().unwrap().starts_with(&provider.issuer), "{out}");
        assert_eq!(browser.cookie(&base, "platform-session"), "");
        assert_eq!(browser.get(&format!("{base}/v1/auth/me")).await.code(), "AUTHENTICATION_REQUIRED");
        let audit = daemon.platform.get(&format!("/v1/audit?tenantId={acme}")).await.ok().to_string();
        for action in ["session.opened", "session.ended", "user.created"] {
            assert!(audit.contains(action), "{action}: {audit}");
        }

        // Whoever plants a session in a browser has none when somebody has logged in there.
        browser.log_in(&base).await;
        let planted = browser.cookie(&base, "platform-session");
        browser.log_in(&base).await;
        let mut attacker = Browser::new();
        attacker.plant(&base, "platform-session", &planted);
        attacker.get(&format!("{base}/v1/auth/me")).await.refused(401, "INVALID_CREDENTIALS");

        // Leaving at the provider's ends it here, behind the browser's back.
        let end = format!("{}/session/end?client_id=console", provider.issuer);
        let form = browser.get(&end).await.text;
        let xsrf = form.split("name=\"xsrf\" value=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        let confirm = format!("{}/session/end/confirm", provider.issuer);
        let form = [("content-type", "application/x-www-form-urlencoded")];
        browser.send(Method::POST, &confirm, &form, format!("xsrf={xsrf}&logout=yes")).await;
        eventually("the session's end", || {
            let (http, cookie) = (browser.http.clone(), browser.cookie(&base, "platform-session"));
            let request = http.get(format!("{base}/v1/auth/me")).header("cookie", format!("platform-session={cookie}"));
            async move { (request.send().await.unwrap().status() == 401).then_some(()) }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_provider_s_opaque_token_is_looked_up_and_a_password_lets_in() {
    let (daemon, provider, acme) = house(Engine::Sqlite).await;
    let base = daemon.platform.base().to_owned();
    let http = Client::builder().no_proxy().build().unwrap();
    let request = http.post(format!("{}/token", provider.issuer)).basic_auth("batch", Some("secret"));
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let answer: Value = request.body("grant_type=client_credentials").send().await.unwrap().json().await.unwrap();
    let token = answer["access_token"].as_str().unwrap();
    assert!(!token.contains('.'), "opaque");
    let batch = daemon.platform.with(token);
    let me = batch.get("/v1/auth/me").await.ok();
    assert_eq!((&me["actor"], &me["tenantId"], &me["roles"]), (&json!("user:batch"), &json!(acme), &json!(["reader"])));
    daemon.platform.with("another-opaque-token").get("/v1/auth/me").await.refused(401, "INVALID_CREDENTIALS");

    // On the embedded database people may also have a password.
    assert_eq!(daemon.platform.get("/v1/auth/providers").await.ok()["providers"], json!(["real", "local"]));
    let of_acme = |path: &str| format!("{path}?tenantId={acme}");
    let user = daemon.platform.post(&of_acme("/v1/users"), &json!({"userName": "john"})).await.ok();
    let path = of_acme(&format!("/v1/users/{}/password", user["id"].as_str().unwrap()));
    daemon.platform.put(&path, &json!({"password": "short"})).await.refused(422, "VALIDATION_FAILED");
    daemon.platform.put(&path, &json!({"password": "correct horse battery"})).await.ok();
    let mut browser = Browser::new();
    let log_in = |name: &str, password: &str| json!({"userName": name, "password": password});
    for wrong in [log_in("john", "wrong horse battery"), log_in("nobody", "correct horse battery")] {
        let refused = browser.change(&base, Method::POST, "/v1/auth/local", &wrong).await;
        refused.refused(401, "INVALID_CREDENTIALS");
    }
    let right = log_in("John", "correct horse battery");
    let foreign = [("content-type", "application/json"), ("origin", "https://evil.example.com")];
    let refused = browser.send(Method::POST, &format!("{base}/v1/auth/local"), &foreign, right.to_string()).await;
    refused.refused(403, "CSRF_REFUSED");
    browser.change(&base, Method::POST, "/v1/auth/local", &right).await.ok();
    let me = browser.get(&format!("{base}/v1/auth/me")).await.ok();
    assert_eq!((&me["userId"], &me["session"]["provider"]), (&json!("john"), &json!("local")));
    // Its owner changes it, and only the browser that did so stays.
    let mut other = Browser::new();
    other.change(&base, Method::POST, "/v1/auth/local", &right).await.ok();
    let own = |current: &str, new: &str| json!({"currentPassword": current, "newPassword": new});
    let change = own("correct horse battery", "four other random words");
    for (body, pointer) in [
        (own("wrong horse battery", "four other random words"), "/currentPassword"),
        (own("correct horse battery", "short"), "/newPassword"),
        (own("correct horse battery", "correct horse battery"), "/newPassword"),
    ] {
        let refused = browser.change(&base, Method::PUT, "/v1/auth/password", &body).await;
        refused.refused(422, "VALIDATION_FAILED");
        assert_eq!(refused.body["error"]["details"]["fields"][0]["pointer"], pointer, "{}", refused.text);
    }
    let json = [("content-type", "application/json")];
    let unproven = browser.send(Method::PUT, &format!("{base}/v1/auth/password"), &json, change.to_string()).await;
    unproven.refused(403, "CSRF_REFUSED");
    batch.put("/v1/auth/password", &change).await.refused(403, "FORBIDDEN");
    daemon.platform.anonymous().put("/v1/auth/password", &change).await.refused(401, "AUTHENTICATION_REQUIRED");
    let before = browser.cookie(&base, "platform-session");
    let changed = browser.change(&base, Method::PUT, "/v1/auth/password", &change).await;
    assert_eq!(changed.ok()["provider"], "local");
    assert_ne!(browser.cookie(&base, "platform-session"), before);
    assert_eq!(browser.get(&format!("{base}/v1/auth/me")).await.ok()["userId"], "john");
    other.get(&format!("{base}/v1/auth/me")).await.refused(401, "INVALID_CREDENTIALS");
    other.change(&base, Method::POST, "/v1/auth/local", &right).await.refused(401, "INVALID_CREDENTIALS");
    other.change(&base, Method::POST, "/v1/auth/local", &log_in("john", "four other random words")).await.ok();
    let set = daemon.platform.pages("/v1/audit", 200).await;
    let by_owner =
        |record: &&Value| record["record"]["action"] == "password.set" && record["record"]["actor"] != "platform";
    assert_eq!(set.iter().filter(by_owner).count(), 1);
    daemon.platform.delete(&path).await.ok();
    browser.get(&format!("{base}/v1/auth/me")).await.refused(401, "INVALID_CREDENTIALS");
    let log = daemon.log();
    for secret in ["correct horse battery", token, "wrong horse", "four other random"] {
        assert!(!log.contains(secret), "a secret is in the log");
    }

    // A callback that nobody asked for shows nothing of what came with it.
    let callback =
        format!("{base}/v1/auth/callback?code=%3Cscript%3E&state=x&session_state=y&error_description=%3Cb%3E");
    let page = browser.get(&callback).await;
    assert_eq!((page.status, page.header("content-type")), (400, "text/html; charset=utf-8"));
    assert!(page.text.contains("LOGIN_FAILED") && !page.text.contains("script"), "{}", page.text);
    let elsewhere = browser.get(&format!("{base}/v1/auth/login?provider=real&returnTo=//evil.example.com")).await;
    elsewhere.refused(400, "INVALID_PARAMETER");
    browser.get(&format!("{base}/v1/auth/login?provider=nowhere")).await.refused(404, "LOGIN_OFF");
}
