//! Faults that are planted into traffic, through the gateway's real receivers: what was planted is found, under its own
//! name, and a tenant to whom nothing was done stays clean. The same seed gives the same traffic.

use platform_api::domain::reconcile::finding::{Cause, Status};
use platform_api::domain::reconcile::reading::InterruptionReason;
use platform_api::domain::reconcile::{Proof, Verdict};

use crate::harness::lab::{Fault, Habit, Lab};
use crate::harness::{Engine, on_both};

/// What only a log can tell.
const BY_REQUEST: [Cause; 5] =
    [Cause::LostInLedger, Cause::BypassedGateway, Cause::TenantMismatch, Cause::Duplicate, Cause::FailOpen];
const MINUTES: i64 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn what_tenants_do_is_found_and_the_others_stay_clean() {
    on_both(|engine| async move {
        let habits = [
            ("clean", Habit::Plain),
            ("refused", Habit::Refused),
            ("unlimited", Habit::Unlimited),
            ("long", Habit::Long),
            ("idle", Habit::Idle),
            ("bypassing", Habit::Bypassing),
            ("losing", Habit::Losing),
            ("doubling", Habit::Doubling),
            ("spoofing", Habit::Spoofing { as_member: 9 }),
            ("spoofed", Habit::Plain),
            ("never-here", Habit::NeverHere),
        ];
        let mut lab = Lab::open(engine, 20_261_121, &habits, &[]).await;
        lab.run(6 * MINUTES).await;
        assert!(lab.planted.len() >= 20, "{:?}", lab.planted);
        lab.finds_what_was_planted(&BY_REQUEST).await;
        for name in ["clean", "refused", "unlimited", "long", "idle"] {
            lab.stage.is_clean(lab.member(name)).await;
            assert_eq!(lab.causes(name).await, [], "{name}");
        }
        let requests = lab.stage.verdicts(lab.member("clean"), Proof::Requests).await;
        assert!(requests.len() >= 5 && requests.iter().all(|one| *one == Verdict::Matched), "{requests:?}");
        // The others have nothing but what was planted. Whoever never used the gateway has no record in its log, so that
        // only the counts say it.
        for (name, cause) in [
            ("bypassing", Cause::BypassedGateway),
            ("losing", Cause::LostInLedger),
            ("doubling", Cause::Duplicate),
            ("spoofing", Cause::TenantMismatch),
            ("spoofed", Cause::TenantMismatch),
            ("never-here", Cause::Unaccounted),
        ] {
            assert_eq!(lab.causes(name).await, [cause], "{name}");
            let firing = lab.stage.home(lab.member(name)).await.pulse().books().firing.len();
            assert_eq!(firing, 1, "{name}: a drift that persists alerts, once");
        }
        lab.stage.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_emptied_is_unproven_and_accuses_nobody() {
    let habits = [("busy", Habit::Plain), ("quiet", Habit::Pausing { from: 100, until: 260 })];
    let mut lab = Lab::open(Engine::Sqlite, 1, &habits, &[(150, Fault::FlushRedis)]).await;
    lab.run(6 * MINUTES).await;
    lab.finds_what_was_planted(&BY_REQUEST).await;
    for name in ["busy", "quiet"] {
        lab.stage.is_clean(lab.member(name)).await;
    }
    let told = lab.stage.told(lab.member("busy")).await;
    assert!(!told.is_empty(), "the counters were lost");
    for one in &told {
        assert_eq!((one.1, one.3), (Cause::LimiterReset, Status::Resolved), "{told:?}");
    }
    assert_eq!(lab.causes("quiet").await, []);
    lab.stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_away_lets_requests_through_which_is_found() {
    on_both(|engine| async move {
        let habits = [("busy", Habit::Plain), ("quiet", Habit::Pausing { from: 110, until: 240 })];
        let faults = [(140, Fault::KillRedis), (165, Fault::StartRedis)];
        let mut lab = Lab::open(engine, 2, &habits, &faults).await;
        lab.run(6 * MINUTES).await;
        assert!(lab.planted.keys().any(|(_, _, cause)| *cause == Cause::FailOpen), "{:?}", lab.planted);
        lab.finds_what_was_planted(&BY_REQUEST).await;
        let causes = lab.causes("busy").await;
        assert!(causes.iter().all(|cause| [Cause::FailOpen, Cause::LimiterReset].contains(cause)), "{causes:?}");
        lab.stage.is_clean(lab.member("quiet")).await;
        assert_eq!(lab.causes("quiet").await, []);
        lab.stage.close().await;
    })
    .await;
}

/// Longer than a window takes to settle: it is judged while nobody knows what was counted in it.
#[tokio::test(flavor = "multi_thread")]
async fn sources_that_are_away_for_long_prove_nothing_and_accuse_nobody() {
    let habits = [("busy", Habit::Plain), ("unlimited", Habit::Unlimited)];
    let faults = [(100, Fault::MetricsAway), (520, Fault::MetricsBack)];
    let mut lab = Lab::open(Engine::Sqlite, 3, &habits, &faults).await;
    lab.run(11 * MINUTES).await;
    for name in ["busy", "unlimited"] {
        lab.stage.is_clean(lab.member(name)).await;
        assert_eq!(lab.causes(name).await, [], "{name}");
    }
    let verdicts = lab.stage.verdicts(lab.member("busy"), Proof::Cumulative).await;
    assert!(verdicts.iter().filter(|one| **one == Verdict::Unproven).count() >= 6, "{verdicts:?}");
    assert!(verdicts.iter().filter(|one| **one == Verdict::Matched).count() >= 2, "{verdicts:?}");
    lab.stage.close().await;
    let faults = [(100, Fault::KillRedis), (520, Fault::StartRedis)];
    let mut lab = Lab::open(Engine::Sqlite, 4, &habits, &faults).await;
    lab.run(11 * MINUTES).await;
    lab.finds_what_was_planted(&BY_REQUEST).await;
    let causes = lab.causes("busy").await;
    assert!(causes.iter().all(|cause| [Cause::FailOpen, Cause::LimiterReset].contains(cause)), "{causes:?}");
    assert!(!lab.stage.verdicts(lab.member("busy"), Proof::Attempts).await.contains(&Verdict::Drift));
    lab.stage.is_clean(lab.member("unlimited")).await;
    lab.stage.close().await;
}

/// What is in the gateway's queue when it ends is in no log, and is no bypass for that; nobody is accused whose
/// consumer's counts did not come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_started_again_is_unproven_and_accuses_nobody() {
    on_both(|engine| async move {
        let habits = [
            ("busy", Habit::Plain),
            ("gone", Habit::Pausing { from: 158, until: 10_000 }),
            ("long", Habit::Long),
            ("losing", Habit::Losing),
        ];
        let mut lab = Lab::open(engine, 5, &habits, &[(158, Fault::RestartGateway)]).await;
        lab.run(6 * MINUTES).await;
        for name in ["busy", "gone", "long"] {
            lab.stage.is_clean(lab.member(name)).await;
            assert_eq!(lab.causes(name).await, [], "{name}");
            let judged = lab.stage.judged(lab.member(name), Proof::Requests).await;
            let restarted = judged.iter().any(|one| one.reasons.contains(&InterruptionReason::GatewayRestarted));
            assert!(restarted, "{name}: {judged:?}");
        }
        // What was lost is found all the same, but for what the gateway itself has forgotten.
        assert_eq!(lab.causes("losing").await, [Cause::LostInLedger]);
        lab.stage.close().await;
    })
    .await;
}

/// Kong drops what it could not post for a while: what has no record for that came no other way.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_proves_nothing_of_that_time_and_accuses_nobody() {
    on_both(|engine| async move {
        let habits = [("busy", Habit::Plain), ("unlimited", Habit::Unlimited), ("losing", Habit::Losing)];
        let faults = [(150, Fault::NodeAway), (330, Fault::NodeBack)];
        let mut lab = Lab::open(engine, 11, &habits, &faults).await;
        lab.run(9 * MINUTES).await;
        for name in ["busy", "unlimited"] {
            lab.stage.is_clean(lab.member(name)).await;
            assert_eq!(lab.causes(name).await, [], "{name}");
            let verdicts = lab.stage.verdicts(lab.member(name), Proof::Requests).await;
            let count = |verdict| verdicts.iter().filter(|one| **one == verdict).count();
            assert!(count(Verdict::Unproven) >= 3 && count(Verdict::Matched) >= 3, "{name}: {verdicts:?}");
        }
        assert_eq!(lab.causes("losing").await, [Cause::LostInLedger]);
        lab.stage.close().await;
    })
    .await;
}

/// What is held back until a window ends is no proof that is lost: within a window the meters run on, and at its end they
/// were told. A tenant whose meters move with every look costs a commit a window and source, not one a look.
#[tokio::test(flavor = "multi_thread")]
async fn receivers_that_die_lose_no_proof_and_a_look_costs_no_commit() {
    let quiet = Habit::Pausing { from: 100, until: 280 };
    let habits = [("busy", Habit::Plain), ("meters", Habit::Unlimited), ("quiet", quiet)];
    // In the middle of a window, shortly before it ends, and at once after it.
    let faults = [(150, Fault::KillReceivers), (226, Fault::KillReceivers), (295, Fault::KillReceivers)];
    let mut lab = Lab::open(Engine::Sqlite, 9, &habits, &faults).await;
    lab.run(8 * MINUTES).await;
    let (counts, attempts) = (Proof::Cumulative, Proof::Attempts);
    for (name, proof) in
        [("busy", counts), ("busy", attempts), ("meters", counts), ("quiet", counts), ("quiet", attempts)]
    {
        let judged = lab.stage.judged(lab.member(name), proof).await;
        assert!(judged.len() >= 4 && judged.iter().all(|one| one.verdict == Verdict::Matched), "{name}: {judged:?}");
    }
    lab.stage.close().await;

    // A limiter that counts at nearly every look, of a tenant for whom nothing else happens.
    let mut lab = Lab::open(Engine::Sqlite, 10, &[("meter", Habit::Refused)], &[]).await.without_log();
    let version = async |lab: &Lab| lab.stage.home(lab.member("meter")).await.pulse().books().version;
    let before = version(&lab).await;
    let windows = 20;
    lab.run(windows * MINUTES).await;
    let (looks, commits) = (windows * 12, version(&lab).await - before);
    // Each window is told and judged; the first is told twice.
    assert!(commits <= 2 * windows + 4, "{looks} looks in {windows} windows: {commits} commits");
    lab.stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_apart_are_told_until_they_agree_again() {
    let habits = [("busy", Habit::Plain), ("quiet", Habit::Pausing { from: 0, until: 240 })];
    let faults = [(0, Fault::Clock(20)), (200, Fault::Clock(0))];
    let mut lab = Lab::open(Engine::Sqlite, 6, &habits, &faults).await;
    lab.run(8 * MINUTES).await;
    for name in ["busy", "quiet"] {
        lab.stage.is_clean(lab.member(name)).await;
    }
    let told = lab.stage.told(lab.member("busy")).await;
    assert!(told.len() >= 2, "{told:?}");
    for one in &told {
        assert_eq!((one.1, one.3), (Cause::ClockSkew, Status::Resolved), "{told:?}");
    }
    assert_eq!(lab.causes("quiet").await, []);
    lab.stage.close().await;
}

/// Without an access log counts say how many, and not which: no one is accused of what could be something else.
#[tokio::test(flavor = "multi_thread")]
async fn without_an_access_log_what_is_told_has_the_weaker_name() {
    let habits = [
        ("clean", Habit::Plain),
        ("refused", Habit::Refused),
        ("unlimited", Habit::Unlimited),
        ("never-here", Habit::NeverHere),
        ("doubling", Habit::Doubling),
        ("losing-slowly", Habit::LosingSlowly),
    ];
    let mut lab = Lab::open(Engine::Sqlite, 7, &habits, &[]).await.without_log();
    lab.run(26 * MINUTES).await;
    for name in ["clean", "refused", "unlimited"] {
        lab.stage.is_clean(lab.member(name)).await;
        assert_eq!(lab.causes(name).await, [], "{name}");
        assert_eq!(lab.stage.verdicts(lab.member(name), Proof::Requests).await, [], "there is no log");
    }
    assert_eq!(lab.causes("never-here").await, [Cause::Unaccounted]);
    assert_eq!(lab.causes("doubling").await, [Cause::Unaccounted]);
    // One call a minute hides in every window, and alerts when it has added up.
    assert_eq!(lab.causes("losing-slowly").await, [Cause::LostInLedger]);
    let home = lab.stage.home(lab.member("losing-slowly")).await;
    assert_eq!(home.pulse().books().firing.len(), 1);
    let verdicts = lab.stage.verdicts(lab.member("losing-slowly"), Proof::Cumulative).await;
    assert!(verdicts.iter().filter(|one| **one == Verdict::Matched).count() > 10, "{verdicts:?}");
    lab.stage.close().await;
}

/// The same seed, the same findings, whatever the engine and the machine do.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_tells_the_same_story() {
    let habits = [("bypassing", Habit::Bypassing), ("losing", Habit::Losing)];
    let mut stories = Vec::new();
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let mut lab = Lab::open(engine, 8, &habits, &[(100, Fault::RestartGateway)]).await;
        lab.run(4 * MINUTES).await;
        let mut story = Vec::new();
        for member in &lab.members {
            story.push((lab.stage.told(member.id).await, lab.stage.judged(member.id, Proof::Requests).await));
        }
        stories.push(story);
        lab.stage.close().await;
    }
    assert_eq!(stories[0], stories[1]);
}
