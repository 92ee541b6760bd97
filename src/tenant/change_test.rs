//! Changes to quotas, calendar and chain, as those who ask for them see them.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::Arc;

use ractor::concurrency::oneshot;
use serde_json::{Value, json};

use super::guess::Guess;
use super::message::{ChangeRefused, QuotaDraft, ReplaceQuotas};
use super::retry_test::entry;
use super::work::{Reply, Unit, Work};
use super::writer;
use crate::domain::books::Books;
use crate::domain::ids::QuotaId;
use crate::domain::period::PeriodKind;
use crate::domain::quota::{Metric, Quota, Scope, Standing};
use crate::domain::request::{Answer, Idempotency, Request};
use crate::store::database::Connection;
use crate::store::tests::harness::{House, NOW, quota_of};

crate::store::tests::conformance!(
    a_quota_keeps_its_id_in_its_new_form,
    a_set_that_contradicts_itself_is_refused_whole,
    a_replacement_is_made_once_per_key,
    the_calendar_moves_once_per_key,
    a_record_is_appended_once_per_key,
);

struct Tenant {
    connection: Connection,
    books: Arc<Books>,
}

impl Tenant {
    async fn of(house: &House) -> Tenant {
        let (_, connection, books) = house.owner().await;
        Tenant { connection, books: Arc::new(books) }
    }

    async fn write<T: Send + 'static>(&mut self, work: impl FnOnce(ractor::RpcReplyPort<T>) -> Work) -> T {
        let (reply, answer) = oneshot();
        let unit = Unit { books: self.books.clone(), work: vec![work(reply.into())] };
        let written = writer::write(&mut self.connection, &mut Guess::default(), unit).await.unwrap();
        self.books = written.books;
        written.answers.into_iter().for_each(Reply::send);
        answer.await.unwrap()
    }

    async fn replace(
        &mut self,
        quotas: Vec<QuotaDraft>,
        key: Option<(&str, u8)>,
    ) -> Result<Answer<Vec<Standing>>, ChangeRefused> {
        let idempotency = key.map(|(key, body)| Idempotency { key: key.into(), body_hash: [body; 32] });
        let request = Request { actor: "apiKey:k".into(), request_id: "request-1".into(), idempotency };
        let render = |standings: &[Standing]| format!("{} quotas", standings.len());
        let change = ReplaceQuotas { quotas, request, now: NOW, render };
        self.write(|reply| Work::Replace { change, reply }).await
    }

    async fn append(&mut self, once: Option<&str>) {
        let once = once.map(str::to_owned);
        self.write(|reply| Work::Append { entry: entry(), once, now: NOW, reply }).await;
    }

    async fn move_to(&mut self, zone: &str, once: &str) -> Result<(), ChangeRefused> {
        let (name, once) = (zone.to_owned(), once.to_owned());
        self.write(|reply| Work::ChangeTimeZone { name, entry: entry(), once, now: NOW, reply }).await
    }

    fn ids(&self) -> Vec<QuotaId> {
        self.books.quotas.iter().map(|quota| quota.id).collect()
    }

    /// Action and payload of the chain's last record.
    async fn last_record(&mut self) -> (String, Value) {
        let sql = "SELECT action, payload FROM audit_record ORDER BY seq DESC LIMIT 1";
        let rows = self.connection.fetch(sql, &[]).await.unwrap();
        (rows[0].text(0).unwrap(), serde_json::from_str(&rows[0].text(1).unwrap()).unwrap())
    }
}

fn tokens(period: PeriodKind, limit: i64) -> Quota {
    quota_of(Scope::Tenant, Metric::Tokens, period, limit)
}

fn draft(quota: &Quota) -> QuotaDraft {
    QuotaDraft { quota: quota.clone(), named: false }
}

fn named(quota: &Quota, id: QuotaId) -> QuotaDraft {
    QuotaDraft { quota: Quota { id, ..quota.clone() }, named: true }
}

async fn a_quota_keeps_its_id_in_its_new_form(house: &House) {
    let mut tenant = Tenant::of(house).await;
    let (day, hour) = (tokens(PeriodKind::Day, 100), tokens(PeriodKind::Hour, 10));
    assert!(tenant.replace(vec![draft(&day), draft(&hour)], None).await.is_ok());
    assert_eq!(tenant.ids(), [day.id, hour.id]);
    // Without a name, what counts the same is the same quota; by its name, it may count something else.
    let (higher, month) = (tokens(PeriodKind::Day, 200), tokens(PeriodKind::Month, 3_000));
    let week = tokens(PeriodKind::Week, 700);
    assert!(tenant.replace(vec![draft(&week), draft(&higher), named(&month, hour.id)], None).await.is_ok());
    assert_eq!(tenant.ids(), [week.id, day.id, hour.id]);
    let forms: Vec<(PeriodKind, i64)> = tenant.books.quotas.iter().map(|quota| (quota.period, quota.limit)).collect();
    assert_eq!(forms, [(PeriodKind::Week, 700), (PeriodKind::Day, 200), (PeriodKind::Month, 3_000)]);
    let (action, payload) = tenant.last_record().await;
    let row = json!({
        "id": day.id,
        "scope": "tenant",
        "scopeId": "",
        "metric": "tokens",
        "period": "day",
        "limit": 200,
        "thresholds": [50, 80, 100],
        "enforcement": "block",
    });
    assert_eq!((action.as_str(), &payload["quotas"][1]), ("quotas.replaced", &row));
    // A name is worth more than what counts the same: there cannot be two of one id.
    let anew = tokens(PeriodKind::Day, 300);
    let total = tokens(PeriodKind::Total, 9);
    assert!(tenant.replace(vec![draft(&anew), named(&total, day.id)], None).await.is_ok());
    assert_eq!(tenant.ids(), [anew.id, day.id]);
}

async fn a_set_that_contradicts_itself_is_refused_whole(house: &House) {
    let mut tenant = Tenant::of(house).await;
    let (day, hour) = (tokens(PeriodKind::Day, 100), tokens(PeriodKind::Hour, 10));
    assert!(tenant.replace(vec![draft(&day), draft(&hour)], None).await.is_ok());
    let before = tenant.books.clone();
    let (week, month) = (tokens(PeriodKind::Week, 1), tokens(PeriodKind::Month, 1));
    let unknown = QuotaId(crate::clock::new_id());
    let refused = [
        (vec![draft(&week), draft(&tokens(PeriodKind::Week, 2))], ChangeRefused::SameQuotaTwice { index: 1 }),
        (vec![named(&week, day.id), named(&month, day.id)], ChangeRefused::SameQuotaTwice { index: 1 }),
        (vec![draft(&week), named(&month, unknown)], ChangeRefused::UnknownQuota { index: 1 }),
    ];
    for (drafts, reason) in refused {
        assert_eq!(tenant.replace(drafts, None).await, Err(reason));
        assert_eq!((tenant.ids(), tenant.books.head), ([day.id, hour.id].to_vec(), before.head));
    }
}

async fn a_replacement_is_made_once_per_key(house: &House) {
    let mut tenant = Tenant::of(house).await;
    let (day, hour) = (tokens(PeriodKind::Day, 100), tokens(PeriodKind::Hour, 10));
    let fresh = tenant.replace(vec![draft(&day), draft(&hour)], Some(("key", 1))).await;
    assert!(matches!(fresh, Ok(Answer::Fresh(standings)) if standings.len() == 2));
    let head = tenant.books.head;
    let again = tenant.replace(vec![draft(&day), draft(&hour)], Some(("key", 1))).await;
    assert_eq!(again, Ok(Answer::Replayed("2 quotas".into())));
    let other = tenant.replace(vec![draft(&day)], Some(("key", 2))).await;
    assert_eq!(other, Err(ChangeRefused::IdempotencyMismatch));
    assert_eq!((tenant.ids(), tenant.books.head), (vec![day.id, hour.id], head));
    assert!(matches!(tenant.replace(vec![draft(&day)], Some(("other", 2))).await, Ok(Answer::Fresh(_))));
    assert!(matches!(tenant.replace(Vec::new(), None).await, Ok(Answer::Fresh(_))));
    assert_eq!(tenant.ids(), []);
}

async fn the_calendar_moves_once_per_key(house: &House) {
    let mut tenant = Tenant::of(house).await;
    assert_eq!(tenant.move_to("Mars/Olympus", "1").await, Err(ChangeRefused::UnknownTimeZone));
    assert_eq!(tenant.move_to("Asia/Tokyo", "1").await, Ok(()));
    let head = tenant.books.head;
    // Said again, because nobody heard that it was done; meanwhile it may have moved on.
    assert_eq!(tenant.move_to("Europe/Oslo", "1").await, Ok(()));
    assert_eq!((tenant.books.time_zone.iana_name(), tenant.books.head), (Some("Asia/Tokyo"), head));
    assert_eq!(tenant.move_to("Europe/Oslo", "2").await, Ok(()));
    assert_eq!(tenant.books.time_zone.iana_name(), Some("Europe/Oslo"));
}

async fn a_record_is_appended_once_per_key(house: &House) {
    let mut tenant = Tenant::of(house).await;
    let begun = tenant.books.head.seq;
    let mut lengths = Vec::new();
    for once in [None, None, Some("a"), Some("a"), Some("b"), Some("a")] {
        tenant.append(once).await;
        lengths.push(tenant.books.head.seq - begun);
    }
    assert_eq!(lengths, [1, 2, 3, 3, 4, 4]);
    assert_eq!(tenant.last_record().await.0, "tenant.amended");
}
